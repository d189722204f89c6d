//! What goes wrong around a package: broken settings, a full disk, a repository that is away or not to be
//! trusted. The agent that runs goes on, and what is said names cause and cure.

use std::process::Command;

use anyhow::{Result, ensure};
use tests::census::Census;
use tests::machine::{AGENT, Release};

use crate::site::{Site, apt};
use tests::repository::{NEW, OLD, Repository, end_gpg_agent, make_key, make_packages, programs, run};

#[test]
fn an_upgrade_that_cannot_be_used_leaves_the_earlier_agent_running() -> Result<()> {
    let mut site = Site::open(Release::Bookworm)?;
    let old = [format!("tombolo={OLD}-1"), format!("tombolo-agent={OLD}-1")];
    site.apt(&["install", &old[0], &old[1]])?;
    site.mesh()?;
    let pid = site.agent_pid()?;
    let unharmed = |site: &Site, what: &str| -> Result<()> {
        ensure!(site.agent_pid()? == pid, "{what}: the agent was restarted");
        site.ensure_served()
    };

    // A repository that is away.
    site.stop_server()?;
    let away = apt(&site.web, &["-o", "Acquire::Retries=0", "update", "--error-on=any"])?;
    ensure!(!away.ok() && format!("{}{}", away.stdout, away.stderr).contains("10.88.0.1"), "{away:?}");
    unharmed(&site, "repository away")?;

    // A repository that somebody else has signed, and one whose list is past its date.
    let repository = Repository::made()?;
    let stranger = tempfile::tempdir()?;
    let folder = resigned_by_a_stranger(repository, stranger.path())?;
    site.serve(&folder)?;
    refused(&site, "signed by a stranger", &["NO_PUBKEY", "couldn't be verified", "not signed"])?;
    let stale = repository.publish("stale", -1)?;
    site.serve(&stale)?;
    refused(&site, "past its date", &["expired"])?;
    unharmed(&site, "repositories not to be trusted")?;

    // A mistake in the settings: the new version is installed, the earlier agent goes on, and says why.
    site.serve(&repository.path("repository"))?;
    site.web.shell("printf '[drain]\\ndeadlin = \"5s\"\\n' > /etc/tombolo/agent.d/90-typo.toml")?;
    site.apt(&["update"])?;
    let said = site.apt(&["install", "tombolo-agent"])?;
    ensure!(said.contains(&format!("the agent of version {OLD}-1 goes on running")), "{said}");
    ensure!(said.contains("90-typo.toml") && said.contains("deadlin"), "it does not name the mistake: {said}");
    ensure!(said.contains("systemctl restart tombolo-agent"), "it does not name the cure: {said}");
    unharmed(&site, "a mistake in the settings")?;
    let reload = site.web.run("systemctl", &["reload", AGENT])?;
    ensure!(!reload.ok() && site.web.journal(AGENT)?.contains("deadlin"), "{reload:?}");
    unharmed(&site, "a reload with a mistake in the settings")?;
    site.web.run_ok("rm", &["/etc/tombolo/agent.d/90-typo.toml"])?;
    site.web.run_ok("systemctl", &["reload-or-restart", AGENT])?;
    site.web.run_ok("systemctl", &["restart", AGENT])?;
    ensure!(site.agent_pid()? != pid);
    let version = site.web.run_ok("dpkg-query", &["-W", "-f", "${Version}", "tombolo-agent"])?;
    ensure!(version == format!("{NEW}-1"), "{version}");
    site.ensure_served()?;

    // A full disk: the other version's documents do not fit. dpkg puts the program back that was there.
    let pid = site.agent_pid()?;
    site.web.run_ok("mount", &["-t", "tmpfs", "-o", "size=16k", "tmpfs", "/usr/share/doc/tombolo"])?;
    let full = apt(&site.web, &["install", "--allow-downgrades", &old[0], &old[1]])?;
    ensure!(!full.ok() && full.stdout.contains("No space left"), "{full:?}");
    site.web.run_ok("umount", &["/usr/share/doc/tombolo"])?;
    ensure!(site.agent_pid()? == pid, "full disk: the agent was restarted");
    site.ensure_served()?;
    let version = site.web.run_ok("dpkg-query", &["-W", "-f", "${Version} ${db:Status-Status}", "tombolo"])?;
    ensure!(version == format!("{NEW}-1 installed"), "half-installed: {version}");
    site.apt(&["install", "--fix-broken", "--allow-downgrades", &old[0], &old[1]])?;
    site.ensure_served()
}

