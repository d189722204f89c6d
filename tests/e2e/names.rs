//! Mesh names for the host's processes, by real dig.

use anyhow::{Result, ensure};

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
