//! `tombolo join` and `tombolo leave`.

use std::io::Read;
use std::net::IpAddr;
use std::path::PathBuf;

use ::agent::join::{self, JoinOptions, LeaveError, LeaveOptions};
use ::agent::state::StateDir;
use clap::Args;

use super::admin::AdminError;
use super::{HostArgs, HostError, block_on};
use crate::exit::Exit;
use crate::output::{self, Output};

pub(super) const EXAMPLES: &str = "\
Examples:
  tombolo join https://mesh.corp.example --token tmb_…
  tombolo join https://mesh.corp.example --token-file /run/credentials/token --group shop/orders
  tombolo join --token-file line                the line that `tombolo token create` printed
  vault read -field=token secret/mesh | tombolo join https://mesh.corp.example --token-stdin

The operator gets the whole line from `tombolo token create`. Joining starts nothing without --now.";

pub(super) const LEAVE_EXAMPLES: &str = "\
Examples:
  tombolo leave
  tombolo leave --purge          also removes the state folder
  tombolo leave --force          also when the control plane cannot be told
  tombolo leave --purge --local  on a copy of a machine, which itself stays in the mesh";

#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    /// The control plane, https://HOST[:15012]; not needed when the token comes in the line of `token create`
    url: Option<String>,
    #[command(flatten)]
    token: TokenArgs,
    /// SHA-256 of the control plane's root certificate, besides what the token holds of it
    #[arg(long, value_name = "sha256:HEX")]
    ca_pin: Option<String>,
    /// What this host is called in the mesh [default: its own name]
    #[arg(long)]
    name: Option<String>,
    /// A WorkloadGroup it runs; may be given several times [default: all that the token is for]
    #[arg(long = "group", value_name = "NAMESPACE/GROUP")]
    groups: Vec<String>,
    /// Where peers reach this host; may be given several times [default: found out]
    #[arg(long, value_name = "ADDRESS")]
    advertise: Vec<IpAddr>,
    /// Join although this host has joined before
    #[arg(long)]
    force: bool,
    /// Then enable and start the service tombolo-agent; traffic stays as it is until `tombolo intercept on`
    #[arg(long)]
    now: bool,
    #[command(flatten)]
    host: HostArgs,
}

/// One way to hand over the token.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct TokenArgs {
    /// The join token (others on this host can see it in the process list)
    #[arg(long)]
    token: Option<String>,
    /// A file that holds the join token, or the whole line that `tombolo token create` printed
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Read the same from standard input
    #[arg(long)]
    token_stdin: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LeaveArgs {
    /// Remove the state folder too
    #[arg(long)]
    purge: bool,
    /// Forget the identity also when the control plane cannot be told
    #[arg(long)]
    force: bool,
    /// Do not tell the control plane: on a copy of a machine, which itself is to stay in the mesh
    #[arg(long)]
    local: bool,
    #[command(flatten)]
    host: HostArgs,
}

pub(super) fn join(args: JoinArgs, output: Output) -> Result<Exit, HostError> {
    let config = args.host.load()?;
    let given = given(&args.token.read()?);
    let no_url = || {
        HostError::Usage(
            "say where the control plane is: its URL, or with the token the whole line of `tombolo token create`"
                .to_owned(),
        )
    };
    let options = JoinOptions {
        url: args.url.or(given.url).ok_or_else(no_url)?,
        token: given.token,
        ca_pin: args.ca_pin,
        name: args.name,
        groups: args.groups,
        advertise: args.advertise,
        force: args.force,
    };
    let identity = match block_on(join::join(&config, &options))? {
        Ok(identity) => identity,
        Err(error) => {
            let text = telemetry::Chain(&error).to_string();
            return Err(match error.exit_code() {
                2 => HostError::Usage(text),
                4 => HostError::Refused(text),
                _ => HostError::Failed(text),
            });
        }
    };
    if args.now {
        start_service()?;
    }
    output.show(&identity, || {
        let groups = if identity.groups.is_empty() { "none".to_owned() } else { identity.groups.join(", ") };
        let next = match args.now {
            true => "the agent runs and no traffic is changed; next:\n",
            false => "nothing is started and no traffic is changed; next:\n  systemctl enable --now tombolo-agent\n",
        };
        format!(
            "joined {} as {}\nidentity   spiffe://{}/host/{}\ngroups     {groups}\n\n{next}  tombolo plan\n  \
             tombolo intercept on --confirm-within 60s\n",
            identity.control_plane, identity.host, identity.trust_domain, identity.host
        )
    })?;
    Ok(Exit::Ok)
}

