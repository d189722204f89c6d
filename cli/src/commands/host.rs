//! `tombolo host`: the hosts of the mesh, and decisions about them.

use api::rest::{HostList, HostState, HostView};
use serde_json::Value;

use super::connect;
use super::get::Item;
use crate::config::ConnectionArgs;
use crate::exit::Exit;
use crate::output::{Output, note, print};
use crate::views::{self, What};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List hosts
    #[command(after_help = "Examples:\n  tombolo host list\n  tombolo host list -o wide")]
    List {
        #[command(flatten)]
        connection: ConnectionArgs,
    },
    /// Show one host with its workloads
    #[command(after_help = "Example:\n  tombolo host describe vm-7")]
    Describe(Named),
    /// Let a host in that waits since it joined
    #[command(after_help = "Example:\n  tombolo host approve vm-7")]
    Approve(Hosts),
    /// Take a host out of the mesh until it is unlocked: its workloads are withdrawn and it cannot renew
    #[command(after_help = "Example:\n  tombolo host lock vm-7")]
    Lock(Hosts),
    /// Let a locked host back in
    #[command(after_help = "Example:\n  tombolo host unlock vm-7")]
    Unlock(Hosts),
    /// Lock a host for good; it has to join anew under another name
    #[command(after_help = "Example:\n  tombolo host revoke vm-7")]
    Revoke(Hosts),
    /// Forget a host that is gone
    #[command(after_help = "Example:\n  tombolo host delete vm-7")]
    Delete(Hosts),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Named {
    /// Its name
    name: String,
    #[command(flatten)]
    connection: ConnectionArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Hosts {
    /// Their names
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    connection: ConnectionArgs,
}

pub(super) async fn run(command: Command, output: Output) -> anyhow::Result<Exit> {
    match command {
        Command::List { connection } => list(&connection, output).await,
        Command::Describe(Named { name, connection }) => super::describe::host(name, connection, output).await,
        Command::Approve(hosts) => decide(hosts, "approve", output).await,
        Command::Lock(hosts) => decide(hosts, "lock", output).await,
        Command::Unlock(hosts) => decide(hosts, "unlock", output).await,
        Command::Revoke(hosts) => decide(hosts, "revoke", output).await,
        Command::Delete(hosts) => delete(hosts).await,
    }
}

async fn list(connection: &ConnectionArgs, output: Output) -> anyhow::Result<Exit> {
    let (client, _) = connect(connection)?;
    let list: HostList = client.get(&["hosts"]).await?;
    if list.items.is_empty() && !output.is_structured() {
        note("no host has joined yet; `tombolo token create` makes a token for one");
        return Ok(Exit::Ok);
    }
    let items: Vec<Item> = list.items.iter().map(item).collect();
    output.show(&list, || views::tables(&items, output == Output::Wide))?;
    Ok(Exit::Ok)
}

fn item(view: &HostView) -> Item {
    Item { what: What::Host, value: serde_json::to_value(view).unwrap_or_default() }
}

async fn decide(hosts: Hosts, verb: &str, output: Output) -> anyhow::Result<Exit> {
    let (client, _) = connect(&hosts.connection)?;
    for name in &hosts.names {
        let view: HostView = client.post(&["hosts", name, verb], &[], &serde_json::json!({})).await?;
        output.show(&view, || format!("host {} is {}\n", view.name, state(view.state)))?;
    }
    Ok(Exit::Ok)
}

fn state(state: HostState) -> &'static str {
    match state {
        HostState::Ready => "ready",
        HostState::Away => "away",
        HostState::Pending => "pending",
        HostState::Locked => "locked",
        HostState::Revoked => "revoked",
    }
}

async fn delete(hosts: Hosts) -> anyhow::Result<Exit> {
    let (client, _) = connect(&hosts.connection)?;
    for name in &hosts.names {
        let _: Value = client.delete(&["hosts", name]).await?;
        print(&format!("host {name} deleted\n"))?;
    }
    Ok(Exit::Ok)
}
