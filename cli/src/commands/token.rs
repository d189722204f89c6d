//! `tombolo token`: the tokens by which hosts join.

use std::time::Duration;

use api::rest::{TokenCreated, TokenList, TokenRequest, TokenView};

use super::connect;
use crate::config::ConnectionArgs;
use crate::exit::Exit;
use crate::output::{Output, note, print};
use crate::views::{self, What};

use super::get::Item;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make a token and print the line to paste on the new host
    Create(Create),
    /// List tokens; the tokens themselves are never shown again
    List(List),
    /// Make tokens useless at once; hosts that joined with them stay
    Revoke(Revoke),
}

const CREATE: &str = "\
Examples:
  tombolo token create --group shop/orders
  tombolo token create --group shop/orders --group shop/web --ttl 24h --uses 20 --name-pattern 'vm-*'
  ssh vm-7 sudo $(tombolo token create --group shop/orders)

Standard output holds the line and nothing else.";

#[derive(Debug, clap::Args)]
#[command(after_help = CREATE)]
pub(crate) struct Create {
    /// WorkloadGroup that a host may join with it; may be repeated
    #[arg(long = "group", value_name = "NS/NAME", required = true, value_parser = group)]
    groups: Vec<String>,
    /// How long it can be used
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// How many hosts can join with it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    uses: u32,
    /// Which names a joining host may take: * and ? as in a shell
    #[arg(long, value_name = "GLOB", default_value = "", hide_default_value = true)]
    name_pattern: String,
    /// From which addresses hosts may join; may be repeated
    #[arg(long = "cidr", value_name = "CIDR")]
    cidrs: Vec<String>,
    /// The host waits for `tombolo host approve`
    #[arg(long)]
    approval: bool,
    #[command(flatten)]
    connection: ConnectionArgs,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tombolo token list")]
pub(crate) struct List {
    #[command(flatten)]
    connection: ConnectionArgs,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  tombolo token revoke 0123456789abcdef")]
pub(crate) struct Revoke {
    /// Their ids, as `tombolo token list` shows them
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
    #[command(flatten)]
    connection: ConnectionArgs,
}

fn group(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(text.to_owned())
        }
        _ => Err("write NAMESPACE/WORKLOADGROUP, such as shop/orders".to_owned()),
    }
}

pub(super) async fn run(command: Command, output: Output) -> anyhow::Result<Exit> {
    match command {
        Command::Create(args) => create(args, output).await,
        Command::List(args) => list(args, output).await,
        Command::Revoke(args) => revoke(args).await,
    }
}

async fn create(args: Create, output: Output) -> anyhow::Result<Exit> {
    let request = TokenRequest {
        groups: args.groups,
        ttl_s: args.ttl.as_secs(),
        uses: args.uses,
        name_pattern: args.name_pattern,
        cidrs: args.cidrs,
        approval: args.approval,
    };
    let (client, _) = connect(&args.connection)?;
    let created: TokenCreated = client.post(&["tokens"], &[], &request).await?;
    output.show(&created, || format!("{}\n", created.join_command))?;
    note(&told(&created.view, args.approval));
    Ok(Exit::Ok)
}

/// What the operator should know of a new token, for standard error.
fn told(view: &TokenView, approval: bool) -> String {
    let hosts = if view.uses_left == 1 { "one host".to_owned() } else { format!("{} hosts", view.uses_left) };
    let groups = view.groups.join(", ");
    let then = if approval { "; each waits for `tombolo host approve`" } else { "" };
    format!("token {} lets {hosts} join {groups} until {}{then}", view.id, view.expires_at)
}

async fn list(args: List, output: Output) -> anyhow::Result<Exit> {
    let (client, _) = connect(&args.connection)?;
    let list: TokenList = client.get(&["tokens"]).await?;
    if list.items.is_empty() && !output.is_structured() {
        note("no tokens");
        return Ok(Exit::Ok);
    }
    let items: Vec<Item> = list
        .items
        .iter()
        .map(|view| Item { what: What::Token, value: serde_json::to_value(view).unwrap_or_default() })
        .collect();
    output.show(&list, || views::tables(&items, output == Output::Wide))?;
    Ok(Exit::Ok)
}

async fn revoke(args: Revoke) -> anyhow::Result<Exit> {
    let (client, _) = connect(&args.connection)?;
    for id in &args.ids {
        let _: serde_json::Value = client.delete(&["tokens", id]).await?;
        print(&format!("token {id} revoked\n"))?;
    }
    Ok(Exit::Ok)
}
