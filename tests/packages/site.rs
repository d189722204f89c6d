//! An estate with a repository on its network, and a bare machine `web` that is configured for it.

use std::path::Path;

use anyhow::{Result, ensure};
use tests::machine::{AGENT, Release};
use tests::{Daemon, Estate, Host, HostSpec, Machine, Output};

use tests::census::Census;
use tests::repository::Repository;

pub struct Site {
    pub web: Machine,
    /// `web` before anything of ours was on it.
    pub before: Census,
    pub orders: Host,
    server: Daemon,
    _applications: Vec<Daemon>,
    pub estate: Estate,
}

impl Site {
    /// `orders` is in the mesh; `web` trusts the repository and has installed nothing.
    pub fn open(release: Release) -> Result<Self> {
        let site = Self::bare(release)?;
        let repository = Repository::made()?;
        match release {
            Release::BookwormWithDnf => site.trust_by_dnf(repository)?,
            _ => trust_by_apt(&site.web, &repository.path("repository"))?,
        }
        Ok(site)
    }

    /// The same, and `web` has not heard of the repository.
    pub fn bare(release: Release) -> Result<Self> {
        let repository = Repository::made()?;
        let estate = Estate::start()?;
        estate.apply(SHOP)?;
        let spec = HostSpec { groups: vec!["shop/orders".to_owned()], ..HostSpec::default() };
        let orders = estate.add_meshed_host("orders", &spec)?;
        let _applications = vec![orders.serve_http(8080, "orders")?, orders.serve_echo(8081)?];
        let web = Machine::boot_bare_release(&estate, "web", release)?;
        let server = Repository::serve(&estate, &repository.path("repository"))?;
        let before = Census::take(&web)?;
        Ok(Self { web, before, orders, server, _applications, estate })
    }

    fn trust_by_dnf(&self, repository: &Repository) -> Result<()> {
        let text = std::fs::read_to_string(repository.path("repository/tombolo.repo"))?;
        self.web.write("/etc/yum.repos.d/tombolo.repo", &text)
    }

    /// The repository's server goes away.
    pub fn stop_server(&mut self) -> Result<()> {
        self.server.stop().map(|_| ())
    }

    /// What the repository's server was asked for.
    pub fn asked(&self) -> String {
        self.server.log()
    }

    /// Another repository at the same address.
    pub fn serve(&mut self, folder: &Path) -> Result<()> {
        self.server.stop()?;
        self.server = Repository::serve(&self.estate, folder)?;
        Ok(())
    }

    /// The words of the line that `tombolo token create` prints, with what a test's host needs besides.
    pub fn join_line(&self) -> Result<Vec<String>> {
        let mut words = self.estate.join_arguments(&["shop/web".to_owned()])?;
        let address = self.web.host().address().to_string();
        words.extend(["--name", "web", "--advertise", &address].map(str::to_owned));
        Ok(words)
    }

    pub fn join_now(&self) -> Result<String> {
        let words = self.join_line()?;
        let words: Vec<&str> = words.iter().map(String::as_str).chain(["--now"]).collect();
        self.web.tombolo_ok(&words)
    }

    pub fn ensure_served(&self) -> Result<()> {
        let answer = self.web.wait_answers("http://orders.shop.mesh/");
        ensure!(answer.starts_with("hello from orders"), "{answer}");
        Ok(())
    }

    /// Joins, intercepts and proves it.
    pub fn mesh(&self) -> Result<()> {
        self.join_now()?;
        self.web.tombolo_ok(&["intercept", "on"])?;
        self.ensure_served()
    }

    pub fn agent_pid(&self) -> Result<String> {
        self.web.property(AGENT, "MainPID")
    }

    /// `apt-get` without questions, which must succeed; answers all it said.
    pub fn apt(&self, args: &[&str]) -> Result<String> {
        succeeded(&apt(&self.web, args)?, args)
    }

    /// The same by dnf.
    pub fn dnf(&self, args: &[&str]) -> Result<String> {
        let line: Vec<&str> =
            ["-y", "--releasever=1", "--setopt=install_weak_deps=0"].iter().chain(args).copied().collect();
        succeeded(&self.web.run("dnf", &line)?, args)
    }
}

fn succeeded(output: &Output, args: &[&str]) -> Result<String> {
    let said = format!("{}{}", output.stdout, output.stderr);
    ensure!(output.ok(), "`{}` ended with {}: {said}", args.join(" "), output.code);
    Ok(said)
}

pub fn apt(machine: &Machine, args: &[&str]) -> Result<Output> {
    let line: Vec<&str> = ["DEBIAN_FRONTEND=noninteractive", "apt-get", "-y"].iter().chain(args).copied().collect();
    machine.run("env", &line)
}

/// As INSTALL.md says it: the key, then where the packages are, and nothing else to install from.
pub fn trust_by_apt(machine: &Machine, repository: &Path) -> Result<()> {
    machine.write("/etc/apt/sources.list", "")?;
    let key = machine.path("/usr/share/keyrings/tombolo-archive-keyring.gpg")?;
    std::fs::copy(repository.join("tombolo-archive-keyring.gpg"), key)?;
    let text = std::fs::read_to_string(repository.join("tombolo.sources"))?;
    machine.write("/etc/apt/sources.list.d/tombolo.sources", &text)?;
    let said = succeeded(&apt(machine, &["update"])?, &["apt-get update"])?;
    ensure!(!said.contains("W:"), "apt warns: {said}");
    Ok(())
}

/// The demonstration's resources and a service that echoes.
const SHOP: &str = include_str!("../demo/shop.yaml");
