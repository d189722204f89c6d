//! Checks of the host itself: rights, disk, ports, whether the agent runs.

use std::io;
use std::net::SocketAddr;

use api::admin::{Check, CheckOutcome};
use telemetry::Chain;
use tokio::net::TcpListener;

use super::{Agent, check, ok};
use crate::config::Config;
use crate::state::{StateDir, StateError};

/// capabilities(7): CAP_NET_ADMIN's bit.
const CAP_NET_ADMIN: u64 = 1 << 12;
/// Below this a snapshot of a large mesh and its successor may not fit beside each other.
const LEAST_FREE_BYTES: u64 = 64 << 20;

pub(super) fn privileges() -> Check {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or_default();
    if effective & CAP_NET_ADMIN != 0 {
        return ok("privileges", "CAP_NET_ADMIN is there");
    }
    let cure = "run it as root: sudo tombolo doctor";
    check("privileges", CheckOutcome::Fail, "CAP_NET_ADMIN is missing: rules and source addresses need it", cure)
}

pub(super) fn state_folder(state: &StateDir) -> Check {
    let root = state.root();
    let name = "state folder";
    if !root.exists() {
        return check(name, CheckOutcome::Ok, format!("{} is made by `tombolo join`", root.display()), "");
    }
    if let Err(error) = state.probe() {
        let cure = match error {
            StateError::Full { .. } => format!("make room on the file system of {}", root.display()),
            _ => format!("make {} writable for root (a read-only mount, a wrong owner?)", root.display()),
        };
        return check(name, CheckOutcome::Fail, Chain(&error).to_string(), cure);
    }
    let free = rustix::fs::statvfs(root).map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    if free < LEAST_FREE_BYTES {
        let detail = format!("{} has {} MiB left", root.display(), free >> 20);
        return check(name, CheckOutcome::Warn, detail, "make room: snapshots and certificates are written there");
    }
    ok(name, format!("{} can be written", root.display()))
}

pub(super) async fn ports(config: &Config, agent: &Agent) -> Check {
    let name = "ports";
    if *agent != Agent::Absent {
        return check(name, CheckOutcome::Skipped, "the agent runs and has its ports", "");
    }
    let all = [
        &config.outbound.listen,
        &config.inbound.listen,
        &config.inbound.plaintext_listen,
        &config.dns.listen,
        &config.metrics,
        &config.readiness,
        &config.admin,
    ];
    let mut taken: Vec<String> = vec![];
    for address in all.into_iter().flatten() {
        if is_taken(*address).await {
            taken.push(address.to_string());
        }
    }
    if taken.is_empty() {
        return ok(name, "every port of the agent is free");
    }
    let cure = "stop what listens there (ss -ltnp shows it: another mesh's proxy?), or give the agent other ports";
    check(name, CheckOutcome::Fail, format!("taken by another process: {}", taken.join(", ")), cure)
}

async fn is_taken(address: SocketAddr) -> bool {
    matches!(TcpListener::bind(address).await, Err(error) if error.kind() == io::ErrorKind::AddrInUse)
}

pub(super) fn running(config: &Config, agent: &Agent) -> Check {
    let name = "agent";
    match agent {
        Agent::Running { problems } if problems.is_empty() => {
            ok(name, format!("it answers on {}", config.paths.admin_socket().display()))
        }
        Agent::Running { problems } => {
            let cure = "as it says; when it began is in journalctl -u tombolo-agent";
            check(name, CheckOutcome::Warn, problems.join("; "), cure)
        }
        Agent::Absent => {
            let cure = "start it: systemctl start tombolo-agent";
            check(name, CheckOutcome::Warn, "it does not run", cure)
        }
    }
}
