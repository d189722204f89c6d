//! `tombolo get`: lists of objects, workloads, hosts and tokens, and following their changes.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::bail;
use api::resource::KindInfo;
use api::rest::WatchAnswer;
use serde_json::{Value, json};

use super::connect;
use crate::client::{Client, ClientError};
use crate::config::ConnectionArgs;
use crate::exit::Exit;
use crate::output::{Output, Widths, note, print, warn, yaml};
use crate::views::{self, What};

const EXAMPLES: &str = "\
Examples:
  tombolo get service -A
  tombolo get ap allow-web -n shop -o yaml
  tombolo get workload -n shop --watch
  tombolo get host -o json

Kinds: service (svc), workloadgroup (wg), workloadentry (we), serviceentry (se),
authorizationpolicy (ap), peerauthentication (pa), all; workload, host, token.";

/// How long one request waits for a change.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait after the control plane was away.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// What to list
    #[arg(value_name = "KIND", value_parser = views::what)]
    what: What,
    /// Only the one of this name
    name: Option<String>,
    /// Namespace; without it the context's, else `default`
    #[arg(short, long, value_name = "NS", conflicts_with = "all_namespaces")]
    namespace: Option<String>,
    /// Every namespace
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Go on and print what changes, until interrupted
    #[arg(short, long)]
    watch: bool,
    #[command(flatten)]
    connection: ConnectionArgs,
}

pub(super) async fn run(args: Args, output: Output) -> anyhow::Result<Exit> {
    let (client, connection) = connect(&args.connection)?;
    let namespace = match (&args.namespace, args.all_namespaces) {
        (_, true) => None,
        (Some(namespace), false) => Some(namespace.clone()),
        (None, false) => Some(connection.namespace),
    };
    let question = Question { what: args.what, name: args.name, namespace };
    if args.watch {
        return watch(&client, &question, output).await;
    }
    let items = question.ask(&client).await?;
    match (&question.name, items.as_slice()) {
        (Some(_), [one]) if output.is_structured() => output.show(&one.value, String::new)?,
        _ if output.is_structured() => output.show(&list(&question, &items), String::new)?,
        (None, []) => note(&question.nothing()),
        _ => print(&views::tables(&items, output == Output::Wide))?,
    }
    Ok(Exit::Ok)
}

/// What was asked for.
pub(super) struct Question {
    pub(super) what: What,
    pub(super) name: Option<String>,
    /// `None` is every namespace.
    pub(super) namespace: Option<String>,
}

/// One thing found, and what it is.
pub(crate) struct Item {
    pub(crate) what: What,
    pub(crate) value: Value,
}

impl Question {
    pub(super) async fn ask(&self, client: &Client) -> anyhow::Result<Vec<Item>> {
        let found = match self.what {
            What::Resource(info) => self.resources(client, info).await?,
            What::All => {
                let mut found = Vec::new();
                for info in api::resource::kinds() {
                    found.extend(self.resources(client, info).await?);
                }
                found
            }
            What::Workload | What::Host | What::Token => self.registry(client).await?,
        };
        if let (Some(name), true) = (&self.name, found.is_empty()) {
            match &self.namespace {
                Some(namespace) if self.what.is_namespaced() => {
                    bail!("there is no {} {namespace}/{name}", self.what.singular())
                }
                _ => bail!("there is no {} {name}", self.what.singular()),
            }
        }
        Ok(found)
    }

    async fn resources(&self, client: &Client, info: &'static KindInfo) -> Result<Vec<Item>, ClientError> {
        let what = What::Resource(info);
        let item = |value| Item { what, value };
        if let (Some(name), Some(namespace)) = (&self.name, &self.namespace) {
            return match client.get::<Value>(&["resources", info.singular, namespace, name]).await {
                Ok(value) => Ok(vec![item(value)]),
                Err(error) if error.is_not_found() => Ok(Vec::new()),
                Err(error) => Err(error),
            };
        }
        let query: Vec<(&str, &str)> = self.namespace.iter().map(|ns| ("namespace", ns.as_str())).collect();
        let list: Value = client.find(&["resources", info.singular], &query).await?;
        let wanted = |value: &Value| self.name.as_deref().is_none_or(|name| value["metadata"]["name"] == name);
        Ok(items_of(list).into_iter().filter(wanted).map(item).collect())
    }

