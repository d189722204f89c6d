//! May this connection be? Asked when it opens, and again for every open one when the policy changes.
//!
//! `connection.rs` and `plaintext.rs` ask; one task for the whole proxy asks again. What a policy
//! means is `api::policy`; only what TLS proved and the kernel reported is judged, never a header.

use std::collections::HashMap;
use std::sync::Arc;

use api::policy::{self, Verdict, evaluate};
use api::{AuthorizationPolicy, Snapshot, Workload, WorkloadUid};
use tracing::info;

use crate::connections::Open;
use crate::net::traffic::Stop;
use crate::report::Observers;
use crate::view::View;

/// The verdict of the policies in force for `workload`.
pub(crate) fn judge(snapshot: &Snapshot, workload: &Workload, connection: &policy::Connection) -> Verdict {
    let verdict = evaluate(snapshot.policies_for(workload).into_iter(), connection);
    for audit in &verdict.audits {
        let source = connection.source.as_ref().map(tracing::field::display);
        info!(
            target: "access",
            policy = audit,
            src.identity = source,
            src.addr = %connection.source_ip,
            dst.addr = %connection.destination,
            workload.id = &*workload.uid,
            verdict = verdict.reason(),
            "a policy that only logs matched"
        );
    }
    verdict
}

/// Closes open connections that a published snapshot forbids. Runs until it is dropped.
pub(crate) async fn keep(view: View, observers: Observers) {
    let mut changes = view.subscribe();
    while changes.changed().await.is_ok() {
        changes.mark_unchanged();
        review(&view.load(), &observers);
    }
}

/// Judges every open inbound connection by `snapshot`.
fn review(snapshot: &Arc<Snapshot>, observers: &Observers) {
    let mut in_force: HashMap<WorkloadUid, Vec<&AuthorizationPolicy>> = HashMap::new();
    for open in observers.connections.all() {
        let Some((workload, connection)) = open.facts.judged() else { continue };
        // A workload that is gone keeps its connections until they end: it is draining.
        let Some(workload) = snapshot.workload(&workload.uid) else { continue };
        let policies = in_force.entry(workload.uid.clone()).or_insert_with(|| snapshot.policies_for(workload));
        let verdict = evaluate(policies.iter().copied(), &connection);
        if !verdict.allowed() {
            stop(&open, &verdict, observers);
        }
    }
}

/// For a connection that was judged by an older snapshot than the one that [`keep`] saw last.
pub(crate) fn review_one(snapshot: &Snapshot, open: &Open, observers: &Observers) {
    let Some((workload, connection)) = open.facts.judged() else { return };
    let Some(workload) = snapshot.workload(&workload.uid) else { return };
    let verdict = evaluate(snapshot.policies_for(workload).into_iter(), &connection);
    if !verdict.allowed() {
        stop(open, &verdict, observers);
    }
}

fn stop(open: &Open, verdict: &Verdict, observers: &Observers) {
    if open.traffic.stopped().is_none() {
        observers.metrics.closed_by_policy.inc();
        let policy = verdict.policy().map(Box::from);
        open.traffic.stop(Stop::PolicyChanged { reason: verdict.reason(), policy });
    }
}
