//! A life with dnf, on a Debian whose only packages for rpm are ours: what the distribution would bring
//! (`/bin/sh`, systemd) is said to be there by a package that is made for it.

use anyhow::{Result, ensure};
use tests::machine::{AGENT, Release};

use crate::controlplane::{UNIT, ensure_serves};
use crate::deb::{Load, ensure_out_of_the_path};
use crate::site::Site;
use tests::repository::{NEW, OLD, Repository, provide_the_distribution};

#[test]
fn a_life_with_dnf() -> Result<()> {
    let site = Site::open(Release::BookwormWithDnf)?;
    install_the_distribution(&site)?;
    let before = tests::census::Census::take(&site.web)?;
    let old = [format!("tombolo-{OLD}"), format!("tombolo-agent-{OLD}")];

    // gpgcheck and repo_gpgcheck are on: dnf asks for the key of the repository and checks every package.
    let said = site.dnf(&["install", &old[0], &old[1]])?;
    ensure!(said.contains("tombolo-agent"), "{said}");
    ensure_out_of_the_path(&site.web)?;
    let changed = site.web.run("rpm", &["-V", "tombolo", "tombolo-agent"])?;
    ensure!(changed.ok(), "rpm finds changed files: {changed:?}");
    let signed = site.web.run_ok("rpm", &["-q", "--qf", "%{RSAHEADER:pgpsig}", "tombolo-agent"])?;
    ensure!(signed.contains("Key ID"), "installed without a signature: {signed}");

    site.mesh()?;
    site.web.shell("sed -i 's/^filter = \"info\"/filter = \"info,proxy=debug\"/' /etc/tombolo/agent.toml")?;
    let (settings, pid) = (site.web.run_ok("cat", &["/etc/tombolo/agent.toml"])?, site.agent_pid()?);
    let load = Load::start(&site)?;
    site.dnf(&["upgrade", "tombolo-agent"])?;
    load.go_on(&site.web, "after the upgrade");
    let version = site.web.run_ok("rpm", &["-q", "tombolo-agent"])?;
    ensure!(version.contains(NEW) && site.agent_pid()? != pid, "{version}");
    site.ensure_served()?;
    ensure!(site.web.run_ok("cat", &["/etc/tombolo/agent.toml"])? == settings, "the upgrade changed the settings");

    let pid = site.agent_pid()?;
    site.dnf(&["downgrade", &old[0], &old[1]])?;
    load.go_on(&site.web, "after the downgrade");
    ensure!(site.web.run_ok("rpm", &["-q", "tombolo-agent"])?.contains(OLD) && site.agent_pid()? != pid);
    site.ensure_served()?;
    println!("upgraded and downgraded without a failure under load: {:?}", load.end(&site.web)?);

    site.dnf(&["remove", "tombolo-agent", "tombolo"])?;
    ensure_out_of_the_path(&site.web)?;
    ensure!(site.web.path("/var/lib/tombolo/identity.json")?.exists(), "the removal took the identity");
    // rpm has no purge: INSTALL.md's line.
    site.web.run_ok("rm", &["-rf", "/var/lib/tombolo", "/etc/tombolo"])?;
    let (its_own, load) = (["file /var/lib/rpm", "file /var/lib/dnf", "file /root/", "file /etc/pki"], Load::units());
    let allowed: Vec<&str> = its_own.into_iter().chain(load.iter().map(String::as_str)).collect();
    tests::census::Census::take(&site.web)?.ensure_as(&before, &allowed)?;
    ensure!(site.web.property(AGENT, "LoadState")? == "not-found");
    Ok(())
}

