//! `tombolo diff`: what `apply` would change, as a unified diff; exit code 1 when there is something.

use api::rest::{ApplyAction, ApplyOutcome};
use owo_colors::OwoColorize;
use serde_json::Value;
use similar::TextDiff;

use super::apply::{object, send, warn_of};
use super::connect;
use crate::config::ConnectionArgs;
use crate::documents::Files;
use crate::exit::Exit;
use crate::output::{self, Output, print};

const EXAMPLES: &str = "\
Examples:
  tombolo diff -f shop.yaml
  tombolo diff -f policies/ || echo there is something to apply

Exit code 0: nothing would change; 1: something would, or the command failed.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    connection: ConnectionArgs,
}

pub(super) async fn run(args: Args, output: Output) -> anyhow::Result<Exit> {
    let resources = args.files.documents()?;
    let (client, _) = connect(&args.connection)?;
    let response = send(&client, resources, true).await?;
    warn_of(&response);
    let differ = response.outcomes.iter().any(|outcome| outcome.action != ApplyAction::Unchanged);
    if output.is_structured() {
        output.show(&response, String::new)?;
    } else {
        for outcome in &response.outcomes {
            print(&difference(outcome)?)?;
        }
    }
    Ok(if differ { Exit::Failed } else { Exit::Ok })
}

/// Empty when the document stays as it is.
fn difference(outcome: &ApplyOutcome) -> anyhow::Result<String> {
    if outcome.action == ApplyAction::Unchanged {
        return Ok(String::new());
    }
    let text = |document: &Option<Value>| match document {
        Some(document) => output::yaml(&written(document.clone())),
        None => Ok(String::new()),
    };
    let (before, after) = (text(&outcome.before)?, text(&outcome.after)?);
    let name = object(outcome);
    let diff = TextDiff::from_lines(before.as_str(), after.as_str());
    let unified = diff.unified_diff().header(&format!("{name} (now)"), &format!("{name} (applied)")).to_string();
    Ok(unified.lines().map(|line| format!("{}\n", coloured(line))).collect())
}

/// The part of a document that people write.
fn written(mut document: Value) -> Value {
    if let Some(map) = document.as_object_mut() {
        map.shift_remove("status");
    }
    if let Some(meta) = document.get_mut("metadata").and_then(Value::as_object_mut) {
        for owned in ["resourceVersion", "creationTimestamp", "uid", "generation"] {
            meta.shift_remove(owned);
        }
    }
    document
}

fn coloured(line: &str) -> String {
    match line.as_bytes().first() {
        Some(b'+') => line.green().to_string(),
        Some(b'-') => line.red().to_string(),
        Some(b'@') => line.cyan().to_string(),
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_difference_shows_what_people_wrote_and_nothing_of_the_servers() {
        let document = |action: &str, version: &str| {
            json!({
                "kind": "AuthorizationPolicy",
                "metadata": {"name": "x", "resourceVersion": version},
                "spec": {"action": action},
                "status": {"seen": version},
            })
        };
        let outcome = ApplyOutcome {
            kind: "AuthorizationPolicy".into(),
            namespace: "shop".into(),
            name: "x".into(),
            action: ApplyAction::Configured,
            warnings: vec![],
            before: Some(document("DENY", "1")),
            after: Some(document("ALLOW", "2")),
        };
        let shown = anstream::adapter::strip_str(&difference(&outcome).expect("plain data")).to_string();
        let expected = "--- authorizationpolicy shop/x (now)\n+++ authorizationpolicy shop/x (applied)\n";
        assert!(shown.starts_with(expected), "{shown}");
        assert!(shown.contains("\n-  action: DENY\n+  action: ALLOW\n"), "{shown}");
        assert!(!shown.contains("esourceVersion") && !shown.contains("seen"), "{shown}");
    }
}
