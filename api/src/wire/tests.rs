//! The wire: every object survives a round trip, every foreign value is checked and its field named.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;
use crate::host::{Check, HostConfig, InboundMode, LocalWorkload, Probe, Selector};
use crate::locality::Locality;
use crate::policy::{Action, AuthorizationPolicy, Clause, Match, Rule, Scope, ServiceAccountMatch, StringMatch};
use crate::service::{AppProtocol, NamespacedHostname, Port, Service};
use crate::workload::{Class, TunnelProtocol, Workload};

fn name() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9-]{0,8}"
}

fn any_ip() -> impl Strategy<Value = IpAddr> {
    any::<IpAddr>().prop_map(|ip| ip.to_canonical())
}

fn any_net() -> impl Strategy<Value = IpNet> {
    (any::<IpAddr>(), 0..=128u8).prop_map(|(ip, bits)| {
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        crate::policy::canonical(IpNet::new(ip, bits.min(longest)).expect("fits").trunc())
    })
}

fn port_number() -> impl Strategy<Value = u16> {
    1..=u16::MAX
}

fn port_pair() -> impl Strategy<Value = Port> {
    use AppProtocol::{Grpc, Http2, Http11, Tcp, Tls, Unknown};
    let protocol = proptest::sample::select(vec![Unknown, Http11, Http2, Grpc, Tcp, Tls]);
    (port_number(), port_number(), protocol).prop_map(|(service_port, target_port, app_protocol)| Port {
        service_port,
        target_port,
        app_protocol,
    })
}

fn any_workload() -> impl Strategy<Value = Workload> {
    let key = (name(), name()).prop_map(|(namespace, hostname)| NamespacedHostname { namespace, hostname });
    let names = (name(), name(), "[a-z./-]{1,20}", name(), name());
    let more = (any::<bool>(), any::<bool>(), 0..9u32, vec(name(), 3), vec("[a-z]{1,3}/[a-z]{1,3}", 0..3));
    (names, vec(any_ip(), 0..3), btree_map(key, vec(port_pair(), 0..3), 0..3), more).prop_map(
        |((name, namespace, uid, service_account, trust_domain), addresses, services, more)| {
            let (meshed, healthy, capacity, text, authorization_policies) = more;
            Workload {
                uid: uid.into(),
                name,
                addresses,
                hostname: text[0].clone(),
                node: text[2].clone(),
                healthy,
                capacity,
                class: Class {
                    namespace,
                    network: text[1].clone(),
                    tunnel_protocol: if meshed { TunnelProtocol::Hbone } else { TunnelProtocol::None },
                    trust_domain: trust_domain.parse().expect("a-z0-9-"),
                    service_account,
                    canonical_name: text[0].clone(),
                    canonical_revision: text[1].clone(),
                    workload_name: text[2].clone(),
                    cluster_id: String::new(),
                    locality: Locality::parse(&text.join("/")),
                    services,
                    authorization_policies,
                }
                .into(),
            }
        },
    )
}

fn any_service() -> impl Strategy<Value = Service> {
    let ports = btree_map(port_number(), port_pair(), 0..4).prop_map(|ports| {
        let one = |(service_port, port)| Port { service_port, ..port };
        ports.into_iter().map(one).collect()
    });
    (name(), name(), name(), vec(any_ip(), 0..3), ports, vec(name(), 0..2), any::<bool>()).prop_map(
        |(name, namespace, hostname, vips, ports, subject_alt_names, allow_unhealthy)| Service {
            name,
            namespace,
            hostname,
            vips,
            ports,
            subject_alt_names,
            allow_unhealthy,
        },
    )
}

fn string_match() -> impl Strategy<Value = StringMatch> {
    prop_oneof![
        ".{0,9}".prop_map(StringMatch::Exact),
        ".{0,9}".prop_map(StringMatch::Prefix),
        ".{0,9}".prop_map(StringMatch::Suffix),
        Just(StringMatch::Presence)
    ]
}

