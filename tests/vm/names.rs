//! Mesh names on a host whose resolver is systemd-resolved: registered with it, nothing hijacked.

use std::time::Duration;

use anyhow::{Result, ensure};
use tests::machine::AGENT;
use tests::{Machine, wait_until, within};

use crate::shop;

const LATE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: new, namespace: late}\n\
                    spec: {selector: {app: orders}, ports: [{name: http, port: 80, targetPort: 8080}]}\n";

#[test]
fn resolved_knows_mesh_names_while_the_agent_runs_and_only_then() -> Result<()> {
    let shop = shop::prepare()?;
    let links = |web: &Machine| web.run_ok("sh", &["-c", "ip -brief address; resolvectl dns; resolvectl domain"]);
    let before = links(&shop.web)?;
    ensure!(resolve(&shop.web, "outside.example").contains("192.0.2.1"));
    let wait_as_before = |when: &str| {
        wait_until(&format!("links and resolvers are as before {when}"), || {
            let now = links(&shop.web).map_err(|error| error.to_string())?;
            if now == before { Ok(()) } else { Err(format!("before:\n{before}\nnow:\n{now}")) }
        });
    };

    shop.web.join(&shop.estate, &["shop/web"])?;
    shop.web.start_agent()?;
    ensure!(links(&shop.web)? == before, "names are registered although nothing leads on to the mesh");

    // `on` comes back when it is on, and a start when it serves: everything is asked once.
    shop.web.tombolo_ok(&["intercept", "on"])?;
    for name in ["orders.shop.mesh", "orders.shop.svc.cluster.local"] {
        ensure!(resolve(&shop.web, name).contains("240.240."), "{name}: {}", resolve(&shop.web, name));
    }
    // A namespace that comes later: sooner than the agent looks again by itself.
    shop.estate.apply(LATE)?;
    within(Duration::from_secs(5), "a later namespace is registered", || {
        let domains = shop.web.run_ok("resolvectl", &["domain", "tombolo0"]).map_err(|error| error.to_string())?;
        if domains.contains("late.svc.cluster.local") { Ok(()) } else { Err(domains) }
    });
    shop.web.run_ok("systemctl", &["restart", AGENT])?;
    ensure!(resolve(&shop.web, "orders.shop.svc.cluster.local").contains("240.240."));
    let getent = shop.web.run_ok("getent", &["ahosts", "orders.shop.mesh"])?;
    ensure!(getent.contains("240.240."), "{getent}");
    let dig = shop.web.run_ok("dig", &["+short", "orders.shop.mesh"])?;
    ensure!(dig.starts_with("240.240."), "{dig}");

    let rules = shop.web.host().namespace().run("nft", &["list", "ruleset"])?.stdout;
    ensure!(!rules.contains("dport 53"), "port 53 is taken although resolved is there: {rules}");
    let other = shop.web.run_ok("resolvectl", &["query", "outside.example"])?;
    ensure!(other.contains("192.0.2.1") && other.contains("link: eth0"), "{other}");
    let unknown = shop.web.run("resolvectl", &["query", "nobody.shop.mesh"])?;
    ensure!(!unknown.ok(), "{unknown:?}");

    // resolved forgets what it was told over D-Bus when it is restarted.
    shop.web.run_ok("systemctl", &["restart", "systemd-resolved"])?;
    wait_resolves(&shop.web, "orders.shop.mesh", "240.240.");
    shop.web.run_ok("systemctl", &["restart", "systemd-networkd"])?;
    wait_resolves(&shop.web, "orders.shop.mesh", "240.240.");

    shop.web.run_ok("systemctl", &["kill", "--signal=KILL", AGENT])?;
    wait_resolves(&shop.web, "orders.shop.mesh", "240.240.");

    shop.web.tombolo_ok(&["intercept", "off"])?;
    wait_as_before("after off");
    let gone = shop.web.run("resolvectl", &["query", "orders.shop.mesh"])?;
    ensure!(!gone.ok(), "an address that leads nowhere: {gone:?}");
    shop.web.tombolo_ok(&["intercept", "on", "--confirm-within", "2s"])?;
    ensure!(resolve(&shop.web, "orders.shop.mesh").contains("240.240."));
    wait_as_before("after nobody confirmed");
    shop.web.tombolo_ok(&["intercept", "on"])?;
    ensure!(resolve(&shop.web, "orders.shop.mesh").contains("240.240."));

    shop.web.run_ok("systemctl", &["stop", AGENT])?;
    wait_as_before("after stop");
    let gone = shop.web.run("resolvectl", &["query", "orders.shop.mesh"])?;
    ensure!(!gone.ok(), "{gone:?}");
    ensure!(resolve(&shop.web, "outside.example").contains("192.0.2.1"));
    shop::ensure_untouched(&shop.web)
}

#[test]
fn what_the_first_snapshot_brings_is_registered_at_once() -> Result<()> {
    let shop = shop::prepare()?;
    shop.web.write("/etc/tombolo/agent.d/50-test.toml", "[interception]\nenabled_at_start = \"always\"\n")?;
    shop.web.join(&shop.estate, &["shop/web"])?;
    shop.web.start_agent()?;
    let domains = shop.web.run_ok("resolvectl", &["domain", "tombolo0"])?;
    ensure!(domains.contains("shop.svc.cluster.local"), "{domains}");
    let answer = shop.web.curl("http://orders.shop.svc.cluster.local/")?;
    ensure!(answer.ok(), "{answer:?}\n{}\n{}", shop.web.journal(AGENT)?, shop.orders.agent_log());
    Ok(())
}

fn resolve(machine: &Machine, name: &str) -> String {
    let output = machine.run("resolvectl", &["query", name]);
    output.map(|output| format!("{}{}", output.stdout, output.stderr)).unwrap_or_default()
}

fn wait_resolves(machine: &Machine, name: &str, to: &str) {
    wait_until(&format!("{name} resolves"), || {
        let said = resolve(machine, name);
        if said.contains(to) { Ok(()) } else { Err(said) }
    });
}
