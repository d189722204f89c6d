//! Tables for resources: what people write is understood, given back the same, or refused with every
//! mistake named.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::host::{Check, InboundMode, Probe, Selector};
use crate::policy::{Action, Connection, ROOT_NAMESPACE, Scope, evaluate};

/// One of each kind, with every field this version has.
const EVERYTHING: &str = include_str!("tests/everything.yaml");

fn one(yaml: &str) -> Result<Resource, Vec<Mistake>> {
    let mut documents = documents(yaml).expect("YAML");
    assert_eq!(documents.len(), 1, "one document");
    Resource::from_value(documents.remove(0))
}

fn taken(yaml: &str) -> Resource {
    one(yaml).unwrap_or_else(|mistakes| panic!("refused: {mistakes:?}\n{yaml}"))
}

fn mistakes(yaml: &str) -> Vec<String> {
    let found = one(yaml).expect_err("it was taken");
    found.iter().map(ToString::to_string).collect()
}

/// A document of this kind whose spec is the given JSON.
fn with_spec(kind: &str, spec: serde_json::Value) -> String {
    let info = super::kind(kind).expect("a kind");
    json!({"apiVersion": info.api_version, "kind": info.kind, "metadata": {"name": "x"}, "spec": spec}).to_string()
}

#[test]
fn every_field_of_every_kind_is_read_and_given_back() {
    let documents = documents(EVERYTHING).expect("YAML");
    assert_eq!(documents.len(), kinds().len());
    for (document, info) in documents.into_iter().zip(kinds()) {
        let resource = Resource::from_value(document.clone()).unwrap_or_else(|m| panic!("{}: {m:?}", info.kind));
        assert_eq!(resource.kind(), info.kind);
        assert_eq!(resource.to_value(), document, "{} is given back as it was written", info.kind);
    }
}

#[test]
fn what_a_server_prints_can_be_applied_again() {
    let printed = "
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Service
  metadata:
    name: orders
    namespace: shop
    uid: 0c0ffee0
    resourceVersion: '812'
    generation: 3
    creationTimestamp: 2026-11-23T10:00:00Z
    managedFields: [{manager: kubectl}]
  spec:
    type: ClusterIP
    clusterIP: 240.240.0.7
    clusterIPs: [240.240.0.7]
    internalTrafficPolicy: Cluster
    ipFamilies: [IPv4]
    ipFamilyPolicy: SingleStack
    sessionAffinity: None
    selector: {app: orders}
    ports: [{port: 80, protocol: TCP, targetPort: 8080}]
  status: {loadBalancer: {}}
- apiVersion: security.istio.io/v1beta1
  kind: AuthorizationPolicy
  metadata: {name: nothing, namespace: shop, creationTimestamp: null}
  spec: {}
";
    let documents = documents(printed).expect("YAML");
    let read: Vec<Resource> = documents.into_iter().map(|value| Resource::from_value(value).expect("taken")).collect();
    assert_eq!(read[0].meta, Meta { name: "orders".into(), namespace: "shop".into(), ..Meta::default() });
    assert_eq!(read[1].to_value()["apiVersion"], "security.istio.io/v1");
    let again = Resource::from_value(read[0].to_value()).expect("taken");
    assert_eq!(again, read[0]);
}

