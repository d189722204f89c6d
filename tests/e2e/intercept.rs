//! Switching interception on, off and by accident, on a host with traffic.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::{wait_until, within};

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
    let state = shop.web.status()?["interception"]["state"].clone();
    ensure!(state == "unconfirmed", "the state is {state}");
    within(Duration::from_secs(10), "it rolls back", || {
        let state = shop.web.status().map_err(|error| error.to_string())?["interception"]["state"].clone();
        if state == "off" { Ok(()) } else { Err(state.to_string()) }
    });
    ensure_untouched(&shop.web)?;

    shop.web.tombolo_ok(&["intercept", "on", "--confirm-within", "30s"])?;
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