fn any_match() -> impl Strategy<Value = Match> {
    let account = (name(), name());
    let account = account.prop_map(|(namespace, service_account)| ServiceAccountMatch { namespace, service_account });
    let texts = vec(vec(string_match(), 0..3), 4);
    let nets = vec(vec(any_net(), 0..3), 4);
    let ports = vec(vec(port_number(), 0..3), 2);
    let accounts = vec(vec(account, 0..2), 2);
    (texts, nets, ports, accounts).prop_map(|(texts, nets, ports, accounts)| Match {
        namespaces: texts[0].clone(),
        not_namespaces: texts[1].clone(),
        principals: texts[2].clone(),
        not_principals: texts[3].clone(),
        source_ips: nets[0].clone(),
        not_source_ips: nets[1].clone(),
        destination_ips: nets[2].clone(),
        not_destination_ips: nets[3].clone(),
        destination_ports: ports[0].clone(),
        not_destination_ports: ports[1].clone(),
        service_accounts: accounts[0].clone(),
        not_service_accounts: accounts[1].clone(),
    })
}

fn any_policy() -> impl Strategy<Value = AuthorizationPolicy> {
    let scope = proptest::sample::select(vec![Scope::Global, Scope::Namespace, Scope::WorkloadSelector]);
    let action = proptest::sample::select(vec![Action::Allow, Action::Deny, Action::Audit]);
    let clause = vec(any_match(), 0..2).prop_map(|matches| Clause { matches });
    let rule = vec(clause, 0..2).prop_map(|clauses| Rule { clauses });
    (name(), name(), scope, action, vec(rule, 0..2), any::<bool>()).prop_map(
        |(name, namespace, scope, action, rules, dry_run)| AuthorizationPolicy {
            name,
            namespace,
            scope,
            action,
            rules,
            dry_run: dry_run && action != Action::Audit,
        },
    )
}

fn any_host() -> impl Strategy<Value = HostConfig> {
    let mode = proptest::sample::select(vec![InboundMode::Permissive, InboundMode::Observe, InboundMode::Strict]);
    let selector = (proptest::option::of(name()), proptest::option::of(name()), any::<Option<u32>>())
        .prop_map(|(unit, cgroup, uid)| Selector { unit, cgroup, uid });
    let headers = btree_map(name(), ".{0,5}", 0..2);
    let check = prop_oneof![
        (name(), port_number()).prop_map(|(host, port)| Check::Tcp { host, port }),
        (name(), port_number(), ".{0,9}", headers).prop_map(|(host, port, path, headers)| {
            Check::Http { scheme: "http".into(), host, port, path, headers }
        }),
        vec(".{0,5}", 1..3).prop_map(|command| Check::Exec { command }),
    ];
    let probe = (check, 0..99u64, 1..99u64, 1..9u32).prop_map(|(check, delay, period, threshold)| Probe {
        check,
        initial_delay: Duration::from_secs(delay),
        timeout: Duration::from_secs(period),
        period: Duration::from_secs(period),
        success_threshold: threshold,
        failure_threshold: threshold,
    });
    let workload = (name(), name(), btree_map(port_number(), mode, 0..3), selector, proptest::option::of(probe))
        .prop_map(|(group, namespace, ports, selector, probe)| LocalWorkload {
            uid: "".into(),
            namespace,
            service_account: group.clone(),
            group,
            ports,
            selector,
            probe,
        });
    (name(), vec(workload, 0..3), 1..999u64).prop_map(|(host, mut workloads, lease)| {
        for (n, workload) in workloads.iter_mut().enumerate() {
            workload.uid = format!("tombolo/{n}").into();
        }
        HostConfig { host, workloads, lease: Duration::from_secs(lease) }
    })
}

fn any_change() -> impl Strategy<Value = Change> {
    let bundle = vec(vec(any::<u8>(), 1..9), 1..3)
        .prop_map(|roots| TrustBundle { trust_domain: "corp.example".parse().expect("valid"), roots });
    prop_oneof![
        any_workload().prop_map(Change::Workload),
        any_service().prop_map(Change::Service),
        any_policy().prop_map(Change::Policy),
        any_host().prop_map(Change::Host),
        bundle.prop_map(Change::Bundle),
    ]
}

