//! A life with dnf, on a Debian whose only packages for rpm are ours: what the distribution would bring
//! (`/bin/sh`, systemd) is said to be there by a package that is made for it.

use anyhow::{Result, ensure};
use tests::machine::{AGENT, Release};

use crate::deb::ensure_out_of_the_path;
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
    site.dnf(&["upgrade", "tombolo-agent"])?;
    let version = site.web.run_ok("rpm", &["-q", "tombolo-agent"])?;
    ensure!(version.contains(NEW) && site.agent_pid()? != pid, "{version}");
    site.ensure_served()?;
    ensure!(site.web.run_ok("cat", &["/etc/tombolo/agent.toml"])? == settings, "the upgrade changed the settings");

    let pid = site.agent_pid()?;
    site.dnf(&["downgrade", &old[0], &old[1]])?;
    ensure!(site.web.run_ok("rpm", &["-q", "tombolo-agent"])?.contains(OLD) && site.agent_pid()? != pid);
    site.ensure_served()?;

    site.dnf(&["remove", "tombolo-agent", "tombolo"])?;
    ensure_out_of_the_path(&site.web)?;
    ensure!(site.web.path("/var/lib/tombolo/identity.json")?.exists(), "the removal took the identity");
    // rpm has no purge: INSTALL.md's line.
    site.web.run_ok("rm", &["-rf", "/var/lib/tombolo", "/etc/tombolo"])?;
    let its_own = ["file /var/lib/rpm", "file /var/lib/dnf", "file /root/", "file /etc/pki"];
    tests::census::Census::take(&site.web)?.ensure_as(&before, &its_own)?;
    ensure!(site.web.property(AGENT, "LoadState")? == "not-found");
    Ok(())
}

/// dnf's own world, and the key of the test's repository, as an administrator imports it.
pub fn install_the_distribution(site: &Site) -> Result<()> {
    provide_the_distribution(&site.web)?;
    let key = Repository::made()?.path("repository/tombolo-archive-keyring.asc");
    std::fs::copy(key, site.web.path("/root/key.asc")?)?;
    site.web.run_ok("rpm", &["--import", "/root/key.asc"]).map(|_| ())
}
