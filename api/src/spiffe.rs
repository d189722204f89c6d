//! SPIFFE identities as this mesh uses them. Pure: parsing, printing, comparing.
//!
//! Grammar: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT` for workloads (the only shape a
//! stock ztunnel accepts) and `spiffe://TRUST-DOMAIN/host/NAME` for hosts.
//! Character rules: SPIFFE-ID specification §2.1 and §2.2.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The longest SPIFFE ID that must be supported, in bytes (SPIFFE-ID specification §2.3).
const MAX_ID_BYTES: usize = 2048;
/// The longest trust domain, in bytes (SPIFFE-ID specification §2.3).
const MAX_TRUST_DOMAIN_BYTES: usize = 255;

/// The name of one administrative realm with its own roots: lower-case letters, digits, `.`, `-`, `_`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

/// One identity of the mesh: a workload's or a host's. Clones share it: every open connection has two.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId(Arc<Parts>);

#[derive(PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Parts {
    trust_domain: TrustDomain,
    path: IdPath,
}

#[derive(PartialEq, Eq, Hash, PartialOrd, Ord)]
enum IdPath {
    Workload { namespace: Box<str>, service_account: Box<str> },
    Host { name: Box<str> },
}

/// Why a text is not an identity of this mesh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    #[error("{text:?} is not a SPIFFE ID: it must begin with spiffe://")]
    Scheme { text: String },
    #[error("a SPIFFE ID of {bytes} bytes is longer than the {MAX_ID_BYTES} that are allowed")]
    TooLong { bytes: usize },
    #[error("{text:?} is not a trust domain: 1 to {MAX_TRUST_DOMAIN_BYTES} of a-z 0-9 . - _")]
    TrustDomain { text: String },
    #[error("{text:?} is neither /ns/NAMESPACE/sa/SERVICE-ACCOUNT nor /host/NAME")]
    Path { text: String },
}

impl TrustDomain {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > MAX_TRUST_DOMAIN_BYTES || !text.bytes().all(allowed) {
            return Err(SpiffeError::TrustDomain { text: shorten(text) });
        }
        Ok(Self(text.into()))
    }
}

impl SpiffeId {
    /// `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.
    pub fn workload(trust_domain: &TrustDomain, namespace: &str, service_account: &str) -> Result<Self, SpiffeError> {
        let path = format!("/ns/{namespace}/sa/{service_account}");
        Ok(Self::of(trust_domain.clone(), parse_path(&path)?))
    }

    /// `spiffe://TRUST-DOMAIN/host/NAME`.
    pub fn host(trust_domain: &TrustDomain, name: &str) -> Result<Self, SpiffeError> {
        Ok(Self::of(trust_domain.clone(), parse_path(&format!("/host/{name}"))?))
    }

    fn of(trust_domain: TrustDomain, path: IdPath) -> Self {
        Self(Arc::new(Parts { trust_domain, path }))
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.0.trust_domain
    }

    /// The namespace, when this is a workload.
    pub fn namespace(&self) -> Option<&str> {
        match &self.0.path {
            IdPath::Workload { namespace, .. } => Some(namespace),
            IdPath::Host { .. } => None,
        }
    }

    /// The service account, when this is a workload.
    pub fn service_account(&self) -> Option<&str> {
        match &self.0.path {
            IdPath::Workload { service_account, .. } => Some(service_account),
            IdPath::Host { .. } => None,
        }
    }

    /// The host's name, when this is a host.
    pub fn host_name(&self) -> Option<&str> {
        match &self.0.path {
            IdPath::Workload { .. } => None,
            IdPath::Host { name } => Some(name),
        }
    }

    /// The principal as authorization policies write it: the ID without `spiffe://`.
    pub fn principal(&self) -> String {
        let text = self.to_string();
        text.strip_prefix("spiffe://").unwrap_or(&text).to_owned()
    }

    /// The server name with which a Tombolo caller says in its ClientHello which of a host's
    /// workloads it wants to prove itself: `SERVICE-ACCOUNT.NAMESPACE.sa.TRUST-DOMAIN`. A host that
    /// runs several workloads picks the certificate by it; ztunnel sends and reads no server name.
    pub fn server_name(&self) -> Option<String> {
        match &self.0.path {
            IdPath::Workload { namespace, service_account } => {
                Some(format!("{service_account}.{namespace}.sa.{}", self.0.trust_domain))
            }
            IdPath::Host { .. } => None,
        }
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_ID_BYTES {
            return Err(SpiffeError::TooLong { bytes: text.len() });
        }
        let rest = text.strip_prefix("spiffe://").ok_or_else(|| SpiffeError::Scheme { text: shorten(text) })?;
        let slash = rest.find('/').ok_or_else(|| SpiffeError::Path { text: shorten(text) })?;
        let (trust_domain, path) = rest.split_at(slash);
        Ok(Self::of(trust_domain.parse()?, parse_path(path)?))
    }
}

fn parse_path(path: &str) -> Result<IdPath, SpiffeError> {
    let segment = |text: &str| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        let named = !text.is_empty() && text != "." && text != "..";
        (named && text.bytes().all(allowed)).then(|| Box::from(text))
    };
    let mut parts = path.split('/');
    let parsed = match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(""), Some("ns"), Some(namespace), Some("sa"), Some(account), None) => segment(namespace)
            .zip(segment(account))
            .map(|(namespace, service_account)| IdPath::Workload { namespace, service_account }),
        (Some(""), Some("host"), Some(name), None, None, None) => segment(name).map(|name| IdPath::Host { name }),
        _ => None,
    };
    parsed.ok_or_else(|| SpiffeError::Path { text: shorten(path) })
}

/// Foreign text in an error message stays short enough to read.
fn shorten(text: &str) -> String {
    text.chars().take(120).collect()
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.path {
            IdPath::Workload { namespace, service_account } => {
                write!(f, "spiffe://{}/ns/{namespace}/sa/{service_account}", self.0.trust_domain)
            }
            IdPath::Host { name } => write!(f, "spiffe://{}/host/{name}", self.0.trust_domain),
        }
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for SpiffeId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for SpiffeId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