proptest! {
    #[test]
    fn every_object_survives_a_round_trip(change in any_change()) {
        let encoded = encode(&change).expect("not a removal");
        prop_assert_eq!(decode(encoded.type_url, &encoded.name, &encoded.body), Ok(change));
    }

    #[test]
    fn a_damaged_body_is_refused_or_read_but_never_panics(
        change in any_change(), at in any::<proptest::sample::Index>(), byte in any::<u8>()
    ) {
        let mut encoded = encode(&change).expect("not a removal");
        if !encoded.body.is_empty() {
            let at = at.index(encoded.body.len());
            encoded.body[at] = byte;
        }
        let _ = decode(encoded.type_url, &encoded.name, &encoded.body).map_err(|error| error.to_string());
    }
}

fn workload_message() -> workload::Workload {
    workload::Workload { uid: "u".into(), namespace: "shop".into(), ..Default::default() }
}

fn refused<M: Message>(type_url: &str, name: &str, message: M) -> String {
    decode(type_url, name, &message.encode_to_vec()).expect_err("it was taken").to_string()
}

#[test]
fn empty_means_what_istio_means_by_it() {
    let body = address(workload::address::Type::Workload(workload_message()));
    let Ok(Change::Workload(found)) = decode(ADDRESS, "u", &body) else { panic!("not taken") };
    assert_eq!(found.identity().expect("valid").to_string(), "spiffe://cluster.local/ns/shop/sa/default");
    assert_eq!((found.healthy, found.capacity, found.tunnel_protocol), (true, 1, TunnelProtocol::None));
}

