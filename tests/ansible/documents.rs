//! ansible/README.md is true: its inventory and its commands are used as they are written. Only the address of the
//! repository and those of the machines are the test's own.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use tests::census::Census;
use tests::document;
use tests::repository::OLD;

use crate::lab::Lab;

#[test]
fn readme_md_leads_from_bare_machines_to_a_mesh_and_back() -> Result<()> {
    let lab = Lab::open()?;
    for made in ["built", "collections"] {
        std::fs::remove_dir_all(lab.path(made))?;
    }
    for block in document::blocks(Path::new("ansible/README.md"))? {
        for command in &block.commands {
            match block.places[0].as_str() {
                "controller" => {}
                "developer" if command.starts_with("ansible-galaxy collection build ") => {}
                other => bail!("{}: nobody set up {other:?}", block.at),
            }
            let line = command.replace("upgrade_to=1.2.3", &format!("upgrade_to={OLD}"));
            let line =
                line.replace("build ansible", &format!("build {}", document::workspace().join("ansible").display()));
            let recap = lab.shell(&line).with_context(|| block.at.clone())?;
            println!("{command}\n{}", recap.said);
            ensure!(recap.ok(), "{}: `{command}` ended with {}: {}", block.at, recap.code, recap.said);
            if command.ends_with("tombolo.mesh.intercept") {
                lab.ensure_served()?;
            }
            if command.starts_with("ansible-inventory ") {
                ensure!(recap.said.contains("@shop_orders") && recap.said.contains("|--orders"), "{}", recap.said);
            }
        }
    }
    // dpkg leaves users and what it noted of units.
    let allowed = [
        "user tombolo-controlplane:",
        "file /etc/passwd-",
        "file /etc/group-",
        "file /etc/shadow-",
        "file /etc/gshadow-",
        "file /etc/.pwd.lock",
        "file /etc/credstore",
        "file /var/lib/systemd/",
    ];
    for (machine, before) in lab.machines().into_iter().zip(&lab.before) {
        Census::take(machine)?.ensure_as(before, &allowed).with_context(|| machine.name().to_owned())?;
    }
    Ok(())
}
