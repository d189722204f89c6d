//! How long a change takes to reach a fleet, on both stores. A program and a test of its own: what is
//! measured is two hundred agents and their control plane, not who else of the suite is busy beside them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::estate::{CONTROL_PLANE, program};
use tests::postgres::Postgres;
use tests::{Estate, netns};

const AGENTS: &str = "200";
const CHANGES: &str = "20";
/// The promise of the design: 99 of 100 agents obey within a second of `tombolo apply` being started.
const PROMISED_MS: u64 = 1000;

#[test]
fn two_hundred_agents_obey_a_change_within_a_second() -> Result<()> {
    measure(Estate::start()?, "sqlite")?;
    let server = Postgres::start(None)?;
    let url = format!("{}?host={}", server.database("mesh")?, server.socket_folder().display());
    measure(Estate::start_on(|_| url)?, "postgres")
}

fn measure(estate: Estate, store: &str) -> Result<()> {
    estate.apply(include_str!("../demo/shop.yaml"))?;
    let line = estate.operate(&["token", "create", "--group", "shop/web", "--uses", AGENTS])?;
    let mut words = line.split_whitespace().skip_while(|word| *word != "--token");
    let token = words.nth(1).context("no token in the line")?;

    // The fleet inherits the operator's environment, so that its `tombolo apply` finds the control plane.
    let operator = estate.operator_command(&[])?;
    let mut command = estate.switch().command(&program("fleet")?.display().to_string());
    command.envs(operator.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.args([&format!("{CONTROL_PLANE}:15012"), token, AGENTS, CHANGES]);
    command.arg(program("tombolo")?).arg(estate.folder().join("change.yaml"));
    let output = netns::finish(command, Duration::from_secs(300))?;
    ensure!(output.ok(), "the fleet failed: {} {}", output.stderr, output.stdout);
    println!("{store}: {}", output.stdout.trim());
    let seen: serde_json::Value = serde_json::from_str(&output.stdout)?;
    ensure!(seen["p99_ms"].as_u64().is_some_and(|p99| p99 <= PROMISED_MS), "{store}: {seen}");
    Ok(())
}
