//! Which local workload opened a connection: the kernel knows the socket's owner and cgroup.
//!
//! The proxy asks once per captured connection, before it chooses an identity. An answer costs one
//! netlink round trip (tens of microseconds), so it is asked in place. A process in another network
//! namespace (a container) is not found and has no workload.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use api::{LocalWorkload, Selector, WorkloadUid};
use arc_swap::ArcSwap;
use proxy::Attribution;
use tracing::{debug, warn};

use crate::cgroup::{self, CgroupTree};
use crate::netlink::NetlinkError;
use crate::netlink::diag::{Diagnosis, TcpSocket};

/// Tells local workloads apart by the processes that their selectors name.
#[derive(Debug)]
pub struct CgroupAttribution {
    workloads: ArcSwap<Vec<LocalWorkload>>,
    kernel: Mutex<Kernel>,
}

/// What is kept between two questions.
#[derive(Debug, Default)]
struct Kernel {
    diagnosis: Option<Diagnosis>,
    tree: CgroupTree,
    /// Numbers that were not in the tree when it was last read: numbers are never used twice, so
    /// these cgroups are gone and reading again would not find them.
    gone: HashSet<u64>,
}

impl CgroupAttribution {
    /// For these workloads. Opens nothing yet.
    pub fn new(workloads: Vec<LocalWorkload>) -> Self {
        Self { workloads: ArcSwap::from_pointee(workloads), kernel: Mutex::default() }
    }

    /// Replaces the workloads; connections that were attributed stay so.
    pub fn update(&self, workloads: Vec<LocalWorkload>) {
        self.workloads.store(Arc::new(workloads));
    }

    fn process(&self, client: SocketAddr, dialled: SocketAddr) -> Result<Option<Process>, NetlinkError> {
        let mut kernel = self.kernel.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(socket) = kernel.find(client, dialled)? else { return Ok(None) };
        let cgroup = socket.cgroup.and_then(|id| kernel.cgroup_path(id)).unwrap_or_default();
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
        let diagnosis = match self.diagnosis.take() {
            Some(diagnosis) => diagnosis,
            None => Diagnosis::open()?,
        };
        let found = diagnosis.find(client, dialled);
        // A socket that failed may hold half an answer; the next question opens another.
        if found.is_ok() {
            self.diagnosis = Some(diagnosis);
        }
        found
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

/// Whose socket it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    uid: u32,
    /// Path of its cgroup; empty for the root and where it is unknown.
    cgroup: String,
}

/// The workload whose selector says most about this process: a deeper cgroup path beats a shallower
/// one, any path beats a unit, a unit beats a uid, and anything beats a selector that says nothing.
fn choose<'a>(workloads: &'a [LocalWorkload], process: &Process) -> Option<&'a LocalWorkload> {
    workloads
        .iter()
        .filter(|workload| matches(&workload.selector, process))
        // The first of equals wins, so that an answer does not depend on the order of a map.
        .rev()
        .max_by_key(|workload| specificity(&workload.selector))
}

/// Everything that the selector names must hold.
fn matches(selector: &Selector, process: &Process) -> bool {
    let in_cgroup = |path: &String| {
        let path = path.trim_matches('/');
        let below = process.cgroup.strip_prefix(path);
        path.is_empty() || below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let in_unit = |unit: &String| {
        let whole = cgroup::unit_name(unit);
        cgroup::units(&process.cgroup).any(|found| found == whole)
    };
    selector.cgroup.as_ref().is_none_or(in_cgroup)
        && selector.unit.as_ref().is_none_or(in_unit)
        && selector.uid.is_none_or(|uid| uid == process.uid)
}

fn specificity(selector: &Selector) -> (usize, bool, bool) {
    let depth = selector.cgroup.as_ref().map_or(0, |path| path.trim_matches('/').split('/').count());
    (depth, selector.unit.is_some(), selector.uid.is_some())
}

/// How many ended cgroups are remembered: enough for a host that starts a scope for every job.
const GONE_LIMIT: usize = 10_000;

#[cfg(test)]
mod tests;
