//! Which names mean which service, and what each type of question gets.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::service::AppProtocol;
use api::snapshot::Change;
use api::{Class, Delta, Locality, Port, Service, Snapshot, TunnelProtocol, Workload};
use hickory_proto::op::Query;
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};

use super::{Answer, answer, asking_namespace, resolve};

fn service(namespace: &str, hostname: &str, vips: &[&str], ports: &[(u16, AppProtocol)]) -> Service {
    let ports = ports.iter().map(|&(service_port, app_protocol)| Port { service_port, target_port: 0, app_protocol });
    Service {
        name: hostname.split('.').next().unwrap_or_default().to_owned(),
        namespace: namespace.to_owned(),
        hostname: hostname.to_owned(),
        vips: vips.iter().map(|vip| vip.parse().expect("an address")).collect(),
        ports: ports.collect(),
        subject_alt_names: Vec::new(),
        allow_unhealthy: false,
    }
}

fn workload(uid: &str, address: &str, healthy: bool, of: &Service) -> Workload {
    Workload {
        uid: uid.into(),
        name: uid.to_owned(),
        addresses: vec![address.parse().expect("an address")],
        hostname: String::new(),
        node: String::new(),
        healthy,
        capacity: 1,
        class: Class {
            namespace: of.namespace.clone(),
            network: String::new(),
            tunnel_protocol: TunnelProtocol::Hbone,
            trust_domain: "mesh.example".parse().expect("a trust domain"),
            service_account: "default".to_owned(),
            canonical_name: String::new(),
            canonical_revision: String::new(),
            workload_name: String::new(),
            cluster_id: String::new(),
            locality: Locality::default(),
            services: BTreeMap::from([(of.key(), of.ports.clone())]),
            authorization_policies: Vec::new(),
        }
        .into(),
    }
}

fn snapshot() -> Snapshot {
    let http = [(80, AppProtocol::Http11), (9090, AppProtocol::Grpc)];
    let orders = service("shop", "orders.shop.mesh", &["240.240.0.5", "fd74:6d62:6f6c::5"], &http);
    let only_v4 = service("shop", "cart.shop.mesh", &["240.240.0.6"], &[]);
    let headless = service("shop", "db.shop.mesh", &[], &[(5432, AppProtocol::Tcp)]);
    let empty = service("shop", "empty.shop.mesh", &[], &[(1, AppProtocol::Tcp)]);
    let of_cluster = service("prod", "web.prod.svc.cluster.local", &["10.96.0.7"], &[(443, AppProtocol::Tls)]);
    let outside = service("shop", "api.pay.example", &["240.240.0.8"], &[(443, AppProtocol::Tls)]);
    let outside_dns = service("shop", "plain.pay.example", &[], &[(443, AppProtocol::Tls)]);
    let wildcard = service("shop", "*.files.example", &["240.240.0.9"], &[]);
    let narrower = service("shop", "*.eu.files.example", &["240.240.0.10"], &[]);
    let twice_a = service("a", "twice.example", &["240.240.0.11"], &[]);
    let twice_b = service("b", "twice.example", &["240.240.0.12"], &[]);
    let up = workload("up", "10.0.0.2", true, &headless);
    let down = workload("down", "10.0.0.3", false, &headless);
    let services =
        [orders, only_v4, headless, empty, of_cluster, outside, outside_dns, wildcard, narrower, twice_a, twice_b];
    let changes = services.map(Change::Service).into_iter().chain([Change::Workload(up), Change::Workload(down)]);
    Snapshot::default().apply(Delta { revision: 9, changes: changes.collect() })
}

/// An answer in one line: `NAME TYPE DATA, … + additional`.
fn said(answer: Answer) -> String {
    let line = |records: Vec<hickory_proto::rr::Record>| {
        let texts = records.iter().map(|record| match &record.data {
            RData::SRV(srv) => format!("{} {} {}", record.ttl, srv.port, srv.target),
            data => format!("{} {data}", record.ttl),
        });
        texts.collect::<Vec<_>>().join(", ")
    };
    match answer {
        Answer::Records { answers, additionals } if additionals.is_empty() => line(answers),
        Answer::Records { answers, additionals } => format!("{} + {}", line(answers), line(additionals)),
        Answer::NoData { zone } => format!("no data in {zone}"),
        Answer::NxDomain { zone } => format!("no name in {zone}"),
        Answer::Forward => "forward".to_owned(),
        Answer::Refused => "refused".to_owned(),
    }
}

fn ask(name: &str, record_type: RecordType) -> String {
    said(answer(&snapshot(), &Query::query(Name::from_ascii(name).expect("a name"), record_type), None))
}

