//! The JSON of the agent's local admin API, as the agent serves it and `tombolo` reads it. Pure.
//!
//! On `/run/tombolo/admin.sock` and loopback port 15000 (the socket alone takes `POST`):
//!
//! | path | |
//! |---|---|
//! | `GET /status` | [`AgentStatus`] |
//! | `GET /plan` | [`Plan`] |
//! | `GET /intercept`, `POST /intercept` | [`InterceptView`], [`InterceptCommand`] |
//! | `GET /why?src=&dst=` | [`Explanation`] |
//! | `GET /doctor` | [`Diagnosis`] |
//! | `GET /workloads` | `Vec<`[`LocalWorkloadView`]`>` |
//! | `GET /connections` | `Vec<`[`ConnectionView`]`>` |
//! | `GET /snapshot` | the whole snapshot as JSON, for bug reports |
//! | `POST /drain`, `POST /leave` | `{}`; `/leave` tells the control plane and withdraws every workload |
//!
//! A refusal is a [`crate::rest::ErrorBody`].

use serde::{Deserialize, Serialize};

use crate::host::{InboundMode, Selector};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AgentStatus {
    pub version: String,
    pub host: String,
    pub identity: String,
    pub trust_domain: String,
    /// Ready to serve: listeners open, snapshot there, certificates valid, rules as wanted.
    pub ready: bool,
    /// What is wrong, one sentence each; empty when all is well.
    pub problems: Vec<String>,
    pub control_plane: ControlPlaneLink,
    pub snapshot: SnapshotView,
    pub host_certificate: CertificateView,
    pub interception: InterceptView,
    pub workloads: Vec<LocalWorkloadView>,
    pub connections_open: u64,
    /// Connections that are still open in the process that this one has taken over from; none when that has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ControlPlaneLink {
    pub url: String,
    pub connected: bool,
    /// RFC 3339; when the link last changed.
    pub since: String,
    /// Why it is not connected.
    pub error: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SnapshotView {
    pub revision: u64,
    /// `control plane` or `disk`.
    pub source: String,
    /// RFC 3339.
    pub received_at: String,
    pub workloads: u64,
    pub services: u64,
    pub policies: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CertificateView {
    pub identity: String,
    /// Hex, as in the control plane's audit.
    pub serial: String,
    /// RFC 3339.
    pub not_before: String,
    /// RFC 3339.
    pub not_after: String,
    /// RFC 3339.
    pub renews_at: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LocalWorkloadView {
    pub uid: String,
    pub group: String,
    pub namespace: String,
    pub identity: String,
    pub ports: Vec<PortView>,
    pub selector: Selector,
    pub healthy: bool,
    pub reason: String,
    pub certificate: Option<CertificateView>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PortView {
    pub port: u16,
    pub inbound: InboundMode,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InterceptView {
    pub state: InterceptState,
    /// Seconds until it rolls back alone, while `unconfirmed`.
    pub rolls_back_in_s: Option<u64>,
    /// What the self-test said last, one line each.
    pub self_test: Vec<SelfTest>,
    /// Destinations that are captured.
    pub captured_addresses: u64,
    /// Connections opened before interception that still flow past the agent.
    pub bypassed_connections: u64,
    /// Why it was rolled back, when it was.
    pub rolled_back_because: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InterceptState {
    Off,
    /// On, and will roll back unless confirmed.
    Unconfirmed,
    On,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SelfTest {
    pub check: String,
    pub passed: bool,
    pub detail: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub enum InterceptCommand {
    /// Without a time it is confirmed at once.
    On {
        confirm_within_s: Option<u64>,
    },
    Confirm,
    Off,
}

/// What interception would do to this host, without doing it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// The exact rule set, as `nft` would print it.
    pub ruleset: String,
    /// The same as `nft -j` would print it.
    pub ruleset_json: serde_json::Value,
    /// Destinations whose new connections would go through the agent.
    pub captured: Vec<String>,
    /// Open connections to such destinations: they stay as they are until they end.
    pub open_connections: Vec<OpenConnection>,
    /// Listening sockets and what would happen to plaintext that reaches them.
    pub listeners: Vec<ListenerPlan>,
    /// What stays untouched, in sentences.
    pub untouched: Vec<String>,
    /// Whether interception is on already, and the rules differ from these.
    pub differs_from_running: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OpenConnection {
    pub local: String,
    pub remote: String,
    /// Unit or cgroup that holds it, as far as it can be told.
    pub owner: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ListenerPlan {
    pub local: String,
    pub owner: String,
    pub workload: Option<String>,
    pub inbound: Option<InboundMode>,
}

/// The walk of one connection through the mesh, each step with its answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Explanation {
    pub question: String,
    pub steps: Vec<ExplainedStep>,
    pub allowed: bool,
    /// The policy that decides, `namespace/name`, if one does.
    pub policy: Option<String>,
    pub conclusion: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ExplainedStep {
    /// `name`, `service`, `endpoint`, `tunnel`, `policy`.
    pub step: String,
    pub answer: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Diagnosis {
    pub checks: Vec<Check>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    pub outcome: CheckOutcome,
    /// What was found.
    pub detail: String,
    /// What to do about it; empty when nothing.
    pub cure: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckOutcome {
    Ok,
    Warn,
    Fail,
    /// Could not be asked here, and why is in the detail.
    Skipped,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ConnectionView {
    pub id: u64,
    pub direction: String,
    /// How the bytes cross the network: `tcp`, `hbone` or `tombolo/1`.
    pub protocol: String,
    pub src: String,
    pub src_identity: String,
    pub dst: String,
    pub dst_service: String,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    pub age_ms: u64,
}