#[test]
fn a_workload_with_a_bad_field_is_refused_and_the_field_is_named() {
    let port = |service_port, target_port| workload::Port { service_port, target_port, app_protocol: 0 };
    let of = |service: &str, port| BTreeMap::from([(service.to_owned(), workload::PortList { ports: vec![port] })]);
    let base = workload_message;
    let cases: &[(workload::Workload, &str)] = &[
        (workload::Workload { uid: String::new(), ..base() }, "uid: is missing"),
        (workload::Workload { namespace: String::new(), ..base() }, "namespace: is missing"),
        (
            workload::Workload { addresses: vec![vec![1; 4], vec![1; 5]], ..base() },
            "addresses[1]: an address has 4 or 16 bytes, this one has 5",
        ),
        (workload::Workload { tunnel_protocol: 2, ..base() }, "tunnel_protocol: LEGACY_ISTIO_MTLS is not supported"),
        (workload::Workload { tunnel_protocol: 9, ..base() }, "tunnel_protocol: 9 is not a value"),
        (workload::Workload { workload_type: 9, ..base() }, "workload_type: 9 is not a value"),
        (workload::Workload { status: -1, ..base() }, "status: -1 is not a value"),
        (workload::Workload { trust_domain: "CORP".into(), ..base() }, "trust_domain: no identity"),
        (workload::Workload { service_account: "a/b".into(), ..base() }, "service_account: no identity"),
        (workload::Workload { services: of("x", port(1, 1)), ..base() }, r#"services["x"]: "x" is not NAMESPACE/"#),
        (
            workload::Workload { services: of("a/b", port(0, 1)), ..base() },
            r#"services["a/b"].ports[0].service_port: 0 is not a port"#,
        ),
        (
            workload::Workload { services: of("a/b", port(80, 65536)), ..base() },
            r#"services["a/b"].ports[0].target_port: 65536 is not a port"#,
        ),
        (
            workload::Workload { authorization_policies: vec!["x".into()], ..base() },
            r#"authorization_policies[0]: "x" is not NAMESPACE/NAME"#,
        ),
    ];
    for (message, expected) in cases {
        let message = workload::Address { r#type: Some(workload::address::Type::Workload(message.clone())) };
        let said = refused(ADDRESS, "u", message);
        assert!(said.contains(expected), "{said:?} does not say {expected:?}");
    }
}

#[test]
fn a_service_with_a_bad_field_is_refused_and_the_field_is_named() {
    let port = |service_port| workload::Port { service_port, target_port: 0, app_protocol: 0 };
    let vip = |bytes: usize, length| workload::NetworkAddress { address: vec![1; bytes], length, ..Default::default() };
    let base = || workload::Service { namespace: "shop".into(), hostname: "a.b".into(), ..Default::default() };
    let cases: &[(workload::Service, &str)] = &[
        (workload::Service { hostname: String::new(), ..base() }, "hostname: is missing"),
        (
            workload::Service { ports: vec![port(80), port(80)], ..base() },
            r#"ports[1].service_port: "80" occurs twice"#,
        ),
        (workload::Service { ports: vec![port(70000)], ..base() }, "ports[0].service_port: 70000 is not a port"),
        (workload::Service { addresses: vec![vip(3, None)], ..base() }, "addresses[0].address: an address has"),
        (workload::Service { addresses: vec![vip(4, Some(33))], ..base() }, "addresses[0].length: a prefix of 33"),
        (workload::Service { addresses: vec![vip(4, Some(24))], ..base() }, "addresses[0].length: a range"),
        (workload::Service { visibility: 7, ..base() }, "visibility: 7 is not"),
        (workload::Service { ip_families: 7, ..base() }, "ip_families: 7 is not"),
    ];
    for (message, expected) in cases {
        let message = workload::Address { r#type: Some(workload::address::Type::Service(message.clone())) };
        let said = refused(ADDRESS, "shop/a.b", message);
        assert!(said.contains(expected), "{said:?} does not say {expected:?}");
    }
}

#[test]
fn a_policy_with_a_bad_field_is_refused_and_the_field_is_named() {
    let base = || security::Authorization { name: "p".into(), namespace: "shop".into(), ..Default::default() };
    let with = |m: security::Match| {
        let clauses = vec![security::Clause { matches: vec![m] }];
        security::Authorization { rules: vec![security::Rule { clauses }], ..base() }
    };
    let net = |bytes: usize, length| vec![security::Address { address: vec![0; bytes], length }];
    let extension = security::Extension::default();
    let account = security::ServiceAccountMatch { namespace: "a".into(), service_account: String::new() };
    let cases: &[(security::Authorization, &str)] = &[
        (security::Authorization { action: 2, ..base() }, "action: 2 is not"),
        (security::Authorization { scope: 3, ..base() }, "scope: 3 is not"),
        (security::Authorization { name: String::new(), ..base() }, "name: is missing"),
        (with(security::Match { source_ips: net(4, 33), ..Default::default() }), "source_ips[0].length: a prefix"),
        (with(security::Match { source_ips: net(16, 300), ..Default::default() }), "source_ips[0].length: a prefix"),
        (with(security::Match { not_destination_ips: net(5, 1), ..Default::default() }), "ips[0].address: an address"),
        (with(security::Match { destination_ports: vec![80, 0], ..Default::default() }), "destination_ports[1]: 0 is"),
        (
            with(security::Match { principals: vec![security::StringMatch::default()], ..Default::default() }),
            "rules[0].clauses[0].matches[0].principals[0].match_type: is missing",
        ),
        (
            with(security::Match { service_accounts: vec![account], ..Default::default() }),
            "service_account: is missing",
        ),
        (with(security::Match { extensions: vec![extension], ..Default::default() }), "extensions: an extension"),
    ];
    for (message, expected) in cases {
        let said = refused(AUTHORIZATION, "shop/p", message.clone());
        assert!(said.contains(expected), "{said:?} does not say {expected:?}");
    }
}

#[test]
fn an_audit_policy_is_harmless_to_a_stock_ztunnel() {
    let policy = AuthorizationPolicy {
        name: "watch".into(),
        namespace: "shop".into(),
        scope: Scope::Namespace,
        action: Action::Audit,
        rules: vec![Rule::default()],
        dry_run: false,
    };
    let message = security::Authorization::from(&policy);
    assert_eq!((message.action(), message.dry_run), (security::Action::Allow, true));
    assert_eq!(AuthorizationPolicy::try_from(message), Ok(policy));
}

#[test]
fn a_host_or_bundle_with_a_bad_field_is_refused_and_the_field_is_named() {
    let base = || tombolo::LocalWorkload { uid: "u".into(), namespace: "shop".into(), ..Default::default() };
    let port = |port, mode| vec![tombolo::InboundPort { port, mode }];
    let probe = |check| Some(tombolo::Probe { check, ..Default::default() });
    let exec = tombolo::probe::Check::Exec(tombolo::ExecCheck::default());
    let cases: &[(tombolo::LocalWorkload, &str)] = &[
        (tombolo::LocalWorkload { ports: port(0, 0), ..base() }, "workloads[0].ports[0].port: 0 is"),
        (tombolo::LocalWorkload { ports: port(80, 5), ..base() }, "workloads[0].ports[0].mode: 5 is"),
        (
            tombolo::LocalWorkload { ports: [port(80, 0), port(80, 1)].concat(), ..base() },
            "ports[1].port: \"80\" occurs",
        ),
        (tombolo::LocalWorkload { probe: probe(None), ..base() }, "workloads[0].probe.check: is missing"),
        (tombolo::LocalWorkload { probe: probe(Some(exec)), ..base() }, "probe.exec.command: is missing"),
        (tombolo::LocalWorkload { service_account: "..".into(), ..base() }, "service_account: no identity"),
    ];
    for (workload, expected) in cases {
        let message = tombolo::HostConfig { host: "h".into(), workloads: vec![workload.clone()], lease_s: 9 };
        let said = refused(HOST_CONFIG, "h", message);
        assert!(said.contains(expected), "{said:?} does not say {expected:?}");
    }
    let twice = tombolo::HostConfig { host: "h".into(), workloads: vec![base(), base()], lease_s: 9 };
    assert!(refused(HOST_CONFIG, "h", twice).contains(r#"workloads[1].uid: "u" occurs twice"#));
    let empty = tombolo::TrustBundle { trust_domain: "td".into(), roots: vec![] };
    assert!(refused(TRUST_BUNDLE, "td", empty).contains("roots: is missing"));
}

#[test]
fn a_name_that_is_not_its_objects_is_refused() {
    let body = address(workload::address::Type::Workload(workload_message()));
    let expected = WireError::OtherName { name: "other".into(), says: "u".into() };
    assert_eq!(decode(ADDRESS, "other", &body), Err(expected));
    assert!(matches!(decode(ADDRESS, "u", &[0xff; 9]), Err(WireError::Undecodable { .. })));
    assert!(matches!(decode("type.googleapis.com/x", "u", &body), Err(WireError::UnknownType { .. })));
}

#[test]
fn removals_are_told_by_type_and_name() {
    assert_eq!(removal(ADDRESS, "a/b"), Ok(Change::AddressRemoved("a/b".into())));
    assert_eq!(removal(AUTHORIZATION, "a/b"), Ok(Change::PolicyRemoved("a/b".into())));
    assert_eq!(removal(HOST_CONFIG, "h"), Ok(Change::HostRemoved));
    assert_eq!(removal(TRUST_BUNDLE, "td"), Ok(Change::BundleRemoved("td".parse().expect("valid"))));
    assert!(removal(TRUST_BUNDLE, "T D").is_err() && removal("x", "y").is_err());
    assert_eq!(encode(&Change::HostRemoved), None);
}

#[test]
fn fuzzed_bodies_are_refused_or_written_back_the_same() {
    let types = [ADDRESS, AUTHORIZATION, HOST_CONFIG, TRUST_BUNDLE];
    for (file, input) in crate::corpus::files("wire") {
        let Some((kind, body)) = input.split_first() else { continue };
        let type_url = types[usize::from(*kind) % types.len()];
        let change = match decode(type_url, "", body) {
            Err(WireError::OtherName { says, .. }) => decode(type_url, &says, body),
            other => other,
        };
        if let Ok(change) = change {
            let encoded = encode(&change).expect("no removal");
            assert_eq!(decode(encoded.type_url, &encoded.name, &encoded.body), Ok(change), "{file}");
        }
    }
}
