//! The lease: tells the control plane that this host is alive and how its workloads are.
//!
//! A report goes out every third of the lease and at once when something of it changed. The epoch is
//! random, once a start, so that of two agents with one identity only the newer is heard. A missed
//! report is no event here: the control plane counts, not the agent.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use api::WorkloadUid;
use api::wire::tombolo::enrolment_client::EnrolmentClient;
use api::wire::tombolo::{ReportRequest, WorkloadHealth};
use proxy::drain::DrainWatch;
use proxy::view::View;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::connect::{self, Link};
use crate::discovery::DiscoveryState;
use crate::health::Health;

/// The lease until the control plane has said another.
const FIRST_LEASE: Duration = Duration::from_secs(30);
/// Between reports, at the least: a flapping probe must not flood the control plane.
const LEAST_PAUSE: Duration = Duration::from_millis(200);
/// One report's limit.
const LIMIT: Duration = Duration::from_secs(10);
/// How long the first report waits for the first answer of every probe, so that a restart of the
/// agent does not look like a failure of its workloads.
const FIRST_PROBES: Duration = Duration::from_secs(5);

/// What a report is made of, besides the link.
pub struct Sources {
    pub view: View,
    pub health: watch::Receiver<BTreeMap<WorkloadUid, Health>>,
    pub intercepting: watch::Receiver<bool>,
    pub discovery: watch::Receiver<DiscoveryState>,
    /// What `--advertise` said; empty means the address that reaches the control plane.
    pub advertise: Vec<IpAddr>,
}

/// Why the control plane does not take this host's reports, for `status`; empty when it does.
pub type Refused = watch::Sender<String>;

/// Reports until the drain.
pub async fn run(link: Link, mut sources: Sources, refused: Refused, drain: DrainWatch) {
    let epoch = epoch();
    let mut lease = FIRST_LEASE;
    let mut changed = sources.view.subscribe();
    first_probes(&mut sources, &drain).await;
    loop {
        let sent = tokio::select! {
            sent = tokio::time::timeout(LIMIT, report(&link, &mut sources, epoch)) => sent,
            () = drain.signaled() => return,
        };
        let problem = match sent {
            Ok(Ok(said)) => {
                lease = said;
                String::new()
            }
            Ok(Err(problem)) => problem,
            Err(_) => format!("no answer within {LIMIT:?}"),
        };
        if refused.send_if_modified(|kept| std::mem::replace(kept, problem.clone()) != problem) {
            match problem.is_empty() {
                true => info!("the control plane hears this host's reports"),
                false => warn!(error = problem, "the control plane does not hear this host's reports"),
            }
        }
        let pause = if problem.is_empty() { lease / 3 } else { (lease / 3).min(Duration::from_secs(5)) };
        tokio::select! {
            () = tokio::time::sleep(LEAST_PAUSE) => {}
            () = drain.signaled() => return,
        }
        let due = tokio::time::sleep(pause.saturating_sub(LEAST_PAUSE));
        tokio::select! {
            () = due => {}
            _ = sources.health.changed() => {}
            _ = sources.intercepting.changed() => {}
            _ = changed.changed() => {}
            () = drain.signaled() => return,
        }
    }
}

/// Until every workload with a probe has an answer, for a short while.
async fn first_probes(sources: &mut Sources, drain: &DrainWatch) {
    let view = sources.view.clone();
    let answered = sources.health.wait_for(|health| {
        let snapshot = view.load();
        let mut workloads = snapshot.host().into_iter().flat_map(|host| &host.workloads);
        workloads.all(|workload| workload.probe.is_none() || health.contains_key(&workload.uid))
    });
    tokio::select! {
        _ = tokio::time::timeout(FIRST_PROBES, answered) => {}
        () = drain.signaled() => {}
    }
}

/// Answers the lease that the control plane keeps.
async fn report(link: &Link, sources: &mut Sources, epoch: u64) -> Result<Duration, String> {
    let request = request(sources, link.local_address(), epoch);
    let answer = EnrolmentClient::new(link.channel()).report(request).await;
    let answer = answer.map_err(|status| connect::explain(&status))?;
    Ok(Duration::from_secs(u64::from(answer.get_ref().lease_s).max(3)))
}

fn request(sources: &mut Sources, local_address: Option<IpAddr>, epoch: u64) -> ReportRequest {
    let snapshot = sources.view.load();
    let health = sources.health.borrow_and_update().clone();
    let workloads = snapshot.host().into_iter().flat_map(|host| &host.workloads).map(|workload| {
        let health = health.get(&workload.uid).cloned().unwrap_or_else(|| Health::of_unprobed(workload));
        WorkloadHealth { uid: workload.uid.to_string(), healthy: health.healthy, reason: health.reason }
    });
    let detected = local_address.filter(|address| !address.is_loopback());
    let addresses =
        if sources.advertise.is_empty() { detected.into_iter().collect() } else { sources.advertise.clone() };
    ReportRequest {
        epoch,
        revision: snapshot.revision(),
        workloads: workloads.collect(),
        addresses: addresses.iter().map(IpAddr::to_string).collect(),
        version: telemetry::build::VERSION.to_owned(),
        intercepting: *sources.intercepting.borrow_and_update(),
        problem: sources.discovery.borrow().problem.clone(),
    }
}

/// Random, and never 0, which would be "not set" on the wire.
fn epoch() -> u64 {
    rand::random::<u64>().max(1)
}

#[cfg(test)]
mod tests;
