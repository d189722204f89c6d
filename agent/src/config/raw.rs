//! The configuration as people type it: strings for durations and addresses, defaults as shipped in
//! `packaging/etc/agent.toml` (a test compares the two).
//!
//! [`super::check`] gives each value its meaning; [`super::layers`] says which layer it came from.

use serde::{Deserialize, Serialize};

/// Every section. An unknown key in any layer is a mistake.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawConfig {
    pub paths: RawPaths,
    pub log: RawLog,
    pub control_plane: RawControlPlane,
    pub interception: RawInterception,
    pub outbound: RawOutbound,
    pub inbound: RawInbound,
    pub dns: RawDns,
    pub metrics: RawMetrics,
    pub readiness: RawReadiness,
    pub admin: RawAdmin,
    pub health: RawHealth,
    pub drain: RawDrain,
    pub runtime: RawRuntime,
    /// Local say about workloads: which processes they are, what happens to plaintext. The lists of
    /// all files are joined; for one group the last one counts.
    pub workload: Vec<RawWorkload>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawPaths {
    /// Host key, certificates, last snapshot; mode 0700.
    pub state_dir: String,
    /// `admin.sock`.
    pub run_dir: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawLog {
    /// `auto` (journald under systemd, text on a terminal, else JSON), `text`, `json`, `journald`.
    pub format: String,
    /// Levels by target, such as `info,proxy=debug`; `access` is the access log.
    pub filter: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawControlPlane {
    /// `https://HOST:15012`; empty means the one that `tombolo join` remembered.
    pub url: String,
    /// Until TCP and TLS stand. 10 s: three SYNs (RFC 6298 §2.1) and a slow handshake. 100 ms to 5 min.
    pub connect_timeout: String,
    /// How often an idle connection is pinged (Istio's 30 s). 1 s to 1 h.
    pub keepalive_interval: String,
    /// How long a ping may stay unanswered (Istio's 10 s). 1 s to 5 min.
    pub keepalive_timeout: String,
    /// First wait before a reconnect. 10 ms to 1 min.
    pub reconnect_min: String,
    /// Longest wait before a reconnect (Istio's 15 s), plus jitter. 100 ms to 10 min.
    pub reconnect_max: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawInterception {
    /// `remembered` (as last confirmed or switched off), `always`, `never`.
    pub enabled_at_start: String,
    /// What happens to traffic when the agent dies: `bypass`, `hold` (over a restart), `block`.
    pub on_agent_loss: String,
    /// `mesh` (only destinations of the mesh go through the agent) or `all`.
    pub capture: String,
    /// Local servers see the caller's address, not the agent's.
    pub source_preservation: bool,
    /// How often the kernel's rules are compared with the wanted ones. 1 s to 1 h.
    pub verify_interval: String,
    /// How often units' cgroups are looked up again, so that restarted units stay known. 100 ms to 1 min.
    pub cgroup_refresh: String,
    pub exclude: RawExclude,
}

/// What interception never touches.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawExclude {
    /// systemd units whose connections are left alone, such as `backup.service`.
    pub units: Vec<String>,
    /// User ids whose connections are left alone.
    pub uids: Vec<u32>,
    /// cgroup paths below the cgroup v2 mount.
    pub cgroups: Vec<String>,
    /// Destination networks, such as `10.9.0.0/16`.
    pub cidrs: Vec<String>,
    /// Destination ports of outbound and local ports of inbound connections.
    pub ports: Vec<u16>,
    /// Interfaces, such as `docker0`.
    pub interfaces: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawOutbound {
    /// Where intercepted connections of local processes arrive; loopback only.
    pub listen: Vec<String>,
    /// Until TCP, TLS and CONNECT to one endpoint stand. 5 s covers SYNs at 1 s and 3 s. 100 ms to 5 min.
    pub connect_timeout: String,
    /// How many endpoints of a service are tried before the caller is refused. 1 to 100.
    pub max_endpoints_tried: usize,
    /// What carries connections to other Tombolo hosts: `auto` (whatever is ready, `tombolo/1` first),
    /// `hbone` (HTTP/2 only), `tombolo/1` (one flow at a time on a connection). All other peers get HBONE.
    pub tunnel: String,
    /// A connection without a byte either way for this long is closed; `0s` never. Up to 30 days.
    pub idle_timeout: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawInbound {
    /// Where peers' mTLS tunnels arrive.
    pub listen: Vec<String>,
    /// Where observed plaintext arrives.
    pub plaintext_listen: Vec<String>,
    /// Until a peer's TLS handshake is done. 100 ms to 5 min.
    pub handshake_timeout: String,
    /// Handshakes in progress at one time; beyond it the oldest is given up. 1 to 1000000.
    pub max_handshakes: usize,
    /// How long the local application may take to accept. 100 ms to 5 min.
    pub connect_timeout: String,
    /// As for outbound.
    pub idle_timeout: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawDns {
    /// Whether mesh names are answered at all.
    pub enabled: bool,
    /// Register mesh names with systemd-resolved: `auto` (where it runs and is the host's resolver),
    /// `on`, `off`. Without it port 53 of local processes is taken, for mesh names only.
    pub resolved: String,
    /// Where the host's own resolvers stand.
    pub resolv_conf: String,
    /// Where mesh names are answered; loopback only.
    pub listen: Vec<String>,
    /// Resolvers for all other names, `IP[:PORT]`; empty means those of `resolv_conf`.
    pub upstreams: Vec<String>,
    /// How long one resolver may take before the next is tried. 100 ms to 1 min.
    pub timeout: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawMetrics {
    /// Where `/metrics` answers; empty switches it off.
    pub listen: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawReadiness {
    /// Where `/healthz/ready` answers; empty switches it off.
    pub listen: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawAdmin {
    /// The reading half of the admin API; loopback only. Changes go through `admin.sock` alone.
    pub listen: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawHealth {
    /// Whether exec probes of WorkloadGroups may run commands on this host.
    pub exec: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawDrain {
    /// How long open connections may take to finish when the agent stops. Up to 1 h.
    pub deadline: String,
    /// How long connections may go on in the agent's earlier process after an upgrade. Up to 30 days.
    pub hand_over: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawRuntime {
    /// Threads that carry traffic; 0 is one for every four cores. Up to 256. Everything else has a thread of
    /// its own.
    pub workers: usize,
}

/// One `[[workload]]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawWorkload {
    /// `NAMESPACE/WORKLOADGROUP`.
    pub group: String,
    /// systemd unit whose processes it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// User id whose processes it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// cgroup path below the cgroup v2 mount whose processes it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// `permissive`, `observe` or `strict`, for all of its ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbound: Option<String>,
}

impl Default for RawPaths {
    fn default() -> Self {
        Self { state_dir: "/var/lib/tombolo".into(), run_dir: "/run/tombolo".into() }
    }
}

impl Default for RawLog {
    fn default() -> Self {
        Self { format: "auto".into(), filter: "info".into() }
    }
}

impl Default for RawControlPlane {
    fn default() -> Self {
        Self {
            url: String::new(),
            connect_timeout: "10s".into(),
            keepalive_interval: "30s".into(),
            keepalive_timeout: "10s".into(),
            reconnect_min: "100ms".into(),
            reconnect_max: "15s".into(),
        }
    }
}

impl Default for RawInterception {
    fn default() -> Self {
        Self {
            enabled_at_start: "remembered".into(),
            on_agent_loss: "bypass".into(),
            capture: "mesh".into(),
            source_preservation: true,
            verify_interval: "30s".into(),
            cgroup_refresh: "2s".into(),
            exclude: RawExclude::default(),
        }
    }
}

impl Default for RawOutbound {
    fn default() -> Self {
        Self {
            listen: loopback(api::ports::OUTBOUND),
            connect_timeout: "5s".into(),
            max_endpoints_tried: 3,
            tunnel: "auto".into(),
            idle_timeout: "0s".into(),
        }
    }
}

impl Default for RawInbound {
    fn default() -> Self {
        Self {
            listen: any(api::ports::INBOUND_TUNNEL),
            plaintext_listen: vec![
                format!("0.0.0.0:{}", api::ports::INBOUND_PLAINTEXT),
                format!("[::]:{}", api::ports::INBOUND_PLAINTEXT),
            ],
            handshake_timeout: "10s".into(),
            max_handshakes: 1024,
            connect_timeout: "10s".into(),
            idle_timeout: "0s".into(),
        }
    }
}

impl Default for RawDns {
    fn default() -> Self {
        Self {
            enabled: true,
            resolved: "auto".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            listen: loopback(api::ports::DNS),
            upstreams: vec![],
            timeout: "2s".into(),
        }
    }
}

impl Default for RawMetrics {
    fn default() -> Self {
        Self { listen: any(api::ports::METRICS) }
    }
}

impl Default for RawReadiness {
    fn default() -> Self {
        Self { listen: any(api::ports::READINESS) }
    }
}

impl Default for RawAdmin {
    fn default() -> Self {
        Self { listen: loopback(api::ports::ADMIN) }
    }
}

impl Default for RawHealth {
    fn default() -> Self {
        Self { exec: true }
    }
}

impl Default for RawDrain {
    fn default() -> Self {
        Self { deadline: "5s".into(), hand_over: "24h".into() }
    }
}

fn loopback(port: u16) -> Vec<String> {
    vec![format!("127.0.0.1:{port}"), format!("[::1]:{port}")]
}

/// One socket for both families, where the kernel has IPv6.
fn any(port: u16) -> Vec<String> {
    vec![format!("[::]:{port}")]
}