    async fn registry(&self, client: &Client) -> Result<Vec<Item>, ClientError> {
        let (path, key, namespaced) = match self.what {
            What::Host => ("hosts", "name", false),
            What::Token => ("tokens", "id", false),
            _ => ("workloads", "name", true),
        };
        let namespace = self.namespace.as_deref().filter(|_| namespaced);
        let query: Vec<(&str, &str)> = namespace.map(|ns| ("namespace", ns)).into_iter().collect();
        let list: Value = client.find(&[path], &query).await?;
        let wanted = |value: &Value| {
            let named = self.name.as_deref().is_none_or(|name| value[key] == name || value["uid"] == name);
            named && namespace.is_none_or(|ns| value["namespace"] == ns)
        };
        Ok(items_of(list).into_iter().filter(wanted).map(|value| Item { what: self.what, value }).collect())
    }

    fn nothing(&self) -> String {
        let what = self.what.plural();
        match &self.namespace {
            Some(namespace) if self.what.is_namespaced() => {
                format!("no {what} in the namespace {namespace}; -A lists every namespace")
            }
            _ => format!("no {what}"),
        }
    }
}

fn items_of(mut list: Value) -> Vec<Value> {
    match list["items"].take() {
        Value::Array(items) => items,
        _ => Vec::new(),
    }
}

/// A list that `apply` takes again, where there is something to apply.
fn list(question: &Question, items: &[Item]) -> Value {
    let items: Vec<&Value> = items.iter().map(|item| &item.value).collect();
    match question.what {
        What::Resource(_) | What::All => json!({"apiVersion": "v1", "kind": "List", "items": items}),
        What::Workload | What::Host | What::Token => json!({"items": items}),
    }
}

/// Prints everything, then each thing again when it has changed.
async fn watch(client: &Client, question: &Question, output: Output) -> anyhow::Result<Exit> {
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    let mut widths = Widths::default();
    let mut seen = None;
    loop {
        let waited = changed(client, question, &mut seen).await;
        let items = match waited {
            Ok(items) => items,
            Err(error) if error.downcast_ref::<ClientError>().is_some_and(is_passing) && !known.is_empty() => {
                warn(&format!("{error:#}"));
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        let mut now = BTreeMap::new();
        let mut fresh = Vec::new();
        for item in items {
            let (key, essence) = (views::key(&item), views::essence(&item));
            if known.get(&key) != Some(&essence) {
                fresh.push(item);
            }
            now.insert(key, essence);
        }
        for gone in known.keys().filter(|key| !now.contains_key(*key)) {
            note(&format!("{gone} deleted"));
        }
        known = now;
        show(&fresh, output, &mut widths)?;
    }
}

/// Waits for a newer revision than the one seen last, if one was. Workloads and hosts also change
/// without one, by their leases, so the list is asked for after the wait in any case.
async fn changed(client: &Client, question: &Question, seen: &mut Option<u64>) -> anyhow::Result<Vec<Item>> {
    let patience = match question.what {
        What::Resource(_) | What::All => PATIENCE,
        What::Workload | What::Host | What::Token => AGAIN,
    };
    let patience = if seen.is_some() { patience } else { Duration::ZERO };
    let (since, timeout) = (seen.unwrap_or_default().to_string(), patience.as_secs().to_string());
    let query = [("since", since.as_str()), ("timeout_s", timeout.as_str())];
    let answer: WatchAnswer = client.wait(&["watch"], &query, patience).await?;
    match seen.replace(answer.revision) {
        Some(_) => question.ask_or_none(client).await,
        None => question.ask(client).await,
    }
}

impl Question {
    /// While watching one thing, its absence is a change and no failure.
    async fn ask_or_none(&self, client: &Client) -> anyhow::Result<Vec<Item>> {
        match self.ask(client).await {
            Err(error) if error.downcast_ref::<ClientError>().is_none() => Ok(Vec::new()),
            answer => answer,
        }
    }
}

fn is_passing(error: &ClientError) -> bool {
    matches!(error, ClientError::Unreachable { .. } | ClientError::TimedOut { .. })
        || matches!(error, ClientError::Refused { status, .. } if status.is_server_error())
}

fn show(items: &[Item], output: Output, widths: &mut Widths) -> anyhow::Result<()> {
    match output {
        Output::Json => items.iter().try_for_each(|item| print(&format!("{}\n", item.value))),
        Output::Yaml => items.iter().try_for_each(|item| print(&format!("---\n{}", yaml(&item.value)?))),
        Output::Table | Output::Wide => print(&views::rows(items, output == Output::Wide, widths)),
    }
}
