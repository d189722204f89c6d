//! Tests of `build`, the file beside this folder.

use std::net::IpAddr;

use api::resource::documents;
use api::{InboundMode, policy::Action};

use super::*;
use crate::store::WorkloadHealthRow;

const BASE: &str = r"
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: orders, namespace: shop}
spec:
  metadata:
    labels: {app: orders, version: v2}
    annotations: {tombolo.dev/unit: orders.service}
  template:
    serviceAccount: orders-sa
    ports: {http: 8080, admin: 9000}
    locality: eu/eu-1/rack-7
    weight: 3
---
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: stock, namespace: shop}
spec:
  metadata: {labels: {app: stock}}
  template: {}
  probe: {tcpSocket: {port: 7000}}
---
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec:
  selector: {app: orders}
  ports:
  - {name: http, port: 80, targetPort: http}
  - {name: grpc, port: 9443, targetPort: 9443}
  - {name: gone, port: 81, targetPort: nosuch}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: old-orders, namespace: shop}
spec:
  address: 192.0.2.9
  ports: {http: 8081}
  labels: {app: orders}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db, namespace: shop}
spec:
  hosts: [db.corp.example]
  addresses: [198.51.100.1]
  ports: [{number: 5432, name: tcp-pg, protocol: TCP}]
  resolution: STATIC
  endpoints:
  - address: 192.0.2.50
    ports: {tcp-pg: 6432}
    labels: {app: orders}
";

fn world(yaml: &str) -> World {
    let read = |value| Arc::new(Resource::from_value(value).expect("the test's resources are valid"));
    let host = |name: &str, last: u8, groups: &[(&str, &str)]| HostRow {
        name: name.to_owned(),
        addresses: vec![IpAddr::from([10, 0, 0, last])],
        groups: groups.iter().map(|(ns, name)| ((*ns).to_owned(), (*name).to_owned())).collect(),
        state: HostRowState::Active,
        alive: true,
    };
    World {
        revision: 5,
        resources: documents(yaml).expect("YAML").into_iter().map(read).collect(),
        hosts: vec![host("vm-1", 1, &[("shop", "orders"), ("shop", "stock")]), host("vm-2", 2, &[("shop", "orders")])],
        vips: BTreeMap::from([(("shop".to_owned(), "orders.shop.mesh".to_owned()), vec![[240, 240, 0, 1].into()])]),
        ..World::default()
    }
}

fn built(world: &World) -> Objects {
    let trust_domain = "mesh.example".parse().expect("well-formed");
    build(world, &Mesh { trust_domain, roots: vec![], lease: Duration::from_secs(15) })
}

fn orders_on<'a>(objects: &'a Objects, host: &str) -> &'a Workload {
    &objects.workloads[&format!("tombolo/shop/orders/{host}")]
}

#[test]
fn a_host_in_two_groups_runs_two_workloads() {
    let objects = built(&world(BASE));
    let orders = orders_on(&objects, "vm-1");
    assert_eq!((orders.name.as_str(), orders.node.as_str()), ("orders-vm-1", "vm-1"));
    assert_eq!(orders.identity().expect("valid").to_string(), "spiffe://mesh.example/ns/shop/sa/orders-sa");
    assert_eq!((orders.canonical_name.as_str(), orders.canonical_revision.as_str()), ("orders", "v2"));
    assert_eq!((orders.locality.to_string().as_str(), orders.capacity), ("eu/eu-1/rack-7", 3));
    assert_eq!(orders.tunnel_protocol, TunnelProtocol::Hbone);
    assert!(orders.healthy);
    let stock = &objects.workloads["tombolo/shop/stock/vm-1"];
    assert_eq!((stock.service_account.as_str(), stock.canonical_name.as_str()), ("default", "stock"));
    assert!(!stock.healthy, "it has a probe and has not yet proved itself");

    let config = &objects.hosts["vm-1"];
    let groups: Vec<&str> = config.workloads.iter().map(|local| local.group.as_str()).collect();
    assert_eq!(groups, ["orders", "stock"]);
    assert_eq!(config.workloads[0].selector.unit.as_deref(), Some("orders.service"));
    let ports: Vec<u16> = config.workloads[0].ports.keys().copied().collect();
    assert_eq!(ports, [8080, 9000, 9443], "declared, and what a service sends to");
    assert!(config.workloads[1].probe.is_some());
}

#[test]
fn services_find_their_endpoints_and_each_endpoints_own_port() {
    let objects = built(&world(BASE));
    let key = key("shop", "orders.shop.mesh");
    let service = &objects.services[&key];
    assert_eq!(service.vips, [IpAddr::from([240, 240, 0, 1])]);
    let targets: Vec<(u16, u16)> = service.ports.iter().map(|p| (p.service_port, p.target_port)).collect();
    assert_eq!(targets, [(80, 0), (9443, 9443), (81, 0)]);
    let endpoint = |workload: &Workload| -> Vec<(u16, u16)> {
        workload.services[&key].iter().map(|p| (p.service_port, p.target_port)).collect()
    };
    assert_eq!(endpoint(orders_on(&objects, "vm-2")), [(80, 8080), (9443, 9443)], "a name that it lacks is left out");
    let entry = &objects.workloads["tombolo/shop/entry/old-orders"];
    assert_eq!(endpoint(entry), [(80, 8081), (9443, 9443)]);
    assert_eq!(entry.tunnel_protocol, TunnelProtocol::None);
    assert!(!objects.workloads["tombolo/shop/stock/vm-1"].services.contains_key(&key));
}

