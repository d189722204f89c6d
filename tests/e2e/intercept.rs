//! Switching interception on, off and by accident, on a host with traffic.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tests::{Daemon, wait_until};

use crate::shop::{self, ensure_untouched};

#[test]
fn on_and_off_cut_no_open_connection() -> Result<()> {
    let shop = shop::open()?;
    let _echo = shop.orders.serve_echo(8081)?;
    shop.web.tombolo_ok(&["intercept", "off"])?;
    let mut held = shop.web.hold_connection(&format!("{}:8081", shop.orders.address()))?;
    let alive = || held_count(&held.log());
    let wait_more = |n: usize| {
        wait_until("the held connection goes on", || if alive() >= n { Ok(()) } else { Err(held.log()) });
    };
    wait_more(3);
    shop.web.tombolo_ok(&["intercept", "on"])?;
    wait_more(alive() + 5);
    shop.web.tombolo_ok(&["intercept", "off"])?;
    wait_more(alive() + 5);
    ensure!(!held.log().contains("broken"), "{}", held.log());
    held.stop()?;
    ensure_untouched(&shop.web)
}

fn held_count(log: &str) -> usize {
    log.lines().filter(|line| line.starts_with("alive")).count()
}

#[test]
fn without_a_confirmation_it_rolls_itself_back() -> Result<()> {
    let shop = shop::open()?;
    shop.web.tombolo_ok(&["intercept", "off"])?;
    shop.web.tombolo_ok(&["intercept", "on", "--confirm-within", "2s"])?;
    wait_until("it rolls back", || {
        let state = shop.web.status().map_err(|error| error.to_string())?["interception"]["state"].clone();
        if state == "off" { Ok(()) } else { Err(state.to_string()) }
    });
    ensure_untouched(&shop.web)?;

    // Long enough to be looked at, however busy the machine is.
    shop.web.tombolo_ok(&["intercept", "on", "--confirm-within", "10m"])?;
    let state = shop.web.status()?["interception"]["state"].clone();
    ensure!(state == "unconfirmed", "the state is {state}");
    shop.web.tombolo_ok(&["intercept", "confirm"])?;
    let state = shop.web.status()?["interception"]["state"].clone();
    ensure!(state == "on", "the state is {state}");
    Ok(())
}

#[test]
fn plan_changes_nothing_and_shows_what_on_then_does() -> Result<()> {
    let shop = shop::open()?;
    shop.web.tombolo_ok(&["intercept", "off"])?;
    let plan: serde_json::Value = serde_json::from_str(&shop.web.tombolo_ok(&["plan", "-o", "json"])?)?;
    ensure_untouched(&shop.web)?;
    shop.web.tombolo_ok(&["intercept", "on"])?;
    let listed = shop.web.namespace().run("nft", &["list", "table", "inet", "tombolo"])?;
    let planned = plan["ruleset"].as_str().unwrap_or_default();
    ensure!(words(planned) == words(&listed.stdout), "planned:\n{planned}\nlisted:\n{}", listed.stdout);
    Ok(())
}

/// Rule sets compare by their words, sorted: nft wraps sets as it likes, the kernel lists their
/// elements in the order of its hashes, and counters count.
fn words(ruleset: &str) -> Vec<String> {
    let kept = ruleset.lines().map(|line| line.split('#').next().unwrap_or_default());
    let text = kept.collect::<Vec<_>>().join(" ");
    let mut words: Vec<String> = text.split([' ', ',', '\t']).filter(|w| !w.is_empty()).map(str::to_owned).collect();
    words.retain(|word| word.parse::<u64>().is_err() && word != "flags" && word != "owner");
    words.sort_unstable();
    words
}

#[test]
fn the_table_is_ours_alone_and_survives_a_flush() -> Result<()> {
    let shop = shop::open()?;
    shop.web.namespace().run("nft", &["flush", "ruleset"])?;
    let tables = shop.web.namespace().run("nft", &["list", "tables"])?.stdout;
    ensure!(tables.contains("inet tombolo"), "the flush took it: {tables}");
    shop.wait_answers("http://orders.shop.mesh/");
    let foreign = shop.web.namespace().run("nft", &["delete", "table", "inet", "tombolo"])?;
    ensure!(!foreign.ok(), "somebody else could delete it");
    Ok(())
}

#[test]
fn a_change_that_comes_while_the_agent_drains_brings_no_rules_back() -> Result<()> {
    let mut shop = shop::open()?;
    let _echo = shop.orders.serve_echo(8081)?;
    shop.estate.apply(ECHO)?;
    // Long enough for what follows; it ends when the connection does.
    let drop_ins = shop.web.config_file().with_extension("d");
    std::fs::create_dir(&drop_ins)?;
    std::fs::write(drop_ins.join("drain.toml"), "[drain]\ndeadline = \"1min\"\n")?;
    shop.web.stop_agent()?;
    shop.web.start_agent()?;
    shop.wait_answers("http://orders.shop.mesh/");
    let mut held = shop.web.hold_connection(&format!("{}:8081", shop.orders.address()))?;
    wait_until("the held connection goes on", || if held_count(&held.log()) > 2 { Ok(()) } else { Err(held.log()) });

    let taken = ["list", "set", "inet", "tombolo", "vip4"];
    let table = || shop.web.namespace().run("nft", &taken).map(|output| output.stdout);
    ensure!(table()?.contains("240.240."), "{}", table()?);
    let agent = shop.web.agent().context("it runs")?;
    agent.signal(Signal::TERM)?;
    wait_until("new connections pass", || match table() {
        Ok(listed) if !listed.is_empty() && !listed.contains("240.240.") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let revision = |shop: &shop::Shop| -> Result<Option<u64>> {
        let status: serde_json::Value =
            serde_json::from_str(&shop.web.tombolo(&["status", "-o", "json"])?.stdout).unwrap_or_default();
        Ok(status["snapshot"]["revision"].as_u64())
    };
    let before = revision(&shop)?;
    shop.estate.apply(LATE)?;
    wait_until("the draining agent obeys the change", || match revision(&shop) {
        Ok(now) if now > before => Ok(()),
        other => Err(format!("{before:?}, then {other:?}")),
    });
    // The rules would follow within 50 ms.
    let end = Instant::now() + Duration::from_secs(1);
    while Instant::now() < end {
        ensure!(!table()?.contains("240.240."), "the rules came back: {}", table()?);
    }
    ensure!(!held.log().contains("broken"), "{}", held.log());
    held.stop()?;
    wait_until("the agent has ended", || {
        if shop.web.agent_mut().is_some_and(Daemon::running) { Err("it runs") } else { Ok(()) }
    });
    ensure_untouched(&shop.web)
}

const ECHO: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: echo, namespace: shop}\n\
                    spec: {selector: {app: orders}, ports: [{name: tcp, port: 7, targetPort: 8081}]}\n";
const LATE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: late, namespace: shop}\n\
                    spec: {selector: {app: orders}, ports: [{name: http, port: 80, targetPort: http}]}\n";
