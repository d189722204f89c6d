//! An inventory with a typo is refused before any host is touched, with cause and cure.

use anyhow::{Result, ensure};
use tests::census::Census;

use crate::lab::Lab;

#[test]
fn a_typo_in_the_inventory_is_refused_before_any_host_is_touched() -> Result<()> {
    let lab = Lab::open()?;
    // Lines of the inventory, and what the refusal says.
    let typos: [(&str, &[&str]); 8] = [
        (
            "    agent_intercpt: true\n",
            &["there is no variable agent_intercpt, did you mean agent_intercept?", "tombolo_foreign"],
        ),
        ("    control_plane_version: 1.2.3\n", &["did you mean controlplane_version?"]),
        ("    agent_state: presnt\n", &["agent_state", "presnt", "present, absent"]),
        ("    agent_confirm_within: soon\n", &["agent_confirm_within", "soon"]),
        ("    agent_health_within: 90\n", &["agent_health_within is 90", "must end before"]),
        ("    agent_groups: [orders]\n", &["agent_groups is [\"orders\"]", "NAMESPACE/NAME"]),
        ("    repo_url: packages.corp.example\n", &["repo_url is", "https://packages.corp.example"]),
        ("    controlplane_trust_domain: Corp Example\n", &["controlplane_trust_domain is", "corp.example"]),
    ];
    for (line, causes) in typos {
        std::fs::write(lab.path("typo.yml"), line.trim_start())?;
        let refused = lab.play("site -e @typo.yml")?;
        ensure!(!refused.ok(), "{line} is taken: {}", refused.said);
        for cause in causes {
            ensure!(refused.said.contains(cause), "{line}: {cause:?} is not in {}", refused.said);
        }
        ensure!(!refused.said.contains("PLAY [Bring"), "{line}: it began: {}", refused.said);
    }
    std::fs::write(lab.path("inventory/more.yml"), "tombolo_host: {hosts: {web: }}\n")?;
    let refused = lab.play("site")?;
    ensure!(refused.said.contains("there is no group tombolo_host, did you mean tombolo_hosts?"), "{}", refused.said);
    std::fs::remove_file(lab.path("inventory/more.yml"))?;
    for (machine, before) in lab.machines().into_iter().zip(&lab.before) {
        Census::take(machine)?.ensure_as(before, &[])?;
    }
    Ok(())
}