#[test]
fn a_service_entry_with_endpoints_is_a_service_of_its_own() {
    let objects = built(&world(BASE));
    let db = key("shop", "db.corp.example");
    assert_eq!(objects.services[&db].vips, [IpAddr::from([198, 51, 100, 1])]);
    let endpoint = &objects.workloads["tombolo/shop/serviceentry/db/192.0.2.50"];
    assert_eq!(endpoint.services[&db][0].target_port, 6432);
    assert_eq!(endpoint.services.len(), 1, "its labels make it no endpoint of anything else");
}

#[test]
fn a_service_entry_selects_workloads_by_label() {
    let selecting = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: api, namespace: shop}
spec:
  hosts: [api.corp.example, api2.corp.example]
  ports: [{number: 443, name: admin}]
  location: MESH_INTERNAL
  resolution: STATIC
  workloadSelector: {labels: {app: orders}}
";
    let objects = built(&world(&format!("{BASE}---{selecting}")));
    for host in ["api.corp.example", "api2.corp.example"] {
        assert_eq!(orders_on(&objects, "vm-1").services[&key("shop", host)][0].target_port, 9000);
        assert!(objects.services.contains_key(&key("shop", host)));
    }
}

#[test]
fn health_and_leases_decide_who_is_healthy() {
    let mut world = world(BASE);
    let unhealthy = WorkloadHealthRow { host: "vm-2".to_owned(), healthy: false, reason: "refused".to_owned() };
    world.health.insert("tombolo/shop/orders/vm-2".to_owned(), unhealthy);
    let proved = WorkloadHealthRow { host: "vm-1".to_owned(), healthy: true, reason: String::new() };
    world.health.insert("tombolo/shop/stock/vm-1".to_owned(), proved);
    let objects = built(&world);
    assert!(orders_on(&objects, "vm-1").healthy && !orders_on(&objects, "vm-2").healthy);
    assert!(objects.workloads["tombolo/shop/stock/vm-1"].healthy);
    world.hosts[0].alive = false;
    let objects = built(&world);
    assert!(!orders_on(&objects, "vm-1").healthy, "nobody has heard of it in time");
}

#[test]
fn hosts_that_are_not_active_have_no_workloads() {
    for state in [HostRowState::Pending, HostRowState::Locked, HostRowState::Revoked] {
        let mut world = world(BASE);
        world.hosts[0].state = state;
        let objects = built(&world);
        assert!(!objects.workloads.contains_key("tombolo/shop/orders/vm-1"), "{state:?}");
        assert!(objects.workloads.contains_key("tombolo/shop/orders/vm-2"), "{state:?}");
        assert!(objects.hosts["vm-1"].workloads.is_empty(), "{state:?}: it is told so");
    }
    let mut world = world(BASE);
    world.hosts[0].groups.push(("shop".to_owned(), "no-such-group".to_owned()));
    assert_eq!(built(&world).hosts["vm-1"].workloads.len(), 2, "a group that is gone is nobody's");
}

#[test]
fn policies_are_in_force_where_their_selector_says() {
    let policy = |namespace: &str, name: &str, selector: &str| {
        format!(
            "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  {selector}
  action: DENY
  rules: [{{from: [{{source: {{namespaces: [evil]}}}}]}}]
"
        )
    };
    let chosen = "selector: {matchLabels: {app: orders}}";
    let yaml = [
        BASE.to_owned(),
        policy("shop", "here", chosen),
        policy("other", "elsewhere", chosen),
        policy(ROOT_NAMESPACE, "everywhere", chosen),
        policy("shop", "stock-only", "selector: {matchLabels: {app: stock}}"),
        policy("shop", "namespace-wide", "{}").replace("  {}\n", ""),
    ]
    .concat();
    let objects = built(&world(&yaml));
    let root = format!("{ROOT_NAMESPACE}/everywhere");
    assert_eq!(orders_on(&objects, "vm-1").authorization_policies, ["shop/here".to_owned(), root]);
    assert_eq!(objects.policies.len(), 5);
    assert_eq!(objects.policies["shop/namespace-wide"].scope, Scope::Namespace);
}

#[test]
fn strict_workloads_refuse_plaintext_here_and_at_foreign_peers() {
    let strict = "---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: orders, namespace: shop}
spec:
  selector: {matchLabels: {app: orders}}
  mtls: {mode: STRICT}
";
    let objects = built(&world(&format!("{BASE}{strict}")));
    let name = format!("{ROOT_NAMESPACE}/strict-mtls");
    assert_eq!(orders_on(&objects, "vm-1").authorization_policies, [name.as_str()]);
    assert_eq!(objects.policies[&name].action, Action::Deny);
    assert!(objects.hosts["vm-1"].workloads[0].ports.values().all(|mode| *mode == InboundMode::Strict));
    let entry = &objects.workloads["tombolo/shop/entry/old-orders"];
    assert!(entry.authorization_policies.is_empty(), "plain TCP has no identity to prove");
}
