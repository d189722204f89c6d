//! `tombolo plan`.

use api::admin::Plan;
use clap::Args;

use super::status::mode;
use super::{HostArgs, HostError};
use crate::exit::Exit;
use crate::output::{Output, Table};

pub(super) const EXAMPLES: &str = "\
Examples:
  tombolo plan
  tombolo plan -o json | jq .open_connections

Nothing is changed; the agent must run.";

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    host: HostArgs,
}

pub(super) fn run(args: PlanArgs, output: Output) -> Result<Exit, HostError> {
    let plan: Plan = args.host.ask(async |client| client.get("/plan").await)?;
    output.show(&plan, || text(&plan))?;
    Ok(Exit::Ok)
}

fn text(plan: &Plan) -> String {
    let mut text =
        format!("the rules, as `nft list table inet tombolo` would show them:\n\n{}\n", plan.ruleset.trim_end());
    if plan.differs_from_running {
        text.push_str("\ninterception is on with other rules than these\n");
    }
    text.push_str(&format!("\nnew connections to these {} destinations go through the agent:\n", plan.captured.len()));
    plan.captured.iter().for_each(|destination| text.push_str(&format!("  {destination}\n")));

    let mut open = Table::new(["OPEN CONNECTION", "TO", "OF"]);
    for connection in &plan.open_connections {
        open.row([connection.local.clone(), connection.remote.clone(), connection.owner.clone()]);
    }
    text.push_str(&format!(
        "\n{} open connections to them stay as they are until they end\n",
        plan.open_connections.len()
    ));
    text.push_str(&open.render());

    let mut listeners = Table::new(["LISTENER", "OF", "WORKLOAD", "PLAINTEXT FROM OTHER HOSTS"]);
    for listener in &plan.listeners {
        let inbound = listener.inbound.map_or("untouched".to_owned(), |inbound| mode(inbound).to_owned());
        let workload = listener.workload.clone().unwrap_or_default();
        listeners.row([listener.local.clone(), listener.owner.clone(), workload, inbound]);
    }
    text.push_str(&format!("\n{}\nuntouched:\n", listeners.render()));
    plan.untouched.iter().for_each(|sentence| text.push_str(&format!("  {sentence}\n")));
    text
}