#[test]
fn every_mistake_of_a_document_is_reported_with_its_path() {
    let found = mistakes(
        "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: Allow_Web, namespace: shop, lables: {}}
spec:
  selector: {matchLabels: {app: 'a b'}}
  action: PERMIT
  rules:
  - from:
    - source: {principals: ['spiffe://td/ns/shop/sa/web'], requestPrincipals: ['*']}
    - source: {ipBlocks: [10.0.0.1/8, ten]}
    to:
    - operation: {ports: [8080], methods: [GET]}
    - operation: {ports: ['0'], port: ['1']}
    when:
    - {key: request.headers, values: [x]}
    - {key: source.ip}
  extra: 1
",
    );
    let expected = [
        "metadata.name: \"Allow_Web\" is not a name",
        "metadata.lables: unknown field, did you mean \"labels\"?",
        "spec.action: \"PERMIT\" is not one of ALLOW, DENY, AUDIT",
        "spec.selector.matchLabels[app]: \"a b\" is not a label value",
        "source.principals[0]: \"spiffe://td/ns/shop/sa/web\" is not a principal: leave out spiffe://",
        "spec.rules[0].from[0].source.requestPrincipals: not supported by this version: it needs HTTP",
        "spec.rules[0].from[1].source.ipBlocks[0]: \"10.0.0.1/8\" is not a network: bits beyond the prefix are set, \
         write 10.0.0.0/8",
        "spec.rules[0].from[1].source.ipBlocks[1]: \"ten\" is not an address or a network",
        "spec.rules[0].to[0].operation.ports[0]: must be a text; put it in quotes, not a number",
        "spec.rules[0].to[0].operation.methods: not supported by this version: it needs HTTP",
        "spec.rules[0].to[1].operation.ports[0]: \"0\" is not a port",
        "spec.rules[0].to[1].operation.port: unknown field, did you mean \"ports\"?",
        "spec.rules[0].when[0].key: not supported by this version: request.headers",
        "spec.rules[0].when[1]: must have values or notValues",
        "spec.extra: unknown field",
    ];
    for expected in expected {
        assert!(found.iter().any(|said| said.contains(expected)), "nothing says {expected:?}: {found:#?}");
    }
    let more = found.iter().filter(|said| !expected.iter().any(|expected| said.contains(expected)));
    assert_eq!(more.count(), 0, "more is said: {found:#?}");
}

#[test]
fn a_document_that_is_no_resource_is_refused() {
    let cases = [
        ("kind: Service", "apiVersion: is missing"),
        ("{apiVersion: v1, metadata: {name: x}}", "kind: is missing"),
        ("{apiVersion: v1, kind: Sevice, metadata: {name: x}}", "did you mean Service?"),
        ("{apiVersion: v1, kind: Deployment, metadata: {name: x}}", "\"Deployment\" is not a kind of this version"),
        ("{apiVersion: v2, kind: Service, metadata: {name: x}}", "\"v2\" is not a version of Service: write v1"),
        ("{apiVersion: v1, kind: Service, metadata: {name: x}}", "spec: is missing"),
        ("{apiVersion: v1, kind: Service, spec: {}}", "metadata: is missing"),
        ("[1, 2]", "an object with apiVersion"),
        ("{apiVersion: 1, kind: Service}", "apiVersion: must be a text; put it in quotes, not a number"),
        ("{apiVersion: v1, kind: Service, metadata: [x], spec: 7}", "metadata: must be an object, not a list"),
    ];
    for (yaml, expected) in cases {
        let found = mistakes(yaml);
        assert!(found.iter().any(|said| said.contains(expected)), "{yaml}: nothing says {expected:?}: {found:#?}");
    }
}

