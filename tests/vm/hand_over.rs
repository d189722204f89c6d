//! The agent hands over, and systemd follows: another main process, the same service, and nobody notices.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::machine::AGENT;
use tests::{Machine, wait_until};

use crate::shop::{self, Shop, ensure_untouched};

/// A meshed machine whose agent is given three seconds without a sign of life, and load on it.
fn open(settings: &str) -> Result<Shop> {
    let shop = shop::prepare()?;
    shop.web.override_unit(AGENT, "[Service]\nWatchdogSec=3s\n")?;
    shop.web.write("/etc/tombolo/agent.d/50-test.toml", settings)?;
    shop.web.join(&shop.estate, &["shop/web"])?;
    shop.web.start_agent()?;
    shop.web.tombolo_ok(&["intercept", "on"])?;
    shop.web.wait_answers("http://orders.shop.mesh/");
    let address = |name: &str| -> Result<String> {
        let found = shop.web.run_ok("getent", &["ahostsv4", name])?;
        Ok(found.split_whitespace().next().context("no address")?.to_owned())
    };
    let (orders, echo) = (address("orders.shop.mesh")?, address("echo.shop.mesh")?);
    shop.web.start_unit("ask", &format!("/usr/bin/testhost ask {orders}:80"))?;
    shop.web.start_unit("stream", &format!("/usr/bin/testhost stream {echo}:7"))?;
    shop.web.start_unit("names", NAMES)?;
    go_on(&shop.web, "at first");
    Ok(shop)
}

fn counts(web: &Machine) -> [usize; 3] {
    ["ask", "stream", "names"].map(|unit| web.journal(unit).map(|log| log.lines().count()).unwrap_or_default())
}

fn go_on(web: &Machine, when: &str) {
    let before = counts(web);
    wait_until(&format!("the load goes on {when}"), || {
        let now = counts(web);
        let more = now.iter().zip(&before).all(|(now, before)| now > &(before + 10));
        if more { Ok(()) } else { Err(format!("{before:?}, then {now:?}")) }
    });
}

fn ensure_unharmed(web: &Machine) -> Result<()> {
    for unit in ["ask", "stream", "names"] {
        let log = web.journal(unit)?;
        let bad: Vec<&str> = log.lines().filter(|line| line.contains("failed") || line.contains("broken")).collect();
        ensure!(bad.is_empty(), "{unit}: {} failures, the first: {:?}", bad.len(), bad.first());
    }
    Ok(())
}

/// Hands over while somebody looks whether the rules are there; the main process before and after.
fn hand_over(shop: &Shop) -> Result<[String; 2]> {
    let old = shop.web.property(AGENT, "MainPID")?;
    let mut asked = shop.web.command("tombolo")?;
    let mut asked = asked.args(["agent", "--hand-over"]).spawn()?;
    let mut looks = 0;
    let status = loop {
        ensure!(shop.tables()?.contains("inet tombolo"), "the rules are not there");
        looks += 1;
        if let Some(status) = asked.try_wait()? {
            break status;
        }
    };
    ensure!(status.success(), "{status}: {}", shop.web.journal(AGENT)?);
    let new = shop.web.property(AGENT, "MainPID")?;
    println!("{old} handed over to {new}; the rules were there each of {looks} times");
    ensure!(old != new, "the main process is the same");
    Ok([old, new])
}

#[test]
fn systemd_follows_an_agent_that_hands_over_under_load() -> Result<()> {
    let shop = open("[interception]\non_agent_loss = \"hold\"\n")?;
    let kept = shop.web.property(AGENT, "NFileDescriptorStore")?;
    let [first, second] = hand_over(&shop)?;
    go_on(&shop.web, "after the hand-over");
    let [_, third] = hand_over(&shop)?;
    go_on(&shop.web, "after another");
    ensure_unharmed(&shop.web)?;
    ensure!(shop.web.property(AGENT, "NFileDescriptorStore")? == kept, "what is kept over a restart changed");

    // Three times as long as it may be silent.
    let fed = || shop.web.property(AGENT, "WatchdogTimestampMonotonic").map(|at| at.parse().unwrap_or(0u64));
    let (begun, mut last, mut feeds) = (Instant::now(), fed()?, 0);
    while begun.elapsed() < Duration::from_secs(9) {
        let now = fed()?;
        (feeds, last) = (feeds + u32::from(now != last), now);
    }
    ensure!(feeds >= 3, "the watchdog was fed {feeds} times in 9 s");
    for (property, value) in [("ActiveState", "active"), ("NRestarts", "0"), ("MainPID", third.as_str())] {
        ensure!(shop.web.property(AGENT, property)? == value, "{property}: {}", shop.web.journal(AGENT)?);
    }
    let said = shop.web.run_ok("journalctl", &["-b", "-o", "cat", "--no-pager", "-u", AGENT, "-p", "warning"])?;
    ensure!(said.trim().is_empty(), "{said}");
    let status = shop.web.run_ok("tombolo", &["status"])?;
    ensure!(status.contains("draining"), "{status}");

    // Its last connection ends, and so do the earlier processes; the service goes on.
    shop.web.run_ok("systemctl", &["stop", "stream"])?;
    for pid in [&first, &second] {
        wait_until(&format!("process {pid} ends"), || {
            let there = shop.web.run("test", &["-d", &format!("/proc/{pid}")]).map_err(|error| error.to_string())?;
            if there.ok() { Err("it runs".to_owned()) } else { Ok(()) }
        });
    }
    wait_until("nothing drains any more", || match shop.web.tombolo_ok(&["status"]) {
        Ok(status) if !status.contains("draining") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    ensure!(shop.web.property(AGENT, "MainPID")? == third);
    shop.web.run_ok("systemctl", &["stop", "ask", "names"])?;
    ensure_unharmed(&shop.web)?;

    // A restart is one of the newest.
    shop.web.run_ok("systemctl", &["restart", AGENT])?;
    shop.web.wait_answers("http://orders.shop.mesh/");
    shop.web.run_ok("systemctl", &["stop", AGENT])?;
    ensure_untouched(&shop.web)
}

#[test]
fn a_stop_ends_the_earlier_agent_too_and_leaves_nothing() -> Result<()> {
    let shop = open("")?;
    hand_over(&shop)?;
    let begun = Instant::now();
    shop.web.run_ok("systemctl", &["stop", AGENT])?;
    let took = begun.elapsed();
    ensure!(took < Duration::from_secs(15), "the stop took {took:?}");
    ensure!(shop.web.property(AGENT, "Result")? == "success", "{}", shop.web.journal(AGENT)?);
    ensure!(!shop.web.run("pgrep", &["-x", "tombolo"])?.ok(), "a process is left");
    ensure_untouched(&shop.web)
}

#[test]
fn a_new_agent_that_is_killed_once_it_serves_is_restarted_by_systemd() -> Result<()> {
    let shop = open("")?;
    let [_, new] = hand_over(&shop)?;
    shop.web.run_ok("kill", &["-KILL", &new])?;
    wait_until("systemd starts another", || match shop.web.property(AGENT, "NRestarts") {
        Ok(restarts) if restarts == "1" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    shop.web.wait_answers("http://orders.shop.mesh/");
    shop.web.run_ok("systemctl", &["stop", AGENT])?;
    ensure_untouched(&shop.web)
}

/// By name, through whatever the machine's libc asks.
const NAMES: &str = "/bin/sh -c 'while :; do curl -sS -o /dev/null -w \"answered %%{http_code}\\\\n\" \
                     --max-time 5 http://orders.shop.mesh/ || echo failed; sleep 0.02; done'";
