//! Pure: the words of HBONE, header values in and out. The sockets are in the files below.
//!
//! `:authority`, `baggage`, `forwarded` and `traceparent` as ztunnel's `src/proxy/outbound.rs` writes them.
//! All of it is untrusted: the authority is checked against what is ours, the rest is only for logs.

pub(crate) mod client;
pub(crate) mod keepalive;
pub(crate) mod pool;
pub(crate) mod server;

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use api::Workload;

/// Telemetry of the workload that speaks (W3C Baggage with OpenTelemetry's resource names).
pub(crate) const BAGGAGE: &str = "baggage";
/// Who opened the connection and by which name (RFC 7239).
pub(crate) const FORWARDED: &str = "forwarded";
/// W3C Trace Context.
pub(crate) const TRACEPARENT: &str = "traceparent";

/// Where a CONNECT wants to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authority {
    /// An address and port.
    Address(SocketAddr),
    /// A name, lower-case and without a final dot, and a port.
    Name { host: String, port: u16 },
}

/// Why a CONNECT's authority cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityError {
    #[error("the authority of {bytes} bytes is longer than the {MAX_AUTHORITY_BYTES} that are allowed")]
    TooLong { bytes: usize },
    #[error("the authority {authority:?} has no port")]
    NoPort { authority: String },
    #[error("the authority {authority:?} has no usable port: 1 to 65535")]
    Port { authority: String },
    #[error("the authority {authority:?} is neither ADDRESS:PORT nor NAME:PORT")]
    Host { authority: String },
}

impl FromStr for Authority {
    type Err = AuthorityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_AUTHORITY_BYTES {
            return Err(AuthorityError::TooLong { bytes: text.len() });
        }
        let authority = || text.to_owned();
        let (host, port) = text.rsplit_once(':').ok_or_else(|| AuthorityError::NoPort { authority: authority() })?;
        if text.ends_with(']') {
            return Err(AuthorityError::NoPort { authority: authority() });
        }
        // `u16::from_str` takes a leading plus.
        let digits = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.parse().ok().filter(|port| digits && *port != 0);
        let port = port.ok_or_else(|| AuthorityError::Port { authority: authority() })?;
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self::Address(crate::net::addr::canonical(address)));
        }
        let host = host.strip_suffix('.').unwrap_or(host);
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if host.is_empty() || host.starts_with('.') || host.contains("..") || !host.bytes().all(allowed) {
            return Err(AuthorityError::Host { authority: authority() });
        }
        Ok(Self::Name { host: host.to_ascii_lowercase(), port })
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// Who a workload says it is, for telemetry only. Empty parts are not sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Baggage<'a> {
    pub cluster: Cow<'a, str>,
    pub namespace: Cow<'a, str>,
    /// Its deployment, group or job.
    pub workload: Cow<'a, str>,
    pub service: Cow<'a, str>,
    pub revision: Cow<'a, str>,
    pub region: Cow<'a, str>,
    pub zone: Cow<'a, str>,
}

impl<'a> Baggage<'a> {
    /// What `workload` says of itself.
    pub fn of(workload: &'a Workload) -> Self {
        Self {
            cluster: workload.cluster_id.as_str().into(),
            namespace: workload.namespace.as_str().into(),
            workload: workload.workload_name.as_str().into(),
            service: workload.canonical_name.as_str().into(),
            revision: workload.canonical_revision.as_str().into(),
            region: workload.locality.region.as_str().into(),
            zone: workload.locality.zone.as_str().into(),
        }
    }

    /// Reads what it can; what it does not know or cannot read is left out, as W3C Baggage asks.
    pub fn parse(text: &'a str) -> Self {
        let mut baggage = Self::default();
        if text.len() > MAX_BAGGAGE_BYTES {
            return baggage;
        }
        for member in text.split(',').take(MAX_BAGGAGE_MEMBERS) {
            // Properties after a semicolon are nothing to us.
            let member = member.split(';').next().unwrap_or_default();
            let Some((key, value)) = member.split_once('=') else { continue };
            let Some(field) = baggage.field(key.trim()) else { continue };
            if let Some(value) = decode(value.trim()) {
                *field = value;
            }
        }
        baggage
    }

