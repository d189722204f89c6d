//! The control plane as a service: confined, with a password it alone can read, and gone without a trace
//! but its user.

use anyhow::{Context, Result, ensure};
use tests::machine::Release;
use tests::{Estate, Machine, wait_until};

use crate::site::{apt, trust_by_apt};
use tests::census::Census;
use tests::repository::{NEW, OLD, Repository, URL};

pub const UNIT: &str = "tombolo-controlplane.service";

#[test]
fn the_control_plane_serves_confined_and_leaves_only_its_user_on_debian_12() -> Result<()> {
    serves_confined_and_leaves_only_its_user(Release::Bookworm)
}

#[test]
fn the_control_plane_serves_confined_and_leaves_only_its_user_on_debian_13() -> Result<()> {
    serves_confined_and_leaves_only_its_user(Release::Trixie)
}

fn serves_confined_and_leaves_only_its_user(release: Release) -> Result<()> {
    let repository = Repository::made()?;
    // Only for its network: this mesh is the machine's own.
    let estate = Estate::prepare(|_| "sqlite::memory:".to_owned())?;
    let machine = Machine::boot_bare_release(&estate, "server", release)?;
    let before = Census::take(&machine)?;
    install_from_files(&machine, repository, OLD)?;
    ensure!(machine.property(UNIT, "ActiveState")? == "inactive");
    ensure!(machine.property(UNIT, "UnitFileState")? == "disabled", "it would start without a name for its mesh");

    // Started without a name: the cause is in its journal.
    let unnamed = machine.run("systemctl", &["start", UNIT])?;
    ensure!(!unnamed.ok() && machine.journal(UNIT)?.contains("mesh.trust_domain"), "{}", machine.journal(UNIT)?);
    machine.run_ok("systemctl", &["stop", UNIT])?;

    machine.shell("sed -i 's/^trust_domain = .*/trust_domain = \"corp.example\"/' /etc/tombolo/controlplane.toml")?;
    // A credential that nobody gave is no reason to fail; one that is given is read.
    machine.run_ok("systemctl", &["enable", "--now", UNIT])?;
    ensure_serves(&machine)?;
    let verified = machine.run("systemd-analyze", &["verify", "--man=no", UNIT])?;
    ensure!(verified.ok() && verified.stderr.trim().is_empty(), "systemd finds fault with the unit: {verified:?}");
    let verdict = machine.run("systemd-analyze", &["security", "--no-pager", "--threshold=15", UNIT])?;
    let line = verdict.stdout.lines().last().context("no verdict")?;
    println!("{line}");
    ensure!(verdict.ok(), "more exposed than 1.5: {}", verdict.stdout);
    ensure!(machine.property(UNIT, "WatchdogUSec")? == "30s");
    let errors = machine.run_ok("journalctl", &["-p", "err", "-o", "cat", "-u", UNIT, "--since", "-10s"])?;
    println!("{errors}");

    // Upgraded: another process, the same control plane.
    let state = || machine.shell("cat /etc/tombolo/controlplane.toml /var/lib/tombolo-controlplane/ca.pem");
    let (pid, before_upgrade) = (machine.property(UNIT, "MainPID")?, state()?.stdout);
    install_from_files(&machine, repository, NEW)?;
    let version = machine.run_ok("dpkg-query", &["-W", "-f", "${Version}", "tombolo-controlplane"])?;
    ensure!(version == format!("{NEW}-1") && machine.property(UNIT, "MainPID")? != pid, "{version}");
    ensure!(state()?.stdout == before_upgrade, "the upgrade changed the settings or the authority");
    ensure_serves(&machine)?;

    the_password_is_a_credential(&machine)?;
    crate::authority::moves_into_the_credential_store(&machine)?;

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
        // What systemd-creds made; the folders of the store, of which nothing is left that is ours.
        "file /var/lib/systemd/credential.secret",
        "file /etc/credstore",
    ];
    let left = machine.run_ok("sh", &["-c", "find /etc/credstore /etc/credstore.encrypted -type f"])?;
    ensure!(left.is_empty(), "left in the credential store: {left}");
    let allowed: Vec<&str> = allowed.into_iter().chain(users).collect();
    Census::take(&machine)?.ensure_as(&before, &allowed)
}

