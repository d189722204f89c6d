//! The commands of one host: join, leave, look, switch interception, and the agent itself.
//!
//! Most ask the running agent over its Unix socket ([`admin`]); joining, leaving and `doctor` also work
//! without one. Each prints its answer as text or, for programs, as the JSON of `api::admin`.

mod admin;
mod agent;
mod doctor;
mod explain;
mod intercept;
mod join;
mod plan;
mod status;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;

use ::agent::config::{Config, Sources};
use ::agent::state::{StateDir, StateError};
use clap::{Args, Subcommand};

use crate::config::ConnectionArgs;
use crate::exit::Exit;
use crate::output::{self, Output};
use admin::{AdminClient, AdminError};

/// A command that concerns the host it runs on.
#[derive(Debug, Subcommand)]
pub(crate) enum HostCommand {
    /// Make this host part of a mesh
    #[command(after_help = join::EXAMPLES)]
    Join(join::JoinArgs),
    /// Take this host out of its mesh
    #[command(after_help = join::LEAVE_EXAMPLES)]
    Leave(join::LeaveArgs),
    /// How this host's agent is
    #[command(after_help = status::EXAMPLES)]
    Status(status::StatusArgs),
    /// What is wrong with this host, and what to do about it
    #[command(after_help = doctor::EXAMPLES)]
    Doctor(doctor::DoctorArgs),
    /// What interception would do, without doing it
    #[command(after_help = plan::EXAMPLES)]
    Plan(plan::PlanArgs),
    /// Switch interception on and off
    #[command(subcommand)]
    Intercept(intercept::InterceptCommand),
    /// Why a connection is allowed or refused, and where it goes
    #[command(after_help = explain::EXAMPLES)]
    Why(explain::WhyArgs),
    /// The workloads of this host
    #[command(subcommand)]
    Workload(workload::WorkloadCommand),
    /// The daemon; systemd runs it
    #[command(after_help = agent::EXAMPLES)]
    Agent(agent::AgentArgs),
}

/// Where the agent's settings and its socket are.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct HostArgs {
    /// The agent's settings; its drop-ins are in the folder of the same name with .d
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The agent's socket, if it is elsewhere than the settings say
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
}

/// Why a host command failed without an answer of the agent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    #[error("this host has not joined a mesh: run `tombolo join URL --token TOKEN`")]
    NotJoined,
    #[error(transparent)]
    OtherMachine(StateError),
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Failed(String),
    #[error(transparent)]
    Admin(#[from] AdminError),
    #[error(transparent)]
    Config(#[from] ::agent::config::ConfigError),
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

impl HostCommand {
    /// `status` can be about a control plane too.
    pub(crate) fn of_control_plane(&self) -> Option<ConnectionArgs> {
        match self {
            Self::Status(args) => args.of_control_plane(),
            _ => None,
        }
    }
}

/// Runs one command and tells what came of it.
pub(crate) fn run(command: HostCommand, output: Output) -> ExitCode {
    let ended = match command {
        HostCommand::Join(args) => join::join(args, output),
        HostCommand::Leave(args) => join::leave(args, output),
        HostCommand::Status(args) => status::run(args, output),
        HostCommand::Doctor(args) => doctor::run(args, output),
        HostCommand::Plan(args) => plan::run(args, output),
        HostCommand::Intercept(command) => intercept::run(command, output),
        HostCommand::Why(args) => explain::run(args, output),
        HostCommand::Workload(command) => workload::run(command, output),
        HostCommand::Agent(args) => agent::run(args),
    };
    match ended {
        Ok(exit) => exit.into(),
        Err(error) => {
            let shown = anyhow::Error::from(error);
            output::error(&format!("{shown:#}"));
            match shown.downcast_ref::<HostError>() {
                Some(HostError::NotJoined | HostError::OtherMachine(_)) => Exit::NotJoined.into(),
                Some(HostError::Usage(_)) => Exit::Usage.into(),
                Some(HostError::Refused(_)) => Exit::Refused.into(),
                Some(_) | None => Exit::Failed.into(),
            }
        }
    }
}

impl HostArgs {
    pub(crate) fn sources(&self) -> Sources {
        Sources { file: self.config.clone(), ..Sources::default() }
    }

    pub(crate) fn load(&self) -> Result<Config, HostError> {
        Ok(Config::load(&self.sources())?)
    }

    pub(crate) fn client(&self, config: &Config) -> AdminClient {
        AdminClient::new(self.socket.clone().unwrap_or_else(|| config.paths.admin_socket()))
    }

    /// Asks the running agent. Without one the answer says what is missing: joining, or starting it.
    pub(crate) fn ask<T, F>(&self, question: impl FnOnce(AdminClient) -> F) -> Result<T, HostError>
    where
        F: Future<Output = Result<T, AdminError>>,
    {
        let config = self.load()?;
        match block_on(question(self.client(&config)))? {
            Ok(answer) => Ok(answer),
            Err(error @ AdminError::NotRunning { .. }) => Err(without_agent(&config, error)),
            Err(error) => Err(error.into()),
        }
    }
}

/// Why no agent answers. A folder that cannot be read says nothing about that.
fn without_agent(config: &Config, error: AdminError) -> HostError {
    match StateDir::at(&config.paths.state_dir).identity() {
        Ok(None) => HostError::NotJoined,
        Err(other @ StateError::OtherMachine { .. }) => HostError::OtherMachine(other),
        Ok(Some(_)) | Err(_) => error.into(),
    }
}

/// Host commands wait for one thing at a time.
fn block_on<T>(future: impl Future<Output = T>) -> Result<T, HostError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| HostError::Failed(format!("no runtime: {error}")))?;
    Ok(runtime.block_on(future))
}

/// `yes` or `no`.
fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}
