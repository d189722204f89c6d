//! The JSON of the control plane's REST API, as both its server and `tombolo` use it. Pure.
//!
//! Paths (all under `https://CONTROL-PLANE:15014`, `authorization: Bearer TOKEN` except the first):
//!
//! | path | |
//! |---|---|
//! | `GET /healthz`, `GET /openapi.json`, `GET /metrics` | open |
//! | `POST /v1/apply?dry_run=BOOL` | [`ApplyRequest`] → [`ApplyResponse`]; all or nothing |
//! | `GET /v1/resources/KIND?namespace=NS` | [`ResourceList`] |
//! | `GET`, `DELETE /v1/resources/KIND/NS/NAME` | one resource; `DELETE` answers [`ApplyOutcome`] |
//! | `GET /v1/watch?since=REVISION&timeout_s=N` | [`WatchAnswer`]: at once when newer, else after the time |
//! | `GET /v1/workloads?namespace=NS` | [`WorkloadList`] |
//! | `GET /v1/hosts`, `DELETE /v1/hosts/NAME` | [`HostList`] |
//! | `POST /v1/hosts/NAME/approve`, `…/lock`, `…/unlock`, `…/revoke` | [`HostView`] |
//! | `GET`, `POST /v1/tokens`; `DELETE /v1/tokens/ID` | [`TokenList`], [`TokenRequest`] → [`TokenCreated`] |
//! | `GET /v1/status` | [`ControlPlaneStatus`] |
//!
//! KIND is the lower-case singular, such as `authorizationpolicy`. A refusal is an [`ErrorBody`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Resources to create or replace, in one transaction.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ApplyRequest {
    /// Whole documents: apiVersion, kind, metadata, spec.
    pub resources: Vec<serde_json::Value>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ApplyResponse {
    /// The revision that the whole request took; unchanged when nothing changed.
    pub revision: u64,
    pub outcomes: Vec<ApplyOutcome>,
}

/// What happened, or with `dry_run` would happen, to one resource.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ApplyOutcome {
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub action: ApplyAction,
    /// What is legal but probably not meant, such as a selector that matches no workload.
    pub warnings: Vec<String>,
    /// The document as it is kept now, for `diff`.
    pub before: Option<serde_json::Value>,
    /// The document as it will be kept.
    pub after: Option<serde_json::Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ApplyAction {
    Created,
    Configured,
    Unchanged,
    Deleted,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ResourceList {
    pub revision: u64,
    /// Whole documents, with `metadata.resourceVersion`, `metadata.creationTimestamp` and `status`
    /// ([`ServiceStatus`], [`WorkloadGroupStatus`]).
    pub items: Vec<serde_json::Value>,
}

/// `status` of a Service and of a ServiceEntry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceStatus {
    /// Virtual addresses by the name callers use, whether chosen by the operator or by the control
    /// plane: `NAME.NAMESPACE.mesh`, or the hosts of a ServiceEntry.
    #[serde(default)]
    pub addresses: BTreeMap<String, Vec<String>>,
}

/// `status` of a WorkloadGroup.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WorkloadGroupStatus {
    /// How many hosts are in it.
    #[serde(default)]
    pub hosts: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct WatchAnswer {
    pub revision: u64,
}

/// One workload as the registry knows it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct WorkloadView {
    pub uid: String,
    pub name: String,
    pub namespace: String,
    pub group: String,
    pub host: String,
    pub addresses: Vec<String>,
    pub identity: String,
    /// `HBONE` or `NONE`.
    pub tunnel: String,
    pub healthy: bool,
    /// Why not.
    pub reason: String,
    /// Hostnames of the services it is an endpoint of.
    pub services: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct WorkloadList {
    pub revision: u64,
    pub items: Vec<WorkloadView>,
}

/// One host as the registry knows it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct HostView {
    pub name: String,
    pub identity: String,
    pub addresses: Vec<String>,
    pub groups: Vec<String>,
    pub state: HostState,
    /// Why it is locked, or what its agent last complained of.
    pub problem: String,
    pub version: String,
    /// The revision its agent obeys.
    pub revision: u64,
    pub intercepting: bool,
    /// RFC 3339.
    pub joined_at: String,
    /// RFC 3339; empty when it never reported.
    pub last_seen_at: String,
    /// RFC 3339: end of the newest certificate.
    pub certificate_not_after: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum HostState {
    /// Its lease is current.
    Ready,
    /// Its lease has run out, or it has not reported yet.
    Away,
    /// Waits for `tombolo host approve`.
    Pending,
    /// May not renew; its workloads are withdrawn.
    Locked,
    /// Locked for good.
    Revoked,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct HostList {
    pub items: Vec<HostView>,
}

/// What a new join token may be used for.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// `NAMESPACE/WORKLOADGROUP`; at least one.
    pub groups: Vec<String>,
    /// Seconds; default 3600, at most 604800.
    #[serde(default = "one_hour_s")]
    pub ttl_s: u64,
    /// How many hosts may join with it; default 1.
    #[serde(default = "one")]
    pub uses: u32,
    /// Which names a joining host may take: `*` and `?` as in a shell. Empty allows any.
    #[serde(default)]
    pub name_pattern: String,
    /// From which addresses one may join. Empty allows any.
    #[serde(default)]
    pub cidrs: Vec<String>,
    /// The host waits for `tombolo host approve` before it gets its certificate's workloads.
    #[serde(default)]
    pub approval: bool,
}

fn one_hour_s() -> u64 {
    3600
}

fn one() -> u32 {
    1
}

/// The only time the token itself is seen.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct TokenCreated {
    pub token: String,
    /// The whole line for the new host.
    pub join_command: String,
    /// `sha256:HEX` of the root certificate (DER).
    pub ca_pin: String,
    pub view: TokenView,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TokenView {
    pub id: String,
    pub groups: Vec<String>,
    pub uses_left: u32,
    pub name_pattern: String,
    pub cidrs: Vec<String>,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339.
    pub expires_at: String,
    pub created_by: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TokenList {
    pub items: Vec<TokenView>,
}

#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ControlPlaneStatus {
    pub version: String,
    pub trust_domain: String,
    pub revision: u64,
    /// `sqlite` or `postgres`.
    pub store: String,
    /// `sha256:HEX` of the root certificate (DER).
    pub ca_pin: String,
    /// RFC 3339.
    pub ca_not_after: String,
    pub connected_agents: u64,
    /// Agents that have acknowledged `revision`.
    pub current_agents: u64,
    pub hosts: u64,
    pub workloads: u64,
    pub services: u64,
}

/// Every refusal of the REST API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// Stable, for programs: `invalid`, `not_found`, `conflict`, `unauthenticated`, `forbidden`, `unavailable`, `internal`.
    pub code: String,
    /// What happened, to which object, why.
    pub message: String,
    /// What to do about it.
    pub hint: String,
    /// Each mistake of an apply, when there are several: `KIND NS/NAME: spec.x: why`.
    #[serde(default)]
    pub mistakes: Vec<String>,
}
