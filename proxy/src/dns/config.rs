//! What the DNS server is told: where it listens, whom it asks, how much it takes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::sync::watch;

use crate::config::OWN_MARK;

/// Settings of a [`super::DnsServer`].
#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// Addresses to serve, each over UDP and TCP. Default `127.0.0.1:15053` and `[::1]:15053`; one of
    /// a family that the host does not have is left out.
    pub listen: Vec<SocketAddr>,
    /// The resolvers that everything outside the mesh is asked of, in their order, as they are now.
    pub upstreams: watch::Receiver<Vec<SocketAddr>>,
    /// Mark (`SO_MARK`) of every socket, so that interception leaves them alone; 0 sets none, which
    /// needs no privilege. Default [`OWN_MARK`].
    pub mark: u32,
    /// How long one resolver may take for one attempt. Default 2 s: a resolver that must itself
    /// retry once usually answers within 1.5 s.
    pub attempt_timeout: Duration,
    /// How long a question may take in all. Default 6 s: three resolvers, which is as many as
    /// resolv.conf(5) takes.
    pub total_timeout: Duration,
    /// How long a resolver that did not answer in time is asked after all others. Default 10 s.
    pub rest_after_timeout: Duration,
    /// Questions worked on at once; further ones over UDP are dropped and counted. Default 1024.
    pub concurrent_questions: usize,
    /// TCP connections open at once; further ones are closed at once. Default 256.
    pub tcp_connections: usize,
    /// How long a TCP client may be silent or slow (RFC 7766 §6.2.3 asks for seconds). Default 10 s.
    pub tcp_idle: Duration,
}

impl DnsConfig {
    /// The defaults, asking these resolvers.
    pub fn new(upstreams: watch::Receiver<Vec<SocketAddr>>) -> Self {
        let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
        Self {
            listen: loopback.map(|address| SocketAddr::new(address, api::ports::DNS)).to_vec(),
            upstreams,
            mark: OWN_MARK,
            attempt_timeout: Duration::from_secs(2),
            total_timeout: Duration::from_secs(6),
            rest_after_timeout: Duration::from_secs(10),
            concurrent_questions: 1024,
            tcp_connections: 256,
            tcp_idle: Duration::from_secs(10),
        }
    }
}
