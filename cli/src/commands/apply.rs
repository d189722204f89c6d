//! `tombolo apply`: creates or changes objects in one transaction.

use api::rest::{ApplyAction, ApplyOutcome, ApplyRequest, ApplyResponse};

use super::connect;
use crate::client::{Client, ClientError};
use crate::config::ConnectionArgs;
use crate::documents::Files;
use crate::exit::Exit;
use crate::output::{Output, print, warn};

const EXAMPLES: &str = "\
Examples:
  tombolo apply -f shop.yaml
  tombolo apply -f policies/ --dry-run
  tombolo get ap allow-web -n shop -o yaml | tombolo apply -f -

Either every object of the files is taken, or none.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    files: Files,
    /// Check everything and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    connection: ConnectionArgs,
}

pub(super) async fn run(args: Args, output: Output) -> anyhow::Result<Exit> {
    let resources = args.files.documents()?;
    let (client, _) = connect(&args.connection)?;
    let response = send(&client, resources, args.dry_run).await?;
    warn_of(&response);
    if output.is_structured() {
        output.show(&response, String::new)?;
        return Ok(Exit::Ok);
    }
    let suffix = if args.dry_run { " (dry run)" } else { "" };
    for outcome in &response.outcomes {
        print(&format!("{} {}{suffix}\n", object(outcome), action(outcome.action)))?;
    }
    Ok(Exit::Ok)
}

/// Applies documents; with `dry_run` only says what would happen.
pub(super) async fn send(
    client: &Client,
    resources: Vec<serde_json::Value>,
    dry_run: bool,
) -> Result<ApplyResponse, ClientError> {
    let dry_run = if dry_run { "true" } else { "false" };
    client.post(&["apply"], &[("dry_run", dry_run)], &ApplyRequest { resources }).await
}

pub(super) fn warn_of(response: &ApplyResponse) {
    for outcome in &response.outcomes {
        for warning in &outcome.warnings {
            warn(&format!("{}: {warning}", object(outcome)));
        }
    }
}

/// `authorizationpolicy shop/allow-web`.
pub(super) fn object(outcome: &ApplyOutcome) -> String {
    format!("{} {}/{}", outcome.kind.to_ascii_lowercase(), outcome.namespace, outcome.name)
}

pub(super) fn action(action: ApplyAction) -> &'static str {
    match action {
        ApplyAction::Created => "created",
        ApplyAction::Configured => "configured",
        ApplyAction::Unchanged => "unchanged",
        ApplyAction::Deleted => "deleted",
    }
}
