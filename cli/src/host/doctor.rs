//! `tombolo doctor`: also before joining, and without a running agent.

use ::agent::doctor::{self, Agent};
use api::admin::{AgentStatus, CheckOutcome, Diagnosis};
use clap::Args;

use super::admin::{AdminClient, AdminError};
use super::{HostArgs, HostError, block_on};
use crate::exit::Exit;
use crate::output::Output;

pub(super) const EXAMPLES: &str = "\
Examples:
  tombolo doctor
  tombolo doctor -o json | jq '.checks[] | select(.outcome == \"fail\")'

Exit code 1 when a check fails.";

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    host: HostArgs,
}

pub(super) fn run(args: DoctorArgs, output: Output) -> Result<Exit, HostError> {
    let config = args.host.load()?;
    let socket = args.host.socket.clone().unwrap_or_else(|| config.paths.admin_socket());
    let diagnosis = block_on(async {
        let agent = match AdminClient::new(socket).get::<AgentStatus>("/status").await {
            Ok(status) => Agent::Running { problems: status.problems },
            Err(AdminError::NotRunning { .. }) => Agent::Absent,
            Err(error) => Agent::Running { problems: vec![error.to_string()] },
        };
        doctor::diagnose(&config, &agent).await
    })?;
    output.show(&diagnosis, || text(&diagnosis))?;
    let failed = diagnosis.checks.iter().any(|check| check.outcome == CheckOutcome::Fail);
    Ok(if failed { Exit::Failed } else { Exit::Ok })
}

fn text(diagnosis: &Diagnosis) -> String {
    let mut lines = String::new();
    for check in &diagnosis.checks {
        let mark = match check.outcome {
            CheckOutcome::Ok => "ok",
            CheckOutcome::Warn => "warn",
            CheckOutcome::Fail => "FAIL",
            CheckOutcome::Skipped => "skip",
        };
        lines.push_str(&format!("{mark:<5} {:<22} {}\n", check.name, check.detail));
        if !check.cure.is_empty() {
            lines.push_str(&format!("      {:<22} -> {}\n", "", check.cure));
        }
    }
    lines
}
