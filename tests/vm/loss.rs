//! The agent dies, hangs or is restarted: what the kernel and systemd do about it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::machine::AGENT;
use tests::{Machine, wait_until, within};

use crate::shop::{self, tables};

#[test]
fn killed_the_table_is_gone_at_once_and_comes_back_with_the_agent() -> Result<()> {
    let shop = shop::open("")?;
    shop.web.override_unit(AGENT, "[Service]\nRestartSec=2s\n")?;
    let old = shop.web.property(AGENT, "MainPID")?;
    kill(&shop.web)?;
    within(Duration::from_millis(500), "the kernel has removed the table", || match shop.tables() {
        Ok(tables) if !tables.contains("tombolo") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let direct = shop.web.curl(&format!("http://{}:8080/", shop.orders.address()))?;
    ensure!(direct.ok(), "traffic does not go past the dead agent: {direct:?}");
    ensure!(shop.web.property(AGENT, "MainPID")? != old, "it is still the old one");

    wait_until("the table is back", || match shop.tables() {
        Ok(tables) if tables.contains("inet tombolo") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    shop.web.wait_answers("http://orders.shop.mesh/");
    ensure!(shop.web.property(AGENT, "NRestarts")? == "1");
    ensure!(shop.web.status()?["interception"]["state"] == "on");
    Ok(())
}

#[test]
fn held_the_table_is_there_all_through_a_restart() -> Result<()> {
    let shop = shop::open("[interception]\non_agent_loss = \"hold\"\n")?;
    let restarted = |what: &str, restart: &dyn Fn() -> Result<()>| -> Result<()> {
        let old = shop.web.property(AGENT, "MainPID")?;
        let looks = while_looking_for_the_table(&shop.web, || {
            restart()?;
            wait_until(&format!("a new agent is active after {what}"), || {
                let pid = shop.web.property(AGENT, "MainPID").map_err(|error| error.to_string())?;
                let state = shop.web.property(AGENT, "ActiveState").map_err(|error| error.to_string())?;
                if pid != old && state == "active" { Ok(()) } else { Err(format!("{pid} is {state}")) }
            });
            shop.web.wait_answers("http://orders.shop.mesh/");
            Ok(())
        })?;
        println!("{what}: the table was there each of {looks} times");
        Ok(())
    };
    restarted("systemctl restart", &|| shop.web.run_ok("systemctl", &["restart", AGENT]).map(|_| ()))?;
    restarted("kill -9", &|| kill(&shop.web))?;
    // Held is for restarts: a stop lets go.
    shop.web.run_ok("systemctl", &["stop", AGENT])?;
    ensure!(!shop.tables()?.contains("tombolo"), "{}", shop.tables()?);
    Ok(())
}

#[test]
fn blocked_a_strict_port_takes_no_plaintext_from_nobody_at_all() -> Result<()> {
    let strict =
        "[interception]\non_agent_loss = \"block\"\n\n[[workload]]\ngroup = \"shop/web\"\ninbound = \"strict\"\n";
    let shop = shop::open(strict)?;
    shop.web.start_unit("http", "/usr/bin/testhost http [::]:8080 web")?;
    shop.web.start_unit("other", "/usr/bin/testhost http [::]:8090 other")?;
    let mesh = "http://web.shop.mesh/";
    wait_until("orders reaches web through the mesh", || match shop.orders.curl(mesh) {
        Ok(output) if output.ok() => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let plain = format!("http://{}:8080/", shop.web.host().address());
    let curl = |url: &str| shop.legacy.namespace().run("curl", &["-sS", "--max-time", "2", url]);
    ensure!(!curl(&plain)?.ok(), "plaintext is taken while the agent runs");

    shop.web.override_unit(AGENT, "[Service]\nRestartSec=20s\n")?;
    kill(&shop.web)?;
    wait_until("systemd has noticed", || match shop.web.property(AGENT, "SubState") {
        Ok(state) if state == "auto-restart" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let refused = curl(&plain)?;
    ensure!(!refused.ok(), "plaintext is taken while the agent is dead: {refused:?}\n{}", shop.tables()?);
    let open = curl(&format!("http://{}:8090/", shop.web.host().address()))?;
    ensure!(open.ok(), "a port that is nobody's is refused: {open:?}");
    shop.web.run_ok("systemctl", &["start", AGENT])?;
    wait_until("orders reaches web again", || match shop.orders.curl(mesh) {
        Ok(output) if output.ok() => Ok(()),
        other => Err(format!("{other:?}")),
    });
    ensure!(!curl(&plain)?.ok(), "plaintext is taken after the restart");

    // Stopping it is the operator's will, and his way out.
    shop.web.run_ok("systemctl", &["stop", AGENT])?;
    shop::ensure_untouched(&shop.web)?;
    ensure!(curl(&plain)?.ok(), "a stopped agent still refuses");
    Ok(())
}

#[test]
fn hung_it_is_ended_and_started_again_by_the_watchdog() -> Result<()> {
    let shop = shop::open("")?;
    let shipped = shop.web.property(AGENT, "WatchdogUSec")?;
    ensure!(shipped != "0" && shipped != "infinity", "the unit has no watchdog");
    println!("shipped: WatchdogSec={shipped}");
    shop.web.override_unit(AGENT, "[Service]\nWatchdogSec=2s\n")?;
    shop.web.run_ok("systemctl", &["restart", AGENT])?;
    let quiet = shop.web.property(AGENT, "WatchdogTimestampMonotonic")?;
    wait_until("it feeds the watchdog", || match shop.web.property(AGENT, "WatchdogTimestampMonotonic") {
        Ok(now) if now != quiet => Ok(()),
        other => Err(format!("{other:?}")),
    });

    let old = shop.web.property(AGENT, "MainPID")?;
    let began = Instant::now();
    shop.web.run_ok("systemctl", &["kill", "--signal=STOP", AGENT])?;
    within(Duration::from_secs(12), "systemd starts another", || {
        let pid = shop.web.property(AGENT, "MainPID").map_err(|error| error.to_string())?;
        let state = shop.web.property(AGENT, "ActiveState").map_err(|error| error.to_string())?;
        if pid != old && pid != "0" && state == "active" { Ok(()) } else { Err(format!("{pid} is {state}")) }
    });
    println!("from the hang to ready again: {:?}", began.elapsed());
    let journal = shop.web.journal(AGENT)?;
    ensure!(journal.contains("Watchdog timeout"), "{journal}");
    shop.web.wait_answers("http://orders.shop.mesh/");
    Ok(())
}

fn kill(machine: &Machine) -> Result<()> {
    machine.run_ok("systemctl", &["kill", "--signal=KILL", "--kill-who=main", AGENT]).map(|_| ())
}

/// Runs `work` while another thread asks the kernel for the table as often as it can; how often it
/// looked, or an error if the table was missing once.
fn while_looking_for_the_table(machine: &Machine, work: impl FnOnce() -> Result<()>) -> Result<usize> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looker = scope.spawn(|| {
            let mut looks = 0;
            while !done.load(Ordering::Relaxed) {
                let seen = tables(machine)?;
                ensure!(seen.contains("inet tombolo"), "the table was gone at look {looks}: {seen:?}");
                looks += 1;
            }
            Ok(looks)
        });
        let worked = work();
        done.store(true, Ordering::Relaxed);
        let looks = looker.join().ok().context("the looker ended early")??;
        worked?;
        Ok(looks)
    })
}
