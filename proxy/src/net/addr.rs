//! Pure: addresses that must not be taken for one another, and the one form in which each is kept.
//!
//! A dual-stack listener reports IPv4 peers as `::ffff:a.b.c.d`; everything in this crate compares and
//! prints the plain form, so the newtypes convert when they are made.

use std::fmt;
use std::net::SocketAddr;

/// Who opened the connection to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientAddr(SocketAddr);

/// Where the connection that was brought to us was meant to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OrigDst(SocketAddr);

/// Whom we dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UpstreamAddr(SocketAddr);

/// The address without the wrapping of a dual-stack socket. Scope and flow of IPv6 are kept.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(_) => address,
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(v4.into(), v6.port()),
            None => address,
        },
    }
}

impl ClientAddr {
    pub fn new(address: SocketAddr) -> Self {
        Self(canonical(address))
    }

    pub fn get(self) -> SocketAddr {
        self.0
    }
}

impl OrigDst {
    pub fn new(address: SocketAddr) -> Self {
        Self(canonical(address))
    }

    pub fn get(self) -> SocketAddr {
        self.0
    }
}

impl UpstreamAddr {
    pub fn new(address: SocketAddr) -> Self {
        Self(canonical(address))
    }

    pub fn get(self) -> SocketAddr {
        self.0
    }
}

impl fmt::Display for ClientAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for OrigDst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for UpstreamAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
