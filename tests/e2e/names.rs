//! Mesh names for the host's processes, by real dig.

use anyhow::{Context, Result, ensure};

use crate::shop;

#[test]
fn dig_gets_mesh_names_and_the_rest_goes_to_the_real_resolver() -> Result<()> {
    let shop = shop::open()?;
    let dig = |words: &str| shop.web.namespace().shell(&format!("dig +time=3 +tries=2 {words}"));
    for name in ["orders.shop.mesh", "ORDERS.shop.Mesh", "orders.shop.svc.cluster.local"] {
        let output = dig(&format!("+short {name} A"))?;
        ensure!(output.stdout.starts_with("240.240."), "{name} A: {output:?}");
        let output = dig(&format!("+short {name} AAAA"))?;
        ensure!(output.stdout.starts_with("fd74:6d62:6f6c:"), "{name} AAAA: {output:?}");
    }
    let tcp = dig("+tcp +short orders.shop.mesh A")?;
    ensure!(tcp.stdout.starts_with("240.240."), "over TCP: {tcp:?}");
    let srv = dig("+short _http._tcp.orders.shop.mesh SRV")?;
    ensure!(srv.stdout.contains(" 80 orders.shop.mesh."), "SRV: {srv:?}");
    let unknown = dig("nobody.shop.mesh A")?;
    ensure!(unknown.stdout.contains("status: NXDOMAIN"), "unknown: {unknown:?}");
    let other = dig("+short outside.example A")?;
    ensure!(other.stdout.trim() == "192.0.2.1", "the upstream's name: {other:?}");
    let gone = dig("missing.example A")?;
    ensure!(gone.stdout.contains("status: NXDOMAIN"), "the upstream's refusal: {gone:?}");
    Ok(())
}

/// Asked again and again, so that its first answer is from the moment when the agent begins to know it.
#[test]
fn a_new_name_can_be_used_from_its_first_answer_on() -> Result<()> {
    let shop = shop::open()?;
    for round in 0..5 {
        let service = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: new{round}, namespace: shop}}\n\
             spec: {{selector: {{app: orders}}, ports: [{{name: http, port: 80, targetPort: http}}]}}\n"
        );
        let line = format!("until curl -sS --max-time 5 http://new{round}.shop.mesh/ || [ $? != 6 ]; do :; done 2>&1");
        let said = std::thread::scope(|scope| {
            let asking = scope.spawn(|| shop.web.namespace().shell(&line));
            shop.estate.apply(&service)?;
            asking.join().ok().context("the asking thread ended early")?
        })?;
        let last = said.stdout.lines().last().unwrap_or_default();
        ensure!(last.starts_with("hello from orders"), "round {round}, after the first answer: {last}");
    }
    Ok(())
}
