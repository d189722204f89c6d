//! The mesh that most tests use: `web` calls `orders`, and what is asked of both.

use anyhow::{Result, ensure};
use tests::{Daemon, Estate, Host, HostSpec, wait_until};

/// The demonstration's resources, without its policies.
pub const SHOP: &str = include_str!("../demo/shop.yaml");

pub struct Shop {
    pub web: Host,
    pub orders: Host,
    _applications: Vec<Daemon>,
    pub estate: Estate,
}

/// Two meshed hosts with interception on, `orders` serving 8080 and 9090.
pub fn open() -> Result<Shop> {
    open_in(Estate::start()?)
}

pub fn open_in(estate: Estate) -> Result<Shop> {
    estate.apply(SHOP)?;
    let orders = estate.add_meshed_host("orders", &member("orders"))?;
    let _applications = vec![orders.serve_http(8080, "orders")?, orders.serve_http(9090, "admin")?];
    let web = estate.add_meshed_host("web", &member("web"))?;
    let shop = Shop { web, orders, _applications, estate };
    shop.wait_answers("http://orders.shop.mesh/");
    Ok(shop)
}

/// A host of one of the shop's groups.
pub fn member(group: &str) -> HostSpec {
    HostSpec { groups: vec![format!("shop/{group}")], ..HostSpec::default() }
}

impl Shop {
    /// Waits until web's curl gets an answer from a URL; answers the body.
    pub fn wait_answers(&self, url: &str) -> String {
        wait_until(&format!("{url} answers web"), || {
            let output = self.web.curl(url).map_err(|error| error.to_string())?;
            if output.ok() { Ok(output.stdout) } else { Err(output.stderr) }
        })
    }

    /// Waits until web's curl is refused.
    pub fn wait_refused(&self, url: &str) -> String {
        wait_until(&format!("{url} refuses web"), || {
            let output = self.web.curl(url).map_err(|error| error.to_string())?;
            if output.ok() { Err(output.stdout) } else { Ok(output.stderr) }
        })
    }
}

/// Waits for an access-log line of a host that satisfies `is`.
pub fn wait_logged(host: &Host, what: &str, is: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
    wait_until(&format!("{} logs {what}", host.name()), || {
        let lines = host.access_log();
        lines.iter().rev().find(|line| is(line)).cloned().ok_or_else(|| format!("{:?}", lines.last()))
    })
}

/// Nothing of ours is left in a host's kernel.
pub fn ensure_untouched(host: &Host) -> Result<()> {
    let tables = host.namespace().run("nft", &["list", "tables"])?.stdout;
    ensure!(!tables.contains("tombolo"), "a table is left: {tables}");
    for family in ["-4", "-6"] {
        let rules = host.namespace().run("ip", &[family, "rule"])?.stdout;
        ensure!(!rules.contains("29805"), "a rule is left: {rules}");
        let routes = host.namespace().run("ip", &[family, "route", "show", "table", "all"])?.stdout;
        ensure!(!routes.contains("29805") && !routes.contains("240.240"), "a route is left: {routes}");
    }
    Ok(())
}
