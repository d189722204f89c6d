//! Asks the host's workloads how they are: TCP, HTTP and exec probes of their WorkloadGroups.
//!
//! One task a workload with a probe; the verdicts are one watched map, which registration reports. The
//! first answer counts at once, later ones by the thresholds. A workload without a probe is healthy.
//! Probes carry our mark, so that they are never intercepted; exec probes can be forbidden
//! (`health.exec`).

use std::collections::BTreeMap;
use std::time::Duration;

use api::{Check, LocalWorkload, Probe, WorkloadUid};
use proxy::drain::DrainWatch;
use proxy::view::View;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tracing::info;

mod exec;
mod http;
mod tcp;
pub mod verdict;

use verdict::Verdict;

/// How one workload is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    pub healthy: bool,
    /// Why not, for people.
    pub reason: String,
}

impl Health {
    /// Of a workload that has no answer yet, or no probe.
    pub fn of_unprobed(workload: &LocalWorkload) -> Self {
        match workload.probe {
            None => Self { healthy: true, reason: String::new() },
            Some(_) => Self { healthy: false, reason: "its probe has not answered yet".to_owned() },
        }
    }
}

/// The verdicts, by workload; those without a probe are not in it.
pub type Verdicts = watch::Sender<BTreeMap<WorkloadUid, Health>>;

/// Probes what the snapshot says this host runs, until the drain.
pub async fn run(view: View, verdicts: Verdicts, exec_allowed: bool, drain: DrainWatch) {
    let mut changed = view.subscribe();
    let mut running: BTreeMap<WorkloadUid, (Probe, AbortHandle)> = BTreeMap::new();
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        let snapshot = view.load();
        let workloads = snapshot.host().map(|host| host.workloads.as_slice()).unwrap_or_default();
        let probed: BTreeMap<&WorkloadUid, &Probe> =
            workloads.iter().filter_map(|workload| Some((&workload.uid, workload.probe.as_ref()?))).collect();
        running.retain(|uid, (probe, task)| {
            let stays = probed.get(uid).is_some_and(|wanted| *wanted == probe);
            if !stays {
                task.abort();
            }
            stays
        });
        verdicts.send_if_modified(|kept| {
            let before = kept.len();
            kept.retain(|uid, _| probed.contains_key(uid));
            kept.len() != before
        });
        for (uid, probe) in probed {
            if !running.contains_key(uid) {
                let task = tasks.spawn(keep_probing(uid.clone(), probe.clone(), verdicts.clone(), exec_allowed));
                running.insert(uid.clone(), (probe.clone(), task));
            }
        }
        tokio::select! {
            news = changed.changed() => if news.is_err() { return },
            () = drain.signaled() => return,
        }
        while tasks.try_join_next().is_some() {}
    }
}

async fn keep_probing(uid: WorkloadUid, probe: Probe, verdicts: Verdicts, exec_allowed: bool) {
    let mut verdict = Verdict::new(probe.success_threshold, probe.failure_threshold);
    let mut pause = probe.initial_delay;
    loop {
        let answer = ask(&probe, exec_allowed).await;
        if let Some(health) = verdict.hear(answer) {
            match health.healthy {
                true => info!(workload.id = %uid, "workload {uid} is healthy"),
                false => info!(workload.id = %uid, reason = health.reason, "workload {uid} is not healthy"),
            }
            verdicts.send_modify(|kept| {
                kept.insert(uid.clone(), health);
            });
        }
        // The delay is for a workload that starts: it counts only until the first success.
        if verdict.has_succeeded() {
            pause = Duration::ZERO;
        }
        tokio::time::sleep(probe.period.max(pause).max(LEAST_PERIOD)).await;
        pause = Duration::ZERO;
    }
}

/// One question, within its time.
async fn ask(probe: &Probe, exec_allowed: bool) -> Result<(), String> {
    let limit = probe.timeout.max(LEAST_TIMEOUT);
    let asked = async {
        match &probe.check {
            Check::Tcp { host, port } => tcp::connect(host, *port).await.map(drop),
            Check::Http { scheme, host, port, path, headers } => {
                let target = http::Target { tls: scheme.eq_ignore_ascii_case("https"), host, port: *port, path };
                http::get(&target, headers).await
            }
            Check::Exec { .. } if !exec_allowed => {
                Err("exec probes are forbidden on this host (health.exec)".to_owned())
            }
            Check::Exec { command } => exec::run(command).await,
        }
    };
    match tokio::time::timeout(limit, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {limit:?}")),
    }
}

/// A probe of zero seconds is a spin loop; Kubernetes' least is one second too.
const LEAST_PERIOD: Duration = Duration::from_millis(100);
const LEAST_TIMEOUT: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
