//! `tombolo workload list | add | remove`: what this host says itself about its workloads.
//!
//! `add` writes a drop-in beside the agent's settings and has the agent read it. Which groups a host
//! may run is the control plane's to say; this says which processes they are here.

use std::path::{Path, PathBuf};

use ::agent::config::raw::RawWorkload;
use ::agent::config::{Config, DEFAULT_FILE, check};
use api::admin::LocalWorkloadView;
use clap::{Args, Subcommand};

use super::admin::AdminError;
use super::{HostArgs, HostError, block_on, status};
use crate::exit::Exit;
use crate::output::{self, Output};

/// The workloads of this host
#[derive(Debug, Subcommand)]
pub(crate) enum WorkloadCommand {
    /// What this host runs, as the agent sees it
    #[command(after_help = "Example:\n  tombolo workload list -o json")]
    List(ListArgs),
    /// Say which processes of this host a workload is
    #[command(after_help = ADD_EXAMPLES)]
    Add(AddArgs),
    /// Take back what `add` said
    #[command(after_help = "Example:\n  tombolo workload remove shop/orders")]
    Remove(RemoveArgs),
}

const ADD_EXAMPLES: &str = "\
Examples:
  tombolo workload add shop/orders --unit orders.service
  tombolo workload add shop/web --uid 33 --inbound observe

The host must run the group already: `tombolo join --group` or the control plane says so.";

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    host: HostArgs,
}

#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    /// NAMESPACE/WORKLOADGROUP
    group: String,
    /// The systemd unit whose processes it is
    #[arg(long)]
    unit: Option<String>,
    /// The user id whose processes it is
    #[arg(long)]
    uid: Option<u32>,
    /// The cgroup whose processes it is, below the cgroup v2 mount
    #[arg(long)]
    cgroup: Option<String>,
    /// What happens to plaintext from other hosts at its ports
    #[arg(long, value_name = "permissive|observe|strict")]
    inbound: Option<String>,
    #[command(flatten)]
    host: HostArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// NAMESPACE/WORKLOADGROUP
    group: String,
    #[command(flatten)]
    host: HostArgs,
}

pub(super) fn run(command: WorkloadCommand, output: Output) -> Result<Exit, HostError> {
    match command {
        WorkloadCommand::List(args) => list(&args, output),
        WorkloadCommand::Add(args) => add(args, output),
        WorkloadCommand::Remove(args) => remove(&args, output),
    }
}

fn list(args: &ListArgs, output: Output) -> Result<Exit, HostError> {
    let workloads: Vec<LocalWorkloadView> = args.host.ask(async |client| client.get("/workloads").await)?;
    output.show(&workloads, || match workloads.as_slice() {
        [] => "this host runs no workload\n".to_owned(),
        workloads => status::workloads(workloads),
    })?;
    Ok(Exit::Ok)
}

fn add(args: AddArgs, output: Output) -> Result<Exit, HostError> {
    let config = args.host.load()?;
    let said =
        RawWorkload { group: args.group, unit: args.unit, uid: args.uid, cgroup: args.cgroup, inbound: args.inbound };
    let checked = check::workload_override(&said).map_err(HostError::Usage)?;
    if checked.selector.is_none() && checked.inbound.is_none() {
        return Err(HostError::Usage("say which processes it is: --unit, --uid or --cgroup, or --inbound".to_owned()));
    }
    let path = drop_in(&args.host, &said.group);
    let text = toml::to_string(&toml::Table::from_iter([(
        "workload".to_owned(),
        toml::Value::Array(vec![toml::Value::try_from(&said).map_err(|error| HostError::Failed(error.to_string()))?]),
    )]))
    .map_err(|error| HostError::Failed(error.to_string()))?;
    let text =
        format!("# Written by `tombolo workload add`; `tombolo workload remove {}` takes it away.\n{text}", said.group);
    let written = path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(&path, text));
    written.map_err(|error| HostError::Failed(format!("cannot write {}: {error}", path.display())))?;
    reload(&args.host, &config)?;
    output.show(&serde_json::json!({ "group": said.group, "file": path }), || {
        format!("{} is written\n", path.display())
    })?;
    Ok(Exit::Ok)
}

fn remove(args: &RemoveArgs, output: Output) -> Result<Exit, HostError> {
    let path = drop_in(&args.host, &args.group);
    match std::fs::remove_file(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(HostError::Failed(format!(
                "there is no {}: nothing was added for {}",
                path.display(),
                args.group
            )));
        }
        Err(error) => return Err(HostError::Failed(format!("cannot remove {}: {error}", path.display()))),
    }
    let config = args.host.load()?;
    reload(&args.host, &config)?;
    output.show(&serde_json::json!({ "group": args.group, "removed": path }), || {
        format!("{} is removed\n", path.display())
    })?;
    Ok(Exit::Ok)
}

/// A running agent obeys at once; one that does not run reads it when it starts.
fn reload(host: &HostArgs, config: &Config) -> Result<(), HostError> {
    match block_on(host.client(config).post::<serde_json::Value>("/reload", &serde_json::json!({})))? {
        Ok(_) => Ok(()),
        Err(AdminError::NotRunning { .. }) => {
            output::note("the agent does not run: it reads this when it starts");
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

fn drop_in(host: &HostArgs, group: &str) -> PathBuf {
    let file = host.config.clone().unwrap_or_else(|| DEFAULT_FILE.into());
    let safe: String =
        group.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '.') { c } else { '-' }).collect();
    Path::new(&file).with_extension("d").join(format!("workload-{safe}.toml"))
}
