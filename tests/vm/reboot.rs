//! A machine comes back from a reboot while nobody can tell it anything.

use std::time::Instant;

use anyhow::{Result, ensure};
use tests::machine::AGENT;
use tests::wait_until;

use crate::shop;

#[test]
fn a_reboot_without_the_control_plane_and_its_store_serves_at_once() -> Result<()> {
    let mut shop = shop::open("")?;
    let served = "[Service]\nExecStart=/usr/bin/testhost http [::]:8080 web\n[Install]\nWantedBy=multi-user.target\n";
    shop.web.write("/etc/systemd/system/http.service", served)?;
    shop.web.run_ok("systemctl", &["enable", "--now", "http", AGENT])?;
    let to_web = |shop: &shop::Shop| match shop.orders.curl("http://web.shop.mesh/") {
        Ok(output) if output.ok() => Ok(()),
        other => Err(format!("{other:?}")),
    };
    wait_until("orders reaches web", || to_web(&shop));

    shop.estate.stop_control_plane()?;
    let (store, away) = (shop.estate.data_dir().join("state.db"), shop.estate.folder().join("state.db.away"));
    std::fs::rename(&store, &away)?;
    shop.web.reboot()?;

    // `power_on` waited for the end of the boot, and the agent is part of it: everything is asked once.
    let booted = Instant::now();
    let answer = shop.web.curl("http://orders.shop.mesh/")?;
    ensure!(answer.stdout.starts_with("hello from orders"), "{answer:?}\n{}", shop.web.journal(AGENT)?);
    println!("mesh traffic {:?} after the end of the boot", booted.elapsed());
    let status = shop.web.status()?;
    ensure!(status["snapshot"]["source"] == "disk" && status["ready"] == true, "{status}");
    wait_until("orders reaches web again", || to_web(&shop));
    let web = "spiffe://corp.example/ns/shop/sa/web";
    let calls = |shop: &shop::Shop| shop.orders.access_log().iter().filter(|l| l["src.identity"] == web).count();
    let before = calls(&shop);
    ensure!(shop.web.curl("http://orders.shop.mesh/")?.ok());
    wait_until("orders logs a call of web's identity", || if calls(&shop) > before { Ok(()) } else { Err(before) });

    std::fs::rename(&away, &store)?;
    shop.estate.start_control_plane()?;
    wait_until("the agent is connected again", || match shop.web.status() {
        Ok(status) if status["control_plane"]["connected"] == true => Ok(()),
        other => Err(format!("{other:?}")),
    });
    Ok(())
}
