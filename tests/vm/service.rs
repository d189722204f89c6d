//! The agent as systemd sees it: inert before it has joined, ready when it serves, gone when stopped.

use anyhow::{Context, Result, ensure};
use tests::machine::AGENT;
use tests::wait_until;

use crate::shop::{self, ensure_untouched};

#[test]
fn a_host_that_has_not_joined_is_left_alone() -> Result<()> {
    let shop = shop::prepare()?;
    let before = shop.web.run_ok("ip", &["address"])?;
    shop.web.run("systemctl", &["start", AGENT])?;
    let status = shop.web.run("systemctl", &["status", "--no-pager", "--full", AGENT])?.stdout;
    let said = format!("{status}\n{}", shop.web.journal(AGENT)?);
    ensure!(!status.contains("Active: active") && !status.contains("Active: activating"), "{status}");
    ensure!(said.contains("condition") || said.contains("tombolo join"), "it does not say why: {said}");
    ensure!(shop.web.property(AGENT, "NRestarts")? == "0", "it tries again and again: {said}");
    let failed = shop.web.run_ok("systemctl", &["--failed", "--no-legend", "--plain"])?;
    ensure!(failed.trim().is_empty(), "a host that was only installed is degraded: {failed}");
    ensure_untouched(&shop.web)?;
    let direct = shop.web.curl(&format!("http://{}:8080/", shop.orders.address()))?;
    ensure!(direct.ok(), "{direct:?}");
    ensure!(before == shop.web.run_ok("ip", &["address"])?);
    Ok(())
}

#[test]
fn it_is_ready_when_it_serves_and_stop_leaves_nothing() -> Result<()> {
    let mut shop = shop::prepare()?;
    let untouched = shop.web.run_ok("ip", &["address"])?;
    shop.web.join(&shop.estate, &["shop/web"])?;
    ensure_untouched(&shop.web).context("join starts nothing")?;

    // Nothing to serve from: no snapshot on disk yet, and nobody to get one from.
    shop.estate.stop_control_plane()?;
    shop.web.run_ok("systemctl", &["start", "--no-block", AGENT])?;
    let text = wait_until("the agent says what it waits for", || {
        let text = shop.web.property(AGENT, "StatusText").map_err(|error| error.to_string())?;
        if text.is_empty() { Err(shop.web.journal(AGENT).unwrap_or_default()) } else { Ok(text) }
    });
    println!("waiting: {text}");
    ensure!(shop.web.property(AGENT, "ActiveState")? == "activating", "ready without a snapshot: {text}");
    shop.estate.start_control_plane()?;
    wait_until("the agent becomes ready", || match shop.web.property(AGENT, "ActiveState") {
        Ok(state) if state == "active" => Ok(()),
        other => Err(format!("{other:?}")),
    });

    // A start that comes back has begun to serve: everything is asked once, nothing is waited for.
    shop.web.run_ok("systemctl", &["restart", AGENT])?;
    let ready = shop.web.curl("http://127.0.0.1:15021/healthz/ready")?;
    ensure!(ready.ok(), "{ready:?}");
    ensure!(shop.web.status()?["ready"] == true);
    shop.web.tombolo_ok(&["intercept", "on"])?;
    let answer = shop.web.curl("http://orders.shop.mesh/")?;
    ensure!(answer.stdout.starts_with("hello from orders"), "{answer:?}");
    let status = shop.web.run_ok("systemctl", &["status", "--no-pager", "--full", AGENT])?;
    let line = status.lines().find(|line| line.trim_start().starts_with("Status: ")).context("no STATUS line")?;
    println!("serving: {}", line.trim());
    ensure!(line.len() > "Status: \"\"".len() + 8, "{line}");

    shop.web.run_ok("systemctl", &["restart", AGENT])?;
    let answer = shop.web.curl("http://orders.shop.mesh/")?;
    ensure!(answer.ok(), "interception was on and is not after a restart: {answer:?}");

    shop.web.run_ok("systemctl", &["stop", AGENT])?;
    ensure!(shop.web.property(AGENT, "Result")? == "success");
    ensure_untouched(&shop.web)?;
    let now = shop.web.run_ok("ip", &["address"])?;
    ensure!(untouched == now, "before:\n{untouched}\nnow:\n{now}");
    ensure!(!shop.web.path("/run/tombolo/admin.sock")?.exists(), "a socket is left in /run/tombolo");
    Ok(())
}