#[test]
fn a_bad_field_is_refused_with_what_to_write_instead() {
    let port = json!([{"port": 80}]);
    let app = json!({"app": "a"});
    let se_port = json!([{"number": 80, "name": "http"}]);
    let wrong = [
        ("svc", json!({"selector": app, "ports": []}), "spec.ports: is empty"),
        ("svc", json!({"ports": port}), "spec.selector: is missing"),
        ("svc", json!({"selector": {}, "ports": port}), "selector is empty"),
        ("svc", json!({"selector": app, "ports": [{"port": 0}]}), "spec.ports[0].port: \"0\" is not a port"),
        ("svc", json!({"selector": app, "ports": [{"port": 70000}]}), "\"70000\" is not a port"),
        ("svc", json!({"selector": app, "ports": [{"port": "80"}]}), "port: must be a port number, not a text"),
        ("svc", json!({"selector": app, "ports": [{"port": 80}, {"port": 81}]}), "ports[1].name: is missing"),
        (
            "svc",
            json!({"selector": app, "ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]}),
            "spec.ports[1].port: \"80\" occurs twice",
        ),
        (
            "svc",
            json!({"selector": app, "ports": [{"port": 80, "name": "a"}, {"port": 81, "name": "a"}]}),
            "spec.ports[1].name: \"a\" occurs twice",
        ),
        ("svc", json!({"selector": app, "ports": [{"port": 80, "protocol": "UDP"}]}), "only TCP is meshed"),
        ("svc", json!({"selector": app, "ports": [{"port": 80, "nodePort": 30080}]}), "nodePort: not supported"),
        ("svc", json!({"selector": app, "ports": [{"port": 80, "target_port": 1}]}), "did you mean \"targetPort\"?"),
        ("svc", json!({"selector": app, "ports": [{"port": 80, "targetPort": "80"}]}), "is not a port name"),
        ("svc", json!({"selector": app, "ports": port, "type": "LoadBalancer"}), "spec.type: not supported"),
        ("svc", json!({"selector": app, "ports": port, "clusterIP": "None"}), "headless"),
        ("svc", json!({"selector": app, "ports": port, "clusterIP": "10.0.0.0/8"}), "range of addresses"),
        ("svc", json!({"selector": app, "ports": port, "clusterIPs": ["0.0.0.0"]}), "an address of one host"),
        ("svc", json!({"selector": app, "ports": port, "clusterIPs": ["::1", "::1"]}), "occurs twice"),
        ("svc", json!({"selector": app, "ports": port, "clusterIP": "::1", "clusterIPs": ["::2"]}), "must be the same"),
        ("svc", json!({"selector": app, "ports": port, "sessionAffinity": "ClientIP"}), "sessionAffinity: not supp"),
        ("svc", json!({"selector": app, "ports": port, "externalName": "a.b"}), "use a ServiceEntry"),
        ("wg", json!({}), "spec.template: is missing"),
        ("wg", json!({"template": {"address": "10.0.0.1"}}), "each host brings its own addresses"),
        ("wg", json!({"template": {"labels": {"a": "b"}}}), "write them in spec.metadata.labels"),
        ("wg", json!({"template": {"ports": {"http": 99999}}}), "spec.template.ports[http]: \"99999\" is not a port"),
        ("wg", json!({"template": {"serviceAccount": "A"}}), "spec.template.serviceAccount: \"A\" is not a name"),
        ("wg", json!({"template": {}, "probe": {}}), "exactly one of httpGet, tcpSocket and exec"),
        (
            "wg",
            json!({"template": {}, "probe": {"exec": {"command": ["a"]}, "tcpSocket": {"port": 1}}}),
            "exactly one of httpGet, tcpSocket and exec",
        ),
        ("wg", json!({"template": {}, "probe": {"grpc": {"port": 1}}}), "spec.probe.grpc: not supported"),
        ("wg", json!({"template": {}, "probe": {"exec": {"command": []}}}), "spec.probe.exec.command: is empty"),
        ("wg", json!({"template": {}, "probe": {"periodSeconds": 0, "tcpSocket": {"port": 1}}}), "from 1 to"),
        ("wg", json!({"template": {}, "probe": {"httpGet": {"port": 1, "path": "x"}}}), "begins with a slash"),
        ("wg", json!({"template": {}, "metadata": {"annotations": {"tombolo.dev/uid": "root"}}}), "a numeric user id"),
        ("wg", json!({"template": {}, "metadata": {"annotations": {"tombolo.dev/inbound": "on"}}}), "permissive, obs"),
        (
            "wg",
            json!({"template": {}, "metadata": {"annotations": {"tombolo.dev/units": "a.service"}}}),
            "spec.metadata.annotations[tombolo.dev/units]: unknown field, did you mean \"tombolo.dev/unit\"?",
        ),
        ("we", json!({"address": "db.corp.example"}), "names as addresses"),
        ("we", json!({"address": "unix:///x"}), "Unix sockets"),
        ("we", json!({"address": "10.0.0.1", "weight": -1}), "spec.weight: \"-1\" is not a whole number"),
        ("we", json!({"address": "10.0.0.1", "locality": "a//b"}), "REGION/ZONE"),
        ("se", json!({"hosts": ["*.a.b"], "ports": se_port, "resolution": "STATIC"}), "names with a wildcard"),
        ("se", json!({"hosts": ["localhost"], "ports": se_port, "resolution": "STATIC"}), "is not a full DNS name"),
        ("se", json!({"hosts": ["10.0.0.1"], "ports": se_port, "resolution": "STATIC"}), "is not a full DNS name"),
        ("se", json!({"hosts": ["a.b", "a.b"], "ports": se_port, "resolution": "STATIC"}), "hosts[1]: \"a.b\" occurs"),
        ("se", json!({"hosts": ["a.b"], "ports": se_port, "resolution": "DNS"}), "resolution: not supported"),
        ("se", json!({"hosts": ["a.b"], "ports": se_port, "resolution": "STATIC"}), "endpoints or a workloadSelector"),
        ("se", json!({"hosts": ["a.b"], "ports": se_port, "exportTo": ["."]}), "spec.exportTo: not supported"),
        ("pa", json!({"mtls": {"mode": "MUTUAL"}}), "one of UNSET, DISABLE, PERMISSIVE, STRICT"),
        ("pa", json!({"portLevelMtls": {"80": {"mode": "STRICT"}}}), "portLevelMtls needs a selector"),
        (
            "pa",
            json!({"selector": {"matchLabels": app}, "portLevelMtls": {"http": {}}}),
            "spec.portLevelMtls[http]: \"http\" is not a port",
        ),
        ("pa", json!({"selector": {}}), "spec.selector: needs a label"),
        ("ap", json!({"action": "CUSTOM"}), "external authorization"),
        ("ap", json!({"targetRefs": [{"kind": "Gateway"}]}), "use a selector"),
        ("ap", json!({"rules": [{"from": []}]}), "spec.rules[0].from: is empty: leave it out to mean any"),
        ("ap", json!({"rules": [{"from": [{"source": {}}]}]}), "an empty source matches nothing"),
        ("ap", json!({"rules": [{"from": [{}]}]}), "spec.rules[0].from[0].source: is missing"),
        ("ap", json!({"rules": [{"from": [{"source": {"principals": []}}]}]}), "principals: is empty"),
        ("ap", json!({"rules": [{"from": [{"source": {"namespaces": ["a*b"]}}]}]}), "is not a pattern"),
        ("ap", json!({"rules": [{"from": [{"source": {"serviceAccounts": ["a/b/c"]}}]}]}), "NAMESPACE/SERVICE-ACC"),
        (
            "ap",
            json!({"rules": [{"from": [{"source": {"serviceAccounts": ["a"], "namespaces": ["b"]}}]}]}),
            "cannot be combined",
        ),
    ];
    for (kind, spec, expected) in wrong {
        let yaml = with_spec(kind, spec);
        let found = mistakes(&yaml);
        assert!(found.iter().any(|said| said.contains(expected)), "{yaml}: nothing says {expected:?}: {found:#?}");
    }
}

#[test]
fn text_that_is_not_yaml_says_where_and_bombs_are_refused() {
    let tab = documents("a:\n  b: 1\n\tc: 2\n").expect_err("tabs do not indent").to_string();
    assert!(tab.starts_with("not YAML: ") && tab.contains("line 2"), "{tab}");
    assert!(documents("a: 1\na: 2\n").expect_err("twice the same key").to_string().contains("line 2"));
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..12 {
        let item = format!("*a{}", n - 1);
        bomb += &format!("a{n}: &a{n} [{}]\n", vec![item; 10].join(", "));
    }
    assert!(documents(&bomb).is_err(), "a YAML bomb was taken");
    assert!(documents(&"[".repeat(100_000)).is_err(), "endless depth was taken");
    assert!(documents(&"x".repeat(5 << 20)).expect_err("too long").to_string().contains("read at once"));
    assert_eq!(documents("---\n---\n# nothing\n").expect("empty"), [Value::Null; 0]);
    assert_eq!(documents("a: yes\n---\n{\"b\": 2}\n").expect("two"), [json!({"a": "yes"}), json!({"b": 2})]);
}

fn policy(meta: &str, spec: &str) -> crate::AuthorizationPolicy {
    let yaml =
        format!("{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {meta}, spec: {spec}}}");
    let resource = taken(&yaml);
    let Spec::AuthorizationPolicy(policy) = &resource.spec else { panic!("another kind") };
    policy.translate(&resource.meta)
}

#[test]
fn a_policys_scope_follows_its_namespace_and_selector() {
    let select = "{selector: {matchLabels: {app: a}}}";
    let root = format!("{{name: x, namespace: {ROOT_NAMESPACE}}}");
    let shop = "{name: x, namespace: shop}";
    assert_eq!(policy(shop, "{}").scope, Scope::Namespace);
    assert_eq!(policy(shop, select).scope, Scope::WorkloadSelector);
    assert_eq!(policy(&root, "{}").scope, Scope::Global);
    assert_eq!(policy(&root, select).scope, Scope::WorkloadSelector);
    let dry = "{name: x, annotations: {istio.io/dry-run: 'true'}}";
    assert_eq!((policy(dry, "{}").dry_run, policy(shop, "{}").dry_run), (true, false));
    assert_eq!(policy(shop, "{action: AUDIT}").action, Action::Audit);
}

#[test]
fn a_translated_policy_judges_as_istios_would() {
    let shop = "{name: x, namespace: shop}";
    let from = |source: &str| format!("{{rules: [{{from: [{{source: {source}}}]}}]}}");
    let when = |condition: &str| format!("{{rules: [{{when: [{condition}]}}]}}");
    let cases = [
        ("{}".to_owned(), false),
        ("{rules: []}".to_owned(), false),
        ("{rules: [{}]}".to_owned(), true),
        ("{action: DENY, rules: [{}]}".to_owned(), false),
        ("{action: DENY}".to_owned(), true),
        ("{action: AUDIT, rules: [{}]}".to_owned(), true),
        (from("{principals: ['*']}"), true),
        (from("{principals: [td/ns/shop/sa/web]}"), true),
        (from("{principals: ['td/*']}"), true),
        (from("{principals: ['*/sa/web']}"), true),
        (from("{principals: [td/ns/shop/sa/we]}"), false),
        (from("{notPrincipals: ['*/sa/web']}"), false),
        (from("{namespaces: [shop]}"), true),
        (from("{namespaces: ['sh*'], notNamespaces: ['*op']}"), false),
        (from("{serviceAccounts: [web]}"), true),
        (from("{serviceAccounts: [shop/web]}"), true),
        (from("{serviceAccounts: [other/web]}"), false),
        (from("{notServiceAccounts: [web]}"), false),
        (from("{ipBlocks: [10.0.0.1]}"), true),
        (from("{ipBlocks: [10.0.0.0/24], notIpBlocks: [10.0.0.1]}"), false),
        ("{rules: [{to: [{operation: {ports: ['8080']}}]}]}".to_owned(), true),
        ("{rules: [{to: [{operation: {notPorts: ['8080']}}]}]}".to_owned(), false),
        ("{rules: [{from: [{source: {namespaces: [shop]}}], to: [{operation: {ports: ['1']}}]}]}".to_owned(), false),
        ("{rules: [{to: [{operation: {ports: ['1']}}]}, {from: [{source: {namespaces: [shop]}}]}]}".to_owned(), true),
        (when("{key: source.ip, values: [10.0.0.0/8], notValues: [10.0.0.1]}"), false),
        (when("{key: source.namespace, values: [shop]}"), true),
        (when("{key: source.principal, notValues: ['*']}"), false),
        (when("{key: destination.ip, values: [10.0.0.2]}"), true),
        (when("{key: destination.port, values: ['8080', '9090']}, {key: source.namespace, values: [x]}"), false),
    ];
    let connection = Connection {
        source: Some("spiffe://td/ns/shop/sa/web".parse().expect("valid")),
        source_ip: [10, 0, 0, 1].into(),
        destination: ([10, 0, 0, 2], 8080).into(),
    };
    for (spec, allowed) in cases {
        let policy = policy(shop, &spec);
        assert_eq!(evaluate(std::iter::once(&policy), &connection).allowed(), allowed, "{spec} {policy:?}");
    }
}

#[test]
fn a_workload_group_says_which_processes_and_how_to_probe() {
    let resource = taken(
        "
apiVersion: networking.istio.io/v1beta1
kind: WorkloadGroup
metadata: {name: orders, namespace: shop}
spec:
  metadata:
    labels: {app: orders}
    annotations: {tombolo.dev/unit: orders.service, tombolo.dev/uid: '33', tombolo.dev/inbound: strict}
  template: {serviceAccount: orders, ports: {http: 8080}, locality: eu/a}
  probe:
    periodSeconds: 5
    httpGet: {port: 8080, httpHeaders: [{name: Host, value: orders}]}
",
    );
    let Spec::WorkloadGroup(group) = &resource.spec else { panic!("another kind") };
    let unit = Some("orders.service".to_owned());
    assert_eq!(group.selector(), Selector { unit, cgroup: None, uid: Some(33) });
    assert_eq!(group.inbound(), Some(InboundMode::Strict));
    assert_eq!(group.service_account(), "orders");
    let expected = Probe {
        check: Check::Http {
            scheme: "http".into(),
            host: "localhost".into(),
            port: 8080,
            path: "/".into(),
            headers: BTreeMap::from([("Host".into(), "orders".into())]),
        },
        initial_delay: Duration::ZERO,
        timeout: Duration::from_secs(1),
        period: Duration::from_secs(5),
        success_threshold: 1,
        failure_threshold: 3,
    };
    assert_eq!(group.probe(), Some(expected));
}

#[test]
fn an_entry_speaks_hbone_when_its_label_says_so() {
    let entry = |labels: &str| {
        let spec = format!("{{address: 10.0.0.1, labels: {labels}}}");
        let yaml =
            format!("{{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {{name: x}}, spec: {spec}}}");
        let resource = taken(&yaml);
        let Spec::WorkloadEntry(entry) = &resource.spec else { panic!("another kind") };
        entry.tunnel_protocol(&resource.meta)
    };
    assert_eq!(entry("{networking.istio.io/tunnel: http}"), crate::TunnelProtocol::Hbone);
    assert_eq!(entry("{}"), crate::TunnelProtocol::None);
}

#[test]
fn protocols_and_target_ports_are_told_as_istio_does() {
    let service = taken(&with_spec(
        "svc",
        json!({"selector": {"app": "a"}, "ports": [
            {"port": 80, "name": "http-web", "targetPort": "web"},
            {"port": 81, "name": "x", "appProtocol": "kubernetes.io/h2c", "targetPort": 8081},
            {"port": 82, "name": "grpc"},
            {"port": 83, "name": "other"},
        ]}),
    ));
    let Spec::Service(service) = service.spec else { panic!("another kind") };
    let named = BTreeMap::from([("web".to_owned(), 8080)]);
    let found: Vec<_> = service.ports.iter().map(|port| (port.protocol(), port.target(&named))).collect();
    let expected = [
        (AppProtocol::Http11, Some(8080)),
        (AppProtocol::Http2, Some(8081)),
        (AppProtocol::Grpc, Some(82)),
        (AppProtocol::Unknown, Some(83)),
    ];
    assert_eq!(found, expected);
    assert_eq!(service.ports[0].target(&BTreeMap::new()), None);
}

#[test]
fn a_kind_is_found_by_any_of_its_names() {
    for name in ["AuthorizationPolicy", "authorizationpolicy", "authorizationpolicies", "ap"] {
        assert_eq!(super::kind(name).map(|info| info.kind), Some("AuthorizationPolicy"), "{name}");
    }
    assert_eq!(super::kind("pods"), None);
}

#[test]
fn fuzzed_resources_are_refused_or_given_back_the_same() {
    for (file, yaml) in crate::corpus::texts("resource") {
        for document in documents(&yaml).unwrap_or_default() {
            let Ok(resource) = Resource::from_value(document) else { continue };
            assert_eq!(Resource::from_value(resource.to_value()).as_ref(), Ok(&resource), "{file}");
            if let Spec::AuthorizationPolicy(policy) = &resource.spec {
                let change = crate::snapshot::Change::Policy(policy.translate(&resource.meta));
                let encoded = crate::wire::encode(&change).expect("no removal");
                let decoded = crate::wire::decode(encoded.type_url, &encoded.name, &encoded.body);
                assert!(decoded.is_ok(), "{file}: an agent would refuse it: {decoded:?}");
            }
        }
    }
}

#[test]
fn the_demonstrations_resources_are_taken() {
    for (file, yaml) in crate::corpus::texts("resource").into_iter().filter(|(file, _)| file.ends_with("/shop")) {
        let documents = documents(&yaml).expect("YAML");
        assert!(documents.len() >= 5, "{file}");
        for document in documents {
            let resource = Resource::from_value(document).unwrap_or_else(|mistakes| panic!("{file}: {mistakes:?}"));
            if let Spec::PeerAuthentication(spec) = &resource.spec {
                assert_eq!(spec.port_level_mtls[&9090], peer_authentication::MutualTls::Strict);
            }
        }
    }
}
