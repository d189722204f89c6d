//! Tables for what one response makes of the holdings.
use super::*;
use api::policy::{Action, Scope};
use api::wire::xds::Resource;
use api::{AuthorizationPolicy, HostConfig};
use std::time::Duration;

pub(in crate::discovery) fn resource(change: &Change, version: &str) -> Resource {
    let encoded = wire::encode(change).expect("not a removal");
    Resource {
        name: encoded.name,
        version: version.to_owned(),
        resource: Some(prost_types::Any { type_url: encoded.type_url.to_owned(), value: encoded.body }),
        aliases: vec![],
    }
}

pub(in crate::discovery) fn policy(name: &str, action: Action) -> Change {
    Change::Policy(AuthorizationPolicy {
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        scope: Scope::Namespace,
        action,
        rules: vec![],
        dry_run: false,
    })
}

pub(in crate::discovery) fn host() -> Change {
    Change::Host(HostConfig { host: "web1".into(), workloads: vec![], lease: Duration::from_secs(30) })
}

pub(in crate::discovery) fn response(
    type_url: &str,
    revision: u64,
    resources: Vec<Resource>,
    removed: &[&str],
) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        system_version_info: revision.to_string(),
        resources,
        type_url: type_url.to_owned(),
        nonce: format!("nonce-{revision}"),
        removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
    }
}

fn bad(name: &str) -> Resource {
    let any = prost_types::Any { type_url: wire::AUTHORIZATION.to_owned(), value: vec![0xff; 4] };
    Resource { name: name.to_owned(), version: "x".to_owned(), resource: Some(any), aliases: vec![] }
}

fn versions(holdings: &Holdings, type_url: &str) -> Vec<(String, String)> {
    let subscriptions = holdings.subscriptions(&Node::default());
    let of_type = subscriptions.into_iter().find(|request| request.type_url == type_url).expect("subscribed");
    of_type.initial_resource_versions.into_iter().collect()
}

#[test]
fn a_fresh_agent_subscribes_to_everything_with_its_node_first() {
    let node = Node { id: "tombolo~web1".into(), ..Node::default() };
    let subscriptions = Holdings::default().subscriptions(&node);
    let types: Vec<&str> = subscriptions.iter().map(|request| request.type_url.as_str()).collect();
    assert_eq!(types, TYPES);
    assert_eq!(subscriptions[0].node.as_ref().map(|node| node.id.as_str()), Some("tombolo~web1"));
    assert!(subscriptions.iter().all(|request| request.initial_resource_versions.is_empty()));
    assert!(subscriptions.iter().all(|request| request.resource_names_subscribe.is_empty()));
}

#[test]
fn good_resources_of_a_bad_response_are_obeyed_and_the_bad_are_named() {
    let mut holdings = Holdings::default();
    let first = vec![resource(&policy("a", Action::Allow), "1"), resource(&policy("b", Action::Allow), "1")];
    let taken = holdings.take(response(wire::AUTHORIZATION, 5, first, &[]));
    assert!(taken.answer.error_detail.is_none() && taken.answer.response_nonce == "nonce-5");

    let second = vec![resource(&policy("a", Action::Deny), "2"), bad("shop/b"), bad("shop/c")];
    let taken = holdings.take(response(wire::AUTHORIZATION, 6, second, &[]));
    let message = taken.answer.error_detail.expect("a NACK").message;
    assert!(message.contains("shop/b") && message.contains("shop/c"), "{message}");
    assert_eq!(taken.answer.response_nonce, "nonce-6");
    let snapshot = holdings.snapshot();
    assert_eq!(snapshot.revision(), 6);
    assert_eq!(snapshot.policy("shop/a").map(|policy| policy.action), Some(Action::Deny));
    assert_eq!(snapshot.policy("shop/b").map(|policy| policy.action), Some(Action::Allow), "the older one stays");
    assert_eq!(versions(&holdings, wire::AUTHORIZATION), [("shop/a".to_owned(), "2".to_owned())]);

    let taken = holdings.take(response(wire::AUTHORIZATION, 7, vec![], &["shop/a", "shop/b", "shop/unknown"]));
    assert!(taken.answer.error_detail.is_none());
    assert_eq!(holdings.snapshot().policies().count(), 0);
    assert_eq!(versions(&holdings, wire::AUTHORIZATION), []);
}

