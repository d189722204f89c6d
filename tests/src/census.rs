//! What is on a machine, before and after: files, users, units, rules. What the package managers write
//! for themselves does not count.

use std::collections::BTreeSet;

use crate::machine::Machine;
use anyhow::{Result, ensure};

/// Every line is one thing that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Census(BTreeSet<String>);

impl Census {
    pub fn take(machine: &Machine) -> Result<Self> {
        let line = format!(
            "find / -xdev \\( {} \\) -prune -o -print",
            NOT_OURS.map(|path| format!("-path '{path}'")).join(" -o ")
        );
        let mut seen = BTreeSet::new();
        for (kind, line) in [
            ("file", line.as_str()),
            ("user", "getent passwd; getent group"),
            ("unit", "systemctl list-unit-files --no-legend --plain | cut -d' ' -f1"),
            (
                "running",
                "systemctl list-units --no-legend --plain --type=service,target,path,socket --state=active | cut -d' ' -f1",
            ),
            ("rules", "nft list ruleset; ip rule; ip -6 rule"),
            ("route", "ip route show table all; ip -6 route show table all"),
            ("link", "ip -brief link | cut -d' ' -f1"),
            ("socket", "ss -Htulnx | tr -s ' ' | cut -d' ' -f1,5"),
        ] {
            let said = machine.run_ok("sh", &["-c", line])?;
            seen.extend(said.lines().map(|one| format!("{kind} {}", one.trim())).filter(|one| !passing(one)));
        }
        Ok(Self(seen))
    }

    /// Nothing is there that was not there before, but for `allowed`, and nothing is missing.
    pub fn ensure_as(&self, before: &Self, allowed: &[&str]) -> Result<()> {
        let more: Vec<&String> =
            self.0.difference(&before.0).filter(|one| !allowed.iter().any(|prefix| one.starts_with(prefix))).collect();
        let less: Vec<&String> = before.0.difference(&self.0).collect();
        ensure!(more.is_empty() && less.is_empty(), "left behind: {more:#?}\nmissing: {less:#?}");
        Ok(())
    }
}

/// Comes and goes by itself.
fn passing(one: &str) -> bool {
    let by_others = one.contains("/gnupg/") || one == "running network-online.target";
    by_others
        || one.starts_with("running session")
        || one.starts_with("socket u_str /run/systemd/journal")
        || one.contains("systemd-private")
}

/// Logs, caches, databases, and the package managers' and Ansible's own notes.
const NOT_OURS: [&str; 12] = [
    "/proc",
    "/sys",
    "/run",
    "/tmp",
    "/var/tmp",
    "/var/log",
    "/var/cache",
    "/var/lib/apt",
    "/var/lib/dpkg",
    "/var/lib/postgresql",
    "/root/.ansible",
    "/usr/bin/testhost",
];
