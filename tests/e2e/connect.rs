//! A connection from one host to another: by name, by address, both families, and what stays out.

use anyhow::{Result, ensure};
use tests::{Estate, HostSpec, wait_until};

use crate::shop::{self, wait_logged};

#[test]
fn a_request_by_name_arrives_encrypted_with_its_source_address() -> Result<()> {
    let shop = shop::open()?;
    let answer = shop.wait_answers("http://orders.shop.mesh/");
    ensure!(answer.contains(&format!("you are {}", shop.web.address())), "the server saw {answer:?}");

    let out = wait_logged(&shop.web, "the outbound connection", |line| line["direction"] == "outbound");
    ensure!(out["src.identity"] == "spiffe://corp.example/ns/shop/sa/web", "{out}");
    ensure!(out["dst.identity"] == "spiffe://corp.example/ns/shop/sa/orders", "{out}");
    ensure!(out["dst.service"] == "orders.shop.mesh", "{out}");
    let inbound = wait_logged(&shop.orders, "the inbound connection", |line| line["direction"] == "inbound");
    ensure!(inbound["src.identity"] == "spiffe://corp.example/ns/shop/sa/web", "{inbound}");

    let metrics = shop.web.namespace().run("curl", &["-sS", "http://127.0.0.1:15020/metrics"])?.stdout;
    ensure!(metrics.contains("istio_tcp_connections_opened_total{"), "{metrics}");
    ensure!(metrics.contains("connection_security_policy=\"mutual_tls\""), "{metrics}");
    Ok(())
}

#[test]
fn names_and_addresses_work_over_ipv6_too() -> Result<()> {
    let shop = shop::open()?;
    let output = shop.web.namespace().run("curl", &["-6", "-sS", "--max-time", "10", "http://orders.shop.mesh/"])?;
    ensure!(output.ok() && output.stdout.starts_with("hello from orders"), "{output:?}");
    Ok(())
}

#[test]
fn half_close_and_a_megabyte_survive_the_tunnel() -> Result<()> {
    let shop = shop::open()?;
    let _echo = shop.orders.serve_echo(7070)?;
    shop.estate.apply(&shop::SHOP.replace("{http: 8080, admin: 9090}", "{http: 8080, admin: 9090, echo: 7070}"))?;
    shop.estate.apply(
        "{apiVersion: v1, kind: Service, metadata: {name: echo, namespace: shop}, \
          spec: {selector: {app: orders}, ports: [{name: tcp, port: 7, targetPort: echo}]}}",
    )?;
    let line = "head -c 1000000 /dev/urandom >/tmp/$$ && timeout 20 nc -N echo.shop.mesh 7 </tmp/$$ | cmp - /tmp/$$; \
                code=$?; rm -f /tmp/$$; exit $code";
    wait_until("a megabyte comes back unchanged", || {
        let output = shop.web.namespace().shell(line).map_err(|error| error.to_string())?;
        if output.ok() { Ok(()) } else { Err(format!("{output:?}")) }
    });
    Ok(())
}

#[test]
fn what_is_not_of_the_mesh_never_enters_the_agent() -> Result<()> {
    let shop = shop::open()?;
    let legacy = shop.estate.add_host("legacy", &HostSpec::default())?;
    let _page = legacy.serve_http(8080, "legacy")?;
    let _ssh = shop.orders.serve_http(2222, "a port no service names")?;
    let lines = shop.web.access_log().len();
    for url in [format!("http://{}:8080/", legacy.address()), format!("http://{}:2222/", shop.orders.address())] {
        let output = shop.web.curl(&url)?;
        ensure!(output.ok(), "{url}: {output:?}");
    }
    ensure!(shop.web.access_log().len() == lines, "the agent saw a connection that is none of its business");
    Ok(())
}

#[test]
fn a_service_address_of_no_service_is_refused_at_once() -> Result<()> {
    let shop = shop::open()?;
    for url in ["http://240.240.9.9/", "http://[fd74:6d62:6f6c::909]/"] {
        let output = shop.web.curl(url)?;
        ensure!(output.code == 7 && output.stderr.contains("Couldn't connect"), "{url}: {output:?}");
        ensure!(!output.stderr.contains("timed out"), "{url}: {output:?}");
    }
    Ok(())
}

#[test]
fn two_workloads_of_one_host_have_two_identities() -> Result<()> {
    let estate = Estate::start()?;
    let group = |name: &str, annotations: &str, ports: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec:\n  metadata: {{labels: {{app: {name}}}, annotations: {{{annotations}}}}}\n  \
             template: {{serviceAccount: {name}, ports: {{{ports}}}}}\n"
        )
    };
    let resources = group("front", "tombolo.dev/uid: \"2001\"", "http: 8001")
        + &group("cron", "tombolo.dev/uid: \"2002\"", "http: 8002")
        + &group("orders", "", "http: 8080")
        + "---\n{apiVersion: v1, kind: Service, metadata: {name: orders, namespace: shop}, \
            spec: {selector: {app: orders}, ports: [{name: http, port: 80, targetPort: http}]}}\n"
        + "---\n{apiVersion: v1, kind: Service, metadata: {name: cron, namespace: shop}, \
            spec: {selector: {app: cron}, ports: [{name: http, port: 80, targetPort: http}]}}\n"
        + "---\n{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, \
            metadata: {name: front-only, namespace: shop}, spec: {selector: {matchLabels: {app: orders}}, \
            rules: [{from: [{source: {principals: [corp.example/ns/shop/sa/front]}}]}]}}\n";
    estate.apply(&resources)?;
    let orders = estate.add_meshed_host("orders", &shop::member("orders"))?;
    let _page = orders.serve_http(8080, "orders")?;
    let both = HostSpec { groups: vec!["shop/front".into(), "shop/cron".into()], ..HostSpec::default() };
    let host = estate.add_meshed_host("both", &both)?;
    let _cron = host.serve_http_as(2002, 8002, "cron")?;
    let curl_as = |uid: u32| {
        let line = format!("setpriv --reuid={uid} --clear-groups curl -sS --max-time 10 http://orders.shop.mesh/");
        host.namespace().shell(&line)
    };
    wait_until("the front may", || {
        let output = curl_as(2001).map_err(|error| error.to_string())?;
        if output.ok() { Ok(()) } else { Err(output.stderr) }
    });
    let refused = curl_as(2002)?;
    ensure!(!refused.ok(), "cron was let in: {refused:?}");
    let line =
        wait_logged(&orders, "the refusal", |line| line["src.identity"] == "spiffe://corp.example/ns/shop/sa/cron");
    ensure!(line["policy"] == "shop/front-only", "{line}");

    let to_second = orders.curl("http://cron.shop.mesh/")?;
    ensure!(to_second.ok() && to_second.stdout.contains("hello from cron"), "inbound by port: {to_second:?}");
    Ok(())
}