#[test]
fn a_first_install_that_fails_leaves_nothing_that_runs_and_says_why() -> Result<()> {
    let mut site = Site::open(Release::Bookworm)?;
    let known = |site: &Site| site.web.shell("dpkg-query -W -f '${Package} ${db:Status-Status}\\n' 'tombolo*'");
    let nothing = |site: &Site, what: &str, install: &tests::Output, cause: &str| -> Result<()> {
        let said = format!("{}{}", install.stdout, install.stderr);
        ensure!(!install.ok() && said.contains(cause), "{what}: {said}");
        let known = known(site)?.stdout;
        ensure!(!known.contains("installed"), "{what}: half-installed: {known}");
        crate::deb::ensure_out_of_the_path(&site.web)?;
        Census::take(&site.web)?.ensure_as(&site.before, &TRUST)
    };

    site.stop_server()?;
    let away = apt(&site.web, &["-o", "Acquire::Retries=0", "install", "tombolo-agent"])?;
    nothing(&site, "repository away", &away, "10.88.0.1")?;
    site.serve(&Repository::made()?.path("repository"))?;

    // No room for what is fetched: apt says so before it begins.
    site.web.run_ok("mount", &["-t", "tmpfs", "-o", "size=1m", "tmpfs", "/var/cache/apt/archives"])?;
    let full = apt(&site.web, &["install", "tombolo-agent"])?;
    nothing(&site, "no room for archives", &full, "/var/cache/apt/archives")?;
    site.web.run_ok("umount", &["/var/cache/apt/archives"])?;

    // No room for what is in the program's package: what was not finished does nothing, and is finished later.
    site.web.run_ok(
        "sh",
        &["-c", "mkdir /usr/share/doc/tombolo && mount -t tmpfs -o size=16k tmpfs /usr/share/doc/tombolo"],
    )?;
    let full = apt(&site.web, &["install", "tombolo-agent"])?;
    ensure!(!full.ok() && full.stdout.contains("No space left"), "{full:?}");
    let states = known(&site)?.stdout;
    ensure!(!states.lines().any(|line| line.ends_with(" installed")), "{states}");
    crate::deb::ensure_out_of_the_path(&site.web)?;
    let failed = site.web.run_ok("systemctl", &["--failed", "--no-legend", "--plain"])?;
    ensure!(failed.trim().is_empty(), "{failed}");
    site.web.run_ok("umount", &["/usr/share/doc/tombolo"])?;
    // Which apt says itself when it is asked for the package again.
    site.apt(&["install", "--fix-broken"])?;
    site.mesh()
}

/// What an administrator put there to be able to install at all.
const TRUST: [&str; 2] = ["file /usr/share/keyrings/tombolo", "file /etc/apt/sources.list.d/tombolo.sources"];

#[test]
fn a_build_that_does_not_serve_gives_way_to_the_one_that_runs() -> Result<()> {
    let site = Site::open(Release::Bookworm)?;
    let broken = tempfile::tempdir()?;
    std::fs::write(broken.path().join("tombolo"), BROKEN)?;
    std::fs::copy(programs()?.join("tombolo-controlplane"), broken.path().join("tombolo-controlplane"))?;
    let made = broken.path().join("packages");
    make_packages("0.9.2", &made, Some(&Repository::made()?.path("key.gpg")), Some(broken.path()))?;
    let mut files = Vec::new();
    for file in std::fs::read_dir(&made)?.flatten() {
        let name = file.file_name().to_string_lossy().into_owned();
        if name.starts_with("tombolo_") || name.starts_with("tombolo-agent_") {
            std::fs::copy(file.path(), site.web.path(&format!("/root/{name}"))?)?;
            files.push(format!("/root/{name}"));
        }
    }
    site.apt(&["install", "tombolo-agent"])?;
    site.mesh()?;
    let pid = site.agent_pid()?;
    let line: Vec<&str> = ["install"].into_iter().chain(files.iter().map(String::as_str)).collect();
    let said = site.apt(&line)?;
    ensure!(said.contains("the agent of version") && said.contains("goes on running"), "{said}");
    ensure!(said.contains("journalctl") && said.contains("--hand-over"), "it does not name the cure: {said}");
    ensure!(site.web.journal(AGENT)?.contains("this build is broken"), "its last words are not in the journal");
    ensure!(site.agent_pid()? == pid && site.web.property(AGENT, "NRestarts")? == "0", "{said}");
    site.ensure_served()?;
    // And a version that works again, without a restart.
    let old = [format!("tombolo={NEW}-1"), format!("tombolo-agent={NEW}-1")];
    site.apt(&["install", "--allow-downgrades", &old[0], &old[1]])?;
    ensure!(site.agent_pid()? != pid && site.web.property(AGENT, "NRestarts")? == "0");
    site.ensure_served()
}