#[test]
fn every_question_gets_its_answer() {
    use RecordType::{A, AAAA, ANY, AXFR, HTTPS, MX, NS, PTR, SOA, SRV, TXT};
    let table = [
        ("orders.shop.mesh.", A, "30 240.240.0.5"),
        ("ORDERS.Shop.MESH.", A, "30 240.240.0.5"),
        ("orders.shop.mesh.", AAAA, "30 fd74:6d62:6f6c::5"),
        ("orders.shop.mesh.", ANY, "30 240.240.0.5, 30 fd74:6d62:6f6c::5"),
        ("orders.shop.mesh.", TXT, "no data in mesh."),
        ("orders.shop.mesh.", HTTPS, "no data in mesh."),
        ("cart.shop.mesh.", AAAA, "no data in mesh."),
        ("cart.shop.mesh.", SRV, "no data in mesh."),
        // Aliases, both ways.
        ("orders.shop.svc.cluster.local.", A, "30 240.240.0.5"),
        ("orders.shop.svc.", A, "30 240.240.0.5"),
        ("cart.shop.svc.cluster.local.", AAAA, "no data in cart.shop.svc.cluster.local."),
        ("web.prod.svc.cluster.local.", A, "30 10.96.0.7"),
        ("web.prod.mesh.", A, "30 10.96.0.7"),
        ("web.prod.svc.", A, "30 10.96.0.7"),
        // Headless: the endpoints that are well.
        ("db.shop.mesh.", A, "5 10.0.0.2"),
        ("db.shop.mesh.", AAAA, "no data in mesh."),
        ("empty.shop.mesh.", A, "no data in mesh."),
        // Ports.
        (
            "orders.shop.mesh.",
            SRV,
            "30 80 orders.shop.mesh., 30 9090 orders.shop.mesh. + 30 240.240.0.5, 30 fd74:6d62:6f6c::5",
        ),
        ("_http._tcp.orders.shop.mesh.", SRV, "30 80 orders.shop.mesh. + 30 240.240.0.5, 30 fd74:6d62:6f6c::5"),
        ("_9090._tcp.orders.shop.mesh.", SRV, "30 9090 orders.shop.mesh. + 30 240.240.0.5, 30 fd74:6d62:6f6c::5"),
        ("_GRPC._TCP.orders.shop.svc.", SRV, "30 9090 orders.shop.svc. + 30 240.240.0.5, 30 fd74:6d62:6f6c::5"),
        ("_http._tcp.orders.shop.mesh.", A, "no data in mesh."),
        ("_81._tcp.orders.shop.mesh.", SRV, "no name in mesh."),
        ("_http._udp.orders.shop.mesh.", SRV, "no name in mesh."),
        ("_http._tcp.nobody.shop.mesh.", SRV, "no name in mesh."),
        ("_https._tcp.web.prod.svc.cluster.local.", SRV, "30 443 web.prod.svc.cluster.local. + 30 10.96.0.7"),
        ("_http._tcp.web.prod.svc.cluster.local.", SRV, "no name in web.prod.svc.cluster.local."),
        // Below .mesh nobody else is asked; names with names below them exist.
        ("nobody.shop.mesh.", A, "no name in mesh."),
        ("nobody.mesh.", A, "no name in mesh."),
        ("a.orders.shop.mesh.", A, "no name in mesh."),
        ("shop.mesh.", A, "no data in mesh."),
        ("hop.mesh.", A, "no name in mesh."),
        ("mesh.", SOA, "no data in mesh."),
        ("mesh.", NS, "no data in mesh."),
        ("mesh.", AXFR, "refused"),
        // Outside names: ours as far as they have a VIP, their owner's otherwise.
        ("api.pay.example.", A, "30 240.240.0.8"),
        ("api.pay.example.", AAAA, "no data in api.pay.example."),
        ("api.pay.example.", HTTPS, "no data in api.pay.example."),
        ("api.pay.example.", MX, "forward"),
        ("api.pay.example.", SRV, "forward"),
        ("_imap._tcp.api.pay.example.", SRV, "forward"),
        ("plain.pay.example.", A, "forward"),
        ("plain.pay.example.", HTTPS, "forward"),
        ("a.files.example.", A, "30 240.240.0.9"),
        ("a.b.files.example.", A, "30 240.240.0.9"),
        ("a.eu.files.example.", A, "30 240.240.0.10"),
        ("files.example.", A, "forward"),
        // Nothing of ours.
        ("example.com.", A, "forward"),
        ("nobody.prod.svc.cluster.local.", A, "forward"),
        ("com.", NS, "forward"),
        (".", NS, "forward"),
        ("mesh.example.", A, "forward"),
        ("mymesh.", A, "forward"),
        ("5.0.240.240.in-addr.arpa.", PTR, "forward"),
        ("example.com.", AXFR, "refused"),
        ("_.", A, "forward"),
        ("__._._.mesh.", SRV, "no name in mesh."),
    ];
    for (name, record_type, expect) in table {
        assert_eq!(ask(name, record_type), expect, "{name} {record_type}");
    }
}

#[test]
fn other_classes_are_never_answered() {
    let ask = |name: &str| {
        let mut question = Query::query(Name::from_ascii(name).expect("a name"), RecordType::TXT);
        question.set_query_class(DNSClass::CH);
        said(answer(&snapshot(), &question, None))
    };
    assert_eq!(ask("version.bind."), "forward");
    assert_eq!(ask("orders.shop.mesh."), "refused");
}

#[test]
fn the_own_namespaces_service_comes_first() {
    let vip = |namespace| resolve(&snapshot(), "Twice.Example.", namespace).expect("known").vips[0];
    assert_eq!(vip(None), "240.240.0.11".parse::<IpAddr>().expect("an address"));
    assert_eq!(vip(Some("b")), "240.240.0.12".parse::<IpAddr>().expect("an address"));
    assert_eq!(vip(Some("c")), "240.240.0.11".parse::<IpAddr>().expect("an address"));
    assert!(resolve(&snapshot(), "", None).is_none());
    assert!(resolve(&snapshot(), ".", None).is_none());
    assert_eq!(asking_namespace(&snapshot()), None);
}
