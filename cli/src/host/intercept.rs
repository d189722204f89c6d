//! `tombolo intercept on | confirm | off | show`.

use std::time::Duration;

use api::admin::{self, InterceptView};
use clap::{Args, Subcommand};

use super::status::interception;
use super::{HostArgs, HostError};
use crate::exit::Exit;
use crate::output::Output;

/// Switch interception on and off
#[derive(Debug, Subcommand)]
pub(crate) enum InterceptCommand {
    /// Take new connections to the mesh through the agent
    #[command(after_help = ON_EXAMPLES)]
    On(OnArgs),
    /// Keep what `on --confirm-within` switched on
    #[command(after_help = CONFIRM_EXAMPLES)]
    Confirm(PlainArgs),
    /// Let new connections pass; captured ones go on until they end
    #[command(after_help = OFF_EXAMPLES)]
    Off(PlainArgs),
    /// How interception is, and what its self-test said
    #[command(after_help = SHOW_EXAMPLES)]
    Show(PlainArgs),
}

const ON_EXAMPLES: &str = "\
Examples:
  tombolo intercept on --confirm-within 60s    taken back by itself unless confirmed
  tombolo intercept on                         confirmed at once

Open connections stay as they are, SSH among them. `tombolo plan` shows the rules before.";
const CONFIRM_EXAMPLES: &str = "Example:\n  tombolo intercept confirm";
const OFF_EXAMPLES: &str = "Example:\n  tombolo intercept off";
const SHOW_EXAMPLES: &str = "Example:\n  tombolo intercept show -o json";

#[derive(Debug, Args)]
pub(crate) struct OnArgs {
    /// Take it back alone after this time unless `tombolo intercept confirm` comes
    #[arg(long, value_name = "DURATION", value_parser = whole_seconds)]
    confirm_within: Option<Duration>,
    #[command(flatten)]
    host: HostArgs,
}

#[derive(Debug, Args)]
pub(crate) struct PlainArgs {
    #[command(flatten)]
    host: HostArgs,
}

pub(super) fn run(command: InterceptCommand, output: Output) -> Result<Exit, HostError> {
    let (host, command) = match command {
        InterceptCommand::On(args) => {
            let confirm_within_s = args.confirm_within.map(|within| within.as_secs());
            (args.host, Some(admin::InterceptCommand::On { confirm_within_s }))
        }
        InterceptCommand::Confirm(args) => (args.host, Some(admin::InterceptCommand::Confirm)),
        InterceptCommand::Off(args) => (args.host, Some(admin::InterceptCommand::Off)),
        InterceptCommand::Show(args) => (args.host, None),
    };
    let view: InterceptView = host.ask(async |client| match &command {
        Some(command) => client.post("/intercept", command).await,
        None => client.get("/intercept").await,
    })?;
    output.show(&view, || text(&view))?;
    let failed = command.is_some() && view.self_test.iter().any(|test| !test.passed);
    Ok(if failed { Exit::Failed } else { Exit::Ok })
}

fn text(view: &InterceptView) -> String {
    let mut text = format!("interception is {}\n", interception(view));
    for test in &view.self_test {
        let mark = if test.passed { "ok" } else { "FAIL" };
        text.push_str(&format!("  {mark:<5} {:<14} {}\n", test.check, test.detail));
    }
    text
}

fn whole_seconds(text: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text).or_else(|_| text.parse().map(Duration::from_secs));
    match parsed {
        Ok(duration) if (1..=86_400).contains(&duration.as_secs()) => Ok(duration),
        Ok(_) => Err("from 1s to 1day".to_owned()),
        Err(_) => Err("not a duration such as 60s or 5m".to_owned()),
    }
}
