//! Interception is off unless asked, confirmed by the play's own health gate, and goes back where that fails.

use anyhow::{Result, ensure};

use crate::lab::Lab;

#[test]
fn interception_is_kept_only_where_the_health_gate_agrees() -> Result<()> {
    let lab = Lab::open()?;
    lab.play_ok("site")?;
    let state = |lab: &Lab| lab.web.status().map(|status| status["interception"]["state"].clone());
    ensure!(state(&lab)? == "off", "nobody asked for interception");

    // What the site needs does not work: it is taken back at once.
    let failed = lab.play("intercept --limit web -e '{\"agent_health_commands\": [\"false\"]}'")?;
    ensure!(!failed.ok() && failed.said.contains("which is off again"), "{}", failed.said);
    ensure!(state(&lab)? == "off", "it was not taken back");

    let kept = lab.play_ok("intercept")?;
    ensure!(!kept.changed().is_empty());
    lab.ensure_served()?;
    ensure!(state(&lab)? == "on", "it was not confirmed");
    let again = lab.play_ok("intercept")?;
    ensure!(again.changed().is_empty(), "{:#?}", again.changed());

    lab.play_ok("intercept -e intercept=false")?;
    ensure!(state(&lab)? == "off");
    let rules = lab.web.run_ok("nft", &["list", "ruleset"])?;
    ensure!(!rules.contains("tombolo"), "{rules}");
    Ok(())
}
