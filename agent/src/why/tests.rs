//! Tables for `why`: each row a question, the steps that matter, the answer.
use super::*;
use api::policy::{Action, AuthorizationPolicy, Clause, Match, Rule, Scope, StringMatch};
use api::snapshot::Change;
use api::{Class, Delta, HostConfig, InboundMode, NamespacedHostname, Port, Selector, Service, TunnelProtocol};
use std::time::Duration;

const PORTS: [u16; 3] = [15001, 15006, 15008];

fn port(service_port: u16, target_port: u16) -> Port {
    Port { service_port, target_port, app_protocol: Default::default() }
}

fn workload(group: &str, last: u8, tunnel_protocol: TunnelProtocol, ports: Vec<Port>) -> Change {
    let service = NamespacedHostname { namespace: "shop".into(), hostname: format!("{group}.shop.mesh") };
    Change::Workload(Workload {
        uid: format!("tombolo/shop/{group}/h{last}").into(),
        name: format!("{group}-h{last}"),
        addresses: vec![[10, 0, 0, last].into()],
        hostname: String::new(),
        node: format!("h{last}"),
        healthy: true,
        capacity: 1,
        class: Class {
            namespace: "shop".into(),
            network: String::new(),
            tunnel_protocol,
            trust_domain: "td".parse().expect("valid"),
            service_account: group.into(),
            canonical_name: group.into(),
            canonical_revision: String::new(),
            workload_name: group.into(),
            cluster_id: String::new(),
            locality: Default::default(),
            services: [(service, ports)].into(),
            authorization_policies: vec![],
        }
        .into(),
    })
}

fn service(group: &str, vip: u8, ports: Vec<Port>) -> Change {
    Change::Service(Service {
        name: group.into(),
        namespace: "shop".into(),
        hostname: format!("{group}.shop.mesh"),
        vips: vec![[240, 240, 0, vip].into()],
        ports,
        subject_alt_names: vec![],
        allow_unhealthy: false,
    })
}

fn deny(principal: &str, port: u16) -> Change {
    let matches = vec![Match {
        principals: vec![StringMatch::Exact(principal.into())],
        destination_ports: vec![port],
        ..Match::default()
    }];
    Change::Policy(AuthorizationPolicy {
        name: "no-web-on-admin".into(),
        namespace: "shop".into(),
        scope: Scope::Namespace,
        action: Action::Deny,
        rules: vec![Rule { clauses: vec![Clause { matches }] }],
        dry_run: false,
    })
}

fn snapshot(local: &[&str]) -> Snapshot {
    let workload_of = |group: &&str| LocalWorkload {
        uid: format!("tombolo/shop/{group}/h1").into(),
        namespace: "shop".into(),
        group: (*group).into(),
        service_account: (*group).into(),
        ports: [(80, InboundMode::Permissive)].into(),
        selector: Selector::default(),
        probe: None,
    };
    let host = HostConfig {
        host: "h1".into(),
        workloads: local.iter().map(workload_of).collect(),
        lease: Duration::from_secs(30),
    };
    let orders = || vec![port(80, 8080), port(9090, 9090)];
    let changes = vec![
        Change::Host(host),
        workload("web", 1, TunnelProtocol::Hbone, vec![port(80, 80)]),
        workload("api", 1, TunnelProtocol::Hbone, vec![port(80, 81)]),
        workload("orders", 2, TunnelProtocol::Hbone, orders()),
        workload("legacy", 3, TunnelProtocol::None, vec![port(5432, 5432)]),
        service("web", 1, vec![port(80, 80)]),
        service("orders", 2, orders()),
        service("legacy", 3, vec![port(5432, 5432)]),
        service("empty", 4, vec![port(80, 80)]),
        deny("td/ns/shop/sa/web", 9090),
    ];
    Snapshot::default().apply(Delta { revision: 1, changes })
}

struct Row {
    src: &'static str,
    dst: &'static str,
    allowed: bool,
    policy: Option<&'static str>,
    says: &'static [&'static str],
}

