//! `tombolo agent`: the daemon, and what is done with its settings and leftovers.

use ::agent::cleanup;
use ::agent::config::{Config, OnAgentLoss};
use ::agent::run::RunError;
use ::agent::state::{StateDir, StateError};
use clap::Args;

use super::admin::AdminError;
use super::{HostArgs, HostError};
use crate::exit::Exit;
use crate::output;

pub(super) const EXAMPLES: &str = "\
Examples:
  tombolo agent --config /etc/tombolo/agent.toml
  tombolo agent --print-config                 each value and the layer it is from
  tombolo agent --set log.filter=debug
  tombolo agent --reload                       the running agent reads its settings again
  tombolo agent --hand-over                    the program that is installed now takes over, without a cut
  tombolo agent --cleanup                      take away what a killed agent left
  tombolo agent --adopt                        go on as the same host after /etc/machine-id was changed

Layers of settings: defaults < agent.toml < agent.d/*.toml < TOMBOLO__SECTION__KEY < --set.";

#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// A setting over all files, may be given several times
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", value_parser = setting)]
    settings: Vec<(String, String)>,
    /// Print every setting with its layer, and end
    #[arg(long)]
    print_config: bool,
    /// Let the running agent read its settings again, and end; with a mistake in them it keeps those it has
    #[arg(long, conflicts_with_all = ["print_config", "cleanup"])]
    reload: bool,
    /// Let the program that is installed now take over from the running agent, and end. No connection is cut: the
    /// earlier process ends with the last of its own. If the new one does not serve, the running one goes on as it
    /// was, and this command says why (exit code 1; 2 when the running agent is too old to know how)
    #[arg(long, conflicts_with_all = ["print_config", "cleanup", "reload"])]
    hand_over: bool,
    /// Remove rules, routes and devices that a killed agent left, and end
    #[arg(long, conflicts_with = "print_config")]
    cleanup: bool,
    /// Tie the stored identity to this machine, and end; never on a copy of a machine that is in the mesh
    #[arg(long, conflicts_with_all = ["print_config", "reload", "hand_over", "cleanup"])]
    adopt: bool,
    /// With --cleanup: also the table that `on_agent_loss = "block"` keeps
    #[arg(long, requires = "cleanup")]
    all: bool,
    #[command(flatten)]
    host: HostArgs,
}

/// What the agent answers: the keys that only a restart obeys.
#[derive(serde::Deserialize)]
struct Reloaded {
    done: Vec<String>,
}

/// What it answers when another process serves.
#[derive(serde::Deserialize)]
struct Given {
    done: HandedOver,
}

#[derive(serde::Deserialize)]
struct HandedOver {
    pid: u32,
    connections: u64,
}

pub(super) fn run(args: AgentArgs) -> Result<Exit, HostError> {
    let mut sources = args.host.sources();
    sources.flags = args.settings;
    if args.cleanup {
        // Settings that are wrong must not keep the host from being cleaned.
        let on_agent_loss =
            Config::load(&sources).map_or(OnAgentLoss::Bypass, |config| config.interception.on_agent_loss);
        let cleaned = cleanup::cleanup(on_agent_loss, args.all);
        cleaned.removed.iter().for_each(|what| output::note(&format!("removed {what}")));
        return match cleaned.failed.as_slice() {
            [] => Ok(Exit::Ok),
            failed => Err(HostError::Failed(format!("not everything could be removed: {}", failed.join("; ")))),
        };
    }
    if args.print_config {
        output::print(&Config::load(&sources)?.print())?;
        return Ok(Exit::Ok);
    }
    if args.reload {
        return reload(&args.host);
    }
    if args.hand_over {
        return hand_over(&args.host);
    }
    if args.adopt {
        return adopt(&Config::load(&sources)?);
    }
    match ::agent::run::run(&sources) {
        Ok(()) => Ok(Exit::Ok),
        Err(RunError::NotJoined) => Err(HostError::NotJoined),
        Err(RunError::State(error @ StateError::OtherMachine { .. })) => Err(HostError::OtherMachine(error)),
        Err(error) => Err(HostError::Failed(telemetry::Chain(&error).to_string())),
    }
}

fn adopt(config: &Config) -> Result<Exit, HostError> {
    match StateDir::at(&config.paths.state_dir).adopt() {
        Ok(Some(host)) => output::note(&format!("this machine is the host {host} from here on")),
        Ok(None) => return Err(HostError::NotJoined),
        Err(error) => return Err(HostError::Failed(telemetry::Chain(&error).to_string())),
    }
    Ok(Exit::Ok)
}

fn reload(host: &HostArgs) -> Result<Exit, HostError> {
    // Where the socket is stands in settings that may be wrong just now: the agent says so, not we.
    let config = host.load().unwrap_or_else(|_| Config::defaults());
    let client = host.client(&config);
    let reloaded: Reloaded = super::block_on(client.post("/reload", &serde_json::json!({})))??;
    if !reloaded.done.is_empty() {
        output::note(&format!("a restart is needed for {}", reloaded.done.join(", ")));
    }
    Ok(Exit::Ok)
}

fn hand_over(host: &HostArgs) -> Result<Exit, HostError> {
    let config = host.load().unwrap_or_else(|_| Config::defaults());
    let client = host.client(&config);
    let given: Given = match super::block_on(client.post("/hand-over", &serde_json::json!({})))? {
        Ok(given) => given,
        Err(AdminError::Refused(refusal)) if refusal.code == "not_found" => {
            let tell = "the running agent is too old to hand over: systemctl restart tombolo-agent";
            return Err(HostError::Usage(tell.to_owned()));
        }
        Err(error) => return Err(error.into()),
    };
    let HandedOver { pid, connections } = given.done;
    output::note(&format!("process {pid} serves; the earlier one ends with the last of its {connections} connections"));
    Ok(Exit::Ok)
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("not SECTION.KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}