#[test]
fn open_connections_survive_on_restart_and_off() -> Result<()> {
    let shop = shop::open("")?;
    shop.web.tombolo_ok(&["intercept", "off"])?;
    // To a mesh address and port: a new connection there would be taken.
    let peer = format!("{}:8081", shop.orders.address());
    shop.web.start_unit("session", &format!("/usr/bin/testhost hold {peer}"))?;
    let more = |what: &str| {
        let count = || shop.web.journal("session").map(|log| log.matches("alive").count()).unwrap_or_default();
        let before = count();
        wait_until(&format!("the open session goes on {what}"), || match count() {
            now if now > before + 3 => Ok(()),
            now => Err(format!("{before} then {now}: {:?}", shop.web.journal("session"))),
        });
    };
    more("at first");
    shop.web.tombolo_ok(&["intercept", "on"])?;
    more("after on");
    shop.web.run_ok("systemctl", &["restart", AGENT])?;
    more("after a restart of the agent");
    shop.web.run_ok("systemctl", &["restart", "systemd-networkd"])?;
    more("after a restart of networkd");
    shop.web.wait_answers("http://orders.shop.mesh/");
    // It deletes rules that it does not know.
    let rules = shop.web.run_ok("ip", &["rule"])?;
    ensure!(rules.contains("29805"), "networkd took our rule away: {rules}");
    shop.web.tombolo_ok(&["intercept", "off"])?;
    more("after off");
    shop.web.run_ok("systemctl", &["stop", AGENT])?;
    more("after stop");
    let log = shop.web.journal("session")?;
    ensure!(!log.contains("broken"), "{log}");
    Ok(())
}

#[test]
fn systemd_finds_no_fault_with_its_unit_and_reload_keeps_it_running() -> Result<()> {
    let shop = shop::open("")?;
    let verified = shop.web.run("systemd-analyze", &["verify", "--man=no", AGENT])?;
    ensure!(verified.ok() && verified.stderr.trim().is_empty(), "systemd finds fault with the unit: {verified:?}");
    // While it intercepts: what the unit forbids, the agent does not need.
    let verdict = shop.web.run("systemd-analyze", &["security", "--no-pager", "--threshold=25", AGENT])?;
    println!("{}", verdict.stdout.lines().rev().find(|line| line.contains("exposure level")).context("no verdict")?);
    ensure!(verdict.ok(), "more exposed than 2.5: {}", verdict.stdout);

    let pid = shop.web.property(AGENT, "MainPID")?;
    shop.web.run_ok("systemctl", &["reload", AGENT])?;
    shop.web.wait_answers("http://orders.shop.mesh/");
    ensure!(shop.web.property(AGENT, "MainPID")? == pid, "a reload is a restart");
    let errors = shop.web.run_ok("journalctl", &["-b", "-p", "err", "-o", "cat", "--no-pager", "-u", AGENT])?;
    ensure!(errors.trim().is_empty(), "{errors}");

    shop.web.write("/etc/tombolo/agent.d/60-typo.toml", "[drain]\ndeadlin = \"5s\"\n")?;
    let reload = shop.web.run("systemctl", &["reload", AGENT])?;
    ensure!(!reload.ok(), "a reload with a mistake in the settings is said to be done");
    ensure!(shop.web.journal(AGENT)?.contains("deadlin"), "the mistake is not named");
    ensure!(shop.web.property(AGENT, "MainPID")? == pid);
    shop.web.wait_answers("http://orders.shop.mesh/");
    shop.web.run_ok("rm", &["/etc/tombolo/agent.d/60-typo.toml"])?;
    shop.web.run_ok("systemctl", &["reload", AGENT])?;
    Ok(())
}

#[test]
fn an_application_after_the_ready_target_starts_when_the_agent_serves() -> Result<()> {
    let mut shop = shop::prepare()?;
    let unit = "[Unit]\nWants=tombolo-ready.target\nAfter=tombolo-ready.target\n[Service]\nExecStart=sleep infinity\n";
    shop.web.write("/etc/systemd/system/application.service", unit)?;
    shop.web.run_ok("systemctl", &["daemon-reload"])?;
    // Not in a mesh: nothing to wait for.
    shop.web.run_ok("systemctl", &["start", "application"])?;
    ensure!(shop.web.property("application", "ActiveState")? == "active");
    shop.web.run_ok("systemctl", &["stop", "application", "tombolo-ready.target"])?;

    shop.web.join(&shop.estate, &["shop/web"])?;
    shop.estate.stop_control_plane()?;
    shop.web.run_ok("systemctl", &["start", "--no-block", "application"])?;
    wait_until("the agent waits for its first snapshot", || match shop.web.property(AGENT, "StatusText") {
        Ok(text) if !text.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let state = shop.web.property("application", "ActiveState")?;
    ensure!(state == "inactive", "the application is {state} before the agent serves");
    shop.estate.start_control_plane()?;
    wait_until("the application starts", || match shop.web.property("application", "ActiveState") {
        Ok(state) if state == "active" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    ensure!(shop.web.property(AGENT, "ActiveState")? == "active");
    Ok(())
}
