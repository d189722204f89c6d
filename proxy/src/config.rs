//! What the data plane can be told: addresses, limits and times, each with its unit, its default and
//! the reason for it.
//!
//! The agent's `config.rs` fills this from its files; tests fill it by hand. Nothing here reads a file
//! or the environment. The numbers that the interception rules share with the proxy live here too.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// `SO_MARK` of every socket the agent opens, so that its own traffic is never intercepted.
///
/// A packet has one mark for all programs of the host, and many of them look at single bits of it. The
/// agent's marks are whole numbers made of bits 0 to 6 and 12 alone, which leaves out what others test:
/// bit 7 (Amazon's VPC CNI), 8 to 11 (Cilium), 13 (the CNI port map plugin), 14 and 15 (kube-proxy:
/// masquerade, drop), 16 to 31 (Calico, Tailscale, Weave, Cilium's identities). Programs with whole
/// numbers of their own have others: Istio 1337 and 1338, wg-quick 51820, Docker swarm from 256 on,
/// one a published port.
pub const OWN_MARK: u32 = 0x106d;
/// `SO_MARK` of sockets to the local application that carry the caller's source address.
pub const SOURCE_PRESERVING_MARK: u32 = 0x106e;
/// Packet mark of connections that TPROXY hands to the plaintext listener.
pub const TPROXY_MARK: u32 = 0x106f;
/// Routing table that brings packets with the mark above back to this host.
pub const ROUTING_TABLE: u32 = 29805;

/// Everything the data plane can be told. `Config::default()` is what a host runs with.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Config {
    pub outbound: OutboundConfig,
    pub inbound: InboundConfig,
    pub hbone: HboneConfig,
    pub flow: FlowConfig,
    pub sockets: SocketConfig,
}

/// Connections that local processes open.
#[derive(Debug, Clone, PartialEq)]
pub struct OutboundConfig {
    /// Where intercepted connections arrive. Default 127.0.0.1:15001 and `[::1]:15001`: redirection
    /// keeps the address family, and nobody else on the network can reach loopback. An address of a
    /// family that the host does not have is skipped.
    pub listen: Vec<SocketAddr>,
    /// How long one endpoint may take to finish TCP, TLS and CONNECT. Default 5 s: covers the SYN
    /// retransmissions at 1 s and 3 s (RFC 6298 §2.1 and §5.5) but not the one at 7 s.
    pub connect_timeout: Duration,
    /// How many endpoints of a service are tried before the caller is refused. Default 3: one restart
    /// and one stale entry at the same time do not show.
    pub max_endpoints_tried: usize,
    /// The port at which workloads take tunnels. Default 15008, as Istio has it.
    pub tunnel_port: u16,
    /// What carries connections to workloads of other Tombolo hosts. Default [`Tunnel::Auto`].
    pub tunnel: Tunnel,
    /// Close connections over which nothing moved for so long. Default none: database pools live for
    /// months, and keepalive finds peers that are gone.
    pub idle_timeout: Option<Duration>,
}

/// What carries a connection to a workload of a Tombolo host; every other peer gets HBONE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tunnel {
    /// Whatever is ready, `tombolo/1` first (docs/tombolo-1.md, "Which tunnel").
    Auto,
    /// HTTP/2 only.
    Hbone,
    /// `tombolo/1` for every flow, also if a handshake has to be waited for; HBONE for peers that do
    /// not speak it.
    Flow,
}

/// `tombolo/1`, both sides.
#[derive(Debug, Clone, PartialEq)]
pub struct FlowConfig {
    /// Connections to one destination that are warm at most. Default 32: as many flows at one time, each
    /// short, as a busy caller has.
    pub max_warm: usize,
    /// Handshakes with one destination that may come at once. Default 16: a pool of connections as an
    /// application opens it at its start.
    pub handshake_burst: f64,
    /// Handshakes with one destination in the long run. Default 10: 1 % of a core at 1 ms for both
    /// sides of a handshake together.
    pub handshakes_per_second: f64,
    /// A destination without flows for so long keeps no warm connection. Default 5 min (HBONE's).
    pub unused_timeout: Duration,
    /// How long the server keeps a connection without a flow. Default 10 min: longer than the client.
    pub server_unused_timeout: Duration,
    /// A peer that chose HBONE is not offered `tombolo/1` for so long. Default 5 min.
    pub hbone_memory: Duration,
}

/// Connections that reach local workloads.
#[derive(Debug, Clone, PartialEq)]
pub struct InboundConfig {
    /// Where tunnels from peers arrive. Default `[::]:15008`, both families (0.0.0.0 on a host
    /// without IPv6).
    pub listen: Vec<SocketAddr>,
    /// Where TPROXY hands over plaintext. Default 0.0.0.0:15006 and `[::]:15006`. The listeners need
    /// CAP_NET_ADMIN; without it they are left out with one warning.
    pub plaintext_listen: Vec<SocketAddr>,
    /// How long a peer may take for TLS and the HTTP/2 preface. Default 10 s: three lost flights.
    pub handshake_timeout: Duration,
    /// Handshakes in progress at one time; beyond it the oldest is given up. Default 1024: at 40 KiB
    /// each a flood of half-open peers holds 40 MiB, and an honest peer needs a few ms.
    pub max_handshakes: usize,
    /// How long the application may take to accept. Default 10 s, as in ztunnel.
    pub connect_timeout: Duration,
    /// As [`OutboundConfig::idle_timeout`].
    pub idle_timeout: Option<Duration>,
}