    fn field(&mut self, key: &str) -> Option<&mut Cow<'a, str>> {
        match key {
            "k8s.cluster.name" => Some(&mut self.cluster),
            "k8s.namespace.name" => Some(&mut self.namespace),
            "k8s.deployment.name" | "k8s.cronjob.name" | "k8s.pod.name" | "k8s.job.name" => Some(&mut self.workload),
            "service.name" => Some(&mut self.service),
            "service.version" => Some(&mut self.revision),
            "cloud.region" => Some(&mut self.region),
            "cloud.availability_zone" => Some(&mut self.zone),
            _ => None,
        }
    }
}

impl fmt::Display for Baggage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members = [
            ("k8s.cluster.name", &self.cluster),
            ("k8s.namespace.name", &self.namespace),
            ("k8s.deployment.name", &self.workload),
            ("service.name", &self.service),
            ("service.version", &self.revision),
            ("cloud.region", &self.region),
            ("cloud.availability_zone", &self.zone),
        ];
        let said = members.into_iter().filter(|(_, value)| !value.is_empty());
        for (i, (key, value)) in said.enumerate() {
            let comma = if i > 0 { "," } else { "" };
            write!(f, "{comma}{key}={}", encode(value))?;
        }
        Ok(())
    }
}

/// Percent-encodes what W3C Baggage does not allow in a value (its §3.3.1.3, baggage-octet).
fn encode(value: &str) -> Cow<'_, str> {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b',' | b';' | b'\\' | b'%');
    if value.bytes().all(plain) {
        return value.into();
    }
    let encoded = value.bytes().map(|byte| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    });
    encoded.collect::<String>().into()
}

/// `None` for what is not UTF-8 once decoded.
fn decode(value: &str) -> Option<Cow<'_, str>> {
    if !value.contains('%') {
        return Some(value.into());
    }
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).filter(|_| *first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        let decoded = hex.filter(|hex| !hex.starts_with('+')).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(decoded.unwrap_or(*first));
        rest = if decoded.is_some() { &after[2..] } else { after };
    }
    String::from_utf8(bytes).ok().map(Cow::Owned)
}

/// Who opened the connection, and the service it asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forwarded<'a> {
    pub client: SocketAddr,
    pub host: Option<&'a str>,
}

impl<'a> Forwarded<'a> {
    /// Reads the first hop; `None` if it names no address and port.
    pub fn parse(text: &'a str) -> Option<Self> {
        let first = text.split(',').next()?;
        let pairs = || first.split(';').filter_map(|pair| pair.split_once('='));
        let value = |name: &str| {
            let (_, value) = pairs().find(|(key, _)| key.trim().eq_ignore_ascii_case(name))?;
            Some(value.trim().trim_matches('"'))
        };
        Some(Self { client: value("for")?.parse().ok()?, host: value("host").filter(|host| !host.is_empty()) })
    }
}

impl fmt::Display for Forwarded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "for=\"{}\"", self.client)?;
        self.host.map_or(Ok(()), |host| write!(f, ";host={host}"))
    }
}

/// The trace and span that a connection belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceParent {
    pub trace_id: u128,
    pub span_id: u64,
    pub flags: u8,
}

impl TraceParent {
    /// A new trace, not sampled. The numbers come from the caller's dice; zero means "none" in the
    /// specification and becomes one.
    pub fn fresh(trace_id: u128, span_id: u64) -> Self {
        Self { trace_id: trace_id.max(1), span_id: span_id.max(1), flags: 0 }
    }

    /// Version 00 only, exactly 55 characters, as ztunnel demands.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let lower_hex = |part: &[u8]| part.iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b));
        if bytes.len() != 55 || !text.is_ascii() || !text.starts_with("00-") || bytes[35] != b'-' || bytes[52] != b'-' {
            return None;
        }
        if ![&bytes[3..35], &bytes[36..52], &bytes[53..]].into_iter().all(lower_hex) {
            return None;
        }
        let trace_id = u128::from_str_radix(&text[3..35], 16).ok()?;
        let span_id = u64::from_str_radix(&text[36..52], 16).ok()?;
        let flags = u8::from_str_radix(&text[53..], 16).ok()?;
        (trace_id != 0 && span_id != 0).then_some(Self { trace_id, span_id, flags })
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, self.flags)
    }
}

/// A host name has at most 253 characters (RFC 1035 §2.3.4), a port 5.
const MAX_AUTHORITY_BYTES: usize = 253 + 1 + 5;
/// What a baggage reader must at least take (W3C Baggage §3.3.2), and we at most.
const MAX_BAGGAGE_BYTES: usize = 8192;
const MAX_BAGGAGE_MEMBERS: usize = 64;

#[cfg(test)]
mod tests;
