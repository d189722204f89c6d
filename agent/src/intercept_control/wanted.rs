//! From the snapshot and the configuration to what interception should be. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use api::{InboundMode, Snapshot, TunnelProtocol, Workload};

use crate::config;
use crate::intercept::{Capture, Destination, Exclusions, OwnPorts, Wanted};
use crate::names::NamesVia;

/// What is asked of the kernel. The addresses stay where they are, in the snapshots: a large mesh has many.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Everything but destinations.
    pub frame: Wanted,
    obeyed: Arc<Snapshot>,
    /// Obeyed in a moment.
    coming: Option<Arc<Snapshot>>,
}

impl Asked {
    pub fn new(
        obeyed: Arc<Snapshot>,
        coming: Option<Arc<Snapshot>>,
        settings: &config::Interception,
        names: &NamesVia,
        ports: OwnPorts,
    ) -> Self {
        Self { frame: frame(&obeyed, settings, names, ports), obeyed, coming }
    }

    /// With every destination.
    pub fn wanted(&self) -> Wanted {
        Wanted {
            vips: self.snapshots().flat_map(Snapshot::vips).copied().collect(),
            endpoints: self
                .snapshots()
                .flat_map(Snapshot::workloads)
                .flat_map(|workload| endpoints_of(workload))
                .collect(),
            ..self.frame.clone()
        }
    }

    /// Nothing left to take; what is captured already goes on.
    pub fn quiet(&self) -> Wanted {
        Wanted { keeps_services: self.has_vips(), ..self.frame.quiet() }
    }

    /// The destinations that are new since `before`, and those that are gone; `None` if other rules differ, too.
    pub fn since(&self, before: &Self) -> Option<(Vec<Destination>, Vec<Destination>)> {
        if self.frame != before.frame || self.has_vips() != before.has_vips() {
            return None;
        }
        let mut touched = BTreeSet::new();
        for (old, new) in before.snapshots().flat_map(|old| self.snapshots().map(move |new| (old, new))) {
            let workloads = old.workloads_unlike(new).chain(new.workloads_unlike(old));
            touched.extend(workloads.flat_map(|workload| endpoints_of(workload)).map(Destination::Workload));
            let services = old.services_unlike(new).chain(new.services_unlike(old));
            touched.extend(services.flat_map(|service| &service.vips).copied().map(Destination::Service));
        }
        let (kept, gone): (Vec<_>, Vec<_>) = touched.into_iter().partition(|destination| self.captures(destination));
        let added = kept.into_iter().filter(|destination| !before.captures(destination)).collect();
        Some((added, gone.into_iter().filter(|destination| before.captures(destination)).collect()))
    }

    fn snapshots(&self) -> impl Iterator<Item = &Snapshot> {
        std::iter::once(&self.obeyed).chain(&self.coming).map(Arc::as_ref)
    }

    fn captures(&self, destination: &Destination) -> bool {
        self.snapshots().any(|snapshot| match destination {
            Destination::Service(address) => snapshot.has_vip(*address),
            Destination::Workload(endpoint) => {
                let mut workloads = snapshot.workloads_at(endpoint.ip());
                workloads.any(|workload| endpoints_of(workload).any(|own| own == *endpoint))
            }
        })
    }

    /// Rules for service addresses are there only where there are some.
    fn has_vips(&self) -> bool {
        self.snapshots().any(|snapshot| snapshot.vips().next().is_some())
    }
}

fn frame(snapshot: &Snapshot, settings: &config::Interception, names: &NamesVia, ports: OwnPorts) -> Wanted {
    Wanted {
        capture: match settings.capture {
            config::Capture::Mesh => Capture::Mesh,
            config::Capture::All => Capture::All,
        },
        vips: BTreeSet::new(),
        endpoints: BTreeSet::new(),
        inbound: inbound(snapshot),
        exclusions: exclusions(&settings.exclude),
        dns: names.port53().map(<[_]>::to_vec),
        ports,
        source_preservation: settings.source_preservation,
        keeps_services: false,
    }
}

/// A workload that speaks no HBONE gains nothing by a way through the agent; where it is part of a
/// service, the service's own address brings it there.
fn endpoints_of(workload: &Workload) -> impl Iterator<Item = SocketAddr> {
    let ports = workload.services.values().flatten().map(|port| port.target_port);
    let exposed = ports.filter(|port| *port != 0 && workload.tunnel_protocol == TunnelProtocol::Hbone);
    exposed.flat_map(|port| workload.addresses.iter().map(move |address| SocketAddr::new(*address, port)))
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
