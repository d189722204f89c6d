//! What happens when parts are away: control plane, agent, database, disk.

use anyhow::{Context, Result, ensure};
use tests::postgres::Postgres;
use tests::{Estate, wait_until, within};

use crate::shop::{self, ensure_untouched, wait_logged};

#[test]
fn agents_serve_from_disk_while_the_control_plane_is_away_and_obey_it_again_after() -> Result<()> {
    let mut shop = shop::open()?;
    shop.estate.stop_control_plane()?;
    shop.orders.stop_agent()?;
    shop.web.stop_agent()?;
    shop.orders.start_agent()?;
    shop.web.start_agent()?;
    shop.wait_answers("http://orders.shop.mesh/");
    wait_logged(&shop.web, "a meshed request", |line| line["dst.service"] == "orders.shop.mesh");
    ensure!(shop.web.status()?["snapshot"]["source"] == "disk", "{}", shop.web.status()?);

    shop.estate.start_control_plane()?;
    shop.wait_answers("http://orders.shop.mesh/");
    shop.estate.apply(
        "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: closed, namespace: shop}, spec: {}}",
    )?;
    shop.wait_refused("http://orders.shop.mesh/");
    Ok(())
}

#[test]
fn a_corrupt_snapshot_is_put_aside_and_never_fatal() -> Result<()> {
    let mut shop = shop::open()?;
    shop.web.stop_agent()?;
    let state = shop.web.folder().join("state");
    let file = std::fs::read_dir(&state)?.flatten().map(|entry| entry.path());
    let file = file.into_iter().find(|path| path.to_string_lossy().contains("snapshot")).context("no snapshot file")?;
    let mut bytes = std::fs::read(&file)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    std::fs::write(&file, bytes)?;
    shop.web.start_agent()?;
    shop.wait_answers("http://orders.shop.mesh/");
    let kept = std::fs::read_dir(&state)?.flatten().any(|entry| entry.path().to_string_lossy().contains("corrupt"));
    ensure!(kept, "the corrupt file was not kept for a look");
    Ok(())
}

#[test]
fn sigterm_leaves_nothing_in_the_kernel_and_kill_9_no_table() -> Result<()> {
    let mut shop = shop::open()?;
    let code = shop.web.stop_agent()?;
    ensure!(code == 0, "the agent ended with {code}");
    ensure_untouched(&shop.web)?;
    shop.web.start_agent()?;
    shop.wait_answers("http://orders.shop.mesh/");
    shop.web.agent_mut().context("it runs")?.kill()?;
    let tables = shop.web.namespace().run("nft", &["list", "tables"])?.stdout;
    ensure!(!tables.contains("tombolo"), "{tables}");
    let direct = shop.web.curl(&format!("http://{}:8080/", shop.orders.address()))?;
    ensure!(direct.ok(), "after the agent's death: {direct:?}");
    shop.web.tombolo_ok(&["agent", "--cleanup"])?;
    ensure_untouched(&shop.web)
}

#[test]
fn a_host_that_falls_silent_is_no_endpoint_any_more() -> Result<()> {
    let mut shop = shop::open()?;
    let healthy = |shop: &shop::Shop| {
        let said = shop.estate.operate(&["get", "workload", "-n", "shop", "-o", "json"])?;
        let list: serde_json::Value = serde_json::from_str(&said)?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let orders = items.iter().find(|item| item["group"] == "orders").context("no orders workload")?;
        anyhow::Ok(orders["healthy"] == true)
    };
    ensure!(healthy(&shop)?, "orders is not healthy to begin with");
    shop.orders.agent_mut().context("it runs")?.kill()?;
    within(std::time::Duration::from_secs(40), "orders is withdrawn", || match healthy(&shop) {
        Ok(false) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    shop.wait_refused("http://orders.shop.mesh/");
    shop.orders.start_agent()?;
    shop.wait_answers("http://orders.shop.mesh/");
    Ok(())
}

#[test]
fn the_control_plane_outlives_its_database() -> Result<()> {
    // The control plane lives in a namespace, so it reaches Postgres by its unix socket.
    let mut server = Postgres::start(None)?;
    let url = format!("{}?host={}", server.database("mesh")?, server.socket_folder().display());
    let estate = Estate::start_on(|_| url)?;
    let shop = shop::open_in(estate)?;
    server.crash()?;
    shop.wait_answers("http://orders.shop.mesh/");
    let refused = shop.estate.operator(&["get", "service", "-n", "shop"])?;
    ensure!(!refused.ok() && refused.stderr.to_lowercase().contains("database"), "{refused:?}");
    server.restart(None)?;
    wait_until("the control plane is back", || {
        let output = shop.estate.operator(&["get", "service", "-n", "shop"]).map_err(|error| error.to_string())?;
        if output.ok() { Ok(()) } else { Err(output.stderr) }
    });
    shop.wait_answers("http://orders.shop.mesh/");
    Ok(())
}
