//! A rolling upgrade: a version that works reaches every host, one that does not stops at the first and is put back.

use anyhow::{Result, ensure};
use tests::Machine;
use tests::machine::AGENT;

use crate::lab::{BROKEN, Lab, VERSIONS};

#[test]
fn a_failing_canary_stops_the_rollout_and_is_put_back() -> Result<()> {
    let [old, new] = VERSIONS;
    let mut lab = Lab::open()?;
    lab.play_ok(&format!("site -e agent_version={old} -e agent_intercept=true"))?;
    lab.ensure_served()?;

    let foretold = lab.play_ok(&format!("rolling_upgrade --check -e upgrade_to={new}"))?;
    ensure!(version(&lab.web)? == format!("{old}-1"), "check mode upgraded");
    let upgraded = lab.play_ok(&format!("rolling_upgrade -e upgrade_to={new}"))?;
    ensure!(foretold.changed() == upgraded.changed(), "{:#?} {:#?}", foretold.changed(), upgraded.changed());
    for host in [&lab.orders, &lab.web] {
        ensure!(version(host)? == format!("{new}-1"), "{}", version(host)?);
    }
    lab.ensure_served()?;

    lab.publish_broken()?;
    let web = lab.web.property(AGENT, "MainPID")?;
    let stopped = lab.play(&format!("rolling_upgrade -e upgrade_to={BROKEN}"))?;
    ensure!(!stopped.ok(), "a version that does not start was taken: {}", stopped.said);
    let why = format!("orders is not healthy with {BROKEN} and runs {new}-1 again");
    ensure!(stopped.said.contains(&why), "it does not say what happened: {}", stopped.said);
    for host in [&lab.orders, &lab.web] {
        ensure!(version(host)? == format!("{new}-1"), "{} has {}", host.name(), version(host)?);
        ensure!(host.status()?["ready"] == true, "{}", host.status()?);
    }
    ensure!(lab.web.property(AGENT, "MainPID")? == web, "the rollout went on to the next host");
    lab.ensure_served()
}

fn version(host: &Machine) -> Result<String> {
    host.run_ok("dpkg-query", &["-W", "-f", "${Version}", "tombolo-agent"])
}
