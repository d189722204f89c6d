//! The mesh of these tests: `web` is a machine, `orders` and `legacy` are plain hosts it talks to.

use anyhow::{Result, ensure};
use tests::machine::AGENT;
use tests::{Daemon, Estate, Host, HostSpec, Machine, wait_until};

/// The demonstration's resources, a service of the machine's own and one that echoes.
pub const SHOP: &str = concat!(
    include_str!("../demo/shop.yaml"),
    r#"---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: shop}
spec: {selector: {app: orders}, ports: [{name: tcp, port: 7, targetPort: 8081}]}
"#
);

pub struct Shop {
    pub web: Machine,
    pub orders: Host,
    pub legacy: Host,
    _applications: Vec<Daemon>,
    pub estate: Estate,
}

/// `orders` serves 8080 (HTTP), 9090 (HTTP) and 8081 (echo) in the mesh; `web` has booted and no more.
pub fn prepare() -> Result<Shop> {
    let estate = Estate::start()?;
    estate.apply(SHOP)?;
    let spec = HostSpec { groups: vec!["shop/orders".to_owned()], ..HostSpec::default() };
    let mut orders = estate.add_host("orders", &spec)?;
    // Before the agent, which looks for them only now and then: `web` may ask within the second.
    let applications =
        vec![orders.serve_http(8080, "orders")?, orders.serve_http(9090, "admin")?, orders.serve_echo(8081)?];
    orders.join(&estate, &spec.groups)?;
    orders.start_agent()?;
    orders.intercept_on()?;
    let legacy = estate.add_host("legacy", &HostSpec::default())?;
    let web = Machine::boot(&estate, "web")?;
    Ok(Shop { web, orders, legacy, _applications: applications, estate })
}

/// As [`prepare`]; then `web` joins, starts its agent and intercepts. `config` is a drop-in of its
/// agent.toml.
pub fn open(config: &str) -> Result<Shop> {
    let shop = prepare()?;
    shop.web.write("/etc/tombolo/agent.d/50-test.toml", config)?;
    shop.web.join(&shop.estate, &["shop/web"])?;
    shop.web.start_agent()?;
    shop.web.tombolo_ok(&["intercept", "on"])?;
    shop.web.wait_answers("http://orders.shop.mesh/");
    Ok(shop)
}

impl Shop {
    /// The tables of the machine's kernel, seen from outside.
    pub fn tables(&self) -> Result<String> {
        tables(&self.web)
    }

    /// Waits until `orders` has logged a connection that satisfies `is`.
    pub fn wait_orders_logged(&self, what: &str, is: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        wait_until(&format!("orders logs {what}"), || {
            let lines = self.orders.access_log();
            lines.iter().rev().find(|line| is(line)).cloned().ok_or_else(|| format!("{:?}", lines.last()))
        })
    }
}

/// The nft tables of a machine, seen from outside.
pub fn tables(machine: &Machine) -> Result<String> {
    Ok(machine.host().namespace().run("nft", &["list", "tables"])?.stdout)
}

/// Nothing of ours is left in a machine's kernel: no table, rule, route, link or socket.
pub fn ensure_untouched(machine: &Machine) -> Result<()> {
    let tables = tables(machine)?;
    ensure!(!tables.contains("tombolo"), "a table is left: {tables}");
    for family in ["-4", "-6"] {
        let rules = machine.run_ok("ip", &[family, "rule"])?;
        ensure!(!rules.contains("29805"), "a rule is left: {rules}");
        let routes = machine.run_ok("ip", &[family, "route", "show", "table", "all"])?;
        ensure!(!routes.contains("29805") && !routes.contains("240.240"), "a route is left: {routes}");
    }
    let links = machine.run_ok("ip", &["-brief", "link"])?;
    ensure!(!links.contains("tombolo"), "a link is left: {links}");
    let sockets = machine.run_ok("ss", &["-tulnxp"])?;
    let ours = sockets.lines().filter(|line| line.contains("tombolo") || line.contains(":150")).collect::<Vec<_>>();
    ensure!(ours.is_empty(), "sockets are left: {ours:?}");
    let state = machine.property(AGENT, "ActiveState")?;
    ensure!(state == "inactive", "the agent is {state}");
    Ok(())
}
