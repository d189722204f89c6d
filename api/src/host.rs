//! What one host runs, as the control plane tells its agent. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::spiffe::{SpiffeError, SpiffeId, TrustDomain};
use crate::workload::WorkloadUid;

/// The workloads of one host. Only that host's agent receives it.
#[derive(Debug, Clone, PartialEq)]
pub struct HostConfig {
    pub host: String,
    pub workloads: Vec<LocalWorkload>,
    /// How long the control plane keeps this host's workloads without a report.
    pub lease: Duration,
}

/// One workload of this host: who it is, which processes it is, where it listens.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalWorkload {
    pub uid: WorkloadUid,
    pub namespace: String,
    /// Name of its WorkloadGroup.
    pub group: String,
    pub service_account: String,
    /// Ports it listens on, and what happens to plaintext from other hosts there.
    pub ports: BTreeMap<u16, InboundMode>,
    pub selector: Selector,
    pub probe: Option<Probe>,
}

/// What happens to plaintext that arrives at a workload's port from another host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InboundMode {
    /// Untouched.
    #[default]
    Permissive,
    /// Through the agent: policy and telemetry apply.
    Observe,
    /// Refused in the kernel.
    Strict,
}

/// Which processes are a workload, for outbound connections. With nothing set it is every process
/// that no other workload of the host claims.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Selector {
    /// systemd unit, such as `orders.service`.
    pub unit: Option<String>,
    /// Path below the cgroup v2 mount; its whole subtree is meant.
    pub cgroup: Option<String>,
    pub uid: Option<u32>,
}

/// How the agent finds out whether a workload is healthy (Istio's ReadinessProbe).
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    pub check: Check,
    pub initial_delay: Duration,
    pub timeout: Duration,
    pub period: Duration,
    pub success_threshold: u32,
    pub failure_threshold: u32,
}

/// One way of asking a workload how it is.
#[derive(Debug, Clone, PartialEq)]
pub enum Check {
    Tcp { host: String, port: u16 },
    Http { scheme: String, host: String, port: u16, path: String, headers: BTreeMap<String, String> },
    Exec { command: Vec<String> },
}

impl Selector {
    pub fn is_any(&self) -> bool {
        *self == Self::default()
    }
}

impl LocalWorkload {
    pub fn identity(&self, trust_domain: &TrustDomain) -> Result<SpiffeId, SpiffeError> {
        SpiffeId::workload(trust_domain, &self.namespace, &self.service_account)
    }
}