/// The operator is answered, by a service of its own user that alone can read what is its own.
pub fn ensure_serves(machine: &Machine) -> Result<()> {
    let ca = "/var/lib/tombolo-controlplane/ca.pem";
    let said = machine.run_ok("sh", &["-ec", &[operator(ca, "status"), operator(ca, "get service -A")].join("\n")])?;
    ensure!(said.contains("corp.example"), "{said}");
    let user =
        machine.run_ok("sh", &["-c", "ps -o user:30= -p $(systemctl show --value -p MainPID tombolo-controlplane)"])?;
    ensure!(user.trim() == "tombolo-controlplane", "it runs as {user}");
    let mode = machine.run_ok(
        "stat",
        &["-c", "%U %a", "/var/lib/tombolo-controlplane", "/var/lib/tombolo-controlplane/admin.token"],
    )?;
    ensure!(mode == "tombolo-controlplane 700\ntombolo-controlplane 600\n", "{mode}");
    Ok(())
}

/// `tombolo` with the administrator's token, for whom `ca` is the authority.
pub fn operator(ca: &str, words: &str) -> String {
    format!(
        "TOMBOLO_URL=https://127.0.0.1:15014 TOMBOLO_CA={ca} \
         TOMBOLO_TOKEN_FILE=/var/lib/tombolo-controlplane/admin.token tombolo {words}"
    )
}

/// No network repository: `apt install ./FILE`, as on a host without one.
fn install_from_files(machine: &Machine, repository: &Repository, version: &str) -> Result<()> {
    let inside = format!("/root/packages-{version}");
    let folder = machine.path(&inside)?;
    std::fs::create_dir_all(&folder)?;
    for name in ["tombolo", "tombolo-controlplane"] {
        let file = format!("{name}_{version}-1_amd64.deb");
        std::fs::copy(repository.path("packages").join(&file), folder.join(&file))?;
    }
    machine.write("/etc/apt/sources.list", "")?;
    let line = format!("DEBIAN_FRONTEND=noninteractive apt-get -y install {inside}/*.deb 2>&1");
    let said = machine.run_ok("sh", &["-c", &line])?;
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
    // An update that is under way while the repository changes never mixes two states of it.
    let asked = site.asked();
    let by_hash: Vec<&str> = asked.lines().filter(|line| line.contains("/by-hash/")).collect();
    ensure!(!by_hash.is_empty() && by_hash.iter().all(|line| line.contains("\" 200 ")), "not by its hash: {asked}");
    Ok(())
}

#[test]
fn a_site_without_a_way_out_installs_from_a_mirror_and_from_files() -> Result<()> {
    let mut site = crate::site::Site::bare(Release::Bookworm)?;
    let copy = tempfile::tempdir()?;
    let line =
        format!("cd {} && wget --quiet --mirror --no-parent --no-host-directories {URL}/", copy.path().display());
    let copied = site.estate.switch().shell(&line)?;
    ensure!(copied.ok(), "{copied:?}");
    // At the same address here; which one does not matter to what is signed.
    site.serve(copy.path())?;
    trust_by_apt(&site.web, copy.path())?;
    site.apt(&["install", "tombolo-agent"])?;
    site.mesh()?;
    site.apt(&["purge", "tombolo-agent", "tombolo"])?;

    site.stop_server()?;
    let files = site.web.path("/root/files")?;
    std::fs::create_dir_all(&files)?;
    for file in [format!("tombolo_{NEW}-1_amd64.deb"), format!("tombolo-agent_{NEW}-1_all.deb")] {
        std::fs::copy(copy.path().join("deb/pool/main").join(&file), files.join(&file))?;
    }
    let said = site
        .web
        .run_ok("sh", &["-c", "cd /root/files && DEBIAN_FRONTEND=noninteractive apt-get -y install ./*.deb"])?;
    ensure!(said.contains("Setting up tombolo-agent"), "{said}");
    crate::deb::ensure_out_of_the_path(&site.web)
}
