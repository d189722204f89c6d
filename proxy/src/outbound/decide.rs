//! Pure: what the mesh says about one dialled address. The whole answer, without doing any of it.
//!
//! `outbound/connection.rs` obeys it; `tombolo why` prints it. Rules: ztunnel's `src/proxy/outbound.rs`. It does not
//! choose among endpoints (`balance.rs`) and does not know which identities have certificates.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use api::snapshot::Endpoint;
use api::{LocalWorkload, Locality, Port, Service, Snapshot, SpiffeId, TunnelProtocol, Workload};

/// What is to be done with a connection to one address.
#[derive(Debug, Clone)]
pub enum Decision {
    /// To one of these endpoints of a service.
    Service { service: Arc<Service>, port: Port, candidates: Vec<Candidate> },
    /// To this workload, by its own address.
    Workload(Candidate),
    /// To where it was going, as it is. The workload there, if the mesh knows one.
    Passthrough { workload: Option<Arc<Workload>> },
    /// Nowhere.
    Refuse(Refusal),
}

/// One way to serve the connection.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub workload: Arc<Workload>,
    /// The workload's own address and the port it listens on.
    pub target: SocketAddr,
    pub path: Path,
    /// How far it is: candidates of a nearer tier are used first.
    pub tier: Tier,
}

/// How the bytes get to a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Path {
    /// Plain TCP to the target: it is not meshed.
    Plain,
    /// HTTP/2 CONNECT over mTLS to the tunnel port of its address; it must prove one of these, the
    /// workload's own first.
    Hbone { expected: Vec<SpiffeId> },
}

/// The order in which candidates are used: healthy before unhealthy, then by distance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tier {
    pub unhealthy: bool,
    pub distance: Distance,
}

/// How far two places are apart. Places that are not known are as far as can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Distance {
    SameSubzone,
    SameZone,
    SameRegion,
    Elsewhere,
}

/// Why a connection goes nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{dialled} is one of the agent's own ports: a connection there would come back to it for ever")]
    Loop { dialled: SocketAddr },
    #[error("service {service} has no port {port}; it has {ports}")]
    UnknownPort { service: String, port: u16, ports: String },
    #[error("service {service} has no workload that serves port {port}")]
    NoEndpoint { service: String, port: u16 },
    #[error("none of the {total} workloads of service {service} is healthy")]
    NoHealthyEndpoint { service: String, total: usize },
    #[error("none of the {total} workloads of service {service} has an address in network {network:?}")]
    Unreachable { service: String, total: usize, network: String },
}

/// Decides for a connection to `dialled` from the local workload `own`, if it is one's. `own_ports`
/// are never a legal destination.
pub fn decide(
    snapshot: &Snapshot,
    dialled: SocketAddr,
    own: Option<&LocalWorkload>,
    own_ports: &BTreeSet<u16>,
) -> Decision {
    if own_ports.contains(&dialled.port()) {
        return Decision::Refuse(Refusal::Loop { dialled });
    }
    let caller = Caller::of(snapshot, own);
    match snapshot.service_by_vip(dialled.ip()) {
        Some(service) => decide_service(snapshot, service, dialled, &caller),
        None => decide_address(snapshot, dialled, own),
    }
}

/// What of the caller matters for the choice.
struct Caller {
    network: String,
    locality: Locality,
}

impl Caller {
    fn of(snapshot: &Snapshot, own: Option<&LocalWorkload>) -> Self {
        match own.and_then(|own| snapshot.workload(&own.uid)) {
            Some(workload) => Self { network: workload.network.clone(), locality: workload.locality.clone() },
            None => Self { network: String::new(), locality: Locality::default() },
        }
    }
}

fn decide_service(snapshot: &Snapshot, service: &Arc<Service>, dialled: SocketAddr, caller: &Caller) -> Decision {
    let name = || service.hostname.clone();
    let Some(port) = service.port(dialled.port()).copied() else {
        let ports: Vec<String> = service.ports.iter().map(|port| port.service_port.to_string()).collect();
        let ports = if ports.is_empty() { "none".to_owned() } else { ports.join(", ") };
        return Decision::Refuse(Refusal::UnknownPort { service: name(), port: dialled.port(), ports });
    };
    let endpoints = snapshot.endpoints(&service.key(), port.service_port);
    let total = endpoints.len();
    if total == 0 {
        return Decision::Refuse(Refusal::NoEndpoint { service: name(), port: port.service_port });
    }
    let usable = |endpoint: &Endpoint| endpoint.workload.healthy || service.allow_unhealthy;
    let healthy: Vec<Endpoint> = endpoints.into_iter().filter(usable).collect();
    if healthy.is_empty() {
        return Decision::Refuse(Refusal::NoHealthyEndpoint { service: name(), total });
    }
    let candidate = |endpoint: &Endpoint| candidate(endpoint, service, dialled.ip(), caller);
    let candidates: Vec<Candidate> = healthy.iter().filter_map(candidate).collect();
    if candidates.is_empty() {
        return Decision::Refuse(Refusal::Unreachable { service: name(), total, network: caller.network.clone() });
    }
    Decision::Service { service: service.clone(), port, candidates }
}

