//! How the agent is, in the admin API's types.

use std::time::{Duration, SystemTime};

use api::admin::{
    AgentStatus, CertificateView, ControlPlaneLink, InterceptView, LocalWorkloadView, PortView, SnapshotView,
};
use api::{Snapshot, SpiffeId, wire};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Parts;
use crate::discovery::DiscoveryState;
use crate::health::Health;
use crate::intercept_control::captured;
use crate::sockets;

pub(super) fn status(parts: &Parts) -> AgentStatus {
    let snapshot = parts.view.load();
    let problems = parts.problems();
    let link = parts.link.state();
    AgentStatus {
        version: telemetry::build::VERSION.to_owned(),
        host: parts.identity.host.clone(),
        identity: parts.link.host().to_string(),
        trust_domain: parts.identity.trust_domain.to_string(),
        ready: problems.is_empty(),
        problems: problems.into_iter().chain(parts.warnings()).collect(),
        control_plane: ControlPlaneLink {
            url: parts.link.url(),
            connected: link.connected,
            since: rfc3339(link.since),
            error: link.error,
        },
        snapshot: snapshot_view(&snapshot, &parts.discovery.borrow()),
        host_certificate: certificate(parts, parts.link.host()).unwrap_or_else(|| CertificateView {
            identity: parts.link.host().to_string(),
            serial: String::new(),
            not_before: String::new(),
            not_after: String::new(),
            renews_at: String::new(),
        }),
        interception: intercept(parts),
        workloads: workloads(parts),
        connections_open: parts.proxy.open(),
        draining: *parts.predecessor.borrow(),
    }
}

fn snapshot_view(snapshot: &Snapshot, discovery: &DiscoveryState) -> SnapshotView {
    SnapshotView {
        revision: snapshot.revision(),
        source: discovery.source.to_owned(),
        received_at: discovery.received_at.map(rfc3339).unwrap_or_default(),
        workloads: snapshot.len_workloads() as u64,
        services: snapshot.len_services() as u64,
        policies: snapshot.policies().count() as u64,
    }
}

pub(super) fn intercept(parts: &Parts) -> InterceptView {
    let state = parts.control.state();
    let wanted = state.asked.map(|asked| asked.wanted());
    let bypassed = wanted.as_ref().and_then(|wanted| {
        let connections = sockets::open_connections().ok()?;
        Some(sockets::bypassed(&connections, wanted).len() as u64)
    });
    InterceptView {
        state: state.state,
        rolls_back_in_s: state.rolls_back_at.map(|at| at.saturating_duration_since(Instant::now())).map(whole_seconds),
        self_test: state.self_test,
        captured_addresses: wanted.as_ref().map_or(0, |wanted| captured(wanted).len() as u64),
        bypassed_connections: bypassed.unwrap_or_default(),
        rolled_back_because: state.rolled_back_because,
    }
}

pub(super) fn workloads(parts: &Parts) -> Vec<LocalWorkloadView> {
    let (snapshot, health) = (parts.view.load(), parts.health.borrow());
    let workloads = snapshot.host().into_iter().flat_map(|host| &host.workloads);
    let view = |workload: &api::LocalWorkload| {
        let identity = workload.identity(&parts.identity.trust_domain).ok();
        let health = health.get(&workload.uid).cloned().unwrap_or_else(|| Health::of_unprobed(workload));
        LocalWorkloadView {
            uid: workload.uid.to_string(),
            group: workload.group.clone(),
            namespace: workload.namespace.clone(),
            identity: identity.as_ref().map(ToString::to_string).unwrap_or_default(),
            ports: workload.ports.iter().map(|(port, inbound)| PortView { port: *port, inbound: *inbound }).collect(),
            selector: workload.selector.clone(),
            healthy: health.healthy,
            reason: health.reason,
            certificate: identity.and_then(|identity| certificate(parts, &identity)),
        }
    };
    workloads.map(view).collect()
}

fn certificate(parts: &Parts, identity: &SpiffeId) -> Option<CertificateView> {
    let svid = parts.credentials.svid(identity)?;
    Some(CertificateView {
        identity: identity.to_string(),
        serial: svid.serial().to_owned(),
        not_before: rfc3339(svid.not_before()),
        not_after: rfc3339(svid.not_after()),
        renews_at: parts.standing.of(identity).map(|stands| rfc3339(stands.renews_at)).unwrap_or_default(),
    })
}

/// Everything obeyed, for bug reports. It holds no secret: keys are not part of a snapshot.
pub(super) fn snapshot(snapshot: &Snapshot) -> Value {
    let mut services: Vec<_> = snapshot.services().collect();
    services.sort_by_key(|service| service.key());
    let mut workloads: Vec<_> = snapshot.workloads().collect();
    workloads.sort_by(|a, b| a.uid.cmp(&b.uid));
    let mut policies: Vec<_> = snapshot.policies().collect();
    policies.sort_by_key(|policy| policy.key());
    json!({
        "revision": snapshot.revision(),
        "host": snapshot.host().map(|host| format!("{host:?}")),
        "services": services.iter().map(|service| json!({
            "key": service.key().to_string(), "vips": service.vips, "ports": service.ports,
        })).collect::<Vec<_>>(),
        "workloads": workloads.iter().map(|workload| json!({
            "uid": &*workload.uid, "addresses": workload.addresses, "healthy": workload.healthy,
            "identity": workload.identity().map(|identity| identity.to_string()).unwrap_or_default(),
            "tunnel": workload.tunnel_protocol, "network": workload.network, "node": workload.node,
            "services": workload.services.iter().map(|(key, ports)| (key.to_string(), json!(ports))).collect::<serde_json::Map<_, _>>(),
            "policies": workload.authorization_policies,
        })).collect::<Vec<_>>(),
        "policies": policies.iter().map(|policy| json!({
            "key": policy.key(), "action": policy.action, "dry_run": policy.dry_run,
            "scope": format!("{:?}", policy.scope), "rules": format!("{:?}", policy.rules),
        })).collect::<Vec<_>>(),
        "bundles": snapshot.bundles().map(|bundle| json!({
            "trust_domain": bundle.trust_domain.as_str(), "roots": bundle.roots.len(),
        })).collect::<Vec<_>>(),
        "types": [wire::ADDRESS, wire::AUTHORIZATION, wire::HOST_CONFIG, wire::TRUST_BUNDLE],
    })
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

/// Never shown as 0 while there is time left.
fn whole_seconds(left: Duration) -> u64 {
    left.as_millis().div_ceil(1000) as u64
}
