//! A host of the inventory is a copy of another one: it is told so, and nothing of it is started.

use anyhow::{Result, ensure};
use tests::machine::AGENT;

use crate::lab::Lab;

#[test]
fn a_copy_of_a_joined_machine_is_refused_with_cause_and_cure() -> Result<()> {
    let lab = Lab::open()?;
    lab.play_ok("site")?;
    lab.web.run_ok("systemctl", &["stop", AGENT])?;
    lab.web.write("/etc/machine-id", "0123456789abcdef0123456789abcdef\n")?;
    let refused = lab.play("site --limit web")?;
    ensure!(!refused.ok(), "the identity of another machine is taken: {}", refused.said);
    for words in ["the state of another machine (host web", "tombolo leave --purge", "tombolo agent --adopt"] {
        ensure!(refused.said.contains(words), "{words:?} is not in {}", refused.said);
    }
    ensure!(lab.web.property(AGENT, "ActiveState")? == "inactive", "it was started");

    // The cure for a copy; then the play does the rest.
    lab.web.tombolo_ok(&["leave", "--purge"])?;
    lab.play_ok("site --limit web -e agent_name=web2")?;
    ensure!(lab.web.status()?["host"] == "web2", "{}", lab.web.status()?);
    Ok(())
}