#[test]
fn questions_and_answers() {
    let rows = [
        Row {
            src: "shop/web",
            dst: "orders.shop.mesh:80",
            allowed: true,
            policy: None,
            says: &[
                "name: orders.shop.mesh is service shop/orders.shop.mesh, 240.240.0.2",
                "service: shop/orders.shop.mesh port 80, target port 8080",
                "endpoint: tombolo/shop/orders/h2 at 10.0.0.2:8080",
                "tunnel: mTLS to 10.0.0.2:15008 (HBONE); it must prove spiffe://td/ns/shop/sa/orders",
                "policy: no policy applies",
            ],
        },
        Row {
            src: "shop/web",
            dst: "orders.shop.svc.cluster.local:9090",
            allowed: false,
            policy: Some("shop/no-web-on-admin"),
            says: &[
                "policy: denied by shop/no-web-on-admin",
                "refused: denied by shop/no-web-on-admin at tombolo/shop/orders/h2",
            ],
        },
        Row {
            src: "spiffe://td/ns/shop/sa/web",
            dst: "240.240.0.2:9090",
            allowed: false,
            policy: Some("shop/no-web-on-admin"),
            says: &[],
        },
        Row { src: "shop/api", dst: "orders.shop.mesh:9090", allowed: true, policy: None, says: &[] },
        Row { src: "10.0.0.9", dst: "orders.shop.mesh:9090", allowed: true, policy: None, says: &[] },
        Row {
            src: "10.0.0.2",
            dst: "web.shop.mesh",
            allowed: true,
            policy: None,
            says: &["service: shop/web.shop.mesh port 80"],
        },
        Row {
            src: "shop/web",
            dst: "10.0.0.2:8080",
            allowed: true,
            policy: None,
            says: &["service: none: 10.0.0.2:8080 is a workload's own address", "tunnel: mTLS"],
        },
        Row {
            src: "shop/web",
            dst: "legacy.shop.mesh",
            allowed: true,
            policy: None,
            says: &["tunnel: none: it is not meshed"],
        },
        Row {
            src: "shop/web",
            dst: "www.example.com:443",
            allowed: true,
            policy: None,
            says: &["name: www.example.com is not a name of the mesh"],
        },
        Row { src: "shop/web", dst: "192.0.2.1:443", allowed: true, policy: None, says: &["nobody the mesh knows"] },
        Row {
            src: "shop/web",
            dst: "orders.shop.mesh:81",
            allowed: false,
            policy: None,
            says: &["has no port 81; it has 80, 9090"],
        },
        Row {
            src: "shop/web",
            dst: "empty.shop.mesh",
            allowed: false,
            policy: None,
            says: &["has no workload that serves port 80"],
        },
        Row {
            src: "shop/web",
            dst: "10.0.0.2:15008",
            allowed: false,
            policy: None,
            says: &["one of the agent's own ports"],
        },
    ];
    let snapshot = snapshot(&["web", "api"]);
    for Row { src, dst, allowed, policy, says } in rows {
        let answer =
            explain(&snapshot, &PORTS.into(), src, dst).unwrap_or_else(|error| panic!("{src} -> {dst}: {error}"));
        let mut told: Vec<String> = answer.steps.iter().map(|step| format!("{}: {}", step.step, step.answer)).collect();
        told.push(answer.conclusion.clone());
        assert_eq!((answer.allowed, answer.policy.as_deref()), (allowed, policy), "{src} -> {dst}: {told:#?}");
        for line in says {
            assert!(told.iter().any(|said| said.contains(line)), "{src} -> {dst}: nobody says {line:?}: {told:#?}");
        }
    }
}

#[test]
fn questions_that_name_nothing_say_what_to_ask() {
    let two = snapshot(&["web", "api"]);
    let one = snapshot(&["web"]);
    let check = |snapshot: &Snapshot, src: &str, dst: &str, says: &str| {
        let error = explain(snapshot, &PORTS.into(), src, dst).expect_err("it names nothing").to_string();
        assert!(error.contains(says), "{error}");
    };
    check(&two, "", "orders.shop.mesh:80", "say which one asks: shop/web, shop/api");
    check(&two, "nobody", "orders.shop.mesh:80", "is no source");
    check(&one, "", "orders.shop.mesh", "several ports (80, 9090)");
    check(&one, "", "10.0.0.2", "10.0.0.2:PORT");
    check(&one, "", "orders.shop.mesh:http", "is no destination");
    check(&one, "", "", "is no destination");
    assert!(
        explain(&one, &PORTS.into(), "", "web.shop.mesh")
            .expect("this host's only workload")
            .question
            .contains("tombolo/shop/web/h1")
    );
}
