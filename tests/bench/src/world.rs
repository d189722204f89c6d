//! A mesh of any size, made up: services of ten workloads each, a hundred services a namespace.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use api::policy::{Action, Clause, Match, Rule, Scope, StringMatch};
use api::service::AppProtocol;
use api::snapshot::Change;
use api::wire::{self, xds};
use api::{
    AuthorizationPolicy, Class, Locality, NamespacedHostname, Port, Service, Snapshot, TrustDomain, TunnelProtocol,
    Workload,
};

pub const TRUST_DOMAIN: &str = "corp.example";
const PER_SERVICE: u32 = 10;
/// What callers dial and workloads listen on.
pub const PORT: Port = Port { service_port: 80, target_port: 8080, app_protocol: AppProtocol::Tcp };

fn namespace(service: u32) -> String {
    format!("team-{}", service / 100)
}

fn hostname(service: u32) -> String {
    format!("service-{service}.{}.mesh", namespace(service))
}

/// The virtual address of a service.
pub fn vip(service: u32) -> IpAddr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(240, 240, 0, 1)) + service).into()
}

/// The own address of a workload.
pub fn address(workload: u32) -> IpAddr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 1)) + workload).into()
}

pub fn service(number: u32) -> Service {
    Service {
        name: format!("service-{number}"),
        namespace: namespace(number),
        hostname: hostname(number),
        vips: vec![vip(number)],
        ports: vec![PORT],
        subject_alt_names: Vec::new(),
        allow_unhealthy: false,
    }
}

pub fn workload(number: u32) -> Workload {
    let service = number / PER_SERVICE;
    let key = NamespacedHostname { namespace: namespace(service), hostname: hostname(service) };
    Workload {
        uid: Arc::from(format!("tombolo/{}/service-{service}/host-{number}", namespace(service))),
        name: format!("service-{service}-host-{number}"),
        addresses: vec![address(number)],
        hostname: String::new(),
        node: format!("host-{number}"),
        healthy: true,
        capacity: 1,
        class: Class {
            namespace: namespace(service),
            network: String::new(),
            tunnel_protocol: TunnelProtocol::Hbone,
            trust_domain: TRUST_DOMAIN.parse::<TrustDomain>().expect("a trust domain"),
            service_account: format!("service-{service}"),
            canonical_name: format!("service-{service}"),
            canonical_revision: "latest".to_owned(),
            workload_name: format!("service-{service}"),
            cluster_id: "corp".to_owned(),
            locality: Locality::parse("eu/eu-1/a"),
            services: BTreeMap::from([(key, vec![PORT])]),
            authorization_policies: vec![format!("{}/callers", namespace(service))],
        }
        .into(),
    }
}

/// Ten callers by principal, and one port.
pub fn policy(namespace: &str, action: Action) -> AuthorizationPolicy {
    let principal = |n| StringMatch::Exact(format!("{TRUST_DOMAIN}/ns/{namespace}/sa/service-{n}"));
    let callers = Match { principals: (0..10).map(principal).collect(), ..Match::default() };
    let port = Match { destination_ports: vec![PORT.target_port], ..Match::default() };
    let clauses = vec![Clause { matches: vec![callers] }, Clause { matches: vec![port] }];
    AuthorizationPolicy {
        name: "callers".to_owned(),
        namespace: namespace.to_owned(),
        scope: Scope::WorkloadSelector,
        action,
        rules: vec![Rule { clauses }],
        dry_run: false,
    }
}

/// Everything that a mesh of so many workloads is made of.
pub fn changes(n_workloads: u32) -> Vec<Change> {
    let services = (0..n_workloads / PER_SERVICE).map(|number| Change::Service(service(number)));
    services.chain((0..n_workloads).map(|number| Change::Workload(workload(number)))).collect()
}

pub fn snapshot(n_workloads: u32) -> Snapshot {
    Snapshot::default().apply(api::Delta { revision: 1, changes: changes(n_workloads) })
}

/// The changes as the control plane sends them.
pub fn response(revision: u64, changes: &[Change]) -> xds::DeltaDiscoveryResponse {
    let encoded = changes.iter().filter_map(wire::encode);
    let resources = encoded.map(|encoded| xds::Resource {
        name: encoded.name,
        version: format!("{revision:016x}"),
        resource: Some(prost_types::Any { type_url: encoded.type_url.to_owned(), value: encoded.body }),
        ..xds::Resource::default()
    });
    xds::DeltaDiscoveryResponse {
        system_version_info: revision.to_string(),
        type_url: wire::ADDRESS.to_owned(),
        nonce: revision.to_string(),
        resources: resources.collect(),
        ..xds::DeltaDiscoveryResponse::default()
    }
}