/// What a token came with.
#[derive(Debug, PartialEq, Eq)]
struct Given {
    url: Option<String>,
    token: String,
}

/// A bare token, or the line `tombolo join URL --token TOKEN` that `tombolo token create` prints.
fn given(text: &str) -> Given {
    match text.split_whitespace().collect::<Vec<_>>().as_slice() {
        ["tombolo", "join", url, "--token", token] => {
            Given { url: Some((*url).to_owned()), token: (*token).to_owned() }
        }
        _ => Given { url: None, token: text.trim().to_owned() },
    }
}

/// What joined stays joined, whatever comes of this.
fn start_service() -> Result<(), HostError> {
    let line = ["systemctl", "enable", "--now", "--quiet", "tombolo-agent.service"];
    let failed = |why: String| {
        let line = line.join(" ");
        HostError::Failed(format!("this host has joined, but `{line}` {why}: see journalctl -u tombolo-agent"))
    };
    let ended = std::process::Command::new(line[0]).args(&line[1..]).stdout(std::process::Stdio::null()).status();
    match ended {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(failed(format!("ended with {status}"))),
        Err(error) => Err(failed(format!("cannot be run ({error})"))),
    }
}

pub(super) fn leave(args: LeaveArgs, output: Output) -> Result<Exit, HostError> {
    let config = args.host.load()?;
    let client = args.host.client(&config);
    let failed = |error: &dyn std::error::Error| HostError::Failed(telemetry::Chain(error).to_string());
    let asked = serde_json::json!({ "force": args.force, "local": args.local });
    let options = LeaveOptions { purge: args.purge, force: args.force, local: args.local };
    let told = match block_on(client.post::<serde_json::Value>("/leave", &asked))? {
        Ok(_) => {
            // The agent has forgotten; the folder, which its unit mounts, only others can remove.
            if args.purge {
                StateDir::at(&config.paths.state_dir).purge().map_err(|error| failed(&error))?;
            }
            !args.local
        }
        Err(AdminError::NotRunning { .. }) => match block_on(join::leave(&config, options))? {
            Ok(told) => told,
            Err(LeaveError::NotJoined) => return Err(HostError::NotJoined),
            Err(error) => return Err(failed(&error)),
        },
        Err(error) => return Err(error.into()),
    };
    output.show(&serde_json::json!({ "left": true, "purged": args.purge, "told": told }), || {
        let elsewhere = if told { "its workloads are withdrawn" } else { "the control plane was not told" };
        format!("left the mesh: its identity is forgotten here and {elsewhere}\n")
    })?;
    Ok(Exit::Ok)
}

impl TokenArgs {
    fn read(&self) -> Result<String, HostError> {
        if let Some(token) = &self.token {
            return Ok(token.clone());
        }
        let mut text = String::new();
        let read = match &self.token_file {
            Some(path) => std::fs::read_to_string(path)
                .map(|read| text = read)
                .map_err(|error| format!("cannot read the join token from {}: {error}", path.display())),
            None => std::io::stdin()
                .take(64 << 10)
                .read_to_string(&mut text)
                .map(drop)
                .map_err(|error| format!("cannot read the join token from standard input: {error}")),
        };
        read.map_err(HostError::Failed)?;
        if text.trim().is_empty() {
            return Err(HostError::Usage("the join token is empty".to_owned()));
        }
        if self.token_stdin {
            output::note("read the join token from standard input");
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_token_create_brings_the_address_too() {
        let check = |text: &str, url: Option<&str>, token: &str| {
            assert_eq!(given(text), Given { url: url.map(str::to_owned), token: token.to_owned() }, "{text:?}");
        };
        check("tmb_a\n", None, "tmb_a");
        check("tombolo join https://cp:15012 --token tmb_a\n", Some("https://cp:15012"), "tmb_a");
        check("tombolo join https://cp:15012", None, "tombolo join https://cp:15012");
    }
}
