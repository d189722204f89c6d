//! Tables for what the snapshot makes of the rules.
use super::*;
use api::snapshot::Change;
use api::{Class, Delta, HostConfig, LocalWorkload, NamespacedHostname, Port, Selector, Service, Workload};
use std::time::Duration;

fn workload(uid: &str, last: u8, tunnel_protocol: TunnelProtocol) -> Change {
    let orders = NamespacedHostname { namespace: "shop".into(), hostname: "orders.shop.mesh".into() };
    let port = |service_port, target_port| Port { service_port, target_port, app_protocol: Default::default() };
    Change::Workload(Workload {
        uid: uid.into(),
        name: uid.into(),
        addresses: vec![[10, 0, 0, last].into(), std::net::IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)])],
        hostname: String::new(),
        node: String::new(),
        healthy: true,
        capacity: 1,
        class: Class {
            namespace: "shop".into(),
            network: String::new(),
            tunnel_protocol,
            trust_domain: "td".parse().expect("valid"),
            service_account: "orders".into(),
            canonical_name: String::new(),
            canonical_revision: String::new(),
            workload_name: String::new(),
            cluster_id: String::new(),
            locality: Default::default(),
            services: [(orders, vec![port(80, 8080), port(81, 0)])].into(),
            authorization_policies: vec![],
        }
        .into(),
    })
}

fn snapshot() -> Snapshot {
    let local = |group: &str, ports: &[(u16, InboundMode)]| LocalWorkload {
        uid: group.into(),
        namespace: "shop".into(),
        group: group.into(),
        service_account: group.into(),
        ports: ports.iter().copied().collect(),
        selector: Selector::default(),
        probe: None,
    };
    let workloads = vec![
        local("web", &[(80, InboundMode::Permissive), (90, InboundMode::Observe)]),
        local("api", &[(90, InboundMode::Strict)]),
    ];
    let service = Service {
        name: "orders".into(),
        namespace: "shop".into(),
        hostname: "orders.shop.mesh".into(),
        vips: vec![[240, 240, 0, 1].into()],
        ports: vec![],
        subject_alt_names: vec![],
        allow_unhealthy: false,
    };
    let changes = vec![
        Change::Host(HostConfig { host: "h".into(), workloads, lease: Duration::from_secs(30) }),
        Change::Service(service),
        workload("meshed", 1, TunnelProtocol::Hbone),
        workload("plain", 2, TunnelProtocol::None),
    ];
    Snapshot::default().apply(Delta { revision: 1, changes })
}

fn wanted(snapshot: Snapshot, settings: &config::Interception, names: &NamesVia) -> Wanted {
    Asked::new(Arc::new(snapshot), None, settings, names, OwnPorts::default()).wanted()
}

#[test]
fn only_the_meshs_own_destinations_are_captured() {
    let settings = config::Config::defaults().interception;
    let wanted = wanted(snapshot(), &settings, &NamesVia::Resolved);
    assert_eq!(wanted.vips.iter().map(ToString::to_string).collect::<Vec<_>>(), ["240.240.0.1"]);
    let endpoints: Vec<String> = wanted.endpoints.iter().map(ToString::to_string).collect();
    assert_eq!(
        endpoints,
        ["10.0.0.1:8080", "[fd00::1]:8080"],
        "both families, no unmeshed one, no port that nobody knows"
    );
    assert_eq!(wanted.inbound, [(80, InboundMode::Permissive), (90, InboundMode::Strict)].into());
    assert_eq!(wanted.dns, None);
    assert!(!wanted.captures("10.0.0.1:22".parse().expect("an address")));
}

#[test]
fn the_configuration_is_carried_over() {
    let mut settings = config::Config::defaults().interception;
    settings.capture = config::Capture::All;
    settings.exclude.uids = vec![7];
    settings.exclude.ports = vec![5432];
    settings.exclude.units = vec!["backup.service".into()];
    settings.exclude.cidrs = vec!["10.9.0.0/16".parse().expect("a network")];
    let resolver = [10, 0, 0, 53].into();
    let wanted = wanted(snapshot(), &settings, &NamesVia::Port53(vec![resolver]));
    assert_eq!(wanted.capture, Capture::All);
    assert_eq!(wanted.dns, Some(vec![resolver]));
    assert_eq!((wanted.exclusions.uids.len(), wanted.exclusions.ports.len(), wanted.exclusions.cidrs.len()), (1, 1, 1));
    assert!(wanted.exclusions.units.contains("backup.service"));
}

#[test]
fn only_destinations_that_came_or_went_are_changed() {
    let (settings, before) = (config::Config::defaults().interception, Arc::new(snapshot()));
    let asked = |obeyed: &Arc<Snapshot>, coming: Option<&Arc<Snapshot>>| {
        Asked::new(obeyed.clone(), coming.cloned(), &settings, &NamesVia::Resolved, OwnPorts::default())
    };
    let endpoint = |text: &str| Destination::Workload(text.parse().expect("an endpoint"));
    let next = |changes| Arc::new(before.apply(Delta { revision: 2, changes }));
    let now = asked(&before, None);
    // A second workload at an address that is captured already, and one at a new one.
    let after = next(vec![
        workload("same", 1, TunnelProtocol::Hbone),
        workload("new", 3, TunnelProtocol::Hbone),
        Change::AddressRemoved("meshed".into()),
    ]);
    let new = vec![endpoint("10.0.0.3:8080"), endpoint("[fd00::3]:8080")];
    let covering = asked(&before, Some(&after));
    assert_eq!(covering.since(&now), Some((new.clone(), vec![])));
    let settled = asked(&after, None);
    assert_eq!(settled.since(&covering), Some((vec![], vec![])), "the address of the one that went is another's, too");
    assert_eq!(now.since(&settled), Some((vec![], new)));
    assert_eq!(settled.wanted(), asked(&after, Some(&after)).wanted());
    assert_eq!(covering.wanted().endpoints.len(), now.wanted().endpoints.len() + 2);
    // Health moves nothing; the last service address takes its rules along.
    assert_eq!(
        asked(&next(vec![workload("meshed", 1, TunnelProtocol::Hbone)]), None).since(&now),
        Some((vec![], vec![]))
    );
    assert_eq!(asked(&next(vec![Change::AddressRemoved("shop/orders.shop.mesh".into())]), None).since(&now), None);
    assert_eq!(asked(&next(vec![Change::HostRemoved]), None).since(&now), None);
}