#[test]
fn a_control_planes_life_with_dnf() -> Result<()> {
    let site = Site::open(Release::BookwormWithDnf)?;
    install_the_distribution(&site)?;
    let before = tests::census::Census::take(&site.web)?;
    let old = ["tombolo", "tombolo-controlplane"].map(|name| format!("{name}-{OLD}"));
    let pid = || site.web.property(UNIT, "MainPID");
    let version = || site.web.run_ok("rpm", &["-q", "tombolo-controlplane"]);

    let said = site.dnf(&["install", &old[0], &old[1]])?;
    ensure!(!said.contains("tombolo:"), "it has something to complain about: {said}");
    let changed = site.web.run("rpm", &["-V", "tombolo", "tombolo-controlplane"])?;
    ensure!(changed.ok(), "rpm finds changed files: {changed:?}");
    ensure!(site.web.property(UNIT, "ActiveState")? == "inactive");
    ensure!(site.web.property(UNIT, "UnitFileState")? == "disabled", "it would start without a name for its mesh");

    site.web.shell("sed -i 's/^trust_domain = .*/trust_domain = \"corp.example\"/' /etc/tombolo/controlplane.toml")?;
    site.web.run_ok("systemctl", &["enable", "--now", UNIT])?;
    ensure_serves(&site.web)?;
    let kept = ["/etc/tombolo/controlplane.toml", "/var/lib/tombolo-controlplane/ca.pem"];
    let read = || site.web.run_ok("cat", &kept);
    let (at_first, first) = (read()?, pid()?);

    site.dnf(&["upgrade", "tombolo-controlplane", "tombolo"])?;
    let second = pid()?;
    ensure!(version()?.contains(NEW) && second != first && second != "0", "{}", version()?);
    ensure_serves(&site.web)?;
    ensure!(read()? == at_first, "the upgrade changed the settings or the authority");

    // A mistake in the settings: the earlier control plane goes on, and dnf shows why.
    site.web.write("/etc/tombolo/controlplane.d/90-typo.toml", "[registry]\nleese = \"5s\"\n")?;
    let said = site.dnf(&["downgrade", &old[0], &old[1]])?;
    ensure!(said.contains("the earlier control plane goes on running"), "{said}");
    ensure!(said.contains("90-typo.toml") && said.contains("leese"), "it does not name the mistake: {said}");
    ensure!(pid()? == second && version()?.contains(OLD), "{}", version()?);
    site.web.run_ok("rm", &["-r", "/etc/tombolo/controlplane.d"])?;
    site.web.run_ok("systemctl", &["restart", UNIT])?;
    ensure_serves(&site.web)?;

    site.dnf(&["remove", "tombolo-controlplane", "tombolo"])?;
    ensure!(site.web.property(UNIT, "LoadState")? == "not-found");
    ensure!(!site.web.run("pgrep", &["tombolo"])?.ok(), "it still runs");
    ensure!(site.web.path("/var/lib/tombolo-controlplane/ca/root.key")?.exists(), "the removal took the authority");
    // Edited settings stay as rpm keeps them; with them it is the same control plane again.
    site.dnf(&["install", "tombolo-controlplane", "tombolo"])?;
    site.web.run_ok("mv", &[&format!("{}.rpmsave", kept[0]), kept[0]])?;
    site.web.run_ok("systemctl", &["start", UNIT])?;
    ensure_serves(&site.web)?;
    ensure!(read()? == at_first, "it is another control plane");

    site.dnf(&["remove", "tombolo-controlplane", "tombolo"])?;
    site.web.run_ok("rm", &["-rf", "/var/lib/tombolo-controlplane", "/etc/tombolo"])?;
    let its_own = ["file /var/lib/rpm", "file /var/lib/dnf", "file /root/", "file /etc/pki"];
    let user = ["user tombolo-controlplane:", "file /etc/passwd-", "file /etc/group-", "file /etc/shadow-"];
    let user = user.into_iter().chain(["file /etc/gshadow-", "file /etc/.pwd.lock"]);
    let allowed: Vec<&str> = its_own.into_iter().chain(user).collect();
    tests::census::Census::take(&site.web)?.ensure_as(&before, &allowed)
}

/// dnf's own world, and the key of the test's repository, as an administrator imports it.
pub fn install_the_distribution(site: &Site) -> Result<()> {
    provide_the_distribution(&site.web)?;
    let key = Repository::made()?.path("repository/tombolo-archive-keyring.asc");
    std::fs::copy(key, site.web.path("/root/key.asc")?)?;
    site.web.run_ok("rpm", &["--import", "/root/key.asc"]).map(|_| ())
}
