//! Pure: the words of `tombolo/1`, byte by byte as docs/tombolo-1.md has them.
//!
//! One flow at a time on each TLS connection: a header, an answer of one byte, then the bytes of the flow. The
//! sockets are in the files below. A header is as untrusted as the headers of a CONNECT: the
//! destination is checked against what is ours, the rest is only for logs.

pub(crate) mod client;
mod demand;
pub(crate) mod pool;
pub(crate) mod server;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::hbone::TraceParent;
use crate::net::addr::canonical;

/// What opens a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header<'a> {
    /// Where it is to go: a workload's own address and port (HBONE's `:authority`).
    pub destination: SocketAddr,
    /// Who opened it (`for` of HBONE's `forwarded`).
    pub client: SocketAddr,
    /// The service that was asked for (`host` of HBONE's `forwarded`).
    pub service: Option<&'a str>,
    pub trace: Option<TraceParent>,
    /// As HBONE's header of that name.
    pub baggage: &'a str,
}

/// Why bytes are not a header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("version {found} of the flow header is not known here, only {VERSION}")]
    Version { found: u8 },
    #[error("a flow header says that it has {bytes} bytes; {MIN_BODY_BYTES} to {MAX_BODY_BYTES} are allowed")]
    Length { bytes: usize },
    #[error("the flow header ends within its {field}")]
    Short { field: &'static str },
    #[error("the {field} of the flow header is not UTF-8")]
    Text { field: &'static str },
    #[error("the destination of the flow header has port 0")]
    Port,
}

/// What the server says to a header. It may also say [`Answer::Closing`] to a connection without one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The application is connected; what follows is its bytes.
    Accepted,
    /// The header cannot be read (HBONE's 400).
    Malformed,
    /// The destination is not an address of this host (400).
    NotOurs,
    /// A policy denies it (401).
    Denied,
    /// No workload of this host listens there for the mesh (503).
    NotListening,
    /// The application does not accept (503).
    Unreachable,
    /// No flow is taken on this connection; on another, perhaps.
    Closing,
}

/// The body's length, from the fixed part at the beginning.
pub fn body_length(start: [u8; START_BYTES]) -> Result<usize, HeaderError> {
    let [version, high, low] = start;
    if version != VERSION {
        return Err(HeaderError::Version { found: version });
    }
    let bytes = usize::from(u16::from_be_bytes([high, low]));
    let allowed = (MIN_BODY_BYTES..=MAX_BODY_BYTES).contains(&bytes);
    allowed.then_some(bytes).ok_or(HeaderError::Length { bytes })
}

impl<'a> Header<'a> {
    /// The whole header. Text that is longer than it may be is left out: it is for logs only.
    pub fn encode(&self) -> Vec<u8> {
        let service = self.service.filter(|service| service.len() <= MAX_SERVICE_BYTES).unwrap_or_default();
        let room = MAX_BODY_BYTES - MIN_BODY_BYTES - service.len();
        let baggage = if self.baggage.len() <= room { self.baggage } else { "" };
        let body = MIN_BODY_BYTES + service.len() + baggage.len();
        let mut bytes = Vec::with_capacity(START_BYTES + body);
        bytes.push(VERSION);
        bytes.extend(u16::try_from(body).unwrap_or(u16::MAX).to_be_bytes());
        for address in [self.destination, self.client] {
            bytes.extend(mapped(address.ip()).octets());
            bytes.extend(address.port().to_be_bytes());
        }
        let trace = self.trace.unwrap_or(TraceParent { trace_id: 0, span_id: 0, flags: 0 });
        bytes.extend(trace.trace_id.to_be_bytes());
        bytes.extend(trace.span_id.to_be_bytes());
        bytes.push(trace.flags);
        bytes.push(u8::try_from(service.len()).unwrap_or(u8::MAX));
        bytes.extend(service.as_bytes());
        bytes.extend(baggage.as_bytes());
        bytes
    }

    /// Reads a body of the length that [`body_length`] gave.
    pub fn decode(body: &'a [u8]) -> Result<Self, HeaderError> {
        let mut rest = body;
        let destination = address(&mut rest, "destination")?;
        if destination.port() == 0 {
            return Err(HeaderError::Port);
        }
        let client = address(&mut rest, "client")?;
        let trace = TraceParent {
            trace_id: u128::from_be_bytes(take(&mut rest, "trace")?),
            span_id: u64::from_be_bytes(take(&mut rest, "trace")?),
            flags: u8::from_be_bytes(take(&mut rest, "trace")?),
        };
        let length = usize::from(u8::from_be_bytes(take(&mut rest, "service")?));
        let (service, baggage) = rest.split_at_checked(length).ok_or(HeaderError::Short { field: "service" })?;
        let service = text(service, "service")?;
        Ok(Self {
            destination,
            client,
            service: Some(service).filter(|service| !service.is_empty()),
            trace: Some(trace).filter(|trace| trace.trace_id != 0 && trace.span_id != 0),
            baggage: text(baggage, "baggage")?,
        })
    }
}

impl Answer {
    const ALL: [Self; 7] = [
        Self::Accepted,
        Self::Malformed,
        Self::NotOurs,
        Self::Denied,
        Self::NotListening,
        Self::Unreachable,
        Self::Closing,
    ];

    pub fn byte(self) -> u8 {
        match self {
            Self::Accepted => 0,
            Self::Malformed => 1,
            Self::NotOurs => 2,
            Self::Denied => 3,
            Self::NotListening => 4,
            Self::Unreachable => 5,
            Self::Closing => 6,
        }
    }

    /// `None` for a byte that this version does not know.
    pub fn of(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|answer| answer.byte() == byte)
    }
}

fn mapped(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

fn address(rest: &mut &[u8], field: &'static str) -> Result<SocketAddr, HeaderError> {
    let ip = Ipv6Addr::from(take::<16>(rest, field)?);
    let port = u16::from_be_bytes(take(rest, field)?);
    Ok(canonical(SocketAddr::new(ip.into(), port)))
}

fn take<const N: usize>(rest: &mut &[u8], field: &'static str) -> Result<[u8; N], HeaderError> {
    let (taken, after) = rest.split_first_chunk().ok_or(HeaderError::Short { field })?;
    *rest = after;
    Ok(*taken)
}

fn text<'a>(bytes: &'a [u8], field: &'static str) -> Result<&'a str, HeaderError> {
    std::str::from_utf8(bytes).map_err(|_| HeaderError::Text { field })
}

/// The first byte of every header.
const VERSION: u8 = 1;
/// Version and length of the body.
pub const START_BYTES: usize = 3;
/// Two addresses with ports, a trace, the length of the service.
const MIN_BODY_BYTES: usize = 2 * (16 + 2) + (16 + 8 + 1) + 1;
/// Baggage of 8192 bytes (W3C Baggage §3.3.2) is cut by as much as the rest needs.
const MAX_BODY_BYTES: usize = 8192;
/// A host name has at most 253 characters (RFC 1035 §2.3.4).
const MAX_SERVICE_BYTES: usize = 253;

#[cfg(test)]
mod tests;
