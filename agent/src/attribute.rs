//! Which local workload opened a connection: the kernel knows the socket's owner and cgroup.
//!
//! The proxy asks once per captured connection, before it chooses an identity. An answer costs one
//! netlink round trip (tens of microseconds), so it is asked in place. A process in another network
//! namespace (a container) is not found and has no workload.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use api::{LocalWorkload, Selector, WorkloadUid};
use arc_swap::ArcSwap;
use proxy::Attribution;
use tracing::{debug, warn};

use crate::cgroup::{self, CgroupTree};
use crate::netlink::NetlinkError;
use crate::netlink::conntrack::Conntrack;
use crate::netlink::diag::{Diagnosis, TcpSocket};

/// Tells local workloads apart by the processes that their selectors name.
#[derive(Debug)]
pub struct CgroupAttribution {
    workloads: ArcSwap<Vec<LocalWorkload>>,
    /// Port that captured connections are redirected to.
    outbound_port: u16,
    kernel: Mutex<Kernel>,
}

/// What is kept between two questions.
#[derive(Debug, Default)]
struct Kernel {
    diagnosis: Option<Diagnosis>,
    conntrack: Option<Conntrack>,
    tree: CgroupTree,
    /// Numbers that were not in the tree when it was last read: numbers are never used twice, so
    /// these cgroups are gone and reading again would not find them.
    gone: HashSet<u64>,
}

impl CgroupAttribution {
    /// For these workloads. Opens nothing yet.
    pub fn new(workloads: Vec<LocalWorkload>) -> Self {
        let workloads = ArcSwap::from_pointee(workloads);
        Self { workloads, outbound_port: api::ports::OUTBOUND, kernel: Mutex::default() }
    }

    /// For a proxy that listens for captured connections at another port than 15001.
    pub fn with_outbound_port(self, outbound_port: u16) -> Self {
        Self { outbound_port, ..self }
    }

    /// Replaces the workloads; connections that were attributed stay so.
    pub fn update(&self, workloads: Vec<LocalWorkload>) {
        self.workloads.store(Arc::new(workloads));
    }

    fn process(&self, client: SocketAddr, dialled: SocketAddr) -> Result<Option<Process>, NetlinkError> {
        let mut kernel = self.kernel.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = kernel.find(client, dialled)?;
        if found.is_none() {
            let source = kernel.true_source(client, self.outbound_port)?.filter(|source| *source != client);
            found = source.map(|source| kernel.find(source, dialled)).transpose()?.flatten();
        }
        let Some(socket) = found else { return Ok(None) };
        let cgroup = socket.cgroup.and_then(|id| kernel.cgroup_path(id));
        Ok(Some(Process { uid: socket.uid, cgroup }))
    }
}

impl Attribution for CgroupAttribution {
    /// Without a more specific workload it is the one with an empty selector, if the host has one.
    fn source(&self, client: SocketAddr, dialled: SocketAddr) -> Option<WorkloadUid> {
        let workloads = self.workloads.load();
        if workloads.iter().all(|workload| workload.selector.is_any()) {
            return workloads.first().map(|workload| workload.uid.clone());
        }
        let process = match self.process(client, dialled) {
            Ok(process) => process?,
            Err(error) => {
                warn!(src.addr = %client, dst.addr = %dialled, error = %telemetry::Chain(&error),
                    "cannot ask the kernel who opened a connection; it has no workload");
                return None;
            }
        };
        let chosen = choose(&workloads, &process);
        debug!(src.addr = %client, dst.addr = %dialled, uid = process.uid, cgroup = process.cgroup,
            workload.id = chosen.map(|workload| &*workload.uid), "connection attributed");
        chosen.map(|workload| workload.uid.clone())
    }
}

