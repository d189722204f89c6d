//! Who may, on traffic: refusals name their rule, changes reach open connections.

use anyhow::{Result, ensure};
use tests::{HostSpec, wait_until};

use crate::shop::{self, wait_logged};

const DENY_WEB: &str = "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, \
    metadata: {name: no-web, namespace: shop}, spec: {selector: {matchLabels: {app: orders}}, action: DENY, \
    rules: [{from: [{source: {serviceAccounts: [shop/web]}}]}]}}";

#[test]
fn a_denied_caller_is_refused_and_both_sides_say_why() -> Result<()> {
    let shop = shop::open()?;
    shop.wait_refused("http://orders.shop.mesh:9090/");
    let line = wait_logged(&shop.orders, "the refusal", |line| line["policy"] == "shop/no-web-on-admin");
    ensure!(line["src.identity"] == "spiffe://corp.example/ns/shop/sa/web", "{line}");

    let why = shop.web.tombolo(&["why", "orders.shop.mesh:9090"])?;
    ensure!(why.code == 4, "why ended with {}: {}{}", why.code, why.stdout, why.stderr);
    ensure!(why.stdout.contains("shop/no-web-on-admin"), "{}", why.stdout);
    let why = shop.web.tombolo(&["why", "orders.shop.mesh:80"])?;
    ensure!(why.ok(), "{why:?}");
    Ok(())
}

#[test]
fn a_new_policy_closes_the_connections_it_forbids() -> Result<()> {
    let shop = shop::open()?;
    let _echo = shop.orders.serve_echo(7070)?;
    shop.estate.apply(&shop::SHOP.replace("{http: 8080, admin: 9090}", "{http: 8080, admin: 9090, echo: 7070}"))?;
    shop.estate.apply(
        "{apiVersion: v1, kind: Service, metadata: {name: echo, namespace: shop}, \
          spec: {selector: {app: orders}, ports: [{name: tcp, port: 7070, targetPort: echo}]}}",
    )?;
    let held = wait_until("an intercepted connection is held", || {
        let held = shop.web.hold_connection(&format!("{}:7070", shop.orders.address())).map_err(|e| e.to_string())?;
        let open = shop.orders.status().map_err(|error| error.to_string())?["connections_open"].clone();
        if open.as_u64() > Some(0) { Ok(held) } else { Err(format!("open: {open}, {}", held.log())) }
    });
    wait_until("it goes on", || if held.log().contains("alive 2") { Ok(()) } else { Err(held.log()) });
    shop.estate.apply(DENY_WEB)?;
    wait_until("it is closed", || if held.log().contains("broken") { Ok(()) } else { Err(held.log()) });
    wait_logged(&shop.orders, "which policy closed it", |line| line["policy"] == "shop/no-web");
    shop.estate.operate(&["delete", "authorizationpolicy", "no-web", "-n", "shop"])?;
    shop.wait_answers("http://orders.shop.mesh/");
    Ok(())
}

#[test]
fn audit_only_logs() -> Result<()> {
    let shop = shop::open()?;
    shop.estate.apply(&DENY_WEB.replace("DENY", "AUDIT").replace("no-web", "watch-web"))?;
    wait_until("the audit names the policy", || {
        shop.wait_answers("http://orders.shop.mesh/");
        let log = shop.orders.agent_log();
        if log.contains("shop/watch-web") { Ok(()) } else { Err("not in the log") }
    });
    Ok(())
}

#[test]
fn strict_refuses_plaintext_and_observe_judges_it() -> Result<()> {
    let shop = shop::open()?;
    let legacy = shop.estate.add_host("legacy", &HostSpec::default())?;
    let orders = shop.orders.address();
    let open = legacy.curl(&format!("http://{orders}:8080/"))?;
    ensure!(open.ok(), "{open:?}");
    let strict = legacy.curl(&format!("http://{orders}:9090/"))?;
    ensure!(strict.code == 7, "curl must be refused at once, it said {strict:?}");

    let observed = shop::SHOP.replace(
        "labels: {app: orders}\n  template",
        "labels: {app: orders}\n    annotations: {tombolo.dev/inbound: observe}\n  template",
    );
    ensure!(observed != shop::SHOP);
    shop.estate.apply(&observed)?;
    wait_until("legacy's plaintext is logged", || {
        let output = legacy.curl(&format!("http://{orders}:8080/")).map_err(|error| error.to_string())?;
        let mut lines = shop.orders.access_log().into_iter();
        let from_legacy =
            |line: &serde_json::Value| line["src.addr"].to_string().contains(&legacy.address().to_string());
        if output.ok() && lines.any(|line| from_legacy(&line)) { Ok(()) } else { Err(format!("{output:?}")) }
    });
    shop.estate.apply(
        "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: mesh-only, namespace: shop}, \
          spec: {selector: {matchLabels: {app: orders}}, rules: [{from: [{source: {namespaces: [shop]}}]}]}}",
    )?;
    wait_until("plaintext is refused by policy", || {
        let output = legacy.curl(&format!("http://{orders}:8080/")).map_err(|error| error.to_string())?;
        if output.ok() { Err(output.stdout) } else { Ok(()) }
    });
    shop.wait_answers("http://orders.shop.mesh/");
    Ok(())
}

#[test]
fn a_host_without_the_right_certificate_gets_nowhere() -> Result<()> {
    let shop = shop::open()?;
    let output = shop
        .estate
        .switch()
        .run("curl", &["-sS", "-k", "--max-time", "5", &format!("https://{}:15008/", shop.orders.address())])?;
    ensure!(!output.ok(), "a caller without a certificate was served: {output:?}");
    Ok(())
}
