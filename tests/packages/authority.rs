//! The control plane's authority as systemd credentials, plain and encrypted, and every mistake with them.

use anyhow::{Result, ensure};
use tests::{Machine, wait_until};

use crate::controlplane::{UNIT, operator};

/// On a control plane that serves with the files it made: the same authority afterwards, and no key of it in the
/// data directory.
pub fn moves_into_the_credential_store(machine: &Machine) -> Result<()> {
    machine.run_ok("cp", &[&format!("{DATA}/ca.pem"), "/root/before.pem"])?;
    // docs/operations.md has the same with the key encrypted; this is the plain form.
    let line = format!(
        "systemctl stop {UNIT} && mv {DATA}/ca /root/ca && install -d -m 0700 /etc/credstore /etc/credstore.encrypted\n\
         {}\nsystemctl start {UNIT}",
        FILES.map(|(file, name)| format!("install -m 0600 /root/ca/{file} {STORE}.{name}")).join("\n")
    );
    machine.run_ok("sh", &["-ec", &line])?;
    same_authority(machine)?;
    let mode = machine.shell(&format!("stat -c '%U %a' {STORE}.ca-issuing-key"))?.stdout;
    ensure!(mode == "root 600\n", "{mode}");

    // One of them is away, or is another's.
    refused(machine, &format!("mv {STORE}.ca-issuing-cert /root/"), "and ca-issuing-cert is not")?;
    machine.run_ok("mv", &["/root/tombolo-controlplane.ca-issuing-cert", "/etc/credstore/"])?;
    refused(
        machine,
        &format!("install -m 0600 /root/ca/root.key {STORE}.ca-issuing-key"),
        "ca-issuing-cert do not belong together",
    )?;
    refused(machine, &format!("echo rubbish > {STORE}.ca-issuing-key"), "ca-issuing-key is not a usable private key")?;

    // Encrypted for this machine, and the plain one is in its way until it is removed.
    let sealed = "/etc/credstore.encrypted/tombolo-controlplane.ca-issuing-key.cred";
    refused(machine, &format!("systemd-creds encrypt /root/ca/issuing.key {sealed} 2>&1"), "is given twice")?;
    machine.run_ok("rm", &[&format!("{STORE}.ca-issuing-key")])?;
    machine.run_ok("systemctl", &["restart", UNIT])?;
    same_authority(machine)?;
    let stored = machine.run_ok("cat", &[sealed])?;
    ensure!(!stored.contains("PRIVATE KEY"), "it is not encrypted: {stored}");

    // A year later, where the root's key is: another certificate, the same to everybody.
    machine.run_ok("tombolo-controlplane", &["ca", "renew", "/root/ca"])?;
    machine.run_ok("install", &["-m", "0600", "/root/ca/issuing.pem", &format!("{STORE}.ca-issuing-cert")])?;
    machine.run_ok("systemctl", &["restart", UNIT])?;
    same_authority(machine)
}

/// Who knew the root before is answered as before, and nothing of a key is where it was.
fn same_authority(machine: &Machine) -> Result<()> {
    let said = machine.run_ok("sh", &["-c", &operator("/root/before.pem", "status")])?;
    ensure!(said.contains("corp.example"), "{said}");
    let keys = machine.shell(&format!("find {DATA} -name '*.key'; grep -rl 'PRIVATE KEY' {DATA}"))?.stdout;
    ensure!(keys.is_empty(), "keys are in the data directory: {keys}");
    machine.run_ok("cmp", &[&format!("{DATA}/ca.pem"), "/root/before.pem"]).map(|_| ())
}

/// A restart after `change` fails, says why in the journal and makes nothing.
fn refused(machine: &Machine, change: &str, why: &str) -> Result<()> {
    machine.run_ok("sh", &["-ec", change])?;
    let begun = machine.run_ok("date", &["+%s"])?;
    let restart = machine.run("systemctl", &["restart", UNIT])?;
    ensure!(!restart.ok(), "it serves after `{change}`");
    let since = format!("@{}", begun.trim());
    wait_until(&format!("the journal says: {why}"), || {
        let said = machine.run_ok("journalctl", &["-o", "cat", "--no-pager", "-u", UNIT, "--since", &since]);
        let said = said.map_err(|error| error.to_string())?;
        if said.contains(why) { Ok(()) } else { Err(said) }
    });
    machine.run_ok("systemctl", &["stop", UNIT])?;
    ensure!(!machine.path(&format!("{DATA}/ca"))?.exists(), "a refused start made an authority of its own");
    Ok(())
}

const DATA: &str = "/var/lib/tombolo-controlplane";
const STORE: &str = "/etc/credstore/tombolo-controlplane";
const FILES: [(&str, &str); 3] =
    [("root.pem", "ca-root-cert"), ("issuing.pem", "ca-issuing-cert"), ("issuing.key", "ca-issuing-key")];
