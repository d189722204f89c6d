//! Which way names go on which host, and which names.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use api::snapshot::Change;
use api::{Delta, Service, Snapshot};

use super::{NamesConfig, NamesVia, Observed, ResolvedState, decide, domains, uses_resolve};
use crate::config;
use crate::resolv::Resolvers;
use crate::resolved::DOMAINS;

fn via(
    enabled: bool,
    wish: config::Resolved,
    state: ResolvedState,
    resolver: &str,
    libc_asks_resolved: bool,
) -> String {
    let server = |text: &str| SocketAddr::new(text.parse().expect("an address"), 53);
    let resolvers = Resolvers {
        configured: vec![server(resolver)],
        uplinks: vec![server("10.0.0.9"), server("10.0.0.1")],
        upstreams: Vec::new(),
    };
    let config = NamesConfig {
        enabled,
        resolved: wish,
        server: "127.0.0.1:15053".parse().expect("an address"),
        nsswitch: PathBuf::new(),
    };
    let via = decide(&config, &Observed { resolved: state, resolvers: &resolvers, libc_asks_resolved });
    let taken = via.port53().unwrap_or_default().iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
    format!("{}{taken}", if via.is_registered() { "resolved " } else { "" }).trim_end().to_owned()
}

#[test]
fn each_host_gets_the_least_that_works() {
    use ResolvedState::{Absent, Unusable, Usable};
    use config::Resolved::{Auto, Off, On};
    let table = [
        // Debian, Ubuntu, Fedora: the stub.
        (true, Auto, Usable, "127.0.0.53", true, "resolved"),
        (true, Auto, Usable, "127.0.0.53", false, "resolved"),
        // resolv.conf points past it.
        (true, Auto, Usable, "10.0.0.1", true, "resolved 10.0.0.1"),
        (true, Auto, Usable, "10.0.0.1", false, "10.0.0.1"),
        // Not there, or of no use.
        (true, Auto, Absent, "10.0.0.1", false, "10.0.0.1"),
        (true, Auto, Absent, "10.0.0.1", true, "10.0.0.1,10.0.0.9"),
        (true, Auto, Unusable, "127.0.0.53", true, "10.0.0.1,10.0.0.9,127.0.0.53"),
        (true, Auto, Unusable, "10.0.0.1", false, "10.0.0.1"),
        // As the operator says.
        (true, On, Absent, "10.0.0.1", false, "resolved"),
        (true, On, Unusable, "127.0.0.53", true, "resolved"),
        (true, Off, Usable, "127.0.0.53", true, "10.0.0.1,10.0.0.9,127.0.0.53"),
        (true, Off, Usable, "10.0.0.1", false, "10.0.0.1"),
        (false, On, Usable, "127.0.0.53", true, ""),
    ];
    for (enabled, wish, state, resolver, libc, expect) in table {
        let found = via(enabled, wish, state, resolver, libc);
        assert_eq!(found, expect, "{enabled} {wish:?} {state:?} {resolver} {libc}");
    }
    assert_eq!(NamesVia::Off.port53(), None);
}

#[test]
fn nsswitch_lines_are_understood() {
    let check = |text: &str, expect: bool| assert_eq!(uses_resolve(text), expect, "{text:?}");
    check("hosts: files resolve [!UNAVAIL=return] dns", true);
    check("passwd: files\nhosts:\t\tmymachines resolve", true);
    check("hosts: files dns # resolve", false);
    check("#hosts: resolve\nhosts: files dns", false);
    check("networks: resolve", false);
    check("", false);
}

fn snapshot(services: &[(&str, bool)]) -> Snapshot {
    let services = services.iter().map(|(hostname, has_vip)| Service {
        name: String::new(),
        namespace: "shop".to_owned(),
        hostname: (*hostname).to_owned(),
        vips: if *has_vip { vec![IpAddr::from([240, 240, 0, 1])] } else { Vec::new() },
        ports: Vec::new(),
        subject_alt_names: Vec::new(),
        allow_unhealthy: false,
    });
    Snapshot::default().apply(Delta { revision: 1, changes: services.map(Change::Service).collect() })
}

#[test]
fn only_names_that_we_answer_are_asked_of_us() {
    let check = |services: &[(&str, bool)], expect: &[&str]| {
        let found: Vec<_> = domains(&snapshot(services)).into_iter().collect();
        assert_eq!(found, expect, "{services:?}");
    };
    check(&[], &["mesh"]);
    check(&[("orders.shop.mesh", true), ("db.shop.mesh", false)], &["mesh", "shop.svc", "shop.svc.cluster.local"]);
    check(&[("web.prod.svc.cluster.local", true)], &["mesh", "prod.svc", "prod.svc.cluster.local"]);
    check(&[("api.pay.example", true), ("plain.pay.example", false)], &["api.pay.example", "mesh"]);
    check(&[("*.Files.example", true)], &["files.example", "mesh"]);
    check(&[("*", true), ("bad name", true), ("", true), ("-x.example", true)], &["mesh"]);
    check(&[("x.svc.east.mesh", true)], &["mesh"]);
}

#[test]
fn outside_hosts_yield_when_there_are_too_many() {
    let hosts: Vec<String> = (0..DOMAINS * 2).map(|n| format!("h{n}.example")).collect();
    let mut services: Vec<(&str, bool)> = hosts.iter().map(|host| (host.as_str(), true)).collect();
    services.push(("orders.shop.mesh", true));
    let found = domains(&snapshot(&services));
    assert_eq!(found.len(), DOMAINS);
    assert!(found.contains("mesh") && found.contains("shop.svc.cluster.local"));
}
