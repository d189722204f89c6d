//! A machine's disk is copied with its identity on it, and a machine gets another id.

use anyhow::{Result, ensure};
use tests::Machine;
use tests::machine::AGENT;

use crate::shop::{self, ensure_untouched};

#[test]
fn a_copied_machine_is_refused_before_it_does_anything_and_the_original_stays() -> Result<()> {
    let shop = shop::open("")?;
    let copy = Machine::boot(&shop.estate, "copy")?;
    let (from, to) = (shop.web.path("/var/lib/tombolo")?, copy.path("/var/lib/tombolo")?);
    ensure!(std::process::Command::new("cp").arg("-a").arg(from).arg(to).status()?.success());

    let start = copy.run("systemctl", &["start", AGENT])?;
    ensure!(!start.ok(), "it starts: {start:?}");
    ensure!(copy.property(AGENT, "ExecMainStatus")? == "3" && copy.property(AGENT, "NRestarts")? == "0");
    let said = copy.journal(AGENT)?;
    for words in ["the state of another machine (host web", "`tombolo leave --purge`", "`tombolo agent --adopt`"] {
        ensure!(said.contains(words), "{said}");
    }
    let status = copy.run("tombolo", &["status"])?;
    ensure!(status.code == 3 && status.stderr.contains("another machine"), "{status:?}");
    let doctor = copy.run("tombolo", &["doctor"])?;
    ensure!(!doctor.ok() && doctor.stdout.contains("it is another machine's (host web"), "{doctor:?}");
    let again = shop.estate.join_arguments(&["shop/web".to_owned()])?;
    let again = copy.run("tombolo", &again.iter().map(String::as_str).collect::<Vec<_>>())?;
    ensure!(!again.ok() && again.stderr.contains("another machine"), "{again:?}");

    // The cure that is named. The original does not notice.
    copy.tombolo_ok(&["leave", "--purge"])?;
    copy.run_ok("systemctl", &["reset-failed", AGENT])?;
    ensure_untouched(&copy)?;
    ensure!(shop.web.status()?["problems"].as_array().is_some_and(Vec::is_empty), "{}", shop.web.status()?);
    copy.join(&shop.estate, &["shop/web"])?;
    copy.start_agent()?;
    let hosts = shop.estate.operate(&["host", "list"])?;
    ensure!(hosts.contains("web") && hosts.contains("copy"), "{hosts}");
    Ok(())
}

#[test]
fn a_machine_with_a_new_id_goes_on_once_its_operator_says_so() -> Result<()> {
    let mut shop = shop::open("")?;
    shop.web.run_ok("systemctl", &["enable", AGENT])?;
    shop.web.write("/etc/machine-id", "0123456789abcdef0123456789abcdef\n")?;
    shop.web.run_ok("systemctl", &["stop", AGENT])?;
    ensure!(!shop.web.run("systemctl", &["start", AGENT])?.ok());
    let adopted = shop.web.run("tombolo", &["agent", "--adopt"])?;
    ensure!(adopted.ok() && adopted.stderr.contains("this machine is the host web"), "{adopted:?}");
    shop.web.reboot()?;
    let answer = shop.web.wait_answers("http://orders.shop.mesh/");
    ensure!(answer.starts_with("hello from orders"), "{answer}");
    Ok(())
}
