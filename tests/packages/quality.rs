//! The packages as the distributions' own checkers see them, and whether they can be made again.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tests::netns::finish;

use tests::repository::{NEW, Repository, make_packages, run};

#[test]
fn made_again_they_are_the_same_to_the_byte() -> Result<()> {
    let repository = Repository::made()?;
    let again = tempfile::tempdir()?;
    make_packages(NEW, again.path(), Some(&repository.path("key.gpg")), None)?;
    let (first, second) = (sums(&repository.path("packages"))?, sums(again.path())?);
    ensure!(second.len() == 8, "not every package was made: {second:?}");
    for (name, sum) in &second {
        ensure!(first.get(name) == Some(sum), "{name} is another one the second time");
    }
    Ok(())
}

/// What a cross build brings: programs that cannot run here.
#[test]
fn programs_of_another_machine_are_packaged_as_what_they_are_and_not_as_ours() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (foreign, out) = (folder.path().join("arm64"), folder.path().join("packages"));
    std::fs::create_dir(&foreign)?;
    for name in ["tombolo", "tombolo-controlplane"] {
        // elf(5): magic, 64 bits, little endian, and at 18 the machine, AArch64.
        let mut program = b"\x7fELF\x02\x01\x01".to_vec();
        program.resize(64, 0);
        program[18] = 183;
        std::fs::write(foreign.join(name), program)?;
    }
    let mut command = Command::new(tests::estate::program("xtask")?);
    command.args(["package", "--quick", "--version", NEW, "--out"]).arg(&out).arg("--programs").arg(&foreign);
    command.arg("--native-programs").arg(tests::repository::programs()?);
    let mistaken = finish(clone_of(&command), LIMIT)?;
    ensure!(!mistaken.ok() && mistaken.stderr.contains("was not built for amd64"), "{mistaken:?}");
    run(command.args(["--arch", "arm64"]))?;
    let deb = out.join(format!("tombolo_{NEW}-1_arm64.deb"));
    let said = run(Command::new("dpkg-deb").args(["-f"]).arg(deb).arg("Architecture"))?;
    ensure!(said.trim() == "arm64", "{said}");
    let rpm = out.join(format!("tombolo-{NEW}-1.aarch64.rpm"));
    let said = run(Command::new("rpm").args(["-qp", "--qf", "%{ARCH}"]).arg(rpm))?;
    ensure!(said == "aarch64", "{said}");
    Ok(())
}

fn clone_of(command: &Command) -> Command {
    let mut same = Command::new(command.get_program());
    same.args(command.get_args());
    same
}

fn sums(folder: &Path) -> Result<BTreeMap<String, String>> {
    let said = run(Command::new("sh").args(["-c", "cd \"$0\" && sha256sum *"]).arg(folder))?;
    let pairs = said.lines().filter_map(|line| line.split_once("  "));
    Ok(pairs.map(|(sum, name)| (name.to_owned(), sum.to_owned())).collect())
}

#[test]
fn lintian_finds_nothing_but_what_is_meant() -> Result<()> {
    let repository = Repository::made()?;
    let mut command = Command::new("lintian");
    command.args(["--no-cfg", "--allow-root", "--fail-on", "error,warning", "--suppress-tags-from-file"]);
    command.arg(tests::document::workspace().join("packaging/lintian.suppress"));
    let output = finish(with_packages(command, &repository.path("packages"), ".deb")?, LIMIT)?;
    ensure!(output.ok(), "{}{}", output.stdout, output.stderr);
    Ok(())
}

#[test]
fn rpmlint_finds_nothing_but_what_is_meant() -> Result<()> {
    let repository = Repository::made()?;
    let mut command = Command::new("rpmlint");
    command.arg("--config").arg(tests::document::workspace().join("packaging/rpmlint.toml"));
    let output = finish(with_packages(command, &repository.path("repository/rpm"), ".rpm")?, LIMIT)?;
    ensure!(output.ok() && output.stdout.contains(" 0 warnings"), "{}{}", output.stdout, output.stderr);
    Ok(())
}

fn with_packages(mut command: Command, folder: &Path, kind: &str) -> Result<Command> {
    let files = std::fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    let ours = |path: &Path| path.to_string_lossy().contains(NEW) && path.to_string_lossy().ends_with(kind);
    command.args(files.filter(|path| ours(path)));
    Ok(command)
}

#[test]
fn the_apparmor_profile_can_be_parsed() -> Result<()> {
    let mut command = Command::new("apparmor_parser");
    run(command
        .args(["--skip-kernel-load", "--skip-cache"])
        .arg(tests::document::workspace().join("packaging/files/apparmor")))
    .map(|_| ())
}

/// Each as firewalld and ufw read their own files.
#[test]
fn the_firewall_profiles_open_the_ports_that_peers_and_operators_need() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let packages = Repository::made()?.path("packages");
    for package in [format!("tombolo-agent_{NEW}-1_all.deb"), format!("tombolo-controlplane_{NEW}-1_amd64.deb")] {
        run(Command::new("dpkg-deb").arg("-x").arg(packages.join(package)).arg(folder.path()))?;
    }
    // Debian's own Python has them.
    let mut command = Command::new("/usr/bin/python3");
    let said = run(command.args(["-c", PROFILES]).arg(folder.path()))?;
    let expected = "firewalld tombolo-agent 15008/tcp\nfirewalld tombolo-controlplane 15012/tcp 15014/tcp\n\
                    ufw Tombolo agent 15008/tcp\nufw Tombolo control plane 15012,15014/tcp\n";
    ensure!(said == expected, "{said}");
    Ok(())
}

const PROFILES: &str = r#"
import sys
from firewall.core.io.service import service_reader
import ufw.applications
for name in ("tombolo-agent", "tombolo-controlplane"):
    service = service_reader(f"{name}.xml", f"{sys.argv[1]}/usr/lib/firewalld/services")
    print("firewalld", name, *(f"{port}/{protocol}" for port, protocol in service.ports))
for name, profile in sorted(ufw.applications.get_profiles(f"{sys.argv[1]}/etc/ufw/applications.d").items()):
    assert ufw.applications.verify_profile(name, profile)
    print("ufw", name, *ufw.applications.get_ports(profile))
"#;

#[test]
fn the_bill_of_materials_names_every_linked_crate() -> Result<()> {
    let repository = Repository::made()?;
    let deb = repository.path("packages").join(format!("tombolo_{NEW}-1_amd64.deb"));
    let line = "dpkg-deb --fsys-tarfile \"$0\" | tar -xO ./usr/share/doc/tombolo/tombolo.cdx.json.gz | zcat";
    let bill: serde_json::Value = serde_json::from_str(&run(Command::new("sh").args(["-c", line]).arg(&deb))?)?;
    ensure!(
        bill["bomFormat"] == "CycloneDX" && bill["metadata"]["component"]["version"] == NEW,
        "{}",
        bill["metadata"]
    );
    let components = bill["components"].as_array().context("components")?;
    let linked = |name: &str| components.iter().any(|one| one["name"] == name);
    ensure!(
        linked("rustls") && linked("tokio") && linked("aws-lc-sys") && linked("agent"),
        "{} crates",
        components.len()
    );
    // What only tests and builds use is not in the program.
    ensure!(!linked("proptest") && !linked("sqlx") && !linked("protox"));
    let without: Vec<_> = components.iter().filter(|one| one["licenses"].is_null()).map(|one| &one["name"]).collect();
    ensure!(without.is_empty(), "without a licence: {without:?}");
    Ok(())
}

const LIMIT: std::time::Duration = std::time::Duration::from_secs(300);
