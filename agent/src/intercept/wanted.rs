//! Pure: what shall be intercepted, in the agent's own words.
//!
//! The agent makes it from its configuration and the snapshot; `ruleset::build` makes rules of it, and
//! `plan` and `status` ask it which destinations are captured.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use api::InboundMode;
use ipnet::IpNet;

/// What the host's operator and the snapshot ask of interception.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub capture: Capture,
    /// Service addresses: every port of them is captured.
    pub vips: BTreeSet<IpAddr>,
    /// Workload ports that services expose. Other ports of the same address are left alone.
    pub endpoints: BTreeSet<SocketAddr>,
    /// What happens to plaintext from other hosts at local ports; permissive ones need no rule.
    pub inbound: BTreeMap<u16, InboundMode>,
    pub exclusions: Exclusions,
    /// Nameservers whose port 53 is taken over for local processes.
    pub dns: Option<Vec<IpAddr>>,
    pub ports: OwnPorts,
    /// The proxy shows local servers the client's own address.
    pub source_preservation: bool,
    /// Connections to service addresses may be captured already: their packets still need a route.
    pub keeps_services: bool,
}

/// An address that is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Destination {
    /// Every port of it.
    Service(IpAddr),
    Workload(SocketAddr),
}

/// Which outbound connections are taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Capture {
    /// Those to services and workloads of the mesh.
    #[default]
    Mesh,
    /// Every one that leaves the host and is not excluded.
    All,
}

/// What interception leaves alone.
///
/// Users and cgroups are left alone for everything they connect to, names included. Addresses and
/// ports are destinations. An interface is left alone in both directions: nothing that arrives
/// there is observed or refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exclusions {
    pub uids: BTreeSet<u32>,
    /// systemd units, wherever in the tree they are; `.service` may be left out.
    pub units: BTreeSet<String>,
    /// Paths below the cgroup v2 mount; the whole subtree is meant.
    pub cgroups: BTreeSet<String>,
    pub cidrs: BTreeSet<IpNet>,
    pub ports: BTreeSet<u16>,
    pub interfaces: BTreeSet<String>,
}

/// Where the agent listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnPorts {
    pub outbound: u16,
    pub inbound_plaintext: u16,
    pub dns: u16,
}

impl Default for OwnPorts {
    fn default() -> Self {
        Self { outbound: api::ports::OUTBOUND, inbound_plaintext: api::ports::INBOUND_PLAINTEXT, dns: api::ports::DNS }
    }
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            capture: Capture::Mesh,
            vips: BTreeSet::new(),
            endpoints: BTreeSet::new(),
            inbound: BTreeMap::new(),
            exclusions: Exclusions::default(),
            dns: None,
            ports: OwnPorts::default(),
            source_preservation: false,
            keeps_services: false,
        }
    }
}

impl Wanted {
    /// Whether a new connection to this destination would be captured, exclusions aside.
    pub fn captures(&self, destination: SocketAddr) -> bool {
        let address = destination.ip().to_canonical();
        self.vips.contains(&address)
            || self.endpoints.contains(&SocketAddr::new(address, destination.port()))
            || self.capture == Capture::All && !address.is_loopback()
    }

    /// The same rules with nothing left to take: connections that are captured already go on, new
    /// ones pass. `intercept off` applies this until the last captured connection has ended.
    pub fn quiet(&self) -> Self {
        Self {
            capture: Capture::Mesh,
            vips: BTreeSet::new(),
            endpoints: BTreeSet::new(),
            inbound: BTreeMap::new(),
            exclusions: Exclusions::default(),
            dns: None,
            ports: self.ports,
            source_preservation: true,
            keeps_services: self.leads_to_services(),
        }
    }

    /// Whether service addresses need a way, if only for connections that are captured already.
    pub(crate) fn leads_to_services(&self) -> bool {
        self.keeps_services || !self.vips.is_empty()
    }

    /// The local ports of one mode.
    pub(crate) fn ports_of_mode(&self, mode: InboundMode) -> BTreeSet<u16> {
        self.inbound.iter().filter(|(_, wanted)| **wanted == mode).map(|(port, _)| *port).collect()
    }
}
