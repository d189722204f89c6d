//! The control plane as a service: confined, with a password it alone can read, and gone without a trace
//! but its user.

use anyhow::{Context, Result, ensure};
use tests::machine::Release;
use tests::{Estate, Machine, wait_until};

use crate::site::{apt, trust_by_apt};
use tests::census::Census;
use tests::repository::Repository;

const UNIT: &str = "tombolo-controlplane.service";

#[test]
fn the_control_plane_serves_confined_and_leaves_only_its_user() -> Result<()> {
    let repository = Repository::made()?;
    // Only for its network: this mesh is the machine's own.
    let estate = Estate::prepare(|_| "sqlite::memory:".to_owned())?;
    let machine = Machine::boot_bare(&estate, "server")?;
    let before = Census::take(&machine)?;
    install_from_files(&machine, repository)?;
    ensure!(machine.property(UNIT, "ActiveState")? == "inactive");
    ensure!(machine.property(UNIT, "UnitFileState")? == "disabled", "it would start without a name for its mesh");

    // Started without a name: the cause is in its journal.
    let unnamed = machine.run("systemctl", &["start", UNIT])?;
    ensure!(!unnamed.ok() && machine.journal(UNIT)?.contains("mesh.trust_domain"), "{}", machine.journal(UNIT)?);
    machine.run_ok("systemctl", &["stop", UNIT])?;

    machine.shell("sed -i 's/^trust_domain = .*/trust_domain = \"corp.example\"/' /etc/tombolo/controlplane.toml")?;
    // A credential that nobody gave is no reason to fail; one that is given is read.
    machine.run_ok("systemctl", &["enable", "--now", UNIT])?;
    let status = "TOMBOLO_URL=https://127.0.0.1:15014 TOMBOLO_CA=/var/lib/tombolo-controlplane/ca.pem \
                  TOMBOLO_TOKEN_FILE=/var/lib/tombolo-controlplane/admin.token tombolo";
    let said = machine.run_ok("sh", &["-c", &format!("{status} status && {status} get service -A")])?;
    ensure!(said.contains("corp.example"), "{said}");

    let user =
        machine.run_ok("sh", &["-c", "ps -o user:30= -p $(systemctl show --value -p MainPID tombolo-controlplane)"])?;
    ensure!(user.trim() == "tombolo-controlplane", "it runs as {user}");
    let mode = machine.run_ok(
        "stat",
        &["-c", "%U %a", "/var/lib/tombolo-controlplane", "/var/lib/tombolo-controlplane/admin.token"],
    )?;
    ensure!(mode == "tombolo-controlplane 700\ntombolo-controlplane 600\n", "{mode}");
    let verdict = machine.run("systemd-analyze", &["security", "--no-pager", "--threshold=15", UNIT])?;
    let line = verdict.stdout.lines().last().context("no verdict")?;
    println!("{line}");
    ensure!(verdict.ok(), "more exposed than 1.5: {}", verdict.stdout);
    ensure!(machine.property(UNIT, "WatchdogUSec")? == "30s");
    let errors = machine.run_ok("journalctl", &["-p", "err", "-o", "cat", "-u", UNIT, "--since", "-10s"])?;
    println!("{errors}");

    the_password_is_a_credential(&machine)?;

    machine.run_ok("env", &["DEBIAN_FRONTEND=noninteractive", "apt-get", "-y", "remove", "tombolo-controlplane"])?;
    ensure!(machine.path("/var/lib/tombolo-controlplane/ca.pem")?.exists(), "the removal took the authority");
    machine.run_ok(
        "env",
        &["DEBIAN_FRONTEND=noninteractive", "apt-get", "-y", "purge", "tombolo-controlplane", "tombolo"],
    )?;
    let allowed = [
        "user tombolo-controlplane:",
        "file /etc/apt/sources.list.d",
        "file /usr/share/keyrings/tombolo",
        "file /root/",
    ];
    let users = [
        "file /etc/passwd-",
        "file /etc/group-",
        "file /etc/shadow-",
        "file /etc/gshadow-",
        "file /etc/.pwd.lock",
        "file /etc/credstore",
    ];
    let allowed: Vec<&str> = allowed.into_iter().chain(users).collect();
    Census::take(&machine)?.ensure_as(&before, &allowed)
}

/// No network repository: `apt install ./FILE`, as on a host without one.
fn install_from_files(machine: &Machine, repository: &Repository) -> Result<()> {
    let folder = machine.path("/root/packages")?;
    std::fs::create_dir_all(&folder)?;
    for name in ["tombolo", "tombolo-controlplane"] {
        let file = format!("{name}_{}-1_amd64.deb", tests::repository::NEW);
        std::fs::copy(repository.path("packages").join(&file), folder.join(&file))?;
    }
    machine.write("/etc/apt/sources.list", "")?;
    let said =
        machine.run_ok("sh", &["-c", "DEBIAN_FRONTEND=noninteractive apt-get -y install /root/packages/*.deb 2>&1"])?;
    ensure!(!said.contains("tombolo:"), "it has something to complain about: {said}");
    Ok(())
}

/// root's file in /etc/credstore is what the service sees as its password; nobody answers, so it says
/// whom it asked and goes on trying.
fn the_password_is_a_credential(machine: &Machine) -> Result<()> {
    machine.write("/etc/credstore/tombolo-controlplane.store-password", "from-the-credential")?;
    machine.run_ok("chmod", &["600", "/etc/credstore/tombolo-controlplane.store-password"])?;
    machine.run_ok("systemctl", &["restart", UNIT])?;
    let seen = machine.run_ok("sh", &["-c", "cat /proc/$(systemctl show --value -p MainPID tombolo-controlplane)/environ | tr '\\0' '\\n' | grep CREDENTIALS"])?;
    let folder = seen.trim().strip_prefix("CREDENTIALS_DIRECTORY=").context("no folder of credentials")?;
    let given = machine.run_ok("cat", &[&format!("{folder}/store-password")])?;
    ensure!(given == "from-the-credential", "{given}");
    wait_until("it serves again", || match machine.property(UNIT, "ActiveState") {
        Ok(state) if state == "active" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    Ok(())
}

#[test]
fn the_keyring_package_replaces_the_key_that_was_put_there_by_hand() -> Result<()> {
    let site = crate::site::Site::open(Release::Bookworm)?;
    trust_by_apt(&site.web, &Repository::made()?.path("repository"))?;
    site.apt(&["install", "tombolo-archive-keyring"])?;
    let owner = site.web.run_ok("dpkg", &["-S", "/usr/share/keyrings/tombolo-archive-keyring.gpg"])?;
    ensure!(owner.starts_with("tombolo-archive-keyring:"), "{owner}");
    let update = apt(&site.web, &["update", "--error-on=any"])?;
    ensure!(update.ok(), "{update:?}");
    Ok(())
}
