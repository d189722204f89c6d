//! The machines themselves: what the other tests take for granted.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use anyhow::{Result, ensure};
use tests::{Estate, Machine};

#[test]
fn a_machine_boots_reboots_and_leaves_nothing_behind() -> Result<()> {
    let estate = Estate::prepare(|_| "sqlite::memory:".to_owned())?;
    let mut machine = Machine::boot(&estate, "vm")?;
    ensure!(machine.run_ok("hostname", &[])?.trim() == "vm");
    let links = machine.run_ok("networkctl", &["list", "--no-legend"])?;
    ensure!(links.contains("configured"), "{links}");
    let said = machine.run_ok("resolvectl", &["query", "outside.example"])?;
    ensure!(said.contains("192.0.2.1"), "{said}");
    machine.start_unit("web", "/usr/bin/testhost http [::]:80 vm")?;
    ensure!(machine.wait_answers("http://127.0.0.1/").starts_with("hello from vm"));
    machine.write("/root/mark", "kept")?;

    machine.reboot()?;
    ensure!(machine.run_ok("cat", &["/root/mark"])? == "kept");
    let boots = machine.run_ok("journalctl", &["--list-boots", "--no-pager"])?;
    ensure!(boots.contains(" -1 ") && !boots.contains(" -2 "), "{boots}");
    ensure!(!machine.curl("http://127.0.0.1/")?.ok(), "a unit that nobody enabled came back");
    machine.power_off()?;
    ensure!(machine.shell("true").is_err(), "it runs although it is off");
    machine.power_on()?;

    let name = machine.host().namespace().name().to_owned();
    let seen = leftovers(&name);
    ensure!(seen.len() >= 2, "this test does not see what it looks for: {seen:?}");
    let ended = catch_unwind(AssertUnwindSafe(move || {
        let _here = machine;
        panic!("a test fails (this one does so on purpose)");
    }));
    ensure!(ended.is_err());
    ensure!(leftovers(&name).is_empty(), "{:?}", leftovers(&name));
    Ok(())
}

/// What of a machine can still be found: mounts, control groups, its namespace, processes.
fn leftovers(name: &str) -> Vec<String> {
    let mut found = Vec::new();
    let folders = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup"];
    let folders = folders.map(|folder| format!("{folder}/tombolo-{name}"));
    found.extend(folders.into_iter().chain([format!("/run/netns/{name}")]).filter(|path| Path::new(path).exists()));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    found.extend(mounts.lines().filter(|line| line.contains("overlay") && line.contains(name)).map(str::to_owned));
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let line = std::fs::read_to_string(process.path().join("cmdline")).unwrap_or_default().replace('\0', " ");
        if line.contains("systemd-nspawn") && line.contains(name) {
            found.push(line);
        }
    }
    found
}
