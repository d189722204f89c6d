//! A static program on hosts whose name service modules are another glibc's.
//!
//! glibc loads the modules that nsswitch.conf names also into a static program, which then dies of
//! them (SIGFPE on Debian 13, an abort on Debian 11). `telemetry::nss::pin` keeps it from trying.

use anyhow::{Result, ensure};
use tests::machine::{AGENT, Release};
use tests::{Estate, Machine};

use crate::shop;

const POISONED: &str = "passwd: files systemd sss\ngroup: files systemd sss\nshadow: files\n\
                        hosts: files resolve [!UNAVAIL=return] myhostname dns\nservices: db files\n";

#[test]
fn it_runs_and_joins_by_name_on_debian_12() -> Result<()> {
    joins_by_name(Release::Bookworm)
}

#[test]
fn it_runs_and_joins_by_name_on_debian_13() -> Result<()> {
    joins_by_name(Release::Trixie)
}

fn joins_by_name(release: Release) -> Result<()> {
    let estate = Estate::start()?;
    estate.apply(shop::SHOP)?;
    let machine = Machine::boot_release(&estate, "web", release)?;
    machine.write("/etc/nsswitch.conf", POISONED)?;
    // The same names that the modules would be asked for are found by this machine's own programs.
    let found = machine.run_ok("getent", &["ahostsv4", "controlplane.example"])?;
    ensure!(found.starts_with("10.88.0.1"), "{found}");
    let version = machine.tombolo_ok(&["--version"])?;
    ensure!(version.starts_with("tombolo "), "{version}");

    let words = estate.join_arguments(&["shop/web".to_owned()])?;
    let words: Vec<String> = words.iter().map(|word| word.replace("10.88.0.1", "controlplane.example")).collect();
    ensure!(words.iter().any(|word| word.contains("controlplane.example")), "{words:?}");
    let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
    words.extend(["--name", "web"]);
    machine.tombolo_ok(&words)?;
    machine.start_agent()?;
    ensure!(machine.status()?["control_plane"]["url"].to_string().contains("controlplane.example"));
    ensure!(machine.property(AGENT, "NRestarts")? == "0");
    Ok(())
}
