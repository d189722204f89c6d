//! A life with apt: install, join, traffic, upgrade, downgrade, remove, purge.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tests::machine::{AGENT, Release};
use tests::{Machine, wait_until};

use crate::site::Site;
use tests::repository::{NEW, OLD};

#[test]
fn three_commands_and_a_minute_from_a_bare_machine_to_the_first_meshed_request() -> Result<()> {
    let site = Site::open(Release::Bookworm)?;
    let token = site.join_line()?;
    let join: Vec<&str> = token.iter().map(String::as_str).chain(["--now"]).collect();
    let started = Instant::now();
    site.apt(&["install", "tombolo-agent"])?;
    site.web.tombolo_ok(&join)?;
    site.web.tombolo_ok(&["intercept", "on"])?;
    site.ensure_served()?;
    let took = started.elapsed();
    println!("three commands, {took:?}");
    ensure!(took < Duration::from_secs(60), "{took:?}");
    Ok(())
}

#[test]
fn a_life_with_apt_on_debian_12() -> Result<()> {
    a_life_with_apt(Release::Bookworm)
}

#[test]
fn a_life_with_apt_on_debian_13() -> Result<()> {
    a_life_with_apt(Release::Trixie)
}

fn a_life_with_apt(release: Release) -> Result<()> {
    let site = Site::open(release)?;
    let old = [format!("tombolo={OLD}-1"), format!("tombolo-agent={OLD}-1")];
    // A session that was there before us and is none of our business.
    site.web.start_unit("session", &format!("/usr/bin/testhost hold {}:8081", site.orders.address()))?;
    alive(&site.web, "before")?;

    site.apt(&["install", &old[0], &old[1]])?;
    ensure_inert(&site.web)?;
    site.mesh()?;
    let verdict = site.web.run("systemd-analyze", &["security", "--no-pager", "--threshold=25", AGENT])?;
    ensure!(verdict.ok(), "more exposed than 2.5 on {release:?}: {}", verdict.stdout);
    alive(&site.web, "with interception")?;

    // Upgrade, under load, with settings of one's own: no request fails, no connection is cut.
    site.web.shell("sed -i 's/^filter = \"info\"/filter = \"info,proxy=debug\"/' /etc/tombolo/agent.toml")?;
    let (settings, pid) = (site.web.run_ok("cat", &["/etc/tombolo/agent.toml"])?, site.agent_pid()?);
    let load = Load::start(&site)?;
    let said = site.apt(&["install", "tombolo-agent"])?;
    ensure!(version(&site.web, "tombolo-agent")? == format!("{NEW}-1"), "{said}");
    ensure!(site.agent_pid()? != pid, "the earlier agent is still the main process: {said}");
    load.go_on(&site.web, "after the upgrade");
    for (property, value) in [("ActiveState", "active"), ("NRestarts", "0")] {
        ensure!(site.web.property(AGENT, property)? == value, "{property}: {said}");
    }
    site.ensure_served()?;
    ensure!(site.web.run_ok("cat", &["/etc/tombolo/agent.toml"])? == settings, "the upgrade changed the settings");
    alive(&site.web, "after the upgrade")?;

    // And back.
    let pid = site.agent_pid()?;
    site.apt(&["install", "--allow-downgrades", &old[0], &old[1]])?;
    load.go_on(&site.web, "after the downgrade");
    ensure!(version(&site.web, "tombolo-agent")? == format!("{OLD}-1"));
    ensure!(site.agent_pid()? != pid, "the newer agent still runs");
    site.ensure_served()?;
    ensure!(site.web.run_ok("cat", &["/etc/tombolo/agent.toml"])? == settings, "the downgrade changed the settings");

    println!("upgraded and downgraded without a failure under load: {:?}", load.end(&site.web)?);

    // Away, and again: still the same host of the mesh.
    site.apt(&["remove", "tombolo-agent"])?;
    ensure_out_of_the_path(&site.web)?;
    alive(&site.web, "after the removal")?;
    for kept in ["/etc/tombolo/agent.toml", "/var/lib/tombolo/identity.json"] {
        ensure!(site.web.path(kept)?.exists(), "the removal took {kept}");
    }
    let said = site.apt(&["install", "tombolo-agent"])?;
    ensure!(said.contains("systemctl start tombolo-agent"), "it does not say how to go on: {said}");
    site.web.run_ok("systemctl", &["start", AGENT])?;
    site.ensure_served()?;

    site.apt(&["purge", "tombolo-agent", "tombolo"])?;
    ensure_out_of_the_path(&site.web)?;
    alive(&site.web, "after the purge")?;
    site.web.run_ok("systemctl", &["stop", "session"])?;
    let units = ["file /etc/systemd/system/session.service", "unit session"];
    let trust = ["file /usr/share/keyrings/tombolo", "file /etc/apt/sources.list.d/tombolo.sources"];
    let load = Load::units();
    let allowed: Vec<&str> = units.into_iter().chain(trust).chain(load.iter().map(String::as_str)).collect();
    tests::census::Census::take(&site.web)?.ensure_as(&site.before, &allowed)
}

