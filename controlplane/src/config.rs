//! What the control plane may be told, from text to checked values.
//!
//! Layers: defaults < `controlplane.toml` < `controlplane.d/*.toml` < `TOMBOLO__SECTION__KEY` < flags.
//! Unknown keys are refused, every mistake is reported at once with the layer it stands in. Nothing
//! else of this program reads the environment.

use std::fmt;
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use api::TrustDomain;

use crate::store::StoreUrl;

mod check;
mod layers;

pub use layers::{Effective, Setting, Sources};

/// The checked configuration. Meaning and default of each value stand in packaging/etc/controlplane.toml.
#[derive(Debug, Clone)]
pub struct Config {
    pub data_dir: PathBuf,
    /// systemd's folder, where the authority's keys may be.
    pub credentials: Option<PathBuf>,
    pub trust_domain: TrustDomain,
    /// Names and addresses of this control plane, as given.
    pub advertise: Vec<String>,
    pub store: StoreUrl,
    pub grpc_listen: SocketAddr,
    pub api_listen: SocketAddr,
    pub lease: Duration,
    pub grace: Duration,
    pub log_format: LogFormat,
    pub log_filter: String,
    /// Every key with its value and the layer it came from, for `--print-config`.
    pub effective: Vec<Effective>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// journald under systemd, text on a terminal, JSON otherwise.
    Auto,
    Text,
    Json,
    Journald,
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
        let config = check::check(layered.effective, sources, &mut mistakes);
        config.filter(|_| mistakes.is_empty()).ok_or(ConfigError { mistakes })
    }

    /// The format of log lines, where `auto` was decided by what reads them.
    pub fn log_output(&self) -> telemetry::log::Format {
        use telemetry::log::Format;
        match self.log_format {
            LogFormat::Text => Format::Text,
            LogFormat::Json => Format::Json,
            LogFormat::Journald => Format::Journald,
            // Set by systemd for what writes to the journal: systemd.exec(5).
            LogFormat::Auto if std::env::var_os("JOURNAL_STREAM").is_some() => Format::Journald,
            LogFormat::Auto if std::io::stderr().is_terminal() => Format::Text,
            LogFormat::Auto => Format::Json,
        }
    }

    /// What `--print-config` prints: TOML, with each value's layer as a comment.
    pub fn print(&self) -> String {
        layers::print(&self.effective)
    }
}

impl Sources {
    /// The default file, the process's environment and systemd's credentials; no flags.
    pub fn of_process() -> Self {
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
        Self { credentials, ..Self::default() }
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
