//! `tombolo`: the operator's commands, the host's commands and the agent in one program.
//!
//! Parses the command line, runs one command and turns what came of it into an exit code and one
//! clear error. Everything else is in `commands` (talks REST to the control plane) and `host`.

mod client;
mod commands;
mod config;
mod documents;
mod exit;
mod host;
mod output;
mod views;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::client::ClientError;
use crate::commands::OperatorCommand;
use crate::exit::Exit;
use crate::host::HostCommand;
use crate::output::OutputArgs;

/// One mesh for VMs, bare metal and Kubernetes: identity, mTLS, discovery and policy.
#[derive(Debug, Parser)]
#[command(name = "tombolo", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Operator(OperatorCommand),
    #[command(flatten)]
    Host(HostCommand),
}

const EXAMPLES: &str = "\
Examples:
  tombolo login https://mesh.corp.example --ca ca.pem --token-file admin.token
  tombolo apply -f shop.yaml
  tombolo get service -A
  tombolo token create --group shop/orders

Exit codes: 0 ok, 1 failed, 2 usage, 3 this host has not joined, 4 refused by policy.";

fn main() -> ExitCode {
    telemetry::nss::pin();
    // Fails only when a provider is installed already, and this is the only place that installs one.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let cli = Cli::parse();
    let output = cli.output.choice();
    match cli.command {
        Command::Operator(command) => finish(commands::run(command, output)),
        Command::Host(command) => match command.of_control_plane() {
            Some(connection) => finish(commands::status(connection, output)),
            None => host::run(command, output),
        },
    }
}

/// The exit code of what a command came to; errors are told here and nowhere else.
fn finish(ended: anyhow::Result<Exit>) -> ExitCode {
    let error = match ended {
        Ok(exit) => return exit.into(),
        Err(error) => error,
    };
    let told = format!("{error:#}");
    output::error(&told);
    let Some(refusal) = error.downcast_ref::<ClientError>() else { return Exit::Failed.into() };
    // A single mistake is in the message already.
    for mistake in refusal.mistakes().iter().filter(|mistake| !told.contains(mistake.as_str())) {
        output::note(&format!("  {mistake}"));
    }
    let hint = refusal.hint();
    if !hint.is_empty() {
        output::note(&hint);
    }
    refusal.exit().into()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_every_command_has_examples() {
        let mut command = Cli::command();
        command.clone().debug_assert();
        command.build();
        let mut open = vec![&command];
        while let Some(command) = open.pop() {
            let leaf = !command.has_subcommands();
            let says = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(
                !leaf || command.get_name() == "help" || says.contains("Example"),
                "{} has none",
                command.get_name()
            );
            open.extend(command.get_subcommands().filter(|command| command.get_name() != "help"));
        }
    }
}
