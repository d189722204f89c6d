//! From the snapshot and the configuration to what interception should be. Pure.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use api::{InboundMode, Snapshot, TunnelProtocol};

use crate::config;
use crate::intercept::{Capture, Exclusions, OwnPorts, Wanted};
use crate::names::NamesVia;

/// What the rules should do for this snapshot.
pub fn wanted(snapshot: &Snapshot, settings: &config::Interception, names: &NamesVia, ports: OwnPorts) -> Wanted {
    Wanted {
        capture: match settings.capture {
            config::Capture::Mesh => Capture::Mesh,
            config::Capture::All => Capture::All,
        },
        vips: snapshot.vips().copied().collect(),
        endpoints: endpoints(snapshot).collect(),
        inbound: inbound(snapshot),
        exclusions: exclusions(&settings.exclude),
        dns: names.port53().map(<[_]>::to_vec),
        ports,
        source_preservation: settings.source_preservation,
    }
}

/// A workload that speaks no HBONE gains nothing by a way through the agent; where it is part of a
/// service, the service's own address brings it there.
pub fn endpoints(snapshot: &Snapshot) -> impl Iterator<Item = SocketAddr> {
    let meshed = snapshot.workloads().filter(|workload| workload.tunnel_protocol == TunnelProtocol::Hbone);
    meshed.flat_map(|workload| {
        let exposed = workload.services.values().flatten().map(|port| port.target_port).filter(|port| *port != 0);
        exposed.flat_map(|port| workload.addresses.iter().map(move |address| SocketAddr::new(*address, port)))
    })
}

/// By port; where two workloads share one, the stricter wish holds.
fn inbound(snapshot: &Snapshot) -> BTreeMap<u16, InboundMode> {
    let mut modes = BTreeMap::new();
    for workload in snapshot.host().into_iter().flat_map(|host| &host.workloads) {
        for (port, mode) in &workload.ports {
            let kept = modes.entry(*port).or_insert(*mode);
            *kept = (*kept).max(*mode);
        }
    }
    modes
}

fn exclusions(exclude: &config::Exclude) -> Exclusions {
    Exclusions {
        uids: exclude.uids.iter().copied().collect(),
        units: exclude.units.iter().cloned().collect(),
        cgroups: exclude.cgroups.iter().cloned().collect(),
        cidrs: exclude.cidrs.iter().copied().collect(),
        ports: exclude.ports.iter().copied().collect(),
        interfaces: exclude.interfaces.iter().cloned().collect(),
    }
}

#[cfg(test)]
mod tests;
