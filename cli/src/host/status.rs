//! `tombolo status`.

use std::fmt::Write;

use api::admin::{AgentStatus, InterceptState, InterceptView, LocalWorkloadView};
use clap::Args;

use super::{HostArgs, HostError, yes};
use crate::config::ConnectionArgs;
use crate::exit::Exit;
use crate::output::{Output, Table};

pub(super) const EXAMPLES: &str = "\
Examples:
  tombolo status                                      this host's agent
  tombolo status -o json | jq .interception
  tombolo status --server https://mesh.corp.example   the control plane

Exit code 1 when the agent does not serve; the reasons are in the answer.";

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    host: HostArgs,
    #[command(flatten)]
    connection: ConnectionArgs,
}

impl StatusArgs {
    /// The control plane that it is about, if it is about one and not about this host.
    pub(crate) fn of_control_plane(&self) -> Option<ConnectionArgs> {
        let of_host = self.host.config.is_some() || self.host.socket.is_some();
        (self.connection.names_a_server() && !of_host).then(|| self.connection.clone())
    }
}

pub(super) fn run(args: StatusArgs, output: Output) -> Result<Exit, HostError> {
    let status: AgentStatus = args.host.ask(async |client| client.get("/status").await)?;
    output.show(&status, || text(&status))?;
    Ok(if status.ready { Exit::Ok } else { Exit::Failed })
}

fn text(status: &AgentStatus) -> String {
    let mut lines = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a String does not fail.
        let _ = writeln!(lines, "{name:<14} {value}");
    };
    line("host", format!("{} ({})", status.host, status.identity));
    line("version", status.version.clone());
    line("ready", yes(status.ready).to_owned());
    let link = &status.control_plane;
    line(
        "control plane",
        match link.connected {
            true => format!("{}, connected since {}", link.url, link.since),
            false => format!("{}, not connected since {}: {}", link.url, link.since, link.error),
        },
    );
    let snapshot = &status.snapshot;
    line(
        "snapshot",
        format!(
            "revision {} from {}, {} services, {} workloads, {} policies",
            snapshot.revision, snapshot.source, snapshot.services, snapshot.workloads, snapshot.policies
        ),
    );
    let certificate = &status.host_certificate;
    line("certificate", format!("valid until {}, renewed at {}", certificate.not_after, certificate.renews_at));
    line("interception", interception(&status.interception));
    line("connections", format!("{} open", status.connections_open));
    if let Some(draining) = status.draining {
        line("draining", format!("{draining} connections of the agent before the upgrade; they end by themselves"));
    }
    for problem in &status.problems {
        line("problem", problem.clone());
    }
    let workloads = workloads(&status.workloads);
    if workloads.is_empty() { lines } else { format!("{lines}\n{workloads}") }
}

pub(super) fn interception(view: &InterceptView) -> String {
    let captured = format!(
        "{} destinations captured, {} older connections bypass it",
        view.captured_addresses, view.bypassed_connections
    );
    match view.state {
        InterceptState::On => format!("on, {captured}"),
        InterceptState::Unconfirmed => {
            let left = view.rolls_back_in_s.unwrap_or_default();
            format!("on for {left} s more unless confirmed (`tombolo intercept confirm`), {captured}")
        }
        InterceptState::Off if view.rolled_back_because.is_empty() => "off".to_owned(),
        InterceptState::Off => format!("off, taken back: {}", view.rolled_back_because),
    }
}

pub(super) fn workloads(workloads: &[LocalWorkloadView]) -> String {
    let mut table = Table::new(["WORKLOAD", "IDENTITY", "PORTS", "PROCESSES", "HEALTH", "CERTIFICATE UNTIL"]);
    for workload in workloads {
        let ports: Vec<String> =
            workload.ports.iter().map(|port| format!("{} {}", port.port, mode(port.inbound))).collect();
        let until =
            workload.certificate.as_ref().map_or("none".to_owned(), |certificate| certificate.not_after.clone());
        table.row([
            format!("{}/{}", workload.namespace, workload.group),
            workload.identity.clone(),
            ports.join(", "),
            processes(&workload.selector),
            if workload.healthy { "healthy".to_owned() } else { format!("unhealthy: {}", workload.reason) },
            until,
        ]);
    }
    table.render()
}

pub(super) fn mode(mode: api::InboundMode) -> &'static str {
    match mode {
        api::InboundMode::Permissive => "permissive",
        api::InboundMode::Observe => "observe",
        api::InboundMode::Strict => "strict",
    }
}

fn processes(selector: &api::Selector) -> String {
    let unit = selector.unit.clone();
    let cgroup = selector.cgroup.as_ref().map(|cgroup| format!("cgroup {cgroup}"));
    let uid = selector.uid.map(|uid| format!("uid {uid}"));
    let named: Vec<String> = [unit, cgroup, uid].into_iter().flatten().collect();
    if named.is_empty() { "all others".to_owned() } else { named.join(", ") }
}