/// Installed, and nothing has changed for anybody.
fn ensure_inert(web: &Machine) -> Result<()> {
    ensure_out_of_the_path(web)?;
    ensure!(web.property(AGENT, "UnitFileState")? == "enabled");
    let failed = web.run_ok("systemctl", &["--failed", "--no-legend", "--plain"])?;
    ensure!(failed.trim().is_empty(), "{failed}");
    web.run_ok("systemctl", &["start", AGENT])?;
    ensure!(web.property(AGENT, "ActiveState")? == "inactive", "it runs although it has not joined");
    ensure!(web.run("tombolo", &["status"])?.code == 3, "status does not say that this host has not joined");
    let page = web.shell("zcat /usr/share/man/man1/tombolo-agent.1.gz | head -20")?.stdout;
    ensure!(page.contains("tombolo-agent"), "the unit names a manual page that is not there: {page}");
    Ok(())
}

/// No table, rule, link or socket of ours, and no agent.
pub fn ensure_out_of_the_path(web: &Machine) -> Result<()> {
    let kernel =
        web.run_ok("sh", &["-c", "nft list ruleset; ip rule; ip -6 rule; ip -brief link; ss -tulnxp; ls /run"])?;
    ensure!(!kernel.contains("tombolo") && !kernel.contains("29805") && !kernel.contains(":15008"), "left: {kernel}");
    ensure!(web.property(AGENT, "ActiveState")? == "inactive");
    Ok(())
}

fn version(web: &Machine, package: &str) -> Result<String> {
    web.run_ok("dpkg-query", &["-W", "-f", "${Version}", package])
}

/// The old session still gets its bytes back.
fn alive(web: &Machine, when: &str) -> Result<()> {
    let count = || web.journal("session").map(|log| log.matches("alive").count()).unwrap_or_default();
    let before = count();
    wait_until(
        &format!("the open session goes on {when}"),
        || if count() > before + 1 { Ok(()) } else { Err("silent") },
    );
    ensure!(!web.journal("session")?.contains("broken"), "the session broke {when}");
    Ok(())
}

/// What nobody must notice anything of: a connection for each request, bytes both ways without a pause, and
/// names and requests as a shell has them.
pub struct Load;

const LOAD: [(&str, &str); 3] = [
    ("ask", "/usr/bin/testhost ask ORDERS:80"),
    ("stream", "/usr/bin/testhost stream ECHO:7"),
    (
        "names",
        "/bin/sh -c 'while :; do curl -sS -o /dev/null -w \"answered %%{http_code}\\n\" --max-time 5 \
         http://orders.shop.mesh/ || echo failed; sleep 0.02; done'",
    ),
];

impl Load {
    /// How a census shows what it leaves.
    pub fn units() -> Vec<String> {
        let both = |name| [format!("file /etc/systemd/system/{name}.service"), format!("unit {name}")];
        LOAD.into_iter().flat_map(|(name, _)| both(name)).collect()
    }

    pub fn start(site: &Site) -> Result<Self> {
        site.estate.apply(ECHO)?;
        let address = |name: &str| {
            wait_until(&format!("{name} has an address"), || {
                let found = site.web.run_ok("getent", &["ahostsv4", name]).map_err(|error| error.to_string())?;
                found.split_whitespace().next().map(str::to_owned).ok_or(found)
            })
        };
        let (orders, echo) = (address("orders.shop.mesh"), address("echo.shop.mesh"));
        for (name, line) in LOAD {
            site.web.start_unit(name, &line.replace("ORDERS", &orders).replace("ECHO", &echo))?;
        }
        Self.go_on(&site.web, "at first");
        Ok(Self)
    }

    pub fn go_on(&self, web: &Machine, when: &str) {
        let counts = || LOAD.map(|(name, _)| web.journal(name).map(|log| log.lines().count()).unwrap_or_default());
        let before = counts();
        wait_until(&format!("the load goes on {when}"), || {
            let now = counts();
            let more = now.iter().zip(&before).all(|(now, before)| now > &(before + 10));
            if more { Ok(()) } else { Err(format!("{before:?}, then {now:?}")) }
        });
    }

    /// How much each has said, of which nothing was a failure.
    pub fn end(self, web: &Machine) -> Result<Vec<usize>> {
        let mut said = Vec::new();
        for (name, _) in LOAD {
            let log = web.journal(name)?;
            let bad: Vec<&str> =
                log.lines().filter(|line| line.contains("failed") || line.contains("broken")).collect();
            ensure!(bad.is_empty(), "{name}: {} failures, the first: {:?}", bad.len(), bad.first());
            said.push(log.lines().count());
            web.run_ok("systemctl", &["stop", name])?;
        }
        Ok(said)
    }
}

const ECHO: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: echo, namespace: shop}\n\
                    spec: {selector: {app: orders}, ports: [{name: tcp, port: 7, targetPort: 8081}]}\n";
