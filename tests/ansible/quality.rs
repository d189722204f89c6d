//! The collection as Ansible's own tools judge it.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::document::workspace;
use tests::netns::finish;

#[test]
fn ansible_lint_has_nothing_to_say_in_its_strictest_profile() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for part in ["ansible", "vagrant/site.yml"] {
        ensure!(Command::new("cp").arg("-a").arg(workspace().join(part)).arg(folder.path()).status()?.success());
    }
    let collection = folder.path().join("ansible");
    // It looks for the collection's own modules where collections are installed.
    for line in [
        vec!["collection", "build", "--output-path", "../built"],
        vec!["collection", "install", "../built/tombolo-mesh-1.0.0.tar.gz", "--offline", "-p", "../collections"],
    ] {
        let output = venv("ansible-galaxy", &line, &collection)?;
        ensure!(output.ok(), "{}{}", output.stdout, output.stderr);
    }
    // The collection, and the playbook of the estate of virtual machines.
    for what in [&[][..], &["../site.yml"]] {
        let output = venv("ansible-lint", &[&STRICTLY[..], what].concat(), &collection)?;
        let said = format!("{}{}", output.stdout, output.stderr);
        ensure!(output.ok() && said.contains("Profile 'production' was required, and it passed"), "{said}");
    }
    Ok(())
}

/// Runs a program of the venv in a folder that may be written to.
fn venv(program: &str, args: &[&str], folder: &std::path::Path) -> Result<tests::Output> {
    let bin = workspace().join("target/ansible/venv/bin").canonicalize().context("run `make test-ansible`")?;
    let mut command = Command::new(bin.join(program));
    command.args(args).current_dir(folder).env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
    let above = folder.parent().context("it is a copy")?;
    command.env("HOME", above).env("ANSIBLE_HOME", above.join(".ansible")).env("LC_ALL", "C.UTF-8");
    command.env("ANSIBLE_COLLECTIONS_PATH", above.join("collections"));
    finish(command, Duration::from_secs(600))
}

const STRICTLY: [&str; 5] = ["--offline", "--profile", "production", "--nocolor", "--strict"];
