//! docs/packages.md is true: its commands are typed as they are written, on a bare machine. Only the address
//! of the repository is the test's own, and the token.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use tests::document;
use tests::machine::Release;

use crate::deb::ensure_out_of_the_path;
use crate::site::Site;
use tests::census::Census;
use tests::repository::URL;

#[test]
fn packages_md_leads_from_nothing_to_a_meshed_host_and_back_by_apt() -> Result<()> {
    let site = Site::bare(Release::Bookworm)?;
    site.web.write("/etc/apt/sources.list", "")?;
    let typed = follow(&site, "apt")?;
    let on = typed.iter().position(|line| line == "tombolo intercept on").context("it never intercepts")?;
    ensure!(typed[on..].iter().any(|line| line.contains("purge")), "it never goes back: {typed:?}");
    ensure_out_of_the_path(&site.web)?;
    let (trust, user) =
        (["file /usr/share/keyrings/tombolo", "file /etc/apt/sources.list.d/"], "user tombolo-controlplane:");
    let users =
        ["file /etc/passwd-", "file /etc/group-", "file /etc/shadow-", "file /etc/gshadow-", "file /etc/.pwd.lock"];
    let allowed: Vec<&str> = trust.into_iter().chain(users).chain([user, "file /root/controlplane.tar"]).collect();
    Census::take(&site.web)?.ensure_as(&site.before, &allowed)
}

#[test]
fn packages_md_leads_to_an_installed_agent_and_back_by_dnf() -> Result<()> {
    let site = Site::bare(Release::BookwormWithDnf)?;
    crate::rpm::install_the_distribution(&site)?;
    // Where dnf is at home these are there.
    site.web.run_ok("mkdir", &["-p", "/etc/yum.repos.d"])?;
    site.web.write("/etc/dnf/vars/releasever", "12\n")?;
    let typed = follow(&site, "dnf")?;
    ensure!(typed.iter().any(|line| line.starts_with("dnf install")), "{typed:?}");
    ensure_out_of_the_path(&site.web)
}

/// Types every command of a place; each must succeed. Answers them as they stand.
fn follow(site: &Site, place: &str) -> Result<Vec<String>> {
    let mut typed = Vec::new();
    for block in document::blocks(Path::new("docs/packages.md"))? {
        let stranger = block.places.iter().find(|place| !["apt", "dnf"].contains(&place.as_str()));
        ensure!(stranger.is_none(), "{}: nobody set up {stranger:?}", block.at);
        if !block.places.iter().any(|known| known == place) {
            continue;
        }
        for command in block.commands {
            let line = command.replace("https://packages.tombolo.example", URL);
            if line.starts_with("tombolo join ") {
                ensure!(line.ends_with(" --now"), "{}: it does not start the service: {line}", block.at);
                site.join_now()?;
            } else {
                let line = format!("DEBIAN_FRONTEND=noninteractive; export DEBIAN_FRONTEND; {line}");
                site.web.run_ok("sh", &["-c", &line]).with_context(|| block.at.clone())?;
            }
            if line == "tombolo intercept on" {
                site.ensure_served()?;
            }
            typed.push(command);
        }
    }
    Ok(typed)
}
