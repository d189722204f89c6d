//! What the agent may be told, from text to checked values.
//!
//! [`Config::load`] reads the layers (defaults < `agent.toml` < `agent.d/*.toml` <
//! `TOMBOLO__SECTION__KEY` < flags), refuses unknown keys and reports every mistake at once with the
//! layer it stands in. Nothing else of the agent reads its environment. [`raw`] has the fields as
//! people type them, [`layers`] where each value came from, [`check`] turns the first into these types.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use api::{InboundMode, Selector};
use ipnet::IpNet;

pub mod check;
pub mod layers;
pub mod raw;

pub use layers::{Effective, Sources};

/// Where the packages put the file.
pub const DEFAULT_FILE: &str = "/etc/tombolo/agent.toml";

/// The checked configuration. Every field's meaning, unit, default and range stand in [`raw`].
#[derive(Debug, Clone)]
pub struct Config {
    pub paths: Paths,
    pub log: Log,
    pub control_plane: ControlPlane,
    pub interception: Interception,
    pub outbound: Outbound,
    pub inbound: Inbound,
    pub dns: Dns,
    pub metrics: Vec<SocketAddr>,
    pub readiness: Vec<SocketAddr>,
    pub admin: Vec<SocketAddr>,
    pub health: Health,
    pub drain_deadline: Duration,
    pub drain_hand_over: Duration,
    /// 0 is one for every four cores.
    pub workers: usize,
    pub workloads: Vec<WorkloadOverride>,
    /// Every key with its value and the layer it came from, for `--print-config`.
    pub effective: Vec<Effective>,
}

#[derive(Debug, Clone)]
pub struct Paths {
    pub state_dir: PathBuf,
    pub run_dir: PathBuf,
}

impl Paths {
    /// The Unix socket of the admin API, for root.
    pub fn admin_socket(&self) -> PathBuf {
        self.run_dir.join("admin.sock")
    }
}

#[derive(Debug, Clone)]
pub struct Log {
    pub format: LogFormat,
    pub filter: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// journald fields under systemd, text on a terminal, JSON otherwise.
    Auto,
    Text,
    Json,
    Journald,
}

#[derive(Debug, Clone)]
pub struct ControlPlane {
    /// Empty: the one that `tombolo join` remembered.
    pub url: Option<String>,
    pub connect_timeout: Duration,
    pub keepalive_interval: Duration,
    pub keepalive_timeout: Duration,
    pub reconnect_min: Duration,
    pub reconnect_max: Duration,
}

#[derive(Debug, Clone)]
pub struct Interception {
    pub enabled_at_start: EnabledAtStart,
    pub on_agent_loss: OnAgentLoss,
    pub capture: Capture,
    pub source_preservation: bool,
    pub verify_interval: Duration,
    pub cgroup_refresh: Duration,
    pub exclude: Exclude,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnabledAtStart {
    /// As it was last confirmed or switched off.
    Remembered,
    Always,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnAgentLoss {
    Bypass,
    Hold,
    Block,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capture {
    Mesh,
    All,
}

/// What interception never touches.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Exclude {
    pub units: Vec<String>,
    pub uids: Vec<u32>,
    pub cgroups: Vec<String>,
    pub cidrs: Vec<IpNet>,
    pub ports: Vec<u16>,
    pub interfaces: Vec<String>,
}

#[derive(Debug, Clone)]
pub struct Outbound {
    pub listen: Vec<SocketAddr>,
    pub connect_timeout: Duration,
    pub max_endpoints_tried: usize,
    pub tunnel: proxy::config::Tunnel,
    pub idle_timeout: Option<Duration>,
}

#[derive(Debug, Clone)]
pub struct Inbound {
    pub listen: Vec<SocketAddr>,
    pub plaintext_listen: Vec<SocketAddr>,
    pub handshake_timeout: Duration,
    pub max_handshakes: usize,
    pub connect_timeout: Duration,
    pub idle_timeout: Option<Duration>,
}

#[derive(Debug, Clone)]
pub struct Dns {
    pub enabled: bool,
    pub resolved: Resolved,
    pub listen: Vec<SocketAddr>,
    pub resolv_conf: PathBuf,
    pub upstreams: Vec<SocketAddr>,
    pub timeout: Duration,
}

/// Whether mesh names are registered with systemd-resolved instead of taken on port 53.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolved {
    /// Where it runs and is the host's resolver.
    Auto,
    On,
    Off,
}

#[derive(Debug, Clone)]
pub struct Health {
    pub exec: bool,
}

/// What this host says itself about a workload that the control plane gave it.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkloadOverride {
    pub namespace: String,
    pub group: String,
    /// `None` leaves the WorkloadGroup's.
    pub selector: Option<Selector>,
    pub inbound: Option<InboundMode>,
}

/// One thing that is wrong, and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// A file, `environment` or `flags`.
    pub layer: String,
    /// `section.key`; empty when the whole layer cannot be read.
    pub key: String,
    pub what: String,
}

/// The configuration cannot be used; every reason is in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    pub mistakes: Vec<Mistake>,
}

impl Config {
    /// Reads and checks every layer.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let layered = layers::read(sources);
        let mut mistakes = layered.mistakes;
        let config = check::check(&layered.raw, &layered.effective, &mut mistakes);
        if mistakes.is_empty() { Ok(config) } else { Err(ConfigError { mistakes }) }
    }

    /// The built-in values, as if there were no other layer.
    pub fn defaults() -> Self {
        check::check(&raw::RawConfig::default(), &[], &mut Vec::new())
    }

    /// What `tombolo agent --print-config` prints: TOML, with each value's layer as a comment.
    pub fn print(&self) -> String {
        layers::print(&self.effective)
    }
}

/// Whether a service manager wants to hear from this process (sd_notify(3)).
pub fn service_manager() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Set for an agent that takes over from one that runs ([`crate::hand_over`]).
pub const TAKES_OVER: &str = "TOMBOLO_TAKES_OVER";

/// Whether a running agent started this one to take over from it.
pub fn takes_over() -> bool {
    std::env::var_os(TAKES_OVER).is_some()
}

/// With which status the service's main process has ended, for a command of `ExecStopPost=`
/// (systemd.exec(5)); `None` for any other process.
pub fn ended_service() -> Option<String> {
    std::env::var_os("SERVICE_RESULT")?;
    let status = std::env::var_os("EXIT_STATUS").unwrap_or_default();
    Some(status.to_string_lossy().into_owned())
}

impl Log {
    /// What `auto` means for this process: systemd says by JOURNAL_STREAM that journald reads along
    /// (systemd.exec(5)).
    pub fn settings(&self) -> telemetry::log::LogConfig {
        use std::io::IsTerminal;
        use telemetry::log::Format;
        let format = match self.format {
            LogFormat::Auto if std::env::var_os("JOURNAL_STREAM").is_some() => Format::Journald,
            LogFormat::Auto if std::io::stderr().is_terminal() => Format::Text,
            LogFormat::Auto | LogFormat::Json => Format::Json,
            LogFormat::Text => Format::Text,
            LogFormat::Journald => Format::Journald,
        };
        telemetry::log::LogConfig { format, filter: self.filter.clone() }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key.as_str() {
            "" => write!(f, "{}: {}", self.layer, self.what),
            key => write!(f, "{}: {key}: {}", self.layer, self.what),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mistakes.as_slice() {
            [one] => write!(f, "the configuration has a mistake: {one}"),
            many => {
                write!(f, "the configuration has {} mistakes:", many.len())?;
                many.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
            }
        }
    }
}

#[cfg(test)]
mod tests;
