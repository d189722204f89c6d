//! `tombolo plan`: the rules that interception would write, and what of this host they concern,
//! without writing any.

use api::admin::{ListenerPlan, OpenConnection, Plan};
use api::{InboundMode, Snapshot};

use crate::config;
use crate::intercept::ruleset::build;
use crate::intercept::{Capture, Wanted};
use crate::netlink::NetlinkError;
use crate::sockets::{self, Connection, Listener};

/// The plan for what is wanted. `running` is what is in force, if anything is.
pub fn plan(snapshot: &Snapshot, wanted: &Wanted, running: Option<&Wanted>) -> Result<Plan, NetlinkError> {
    let rules = build(wanted);
    let connections = sockets::open_connections()?;
    let listeners = sockets::listeners()?;
    Ok(Plan {
        ruleset: rules.to_string(),
        ruleset_json: rules.to_json(),
        captured: super::captured(wanted),
        open_connections: sockets::bypassed(&connections, wanted).into_iter().map(open_connection).collect(),
        listeners: listeners.iter().map(|listener| listener_plan(listener, snapshot, wanted)).collect(),
        untouched: untouched(wanted, &connections),
        differs_from_running: running.is_some_and(|running| running != wanted),
    })
}

fn open_connection(connection: &Connection) -> OpenConnection {
    OpenConnection {
        local: connection.local.to_string(),
        remote: connection.remote.to_string(),
        owner: connection.owner.clone(),
    }
}

fn listener_plan(listener: &Listener, snapshot: &Snapshot, wanted: &Wanted) -> ListenerPlan {
    let port = listener.local.port();
    let workloads = snapshot.host().into_iter().flat_map(|host| &host.workloads);
    let workload = workloads.filter(|workload| workload.ports.contains_key(&port)).map(|it| it.uid.to_string()).next();
    let mode = workload.as_ref().and_then(|_| wanted.inbound.get(&port).copied());
    ListenerPlan { local: listener.local.to_string(), owner: listener.owner.clone(), workload, inbound: mode }
}

/// What stays as it is, in sentences.
fn untouched(wanted: &Wanted, connections: &[Connection]) -> Vec<String> {
    let mut sentences = vec![format!(
        "every connection that is open now: {} of them, {} on port 22 (SSH)",
        connections.len(),
        connections.iter().filter(|connection| connection.local.port() == 22).count()
    )];
    match wanted.capture {
        Capture::Mesh => sentences.push("every new connection to an address that is not listed as captured".to_owned()),
        Capture::All => sentences.push("connections to this host itself and to what is excluded".to_owned()),
    }
    let refused = wanted.inbound.values().any(|mode| *mode == InboundMode::Strict);
    let observed = wanted.inbound.values().any(|mode| *mode == InboundMode::Observe);
    if !refused && !observed {
        sentences.push("every connection from other hosts".to_owned());
    } else {
        sentences.push("connections from other hosts to ports without `observe` or `strict`".to_owned());
    }
    if wanted.dns.is_none() {
        sentences.push("port 53: no DNS question is taken".to_owned());
    }
    let excluded = &wanted.exclusions;
    let mut named: Vec<String> =
        excluded.units.iter().chain(&excluded.cgroups).chain(&excluded.interfaces).cloned().collect();
    named.extend(excluded.uids.iter().map(|uid| format!("uid {uid}")));
    named.extend(excluded.cidrs.iter().map(ToString::to_string));
    named.extend(excluded.ports.iter().map(|port| format!("port {port}")));
    if !named.is_empty() {
        sentences.push(format!("what is excluded: {}", named.join(", ")));
    }
    sentences
}

/// What happens when the agent dies, in a sentence.
pub fn on_agent_loss(setting: config::OnAgentLoss, owned: bool) -> &'static str {
    match (setting, owned) {
        (config::OnAgentLoss::Bypass, true) => "when the agent dies the kernel removes the rules",
        (_, false) => "this kernel does not remove the rules when the agent dies: ExecStopPost does",
        (config::OnAgentLoss::Hold, true) => "when the agent dies the rules stay for the time of a restart",
        (config::OnAgentLoss::Block, true) => "when the agent dies strict ports keep refusing plaintext",
    }
}
