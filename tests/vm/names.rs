//! Mesh names on a host whose resolver is systemd-resolved: registered with it, nothing hijacked.

use anyhow::{Result, ensure};
use tests::machine::AGENT;
use tests::{Machine, wait_until};

use crate::shop;

#[test]
fn resolved_knows_mesh_names_while_the_agent_runs_and_only_then() -> Result<()> {
    let shop = shop::prepare()?;
    let links = |web: &Machine| web.run_ok("sh", &["-c", "ip -brief address; resolvectl dns; resolvectl domain"]);
    let before = links(&shop.web)?;
    ensure!(resolve(&shop.web, "outside.example").contains("192.0.2.1"));

    shop.web.join(&shop.estate, &["shop/web"])?;
    shop.web.start_agent()?;
    shop.web.tombolo_ok(&["intercept", "on"])?;
    shop.web.wait_answers("http://orders.shop.mesh/");
    wait_resolves(&shop.web, "orders.shop.mesh", "240.240.");
    // Its domain is registered with the first snapshot; until then resolved keeps `.local` for mDNS.
    wait_resolves(&shop.web, "orders.shop.svc.cluster.local", "240.240.");
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

    shop.web.run_ok("systemctl", &["stop", AGENT])?;
    wait_until("links and resolvers are as before", || {
        let now = links(&shop.web).map_err(|error| error.to_string())?;
        if now == before { Ok(()) } else { Err(format!("before:\n{before}\nnow:\n{now}")) }
    });
    let gone = shop.web.run("resolvectl", &["query", "orders.shop.mesh"])?;
    ensure!(!gone.ok(), "{gone:?}");
    ensure!(resolve(&shop.web, "outside.example").contains("192.0.2.1"));
    shop::ensure_untouched(&shop.web)
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
