//! Several workloads on one machine, told apart by systemd unit alone.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use tests::wait_until;

use crate::shop::{self, Shop};

/// `web` and `batch` are units of one machine; both call, both serve.
const UNITS: &str = r#"apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: web, namespace: shop}
spec:
  metadata: {labels: {app: web}, annotations: {tombolo.dev/unit: web.service}}
  template: {serviceAccount: web, ports: {http: 7001}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: batch, namespace: shop}
spec:
  metadata: {labels: {app: batch}, annotations: {tombolo.dev/unit: batch.service}}
  template: {serviceAccount: batch, ports: {http: 7002}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: batch, namespace: shop}
spec: {selector: {app: batch}, ports: [{name: http, port: 80, targetPort: http}]}
"#;

#[test]
fn two_units_are_two_identities_also_after_a_restart() -> Result<()> {
    let shop = shop::prepare()?;
    shop.estate.apply(UNITS)?;
    shop.web.join(&shop.estate, &["shop/web", "shop/batch"])?;
    shop.web.start_agent()?;
    shop.web.tombolo_ok(&["intercept", "on"])?;
    let stranger = shop.web.curl("http://orders.shop.mesh/")?;
    ensure!(!stranger.ok(), "a process of neither unit borrowed an identity: {stranger:?}");
    // Each unit calls a port of its own, so that a line of the log says who should have called.
    caller(&shop, "web", "http://orders.shop.mesh:80/")?;
    caller(&shop, "batch", "http://orders.shop.mesh:9090/")?;
    wait_called(&shop, 8080, "web");
    wait_called(&shop, 9090, "batch");
    // Names may have come a moment after the units; from here on every call must work.
    let failures = || -> Result<usize> { Ok(failed(&shop, "web")? + failed(&shop, "batch")?) };
    let at_first = failures()?;

    // A restart gives the unit a cgroup with another number: what a rule had remembered is void.
    for _ in 0..3 {
        for unit in ["web", "batch"] {
            let before = shop.orders.access_log().len();
            shop.web.run_ok("systemctl", &["restart", unit])?;
            let (port, other) = if unit == "web" { (8080, 9090) } else { (9090, 8080) };
            wait_more(&shop, before, port);
            wait_more(&shop, before, other);
        }
    }
    let callers = |port: u16| -> BTreeSet<String> {
        let lines = shop.orders.access_log();
        let lines = lines.iter().filter(|line| is_inbound_to(line, port));
        lines.map(|line| line["src.identity"].as_str().unwrap_or("nobody").to_owned()).collect()
    };
    let only = |name: &str| BTreeSet::from([format!("spiffe://corp.example/ns/shop/sa/{name}")]);
    ensure!(callers(8080) == only("web"), "8080 was called by {:?}", callers(8080));
    ensure!(callers(9090) == only("batch"), "9090 was called by {:?}", callers(9090));

    ensure!(failures()? == at_first, "calls failed: {}", shop.web.journal("web")? + &shop.web.journal("batch")?);

    // Inbound it is the port that tells: each proves the identity of the unit that serves it.
    shop.web.start_unit("web-http", "/usr/bin/testhost http [::]:7001 web")?;
    shop.web.start_unit("batch-http", "/usr/bin/testhost http [::]:7002 batch")?;
    for name in ["web", "batch"] {
        let url = format!("http://{name}.shop.mesh/");
        let answer = wait_until(&format!("{url} answers orders"), || match shop.orders.curl(&url) {
            Ok(output) if output.ok() => Ok(output.stdout),
            other => Err(format!("{other:?}")),
        });
        ensure!(answer.starts_with(&format!("hello from {name}")), "{answer}");
        let identity = format!("spiffe://corp.example/ns/shop/sa/{name}");
        shop.wait_orders_logged(&format!("a call of {name}"), |line| {
            line["direction"] == "outbound" && line["dst.identity"] == identity.as_str()
        });
    }
    Ok(())
}

/// A unit that calls a URL five times a second, each time on a new connection, and says when it fails.
fn caller(shop: &Shop, unit: &str, url: &str) -> Result<()> {
    let script = format!("while :; do curl -sS -m 5 -o /dev/null {url} || echo failed; sleep 0.2; done");
    shop.web.start_unit(unit, &format!("/bin/sh -c '{script}'"))
}

fn failed(shop: &Shop, unit: &str) -> Result<usize> {
    Ok(shop.web.journal(unit)?.lines().filter(|line| *line == "failed").count())
}

fn is_inbound_to(line: &serde_json::Value, port: u16) -> bool {
    let to = line["dst.addr"].as_str().unwrap_or_default();
    line["direction"] == "inbound" && to.ends_with(&format!(":{port}"))
}

fn wait_called(shop: &Shop, port: u16, by: &str) {
    let identity = format!("spiffe://corp.example/ns/shop/sa/{by}");
    shop.wait_orders_logged(&format!("{by} on {port}"), |line| {
        is_inbound_to(line, port) && line["src.identity"] == identity.as_str()
    });
}

fn wait_more(shop: &Shop, before: usize, port: u16) {
    wait_until(&format!("further calls of {port}"), || {
        let lines = shop.orders.access_log();
        let n = lines.iter().skip(before).filter(|line| is_inbound_to(line, port)).count();
        if n >= 2 { Ok(()) } else { Err(format!("{n}: {:?}", lines.last())) }
    });
}
