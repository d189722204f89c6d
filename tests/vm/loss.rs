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
    wait_until("systemd has noticed", || match shop.web.property(AGENT, "MainPID") {
        Ok(now) if now != old => Ok(()),
        other => Err(format!("{other:?}")),
    });

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
fn held_rules_and_names_are_there_all_through_a_restart_and_go_with_a_stop() -> Result<()> {
    let shop = shop::open("[interception]\non_agent_loss = \"hold\"\n")?;
    let before = [links(&shop.web)?, routing(&shop.web)?];
    let restarted = |what: &str, restart: &dyn Fn() -> Result<()>| -> Result<()> {
        let old = shop.web.property(AGENT, "MainPID")?;
        let [tables, names] = while_looking([&|| has_table(&shop.web), &|| name_answers(&shop.web)], || {
            restart()?;
            wait_until(&format!("a new agent is active after {what}"), || {
                let pid = shop.web.property(AGENT, "MainPID").map_err(|error| error.to_string())?;
                let state = shop.web.property(AGENT, "ActiveState").map_err(|error| error.to_string())?;
                if pid != old && state == "active" { Ok(()) } else { Err(format!("{pid} is {state}")) }
            });
            shop.web.wait_answers("http://orders.shop.mesh/");
            Ok(())
        })?;
        println!("{what}: the table was there each of {tables} times, a name answered {names} times");
        let now = [links(&shop.web)?, routing(&shop.web)?];
        ensure!(now == before, "{what}\nbefore: {before:#?}\nnow: {now:#?}");
        Ok(())
    };
    wait_until("systemd-resolved answers mesh names", || name_answers(&shop.web).map_err(|error| error.to_string()));
    // Nothing of an agent that lives is cleaned away.
    shop.web.tombolo_ok(&["agent", "--cleanup"])?;
    ensure!([links(&shop.web)?, routing(&shop.web)?] == before, "{}", links(&shop.web)?);
    restarted("systemctl restart", &|| shop.web.run_ok("systemctl", &["restart", AGENT]).map(|_| ()))?;
    restarted("kill -9", &|| kill(&shop.web))?;
    // Held is for restarts: a stop lets go, also of an agent that must be killed.
    shop.web.run_ok("systemctl", &["stop", AGENT])?;
    shop::ensure_untouched(&shop.web).with_context(|| shop.web.journal(AGENT).unwrap_or_default())?;
    shop.web.override_unit(AGENT, "[Service]\nKillSignal=SIGKILL\n")?;
    shop.web.run_ok("systemctl", &["start", AGENT])?;
    shop.web.wait_answers("http://orders.shop.mesh/");
    shop.web.run_ok("systemctl", &["stop", AGENT])?;
    ensure!(shop.web.property(AGENT, "Result")? == "signal", "it ended by itself");
    shop.web.run_ok("systemctl", &["reset-failed", AGENT])?;
    shop::ensure_untouched(&shop.web).with_context(|| shop.web.journal(AGENT).unwrap_or_default())
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

fn has_table(machine: &Machine) -> Result<()> {
    let seen = tables(machine)?;
    ensure!(seen.contains("inet tombolo"), "the table is gone: {seen:?}");
    Ok(())
}

/// Past systemd-resolved's cache, as a process that asks for a name for the first time.
fn name_answers(machine: &Machine) -> Result<()> {
    let answer = machine.run("resolvectl", &["query", "--cache=no", "orders.shop.mesh"])?;
    ensure!(answer.stdout.contains("240.240."), "orders.shop.mesh does not resolve: {answer:?}");
    Ok(())
}

fn links(machine: &Machine) -> Result<String> {
    machine.run_ok("ip", &["-brief", "link"])
}

/// The rules and routes of policy routing, both families.
fn routing(machine: &Machine) -> Result<String> {
    machine.run_ok("sh", &["-c", "for f in -4 -6; do ip $f rule; ip $f route show table all; done"])
}

/// Runs `work` while other threads look as often as they can; how often each looked, or an error if
/// what it looks for was missing once.
fn while_looking<const N: usize>(
    looks: [&(dyn Fn() -> Result<()> + Sync); N],
    work: impl FnOnce() -> Result<()>,
) -> Result<[usize; N]> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let lookers = looks.map(|look| {
            let done = &done;
            scope.spawn(move || {
                let mut count = 0;
                while !done.load(Ordering::Relaxed) {
                    look().with_context(|| format!("at look {count}"))?;
                    count += 1;
                }
                Ok::<_, anyhow::Error>(count)
            })
        });
        let worked = work();
        done.store(true, Ordering::Relaxed);
        let mut counts = [0; N];
        for (count, looker) in counts.iter_mut().zip(lookers) {
            *count = looker.join().ok().context("a looker ended early")??;
        }
        worked?;
        Ok(counts)
    })
}
