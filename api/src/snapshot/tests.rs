//! Tables for snapshots: indexes follow every change.
use super::*;
use crate::locality::Locality;
use crate::service::AppProtocol;
use crate::workload::TunnelProtocol;

pub(crate) fn workload(uid: &str, address: [u8; 4]) -> Workload {
    let orders = NamespacedHostname { namespace: "shop".into(), hostname: "orders.shop.mesh".into() };
    let port = Port { service_port: 80, target_port: 8080, app_protocol: AppProtocol::Unknown };
    Workload {
        uid: uid.into(),
        name: uid.into(),
        namespace: "shop".into(),
        addresses: vec![address.into()],
        hostname: String::new(),
        network: String::new(),
        tunnel_protocol: TunnelProtocol::Hbone,
        trust_domain: "td".parse().expect("valid"),
        service_account: "orders".into(),
        node: "h1".into(),
        canonical_name: "orders".into(),
        canonical_revision: String::new(),
        workload_name: "orders".into(),
        cluster_id: String::new(),
        locality: Locality::default(),
        services: [(orders, vec![port])].into(),
        authorization_policies: vec![],
        healthy: true,
        capacity: 1,
    }
}

fn service(vip: [u8; 4]) -> Service {
    Service {
        name: "orders".into(),
        namespace: "shop".into(),
        hostname: "orders.shop.mesh".into(),
        vips: vec![vip.into()],
        ports: vec![Port { service_port: 80, target_port: 8080, app_protocol: AppProtocol::Unknown }],
        subject_alt_names: vec![],
        allow_unhealthy: false,
    }
}

fn delta(revision: Revision, changes: Vec<Change>) -> Delta {
    Delta { revision, changes }
}

#[test]
fn indexes_follow_moves_and_removals() {
    let key: NamespacedHostname = "shop/orders.shop.mesh".parse().expect("valid");
    let first = Snapshot::default().apply(delta(
        1,
        vec![
            Change::Workload(workload("a", [10, 0, 0, 1])),
            Change::Workload(workload("b", [10, 0, 0, 1])),
            Change::Service(service([240, 240, 0, 1])),
        ],
    ));
    assert_eq!(first.workloads_at([10, 0, 0, 1].into()).count(), 2);
    assert_eq!(first.endpoints(&key, 80).len(), 2);
    assert_eq!(first.endpoints(&key, 81).len(), 0);

    let second = first.apply(delta(
        2,
        vec![
            Change::Workload(workload("a", [10, 0, 0, 9])),
            Change::AddressRemoved("b".into()),
            Change::Service(service([240, 240, 0, 2])),
        ],
    ));
    assert_eq!(second.revision(), 2);
    assert_eq!(second.workloads_at([10, 0, 0, 1].into()).count(), 0);
    assert_eq!(second.endpoints(&key, 80).len(), 1);
    assert!(second.service_by_vip([240, 240, 0, 1].into()).is_none());
    assert!(second.service_by_vip([240, 240, 0, 2].into()).is_some());
    assert_eq!(first.endpoints(&key, 80).len(), 2, "the older snapshot is untouched");

    let third = second.apply(delta(3, vec![Change::AddressRemoved("shop/orders.shop.mesh".into())]));
    assert!(third.services_by_hostname("orders.shop.mesh", None).is_empty());
    assert_eq!((third.len_services(), third.len_workloads()), (0, 1));
}
