//! A machine that was given a token joins by itself, and tells the token to nobody.

use anyhow::{Context, Result, ensure};
use tests::machine::AGENT;
use tests::{Machine, wait_until};

use crate::shop::{self, Shop};

#[test]
fn a_machine_with_a_token_in_its_credential_store_is_a_host_after_its_first_boot() -> Result<()> {
    let mut shop = shop::prepare()?;
    shop.web.run_ok("systemctl", &["enable", AGENT])?;
    let line = shop.estate.operate(&["token", "create", "--group", "shop/web"])?;
    let token = line.split_whitespace().last().context("no token")?.to_owned();
    put(&shop.web, &line)?;
    // The control plane comes later than its host: it is asked until it is there.
    shop.estate.stop_control_plane()?;
    shop.web.reboot()?;
    wait_until("it says that the control plane is not there", || said(&shop.web, "cannot reach 10.88.0.1:15012"));
    shop.estate.start_control_plane()?;
    wait_until("the agent serves", || match shop.web.property(AGENT, "ActiveState") {
        Ok(state) if state == "active" => Ok(()),
        other => Err(format!("{other:?} {:?}", shop.web.journal(JOIN))),
    });
    shop.web.tombolo_ok(&["intercept", "on"])?;
    let answer = shop.web.wait_answers("http://orders.shop.mesh/");
    ensure!(answer.starts_with("hello from orders"), "{answer}");
    ensure_secret(&shop.web, &token)?;
    let verdict = shop.web.run("systemd-analyze", &["security", "--no-pager", "--threshold=25", JOIN])?;
    ensure!(verdict.ok(), "more exposed than 2.5: {}", verdict.stdout);

    // Joined, it does nothing at the next boot.
    shop.web.reboot()?;
    shop.web.wait_answers("http://orders.shop.mesh/");
    ensure!(shop.web.property(JOIN, "ConditionResult")? == "no", "{}", shop.web.journal(JOIN)?);

    // The other way to give one: to the machine itself.
    shop.web.run_ok("tombolo", &["leave", "--purge"])?;
    shop.web.run_ok("rm", &["/etc/credstore/tombolo.join-token"])?;
    let line = shop.estate.operate(&["token", "create", "--group", "shop/web"])?;
    shop.web.give_credential("tombolo.join-token", &line)?;
    shop.web.reboot()?;
    ensure!(shop.web.status()?["ready"] == true, "{}", shop.web.journal(JOIN)?);
    Ok(())
}

#[test]
fn a_token_that_does_not_count_is_tried_once_and_without_one_nothing_fails() -> Result<()> {
    let shop = shop::prepare()?;
    shop.web.run_ok("systemctl", &["start", AGENT])?;
    let failed = shop.web.run_ok("systemctl", &["--failed", "--no-legend", "--plain"])?;
    ensure!(failed.trim().is_empty() && !shop.web.path("/var/lib/tombolo")?.exists(), "{failed}");

    let line = shop.estate.operate(&["token", "create", "--group", "shop/web"])?;
    let spent = line.split_whitespace().skip(2).collect::<Vec<_>>();
    let other = shop.estate.add_host("other", &tests::HostSpec::default())?;
    other.tombolo_ok(&["join", spent[0], "--token", spent[2], "--name", "other", "--advertise", "10.88.0.9"])?;
    refused(&shop, &line, "spent")?;
    refused(&shop, spent[2], "the whole line of `tombolo token create`")?;
    refused(&shop, line.trim().strip_suffix(|_| true).context("a line")?, "the join token is damaged")?;
    Ok(())
}

fn refused(shop: &Shop, credential: &str, why: &str) -> Result<()> {
    put(&shop.web, credential)?;
    // With the agent that wants it: its own start is no failure.
    shop.web.run_ok("systemctl", &["start", AGENT])?;
    let result = shop.web.property(JOIN, "ActiveState")?;
    ensure!(result == "failed", "{result}: {}", shop.web.journal(JOIN)?);
    let journal = shop.web.journal(JOIN)?;
    ensure!(journal.contains(why), "{journal}");
    ensure!(shop.web.property(AGENT, "ActiveState")? == "inactive");
    shop.web.run_ok("systemctl", &["reset-failed", JOIN]).map(|_| ())
}

fn put(machine: &Machine, credential: &str) -> Result<()> {
    machine.write("/etc/credstore/tombolo.join-token", credential)?;
    machine.run_ok("chmod", &["600", "/etc/credstore/tombolo.join-token"]).map(|_| ())
}

fn said(machine: &Machine, words: &str) -> Result<(), String> {
    let journal = machine.journal(JOIN).map_err(|error| error.to_string())?;
    if journal.contains(words) { Ok(()) } else { Err(journal) }
}

/// Not in the journal, in no process' arguments or environment, in no unit.
fn ensure_secret(machine: &Machine, token: &str) -> Result<()> {
    let everywhere =
        "journalctl --no-pager -o export; cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ; systemctl show '*'";
    let seen = machine.run("sh", &["-c", everywhere])?;
    ensure!(seen.stdout.contains("tombolo") && !seen.stdout.contains(token), "the token can be seen");
    Ok(())
}

const JOIN: &str = "tombolo-join.service";
