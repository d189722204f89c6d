//! Which tunnel carries a connection: `tombolo/1` between two agents, HBONE where one was told so.

use anyhow::{Result, ensure};
use tests::{HostSpec, wait_until};

use crate::shop::{self, wait_logged};

#[test]
fn two_agents_speak_tombolo_1_and_hbone_side_by_side() -> Result<()> {
    let shop = shop::open()?;
    let carried = |protocol: &'static str, direction: &'static str, from: &str| {
        let from = from.to_owned();
        move |line: &serde_json::Value| {
            let source = line["src.addr"].as_str().unwrap_or_default();
            line["protocol"] == protocol && line["direction"] == direction && source.starts_with(&from)
        }
    };
    let web = shop.web.address().to_string();
    let out = wait_logged(&shop.web, "tombolo/1 to orders", carried("tombolo/1", "outbound", ""));
    ensure!(out["flag"] == "-" && out["dst.service"] == "orders.shop.mesh", "{out}");
    let inbound = wait_logged(&shop.orders, "tombolo/1 from web", carried("tombolo/1", "inbound", &web));
    ensure!(inbound["src.identity"] == "spiffe://corp.example/ns/shop/sa/web", "{inbound}");

    let spec = HostSpec { config: "[outbound]\ntunnel = \"hbone\"\n".to_owned(), ..shop::member("web") };
    let other = shop.estate.add_meshed_host("other", &spec)?;
    wait_until("orders answers the one that speaks HBONE", || {
        let output = other.curl("http://orders.shop.mesh/").map_err(|error| error.to_string())?;
        if output.ok() { Ok(()) } else { Err(output.stderr) }
    });
    wait_logged(&other, "HBONE to orders", carried("hbone", "outbound", ""));
    let there = other.address().to_string();
    wait_logged(&shop.orders, "HBONE from the other", carried("hbone", "inbound", &there));
    let unspoken = shop.orders.access_log().into_iter().find(carried("tombolo/1", "inbound", &there));
    ensure!(unspoken.is_none(), "{unspoken:?}");
    shop.wait_answers("http://orders.shop.mesh/");
    Ok(())
}