impl Kernel {
    fn find(&mut self, client: SocketAddr, dialled: SocketAddr) -> Result<Option<TcpSocket>, NetlinkError> {
        let diagnosis = self.diagnosis.take().map_or_else(Diagnosis::open, Ok)?;
        let found = diagnosis.find(client, dialled)?;
        // After an error the socket may hold half an answer, so only a good one is kept.
        self.diagnosis = Some(diagnosis);
        Ok(found)
    }

    /// Where the connection that the proxy sees as coming from `client` came from before NAT.
    fn true_source(&mut self, client: SocketAddr, outbound_port: u16) -> Result<Option<SocketAddr>, NetlinkError> {
        let loopback: IpAddr = if client.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        let conntrack = self.conntrack.take().map_or_else(Conntrack::open, Ok)?;
        let found = conntrack.source(SocketAddr::new(loopback, outbound_port), client)?;
        self.conntrack = Some(conntrack);
        Ok(found)
    }

    fn cgroup_path(&mut self, id: u64) -> Option<String> {
        if let Some(path) = self.tree.path(id) {
            return Some(path.to_owned());
        }
        if self.gone.contains(&id) {
            return None;
        }
        match CgroupTree::load() {
            Ok(tree) => self.tree = tree,
            Err(error) => {
                warn!(error = %telemetry::Chain(&error), "selectors by unit and cgroup match no connection");
                return None;
            }
        }
        let found = self.tree.path(id).map(str::to_owned);
        if found.is_none() {
            if self.gone.len() >= GONE_LIMIT {
                self.gone.clear();
            }
            self.gone.insert(id);
        }
        found
    }
}

/// Whose socket it is, as far as the kernel still knows.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    uid: Option<u32>,
    /// Path of its cgroup; empty for the root.
    cgroup: Option<String>,
}

/// The workload whose selector says most about this process: a deeper cgroup path beats a shallower
/// one, any path beats a unit, a unit beats a uid, and anything beats a selector that says nothing.
/// None when a selector that says more might match and the kernel cannot tell: nobody gets an
/// identity by closing a socket early.
fn choose<'a>(workloads: &'a [LocalWorkload], process: &Process) -> Option<&'a LocalWorkload> {
    let best = |wanted: Option<bool>| {
        let candidates = workloads.iter().filter(move |workload| matches(&workload.selector, process) == wanted);
        // The first of equals wins, so that an answer does not depend on the order of a map.
        candidates.rev().max_by_key(|workload| specificity(&workload.selector))
    };
    let (certain, possible) = (best(Some(true))?, best(None));
    let outdone = possible.is_some_and(|other| specificity(&other.selector) > specificity(&certain.selector));
    (!outdone).then_some(certain)
}

/// Whether everything that the selector names holds; None when that cannot be known.
fn matches(selector: &Selector, process: &Process) -> Option<bool> {
    let in_cgroup = |path: &String| process.cgroup.as_ref().map(|cgroup| is_below(cgroup, path.trim_matches('/')));
    let in_unit = |unit: &String| {
        let whole = cgroup::unit_name(unit);
        process.cgroup.as_ref().map(|cgroup| cgroup::units(cgroup).any(|found| found == whole))
    };
    let parts = [
        selector.cgroup.as_ref().map_or(Some(true), in_cgroup),
        selector.unit.as_ref().map_or(Some(true), in_unit),
        selector.uid.map_or(Some(true), |uid| process.uid.map(|owner| owner == uid)),
    ];
    if parts.contains(&Some(false)) {
        return Some(false);
    }
    parts.iter().all(Option::is_some).then_some(true)
}

fn is_below(cgroup: &str, path: &str) -> bool {
    let rest = cgroup.strip_prefix(path);
    path.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn specificity(selector: &Selector) -> (usize, bool, bool) {
    let depth = selector.cgroup.as_ref().map_or(0, |path| path.trim_matches('/').split('/').count());
    (depth, selector.unit.is_some(), selector.uid.is_some())
}

/// How many ended cgroups are remembered: enough for a host that starts a scope for every job.
const GONE_LIMIT: usize = 10_000;

#[cfg(test)]
mod tests;
