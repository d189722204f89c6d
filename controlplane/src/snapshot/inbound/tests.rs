//! Tests of `inbound`, the file beside this folder.

use std::net::SocketAddr;

use api::policy::{Connection, evaluate};
use api::resource::{Resource, Spec};
use serde_json::json;

use super::*;

fn resource(namespace: &str, name: &str, spec: serde_json::Value) -> Resource {
    Resource::from_value(json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"namespace": namespace, "name": name},
        "spec": spec,
    }))
    .expect("a valid PeerAuthentication")
}

fn modes(resources: &[Resource], annotation: Option<InboundMode>) -> Modes {
    let all = resources.iter().map(|resource| match &resource.spec {
        Spec::PeerAuthentication(spec) => (&resource.meta, spec),
        _ => panic!("only PeerAuthentications are made here"),
    });
    let labels = BTreeMap::from([("app".to_owned(), "orders".to_owned())]);
    PeerAuthentications::new(all).modes("shop", &labels, annotation)
}

fn mtls(mode: &str) -> serde_json::Value {
    json!({"mtls": {"mode": mode}})
}

fn for_orders(mode: &str, ports: serde_json::Value) -> serde_json::Value {
    json!({"selector": {"matchLabels": {"app": "orders"}}, "mtls": {"mode": mode}, "portLevelMtls": ports})
}

#[test]
fn the_narrower_level_wins_and_unset_inherits() {
    use InboundMode::{Observe, Permissive, Strict};
    let mesh = || resource(ROOT_NAMESPACE, "mesh", mtls("STRICT"));
    type Row = (&'static str, Vec<Resource>, Option<InboundMode>, [InboundMode; 2]);
    let rows: Vec<Row> = vec![
        ("nothing said", vec![], None, [Permissive; 2]),
        ("mesh", vec![mesh()], None, [Strict; 2]),
        ("namespace over mesh", vec![mesh(), resource("shop", "ns", mtls("PERMISSIVE"))], None, [Permissive; 2]),
        ("unset namespace inherits", vec![mesh(), resource("shop", "ns", mtls("UNSET"))], None, [Strict; 2]),
        ("another namespace", vec![resource("other", "ns", mtls("STRICT"))], None, [Permissive; 2]),
        ("workload", vec![resource("shop", "orders", for_orders("STRICT", json!({})))], None, [Strict; 2]),
        (
            "port over workload",
            vec![resource("shop", "orders", for_orders("STRICT", json!({"8080": {"mode": "PERMISSIVE"}})))],
            None,
            [Permissive, Strict],
        ),
        (
            "unset port inherits from the mesh",
            vec![mesh(), resource("shop", "orders", for_orders("UNSET", json!({"8080": {"mode": "UNSET"}})))],
            None,
            [Strict; 2],
        ),
        (
            "a strict port of a permissive workload",
            vec![resource("shop", "orders", for_orders("PERMISSIVE", json!({"9090": {"mode": "STRICT"}})))],
            None,
            [Permissive, Strict],
        ),
        (
            "root namespace with selector",
            vec![resource(ROOT_NAMESPACE, "x", for_orders("STRICT", json!({})))],
            None,
            [Permissive; 2],
        ),
        (
            "first by name of two",
            vec![resource("shop", "b", mtls("PERMISSIVE")), resource("shop", "a", mtls("STRICT"))],
            None,
            [Strict; 2],
        ),
        ("the annotation replaces it", vec![mesh()], Some(Observe), [Observe; 2]),
        ("disabled takes plaintext", vec![resource("shop", "ns", mtls("DISABLE"))], None, [Permissive; 2]),
    ];
    for (name, resources, annotation, expected) in rows {
        let modes = modes(&resources, annotation);
        assert_eq!([modes.mode(8080), modes.mode(9090)], expected, "{name}");
    }
    assert!(modes(&[resource("shop", "ns", mtls("DISABLE"))], None).disabled());
    assert!(!modes(&[resource("shop", "ns", mtls("DISABLE"))], Some(Observe)).disabled());
}

#[test]
fn strict_ports_become_a_policy_that_refuses_the_anonymous_only() {
    let ports = BTreeSet::from([8080, 9090]);
    let strict = |spec| modes(&[resource("shop", "orders", spec)], None).strict(&ports);
    assert_eq!(strict(for_orders("PERMISSIVE", json!({}))), StrictPorts::None);
    assert_eq!(strict(for_orders("STRICT", json!({}))), StrictPorts::All);
    let some = strict(for_orders("STRICT", json!({"8080": {"mode": "PERMISSIVE"}})));
    assert_eq!(some, StrictPorts::Some(BTreeSet::from([9090])));

    let allowed = |strict: &StrictPorts, source: Option<&str>, port: u16| {
        let connection = Connection {
            source: source.map(|text| text.parse().expect("an identity")),
            source_ip: [10, 0, 0, 1].into(),
            destination: SocketAddr::from(([10, 0, 0, 2], port)),
        };
        evaluate(strict.policy().iter(), &connection).allowed()
    };
    let web = Some("spiffe://mesh.example/ns/shop/sa/web");
    assert!(allowed(&StrictPorts::All, web, 8080), "over mTLS it changes nothing");
    assert!(!allowed(&StrictPorts::All, None, 8080));
    assert!(allowed(&some, None, 8080) && !allowed(&some, None, 9090) && allowed(&some, web, 9090));
    assert_eq!(some.policy().map(|policy| policy.key()), Some(format!("{ROOT_NAMESPACE}/strict-mtls-9090")));
    assert_eq!(StrictPorts::None.policy(), None);
}