/// HTTP/2 over mTLS, both sides. Defaults are ztunnel's (`src/config.rs`).
#[derive(Debug, Clone, PartialEq)]
pub struct HboneConfig {
    /// Bytes a peer may send on one stream before we have read any. Default 4 MiB.
    pub stream_window_bytes: u32,
    /// The same for all streams of a connection. Default 16 MiB. Must be a multiple of the stream
    /// window, or a reader that waits for another stream can block it for ever.
    pub connection_window_bytes: u32,
    /// The largest frame we accept. Default 1 MiB.
    pub max_frame_bytes: u32,
    /// Bytes of one stream that may wait for the TLS connection. Default 400 KiB (that of h2): the
    /// kernel's socket buffer holds what is on its way.
    pub max_send_buffer_bytes: usize,
    /// Response headers we accept. Default 16 KiB.
    pub client_max_header_bytes: u32,
    /// Request headers we accept. Default 64 KiB.
    pub server_max_header_bytes: u32,
    /// Streams one peer may have open on one connection. Default 200.
    pub server_max_streams: u32,
    /// Streams that a peer may open and reset before we have seen them; more end the connection.
    /// Default 20 (CVE-2023-44487).
    pub max_pending_reset_streams: usize,
    /// Streams we put on one connection, if the peer does not say less. Default 100.
    pub pool_max_streams: usize,
    /// A pooled connection without streams is closed after so long. Default 5 min.
    pub pool_unused_timeout: Duration,
    /// The same where an older one has places: what a burst has left holds 260 KiB of h2 for each. Default 5 s.
    /// Both are looked at once a [`HboneConfig::keepalive_interval`], so a connection may live that much longer.
    pub pool_spare_timeout: Duration,
    /// How often a PING asks whether the peer is there. Default 10 s.
    pub keepalive_interval: Duration,
    /// How long its answer may take. Default 20 s.
    pub keepalive_timeout: Duration,
}

/// Options of every TCP socket of ours.
#[derive(Debug, Clone, PartialEq)]
pub struct SocketConfig {
    /// `SO_MARK` of sockets we open; `None` sets none (tests without CAP_NET_ADMIN). Where setting it
    /// is not permitted the socket goes without. Default [`OWN_MARK`].
    pub mark: Option<u32>,
    /// `SO_MARK` of sockets that carry the caller's source address. Default
    /// [`SOURCE_PRESERVING_MARK`].
    pub source_preserving_mark: u32,
    /// Idle time before TCP keepalive probes begin, and between them. Default 180 s (ztunnel's).
    pub keepalive: Duration,
    /// Probes without an answer before the kernel gives the connection up. Default 9 (Linux's).
    pub keepalive_probes: u32,
    /// Connections the kernel may hold before we accept them. Default 1024: a burst of a whole
    /// connection pool does not meet a full queue.
    pub backlog: u32,
    /// A tunnel whose handshake found a shorter round trip is not paced, also where BBR is the host's
    /// default. Default 5 ms: the sites of a region are 2 ms apart at most, and a busy host may be late.
    pub short_path: Duration,
}

impl Config {
    /// The ports that are never a legal destination, because a connection to them would come back to
    /// us (ztunnel's `illegal_ports`).
    pub fn own_ports(&self) -> BTreeSet<u16> {
        let listeners = [&self.outbound.listen, &self.inbound.listen, &self.inbound.plaintext_listen];
        let ports = listeners.into_iter().flatten().map(SocketAddr::port).chain([self.outbound.tunnel_port]);
        ports.filter(|port| *port != 0).collect()
    }
}

impl Default for OutboundConfig {
    fn default() -> Self {
        let at = |ip: IpAddr| SocketAddr::new(ip, api::ports::OUTBOUND);
        Self {
            listen: vec![at(Ipv4Addr::LOCALHOST.into()), at(Ipv6Addr::LOCALHOST.into())],
            connect_timeout: Duration::from_secs(5),
            max_endpoints_tried: 3,
            tunnel_port: api::ports::INBOUND_TUNNEL,
            tunnel: Tunnel::Auto,
            idle_timeout: None,
        }
    }
}

impl Default for InboundConfig {
    fn default() -> Self {
        let any = |ip: IpAddr| SocketAddr::new(ip, api::ports::INBOUND_PLAINTEXT);
        Self {
            listen: vec![SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), api::ports::INBOUND_TUNNEL)],
            plaintext_listen: vec![any(Ipv4Addr::UNSPECIFIED.into()), any(Ipv6Addr::UNSPECIFIED.into())],
            handshake_timeout: Duration::from_secs(10),
            max_handshakes: 1024,
            connect_timeout: Duration::from_secs(10),
            idle_timeout: None,
        }
    }
}

impl Default for HboneConfig {
    fn default() -> Self {
        Self {
            stream_window_bytes: 4 << 20,
            connection_window_bytes: 16 << 20,
            max_frame_bytes: 1 << 20,
            max_send_buffer_bytes: 400 << 10,
            client_max_header_bytes: 16 << 10,
            server_max_header_bytes: 64 << 10,
            server_max_streams: 200,
            max_pending_reset_streams: 20,
            pool_max_streams: 100,
            pool_unused_timeout: Duration::from_secs(300),
            pool_spare_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(20),
        }
    }
}

impl Default for FlowConfig {
    fn default() -> Self {
        Self {
            max_warm: 32,
            handshake_burst: 16.0,
            handshakes_per_second: 10.0,
            unused_timeout: Duration::from_secs(300),
            server_unused_timeout: Duration::from_secs(600),
            hbone_memory: Duration::from_secs(300),
        }
    }
}

impl Default for SocketConfig {
    fn default() -> Self {
        Self {
            mark: Some(OWN_MARK),
            source_preserving_mark: SOURCE_PRESERVING_MARK,
            keepalive: Duration::from_secs(180),
            keepalive_probes: 9,
            backlog: 1024,
            short_path: Duration::from_millis(5),
        }
    }
}
