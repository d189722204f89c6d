//! Small meshes for this crate's tests: workloads, services and snapshots by hand.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::service::AppProtocol;
use api::snapshot::Change;
use api::{Class, Delta, HostConfig, InboundMode, LocalWorkload, Locality, Port, Selector, Service, Snapshot};
use api::{TunnelProtocol, Workload};

/// A healthy HBONE workload of trust domain `td`, of a group and service account named `account`.
pub(crate) fn workload(uid: &str, namespace: &str, account: &str, addresses: &[&str]) -> Workload {
    Workload {
        uid: uid.into(),
        name: uid.rsplit('/').next().unwrap_or(uid).to_owned(),
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        hostname: String::new(),
        node: String::new(),
        healthy: true,
        capacity: 1,
        class: Class {
            namespace: namespace.to_owned(),
            network: String::new(),
            tunnel_protocol: TunnelProtocol::Hbone,
            trust_domain: "td".parse().expect("well-formed"),
            service_account: account.to_owned(),
            canonical_name: account.to_owned(),
            canonical_revision: "latest".to_owned(),
            workload_name: account.to_owned(),
            cluster_id: String::new(),
            locality: Locality::default(),
            services: BTreeMap::new(),
            authorization_policies: Vec::new(),
        }
        .into(),
    }
}

/// `workload` as an endpoint of `service`, which then is at `target_port` for `service_port`.
pub(crate) fn endpoint_of(mut workload: Workload, service: &Service, service_port: u16, target_port: u16) -> Workload {
    let port = Port { service_port, target_port, app_protocol: AppProtocol::Tcp };
    workload.services.entry(service.key()).or_default().push(port);
    workload
}

pub(crate) fn service(name: &str, namespace: &str, vips: &[&str], ports: &[u16]) -> Service {
    let port =
        |service_port: &u16| Port { service_port: *service_port, target_port: 0, app_protocol: AppProtocol::Tcp };
    Service {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        hostname: format!("{name}.{namespace}.mesh"),
        vips: vips.iter().map(|text| ip(text)).collect(),
        ports: ports.iter().map(port).collect(),
        subject_alt_names: Vec::new(),
        allow_unhealthy: false,
    }
}

/// The host's own entry for `workload`, listening on `ports`.
pub(crate) fn local(workload: &Workload, ports: &[u16]) -> LocalWorkload {
    LocalWorkload {
        uid: workload.uid.clone(),
        namespace: workload.namespace.clone(),
        group: workload.workload_name.clone(),
        service_account: workload.service_account.clone(),
        ports: ports.iter().map(|port| (*port, InboundMode::Observe)).collect(),
        selector: Selector::default(),
        probe: None,
    }
}

pub(crate) fn host(workloads: Vec<LocalWorkload>) -> HostConfig {
    HostConfig { host: "test".to_owned(), workloads, lease: std::time::Duration::from_secs(30) }
}

pub(crate) fn snapshot(changes: Vec<Change>) -> Snapshot {
    Snapshot::default().apply(Delta { revision: 1, changes })
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("a test's address is well-formed")
}
