//! `tombolo delete`: deletes objects by name or by the files that made them.

use anyhow::{Context, bail};
use api::rest::ApplyOutcome;
use serde_json::Value;

use super::apply::{action, object, warn_of};
use super::connect;
use crate::client::Client;
use crate::config::ConnectionArgs;
use crate::documents::Files;
use crate::exit::Exit;
use crate::output::{Output, error, note, print};
use crate::views::{self, What};

const EXAMPLES: &str = "\
Examples:
  tombolo delete ap allow-web -n shop
  tombolo delete service orders payments -n shop
  tombolo delete -f shop.yaml

Each object is deleted for itself; the first failure does not keep the others.
Hosts and tokens have `tombolo host delete` and `tombolo token revoke`.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, override_usage = "tombolo delete KIND NAME... [-n NS]\n       tombolo delete -f FILE|DIR|-")]
pub(crate) struct Args {
    /// Kind of the objects
    #[arg(value_name = "KIND", value_parser = views::what, required_unless_present = "filename")]
    what: Option<What>,
    /// Their names
    #[arg(value_name = "NAME", requires = "what")]
    names: Vec<String>,
    #[command(flatten)]
    files: OptionalFiles,
    /// What is gone already is no failure
    #[arg(long)]
    ignore_not_found: bool,
    #[command(flatten)]
    connection: ConnectionArgs,
}

/// `-f`, which here is one of two ways to name objects.
#[derive(Debug, clap::Args)]
struct OptionalFiles {
    /// File, folder or - whose objects are deleted
    #[arg(short, long = "filename", value_name = "FILE|DIR|-", conflicts_with = "what")]
    filename: Vec<std::path::PathBuf>,
    /// Folders with all that is below them
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Namespace; without it the context's, else `default`
    #[arg(short, long, value_name = "NS")]
    namespace: Option<String>,
}

pub(super) async fn run(args: Args, output: Output) -> anyhow::Result<Exit> {
    let (client, connection) = connect(&args.connection)?;
    let targets = match args.what {
        Some(What::Resource(info)) => {
            if args.names.is_empty() {
                error("name the objects to delete");
                return Ok(Exit::Usage);
            }
            let namespace = args.files.namespace.unwrap_or(connection.namespace);
            args.names.into_iter().map(|name| [info.singular.to_owned(), namespace.clone(), name]).collect()
        }
        Some(What::Host) => bail!("use `tombolo host delete NAME`"),
        Some(What::Token) => bail!("use `tombolo token revoke ID`"),
        Some(what) => bail!("{} cannot be deleted by kind", what.plural()),
        None => {
            let OptionalFiles { filename, recursive, namespace } = args.files;
            let documents = Files::new(filename, recursive, namespace).documents()?;
            documents.iter().map(target).collect::<anyhow::Result<Vec<_>>>()?
        }
    };
    let mut exit = Exit::Ok;
    for target in targets {
        if !delete(&client, &target, args.ignore_not_found, output).await? {
            exit = Exit::Failed;
        }
    }
    Ok(exit)
}

/// Kind, namespace and name of a document.
fn target(document: &Value) -> anyhow::Result<[String; 3]> {
    let kind = document["kind"].as_str().context("a document names no kind")?;
    let info = api::resource::kind(kind).with_context(|| format!("{kind:?} is not a kind of this version"))?;
    let meta = &document["metadata"];
    let name = meta["name"].as_str().with_context(|| format!("a {kind} has no metadata.name"))?;
    Ok([info.singular.to_owned(), meta["namespace"].as_str().unwrap_or("default").to_owned(), name.to_owned()])
}

async fn delete(client: &Client, target: &[String; 3], ignore: bool, output: Output) -> anyhow::Result<bool> {
    let [kind, namespace, name] = target;
    match client.delete::<ApplyOutcome>(&["resources", kind, namespace, name]).await {
        Ok(outcome) if output.is_structured() => {
            output.show(&outcome, String::new)?;
            Ok(true)
        }
        Ok(outcome) => {
            let line = format!("{} {}\n", object(&outcome), action(outcome.action));
            warn_of(&api::rest::ApplyResponse { revision: 0, outcomes: vec![outcome] });
            print(&line)?;
            Ok(true)
        }
        Err(failure) if failure.is_not_found() && ignore => {
            note(&format!("{kind} {namespace}/{name} not found"));
            Ok(true)
        }
        Err(failure) if failure.is_not_found() => {
            error(&format!("there is no {kind} {namespace}/{name}"));
            Ok(false)
        }
        Err(failure) => Err(failure.into()),
    }
}