#[test]
fn an_older_revision_is_refused_whole_and_the_same_one_is_not() {
    let mut holdings = Holdings::default();
    holdings.take(response(wire::AUTHORIZATION, 9, vec![resource(&policy("a", Action::Deny), "9")], &[]));
    let taken = holdings.take(response(wire::AUTHORIZATION, 8, vec![], &["shop/a"]));
    assert!(taken.stale.as_ref().is_some_and(|why| why.contains("revision 8, older than 9")), "{:?}", taken.stale);
    assert!(taken.answer.error_detail.is_some());
    assert!(holdings.snapshot().policy("shop/a").is_some());

    let same = holdings.take(response(wire::AUTHORIZATION, 9, vec![resource(&policy("b", Action::Deny), "9")], &[]));
    assert!(same.stale.is_none());
    // Another type may lag: its responses are sent one after the other.
    let other = holdings.take(response(wire::HOST_CONFIG, 8, vec![resource(&host(), "1")], &[]));
    assert!(other.stale.is_none());
    assert_eq!(holdings.snapshot().revision(), 9);
}

#[test]
fn an_unknown_type_and_an_unknown_enum_are_refused_by_name() {
    let mut holdings = Holdings::default();
    let taken = holdings.take(response("type.googleapis.com/envoy.config.listener.v3.Listener", 1, vec![], &[]));
    assert!(taken.answer.error_detail.is_some_and(|status| status.message.contains("Listener")));

    let mut unknown =
        api::wire::security::Authorization { name: "a".into(), namespace: "shop".into(), ..Default::default() };
    unknown.action = 77;
    let any =
        prost_types::Any { type_url: wire::AUTHORIZATION.to_owned(), value: prost::Message::encode_to_vec(&unknown) };
    let sent = Resource { name: "shop/a".into(), version: "1".into(), resource: Some(any), aliases: vec![] };
    let taken = holdings.take(response(wire::AUTHORIZATION, 1, vec![sent], &[]));
    let message = taken.answer.error_detail.expect("a NACK").message;
    assert!(message.contains("shop/a") && message.contains("77"), "{message}");
}

#[test]
fn it_is_synced_when_every_type_was_heard_of() {
    let mut holdings = Holdings::default();
    for type_url in TYPES {
        assert!(!holdings.synced());
        holdings.take(response(type_url, 1, vec![], &[]));
    }
    assert!(holdings.synced());
}

#[test]
fn the_file_gives_back_snapshot_and_versions() {
    let mut holdings = Holdings::default();
    holdings.take(response(wire::AUTHORIZATION, 4, vec![resource(&policy("a", Action::Deny), "v4")], &[]));
    holdings.take(response(wire::HOST_CONFIG, 4, vec![resource(&host(), "h4")], &[]));
    let bundle =
        api::snapshot::TrustBundle { trust_domain: "corp.example".parse().expect("valid"), roots: vec![vec![1]] };
    holdings.take(response(wire::TRUST_BUNDLE, 4, vec![resource(&Change::Bundle(bundle), "b4")], &[]));

    let bytes = crate::state::snapshot_file::encode(4, holdings.resources());
    let content = crate::state::snapshot_file::decode(bytes).expect("just written");
    let (read, refused) = Holdings::from_file(content);
    assert_eq!(refused, []);
    assert!(read.synced());
    assert_eq!(read.snapshot().revision(), 4);
    for type_url in TYPES {
        assert_eq!(versions(&read, type_url), versions(&holdings, type_url), "{type_url}");
    }
    assert_eq!(read.snapshot().host(), holdings.snapshot().host());
    assert_eq!(read.snapshot().bundles().count(), 1);
}

#[test]
fn a_nack_names_ten_and_counts_the_rest() {
    let mut holdings = Holdings::default();
    let many = (0..25).map(|index| bad(&format!("shop/p{index}"))).collect();
    let message =
        holdings.take(response(wire::AUTHORIZATION, 1, many, &[])).answer.error_detail.expect("a NACK").message;
    assert!(
        message.contains("shop/p9") && !message.contains("shop/p10") && message.ends_with("and 15 more"),
        "{message}"
    );
}
