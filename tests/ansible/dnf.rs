//! A host with dnf among hosts with apt: it joins, is known to the control plane, and leaves alone.

use anyhow::{Result, ensure};
use tests::Machine;
use tests::census::Census;

use crate::lab::Lab;

#[test]
fn a_host_with_dnf_comes_and_goes_as_the_inventory_says() -> Result<()> {
    let lab = Lab::open()?;
    let box1 = lab.boot_with_dnf("box1")?;
    let before = Census::take(&box1)?;
    let present = |more: &str| {
        let at = box1.host().address();
        format!("tombolo_hosts:\n  hosts:\n    box1: {{ansible_host: {at}, agent_groups: [shop/web]{more}}}\n")
    };
    lab.write_more(&present(""))?;
    let foretold = lab.play_ok("site --check --diff")?;
    let real = lab.play_ok("site")?;
    ensure!(foretold.changed() == real.changed(), "foretold {:#?}\nhappened {:#?}", foretold.changed(), real.changed());
    for expected in ["Say where the packages are on box1", "Install the agent on box1", "Join the mesh on box1"] {
        ensure!(real.changed().iter().any(|one| one.ends_with(expected)), "not {expected}: {:#?}", real.changed());
    }
    let again = lab.play_ok("site")?;
    ensure!(again.changed().is_empty(), "the second run changes {:#?}", again.changed());
    ensure!(is_installed(&box1)? && box1.status()?["ready"] == true, "{}", box1.status()?);
    let repository = box1.run_ok("cat", &["/etc/yum.repos.d/tombolo.repo"])?;
    ensure!(repository.contains("gpgcheck = 1") && repository.contains("repo_gpgcheck = 1"), "{repository}");
    lab.play_ok("intercept --limit box1")?;
    let answer = box1.wait_answers("http://orders.shop.mesh/");
    ensure!(answer.starts_with("hello from orders"), "{answer}");

    // What the control plane knows of it.
    let all = lab.shell(HOST_INFO)?;
    ensure!(all.ok() && ["box1", "orders", "web"].iter().all(|name| all.said.contains(name)), "{}", all.said);
    let one = lab.shell(&format!("{HOST_INFO} -a name=box1"))?;
    ensure!(one.said.contains("\"state\": \"ready\"") && !one.said.contains("orders"), "{}", one.said);
    ensure!(one.said.contains("SUCCESS"), "asking changed something: {}", one.said);

    // It leaves, and the others stay.
    lab.write_more(&present(", agent_state: absent, repo_state: absent"))?;
    let foretold = lab.play_ok("site --check")?;
    ensure!(is_installed(&box1)?, "check mode removed it");
    let real = lab.play_ok("site")?;
    ensure!(foretold.changed() == real.changed(), "foretold {:#?}\nhappened {:#?}", foretold.changed(), real.changed());
    ensure!(real.changed().iter().all(|one| one.ends_with(" on box1")), "{:#?}", real.changed());
    let gone = lab.shell(&format!("{HOST_INFO} -a name=box1"))?;
    ensure!(gone.ok() && gone.said.contains("\"hosts\": []"), "{}", gone.said);
    let again = lab.play_ok("site")?;
    ensure!(again.changed().is_empty(), "the second run changes {:#?}", again.changed());
    ensure!(lab.web.status()?["ready"] == true, "{}", lab.web.status()?);
    let allowed = ["file /var/lib/rpm", "file /var/lib/dnf", "file /var/cache/dnf", "file /etc/pki", "file /root/"];
    Census::take(&box1)?.ensure_as(&before, &allowed)
}

fn is_installed(machine: &Machine) -> Result<bool> {
    Ok(machine.run("rpm", &["-q", "tombolo-agent"])?.ok())
}

const HOST_INFO: &str = "ansible cp1 -i inventory -m tombolo.mesh.tombolo_host_info";
