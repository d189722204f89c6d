//! A rolling upgrade: a version that works reaches every host, one that does not stops at the first and is put back.

use anyhow::{Result, ensure};
use tests::Machine;
use tests::machine::AGENT;

use crate::lab::{BROKEN, Lab, VERSIONS};

#[test]
fn a_failing_canary_stops_the_rollout_and_is_put_back() -> Result<()> {
    let [old, new] = VERSIONS;
    let mut lab = Lab::open()?;
    // Three hosts, so that there are hosts after the canary and after the first few.
    lab.write_more("tombolo_hosts:\n  hosts:\n    cp1: {agent_groups: [shop/web]}\n")?;
    lab.play_ok(&format!("site -e agent_version={old} -e agent_intercept=true"))?;
    lab.ensure_served()?;

    let foretold = lab.play_ok(&format!("rolling_upgrade --check -e upgrade_to={new}"))?;
    ensure!(version(&lab.web)? == format!("{old}-1"), "check mode upgraded");
    let upgraded = lab.play_ok(&format!("rolling_upgrade -e upgrade_to={new}"))?;
    ensure!(foretold.changed() == upgraded.changed(), "{:#?} {:#?}", foretold.changed(), upgraded.changed());
    for host in lab.machines() {
        ensure!(version(host)? == format!("{new}-1"), "{}", version(host)?);
    }
    let batches = upgraded.said.matches("PLAY [Upgrade the hosts, few first]").count();
    ensure!(batches == 3, "three hosts in {batches} batches: {}", upgraded.said);
    lab.ensure_served()?;

    lab.publish_broken()?;
    let pids = |lab: &Lab| lab.machines().map(|host| host.property(AGENT, "MainPID").unwrap_or_default());
    let before = pids(&lab);
    let stopped = lab.play(&format!("rolling_upgrade -e upgrade_to={BROKEN}"))?;
    ensure!(!stopped.ok(), "a version that does not start was taken: {}", stopped.said);
    let why = format!(" is not healthy with {BROKEN} and runs {new}-1 again");
    ensure!(stopped.said.contains(&why), "it does not say what happened: {}", stopped.said);
    for host in lab.machines() {
        ensure!(version(host)? == format!("{new}-1"), "{} has {}", host.name(), version(host)?);
        ensure!(host.status()?["ready"] == true, "{}", host.status()?);
    }
    // The agent of the first may be the one of before, which serves on when the new one fails: dpkg knows (its log).
    let upgrade = format!("upgrade tombolo-agent:all {new}-1 {BROKEN}-1");
    let mut reached = Vec::new();
    for ((host, before), now) in lab.machines().into_iter().zip(&before).zip(&pids(&lab)) {
        if host.run_ok("cat", &["/var/log/dpkg.log"])?.contains(&upgrade) {
            reached.push(host.name());
        } else {
            ensure!(now == before, "{} was not reached, and its agent is another", host.name());
        }
    }
    ensure!(reached.len() == 1, "the rollout reached {reached:?}: {}", stopped.said);
    lab.ensure_served()
}

fn version(host: &Machine) -> Result<String> {
    host.run_ok("dpkg-query", &["-W", "-f", "${Version}", "tombolo-agent"])
}
