//! What is looked at before and after interception is switched on: the control plane, names, sessions
//! that are open, the workloads' probes, and how many connections fail.
//!
//! Only what worked before can fail after: a host that was half dead already is not rolled back for it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use api::WorkloadUid;
use api::admin::SelfTest;
use telemetry::metrics::Registry;
use tokio::sync::watch;

use crate::connect::Link;
use crate::health::Health;
use crate::resolv::Resolvers;
use crate::sockets;

mod question;

/// The port at which an operator is most likely connected.
const SSH: u16 = 22;
/// One question's limit.
const LIMIT: Duration = Duration::from_secs(2);
/// Fewer connections say nothing about a ratio.
const LEAST_CONNECTIONS: u64 = 10;

/// Where the tests look.
pub struct Tester {
    pub link: Link,
    pub view: proxy::View,
    pub resolvers: watch::Receiver<Resolvers>,
    pub health: watch::Receiver<BTreeMap<WorkloadUid, Health>>,
    pub registry: Arc<Registry>,
}

/// How the host was before.
#[derive(Debug, Clone)]
pub struct Baseline {
    control_plane: bool,
    names: bool,
    ssh: BTreeSet<(SocketAddr, SocketAddr)>,
    healthy: BTreeSet<WorkloadUid>,
    counts: Counts,
}

/// Connections through the proxy since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    opened: u64,
    failed: u64,
}

impl Tester {
    pub async fn baseline(&self) -> Baseline {
        let (control_plane, names) = tokio::join!(self.link.probe(LIMIT), self.names());
        Baseline {
            control_plane: control_plane.is_ok(),
            names: names.is_ok(),
            ssh: ssh_sessions(),
            healthy: self.healthy(),
            counts: self.counts(),
        }
    }

    pub async fn test(&self, before: &Baseline) -> Vec<SelfTest> {
        let (control_plane, names) = tokio::join!(self.link.probe(LIMIT), self.names());
        vec![
            judge("control plane", before.control_plane, control_plane.map(|()| "reached".to_owned())),
            judge("names", before.names, names),
            ssh(&before.ssh, &ssh_sessions()),
            probes(&before.healthy, &self.healthy()),
            errors(before.counts, self.counts()),
        ]
    }

    /// Asks as a process of this host would: the resolver of resolv.conf, from an unmarked socket.
    async fn names(&self) -> Result<String, String> {
        let resolver = self.resolvers.borrow().configured.first().copied();
        let Some(resolver) = resolver else { return Err("the host has no resolver".to_owned()) };
        let snapshot = self.view.load();
        let name = snapshot.services().map(|service| service.hostname.clone()).min();
        let name = name.unwrap_or_else(|| "tombolo-self-test.invalid".to_owned());
        question::ask(resolver, &name, LIMIT).await.map(|answer| format!("{resolver} answers {answer}"))
    }

    fn healthy(&self) -> BTreeSet<WorkloadUid> {
        let verdicts = self.health.borrow();
        verdicts.iter().filter(|(_, health)| health.healthy).map(|(uid, _)| uid.clone()).collect()
    }

    fn counts(&self) -> Counts {
        count(&telemetry::metrics::encode_text(&self.registry))
    }
}

fn judge(check: &str, worked_before: bool, now: Result<String, String>) -> SelfTest {
    let (passed, detail) = match (now, worked_before) {
        (Ok(detail), _) => (true, detail),
        (Err(why), true) => (false, why),
        (Err(why), false) => (true, format!("as before: {why}")),
    };
    SelfTest { check: check.to_owned(), passed, detail }
}

fn ssh_sessions() -> BTreeSet<(SocketAddr, SocketAddr)> {
    let open = sockets::open_connections().unwrap_or_default();
    let sessions = open.into_iter().filter(|connection| connection.local.port() == SSH);
    sessions.map(|connection| (connection.local, connection.remote)).collect()
}

/// Sessions end by themselves now and then; more than half at once do not.
fn ssh(before: &BTreeSet<(SocketAddr, SocketAddr)>, now: &BTreeSet<(SocketAddr, SocketAddr)>) -> SelfTest {
    let gone = before.difference(now).count();
    let passed = gone * 2 <= before.len();
    let detail = format!("{} of {} sessions are still open", before.len() - gone, before.len());
    SelfTest { check: "SSH sessions".to_owned(), passed, detail }
}

fn probes(before: &BTreeSet<WorkloadUid>, now: &BTreeSet<WorkloadUid>) -> SelfTest {
    let ill: Vec<&str> = before.difference(now).map(AsRef::as_ref).collect();
    let detail = match ill.as_slice() {
        [] => format!("{} healthy workloads stayed so", before.len()),
        ill => format!("no longer healthy: {}", ill.join(", ")),
    };
    SelfTest { check: "probes".to_owned(), passed: ill.is_empty(), detail }
}

/// More than half of at least ten connections failed.
fn errors(before: Counts, now: Counts) -> SelfTest {
    let failed = now.failed.saturating_sub(before.failed);
    let total = failed + now.opened.saturating_sub(before.opened);
    let passed = total < LEAST_CONNECTIONS || failed * 2 <= total;
    SelfTest { check: "connections".to_owned(), passed, detail: format!("{failed} of {total} failed") }
}

/// Sums two counters of the proxy over all labels. What a policy refuses is no failure.
fn count(metrics: &str) -> Counts {
    let sum = |name: &str| -> u64 {
        let lines =
            metrics.lines().filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        let lines = lines.filter(|line| !line.contains("response_flags=\"DENY\""));
        let values = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        values.map(|value| value as u64).sum()
    };
    Counts { opened: sum("istio_tcp_connections_opened_total"), failed: sum("istio_tcp_connections_failed_total") }
}

/// Whether an address answers DNS at all, for `doctor`.
pub(crate) async fn resolver_answers(resolver: SocketAddr) -> Result<IpAddr, String> {
    question::ask(resolver, "tombolo-self-test.invalid", LIMIT).await.map(|_| resolver.ip())
}

#[cfg(test)]
mod tests;