/// Ends at once as an agent, and answers everything else.
const BROKEN: &str = "#!/bin/sh\n\
    [ \"$*\" = 'agent --config /etc/tombolo/agent.toml' ] && { echo 'this build is broken' >&2; exit 1; }\n\
    exec /opt/built/tombolo \"$@\"\n";

/// apt says so, and keeps to what it knew.
fn refused(site: &Site, what: &str, causes: &[&str]) -> Result<()> {
    let update = apt(&site.web, &["update", "--error-on=any"])?;
    let said = format!("{}{}", update.stdout, update.stderr);
    ensure!(!update.ok(), "a repository {what} is taken: {said}");
    ensure!(causes.iter().any(|cause| said.contains(cause)), "{what}: the cause is not named: {said}");
    Ok(())
}

/// The repository with another key's signature.
fn resigned_by_a_stranger(repository: &Repository, folder: &std::path::Path) -> Result<std::path::PathBuf> {
    let key = make_key(folder, "A stranger", None)?;
    let copy = folder.join("repository");
    run(Command::new("cp").arg("-a").arg(repository.path("repository")).arg(&copy))?;
    let suite = copy.join("deb/dists/stable");
    std::fs::remove_file(suite.join("Release.gpg"))?;
    let mut sign = Command::new("gpg");
    sign.env("GNUPGHOME", folder.join("gnupg")).args([
        "--batch",
        "--yes",
        "--local-user",
        &key,
        "--clearsign",
        "--output",
    ]);
    let signed = run(sign.arg(suite.join("InRelease")).arg(suite.join("Release")));
    end_gpg_agent(folder)?;
    signed.map(|_| copy)
}

#[test]
fn a_repository_whose_key_has_expired_is_refused() -> Result<()> {
    let repository = Repository::made()?;
    let folder = tempfile::tempdir()?;
    // Made ten days ago for one day; signed while it was good.
    let then = time::OffsetDateTime::now_utc() - time::Duration::days(10);
    let key = make_key(folder.path(), "Expired archive", Some(&format!("{}!", then.unix_timestamp())))?;
    let copy = folder.path().join("repository");
    run(Command::new("cp").arg("-a").arg(repository.path("repository")).arg(&copy))?;
    let suite = copy.join("deb/dists/stable");
    std::fs::remove_file(suite.join("Release.gpg"))?;
    let mut gpg = Command::new("gpg");
    gpg.env("GNUPGHOME", folder.path().join("gnupg")).args(["--batch", "--yes", "--faked-system-time"]);
    gpg.arg(format!("{}!", then.unix_timestamp() + 60)).args(["--local-user", &key, "--clearsign", "--output"]);
    let signed = run(gpg.arg(suite.join("InRelease")).arg(suite.join("Release")));
    end_gpg_agent(folder.path())?;
    signed?;
    let mut gpg = Command::new("gpg");
    gpg.env("GNUPGHOME", folder.path().join("gnupg")).args(["--batch", "--yes", "--output"]);
    run(gpg.arg(copy.join("tombolo-archive-keyring.gpg")).args(["--export", &key]))?;

    let mut site = Site::open(Release::Bookworm)?;
    site.serve(&copy)?;
    let keyring = site.web.path("/usr/share/keyrings/tombolo-archive-keyring.gpg")?;
    std::fs::copy(copy.join("tombolo-archive-keyring.gpg"), keyring)?;
    site.web.shell("rm -rf /var/lib/apt/lists/*")?;
    refused(&site, "whose key has expired", &["EXPKEYSIG"])?;
    let install = apt(&site.web, &["install", "tombolo-agent"])?;
    ensure!(!install.ok(), "{install:?}");
    crate::deb::ensure_out_of_the_path(&site.web)
}