/// The endpoint as the caller can reach it; `None` without an address in the caller's network.
fn candidate(endpoint: &Endpoint, service: &Service, dialled: IpAddr, caller: &Caller) -> Option<Candidate> {
    let workload = &endpoint.workload;
    if workload.network != caller.network {
        return None;
    }
    // An address of the family that the caller chose, if there is one.
    let same_family = workload.addresses.iter().find(|address| address.is_ipv4() == dialled.is_ipv4());
    let address = *same_family.or_else(|| workload.addresses.first())?;
    let distance = Distance::between(&caller.locality, &workload.locality);
    Some(Candidate {
        workload: workload.clone(),
        target: SocketAddr::new(address, endpoint.port.target_port),
        path: path(workload, &service.subject_alt_names)?,
        tier: Tier { unhealthy: !workload.healthy, distance },
    })
}

/// `None` if the workload can have no identity, and so can be no HBONE peer.
fn path(workload: &Workload, subject_alt_names: &[String]) -> Option<Path> {
    match workload.tunnel_protocol {
        TunnelProtocol::None => Some(Path::Plain),
        TunnelProtocol::Hbone => {
            let own = workload.identity().ok()?;
            let others: BTreeSet<SpiffeId> = subject_alt_names.iter().filter_map(|name| name.parse().ok()).collect();
            let others = others.into_iter().filter(|other| *other != own).collect::<Vec<_>>();
            Some(Path::Hbone { expected: std::iter::once(own).chain(others).collect() })
        }
    }
}

/// An address that is nobody's virtual one.
fn decide_address(snapshot: &Snapshot, dialled: SocketAddr, own: Option<&LocalWorkload>) -> Decision {
    let Some(workload) = listener(snapshot, dialled) else {
        return Decision::Passthrough { workload: None };
    };
    let itself = own.is_some_and(|own| own.uid == workload.uid);
    match path(&workload, &[]) {
        Some(path @ Path::Hbone { .. }) if !itself && serves(&workload, dialled.port()) => {
            let tier = Tier { unhealthy: !workload.healthy, distance: Distance::Elsewhere };
            Decision::Workload(Candidate { workload, target: dialled, path, tier })
        }
        Some(Path::Hbone { .. } | Path::Plain) | None => Decision::Passthrough { workload: Some(workload) },
    }
}

/// Who of the workloads at an address listens on the port; several share the address of one host.
fn listener(snapshot: &Snapshot, dialled: SocketAddr) -> Option<Arc<Workload>> {
    let mut here: Vec<&Arc<Workload>> = snapshot.workloads_at(dialled.ip()).collect();
    here.sort_by(|a, b| a.uid.cmp(&b.uid));
    let exact = here.iter().find(|workload| has_target_port(workload, dialled.port()));
    exact.or_else(|| here.first()).map(|workload| Arc::clone(workload))
}

/// Whether the workload takes tunnels to this port of its address. A pod takes every port; a host is
/// more than its workloads (its SSH is not in the mesh), so only ports of services count there.
fn serves(workload: &Workload, port: u16) -> bool {
    !on_tombolo_host(workload) || has_target_port(workload, port)
}

fn has_target_port(workload: &Workload, port: u16) -> bool {
    workload.services.values().flatten().any(|p| p.target_port == port)
}

/// Uids of our own workloads are `tombolo/NAMESPACE/GROUP/HOST`.
pub(crate) fn on_tombolo_host(workload: &Workload) -> bool {
    workload.uid.starts_with("tombolo/")
}

impl Distance {
    fn between(here: &Locality, there: &Locality) -> Self {
        let same = |a: &str, b: &str| !a.is_empty() && a == b;
        if !same(&here.region, &there.region) {
            Self::Elsewhere
        } else if !same(&here.zone, &there.zone) {
            Self::SameRegion
        } else if !same(&here.subzone, &there.subzone) {
            Self::SameZone
        } else {
            Self::SameSubzone
        }
    }
}

#[cfg(test)]
mod tests;
