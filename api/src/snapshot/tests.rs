//! Tables for snapshots: indexes follow every change.
use super::*;
use crate::locality::Locality;
use crate::service::AppProtocol;
use crate::workload::{Class, TunnelProtocol};

pub(crate) fn workload(uid: &str, address: [u8; 4]) -> Workload {
    let orders = NamespacedHostname { namespace: "shop".into(), hostname: "orders.shop.mesh".into() };
    let port = Port { service_port: 80, target_port: 8080, app_protocol: AppProtocol::Unknown };
    Workload {
        uid: uid.into(),
        name: uid.into(),
        addresses: vec![address.into()],
        hostname: String::new(),
        node: "h1".into(),
        healthy: true,
        capacity: 1,
        class: Class {
            namespace: "shop".into(),
            network: String::new(),
            tunnel_protocol: TunnelProtocol::Hbone,
            trust_domain: "td".parse().expect("valid"),
            service_account: "orders".into(),
            canonical_name: "orders".into(),
            canonical_revision: String::new(),
            workload_name: "orders".into(),
            cluster_id: String::new(),
            locality: Locality::default(),
            services: [(orders, vec![port])].into(),
            authorization_policies: vec![],
        }
        .into(),
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

#[test]
fn like_workloads_share_one_class_until_the_last_is_gone() {
    let like = |uid: &str, last: u8| Change::Workload(workload(uid, [10, 0, 0, last]));
    let first = Snapshot::default().apply(delta(1, vec![like("a", 1), like("b", 2)]));
    let class = |snapshot: &Snapshot, uid: &str| snapshot.workload(uid).expect("it is there").class.clone();
    assert!(Arc::ptr_eq(&class(&first, "a"), &class(&first, "b")));

    let mut other = workload("b", [10, 0, 0, 2]);
    other.canonical_revision = "v2".into();
    let second = first.apply(delta(2, vec![Change::Workload(other)]));
    assert!(!Arc::ptr_eq(&class(&second, "a"), &class(&second, "b")));
    assert_eq!((class(&second, "a").canonical_revision.as_str(), second.classes.len()), ("", 2));

    let third = second.apply(delta(3, vec![Change::AddressRemoved("b".into()), like("a", 9)]));
    assert_eq!((third.classes.len(), second.classes.len()), (1, 2), "what nobody has is not held");
    let last = third.apply(delta(4, vec![Change::AddressRemoved("a".into())]));
    assert!(last.classes.is_empty() && last.workloads_by_address.is_empty() && last.endpoints.is_empty());
}
