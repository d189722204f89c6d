//! Tests of `session`, the file beside this folder.

use std::sync::Arc;

use api::resource::Resource as Document;
use api::wire::xds::Status;

use super::*;
use crate::snapshot::{Builder, Mesh};
use crate::store::World;

/// One control plane's snapshots, made from WorkloadEntries.
struct Plane {
    builder: Builder,
    revision: Revision,
}

impl Plane {
    fn new() -> Self {
        let trust_domain = "mesh.example".parse().expect("well-formed");
        let mesh = Mesh { trust_domain, roots: vec![vec![1]], lease: std::time::Duration::from_secs(15) };
        Self { builder: Builder::new(mesh), revision: 0 }
    }

    fn with(&mut self, entries: &[(&str, u8)]) -> Arc<Published> {
        self.publish(entries.iter().map(|(name, last)| entry(name, [10, 0, 0, *last])))
    }

    fn publish(&mut self, resources: impl Iterator<Item = Document>) -> Arc<Published> {
        self.revision += 1;
        let resources = resources.map(Arc::new).collect();
        self.builder.publish(World { revision: self.revision, resources, ..World::default() })
    }
}

fn entry(name: &str, address: [u8; 4]) -> Document {
    Document::from_value(serde_json::json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": {"name": name, "namespace": "n"},
        "spec": {"address": std::net::Ipv4Addr::from(address).to_string()},
    }))
    .expect("a valid WorkloadEntry")
}

fn request(type_url: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { type_url: type_url.to_owned(), ..DeltaDiscoveryRequest::default() }
}

fn ack(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { response_nonce: response.nonce.clone(), ..request(&response.type_url) }
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|resource| resource.name.as_str()).collect()
}

fn heard(session: &mut Session, request: DeltaDiscoveryRequest) -> Heard {
    session.hear(request).expect("within bounds")
}

fn said(session: &mut Session, published: &Published) -> DeltaDiscoveryResponse {
    session.next(published).expect("something to say")
}

#[test]
fn a_wildcard_subscription_gets_all_and_then_what_changes() {
    let mut plane = Plane::new();
    let mut session = Session::new("vm-1");
    let first = plane.with(&[("a", 1), ("b", 2)]);
    assert_eq!(heard(&mut session, request(wire::ADDRESS)), Heard::Subscribed);
    let response = said(&mut session, &first);
    assert_eq!(names(&response), ["tombolo/n/entry/a", "tombolo/n/entry/b"]);
    assert_eq!(response.system_version_info, "1");
    assert_eq!(session.acked(&first), 0);
    assert_eq!(session.next(&first), None);
    assert_eq!(heard(&mut session, ack(&response)), Heard::Acked);
    assert_eq!(session.next(&first), None);
    assert_eq!(session.acked(&first), 1);

    let second = plane.with(&[("b", 3), ("c", 4)]);
    let response = said(&mut session, &second);
    assert_eq!(names(&response), ["tombolo/n/entry/b", "tombolo/n/entry/c"]);
    assert_eq!(response.removed_resources, ["tombolo/n/entry/a"]);
    assert_eq!(heard(&mut session, ack(&response)), Heard::Acked);
    let same = plane.with(&[("b", 3), ("c", 4)]);
    assert_eq!(session.next(&same), None, "nothing of it concerns this stream");
    assert_eq!(session.acked(&same), 3, "so it has it already");
}

#[test]
fn every_type_is_answered_once_even_with_nothing() {
    let mut plane = Plane::new();
    let published = plane.with(&[]);
    let mut session = Session::new("vm-1");
    for type_url in TYPES {
        heard(&mut session, request(type_url));
    }
    let mut answered = vec![];
    while let Some(response) = session.next(&published) {
        answered.push((response.type_url.clone(), response.resources.len()));
        heard(&mut session, ack(&response));
    }
    let expected = [(wire::TRUST_BUNDLE, 1), (wire::AUTHORIZATION, 0), (wire::ADDRESS, 0), (wire::HOST_CONFIG, 0)];
    assert_eq!(answered, expected.map(|(type_url, n)| (type_url.to_owned(), n)));
}

#[test]
fn changes_during_an_answer_come_together_after_its_ack() {
    let mut plane = Plane::new();
    let mut session = Session::new("vm-1");
    heard(&mut session, request(wire::ADDRESS));
    let response = said(&mut session, &plane.with(&[("a", 1)]));
    assert_eq!(session.next(&plane.with(&[("a", 2)])), None);
    assert_eq!(session.next(&plane.with(&[("a", 3), ("b", 1)])), None);
    let newest = plane.with(&[("a", 4), ("b", 1)]);
    assert_eq!(session.next(&newest), None);
    heard(&mut session, ack(&response));
    let response = said(&mut session, &newest);
    assert_eq!((names(&response).len(), response.system_version_info.as_str()), (2, "4"));
    assert_eq!(session.next(&newest), None);
    let stale = DeltaDiscoveryRequest { response_nonce: "1".to_owned(), ..request(wire::ADDRESS) };
    assert_eq!(heard(&mut session, stale), Heard::Subscribed, "an old nonce acknowledges nothing");
    assert_eq!(session.next(&plane.with(&[("a", 5)])), None);
}

#[test]
fn a_client_that_comes_back_gets_only_the_difference() {
    let mut plane = Plane::new();
    let published = plane.with(&[("a", 1), ("b", 2)]);
    let mut session = Session::new("vm-1");
    heard(&mut session, request(wire::ADDRESS));
    let all = said(&mut session, &published);
    let mut held: BTreeMap<String, String> =
        all.resources.iter().map(|resource| (resource.name.clone(), resource.version.clone())).collect();

    let mut again = Session::new("vm-1");
    let subscribe = |held: &BTreeMap<String, String>| DeltaDiscoveryRequest {
        initial_resource_versions: held.clone(),
        ..request(wire::ADDRESS)
    };
    heard(&mut again, subscribe(&held));
    let response = said(&mut again, &published);
    assert!(response.resources.is_empty() && response.removed_resources.is_empty(), "it is current, and is told so");
    assert_eq!(response.system_version_info, "1");

    held.insert("tombolo/n/entry/b".to_owned(), "old".to_owned());
    held.insert("tombolo/n/entry/z".to_owned(), "gone".to_owned());
    let mut other = Session::new("vm-1");
    heard(&mut other, subscribe(&held));
    let response = said(&mut other, &published);
    assert_eq!(names(&response), ["tombolo/n/entry/b"]);
    assert_eq!(response.removed_resources, ["tombolo/n/entry/z"]);
}

#[test]
fn a_nack_is_heard_and_not_answered_with_the_same_again() {
    let mut plane = Plane::new();
    let published = plane.with(&[("a", 1)]);
    let mut session = Session::new("vm-1");
    heard(&mut session, request(wire::ADDRESS));
    let response = said(&mut session, &published);
    let status = Status { code: 3, message: "a: no such thing".to_owned() };
    let nack = DeltaDiscoveryRequest { error_detail: Some(status), ..ack(&response) };
    let message = "a: no such thing".to_owned();
    assert_eq!(heard(&mut session, nack), Heard::Nacked { type_url: wire::ADDRESS.to_owned(), message });
    assert_eq!(session.next(&published), None);
    assert_eq!(session.acked(&published), 0, "it does not count as current");
    let mended = plane.with(&[("a", 2)]);
    let response = said(&mut session, &mended);
    heard(&mut session, ack(&response));
    assert_eq!(session.acked(&mended), 2);
}

#[test]
fn large_answers_go_in_parts_and_later_types_wait() {
    let mut plane = Plane::new();
    let entries = (0..2 * MAX_RESOURCES + 1).map(|n| {
        let [.., high, low] = n.to_be_bytes();
        entry(&format!("e{n}"), [10, 1, high, low])
    });
    let published = plane.publish(entries);
    let mut session = Session::new("vm-1");
    heard(&mut session, request(wire::HOST_CONFIG));
    heard(&mut session, request(wire::ADDRESS));
    let mut parts = vec![];
    while let Some(response) = session.next(&published) {
        let part = (response.type_url.clone(), response.resources.len(), response.system_version_info.clone());
        parts.push(part);
        if parts.len() == 2 {
            assert_eq!(session.next(&published), None, "one part at a time, and nothing overtakes");
        }
        heard(&mut session, ack(&response));
    }
    let part = |type_url: &str, n, revision: &str| (type_url.to_owned(), n, revision.to_owned());
    assert_eq!(
        parts,
        [
            part(wire::ADDRESS, MAX_RESOURCES, ""),
            part(wire::ADDRESS, MAX_RESOURCES, ""),
            part(wire::ADDRESS, 1, "1"),
            part(wire::HOST_CONFIG, 0, "1"),
        ]
    );
    assert_eq!(session.acked(&published), 1);
}

#[test]
fn names_are_subscribed_and_left_as_ztunnel_does_on_demand() {
    let mut plane = Plane::new();
    let published = plane.with(&[("a", 1), ("b", 2), ("c", 3)]);
    let mut session = Session::new("vm-1");
    // `*` on and off in one go: nothing yet, but one answer.
    heard(
        &mut session,
        DeltaDiscoveryRequest {
            resource_names_subscribe: strings(&["*"]),
            resource_names_unsubscribe: strings(&["*"]),
            ..request(wire::ADDRESS)
        },
    );
    let response = said(&mut session, &published);
    assert!(response.resources.is_empty());
    heard(&mut session, ack(&response));

    let wanted = ["/10.0.0.2", "tombolo/n/entry/a", "/10.9.9.9"];
    heard(&mut session, DeltaDiscoveryRequest { resource_names_subscribe: strings(&wanted), ..request(wire::ADDRESS) });
    let response = said(&mut session, &published);
    assert_eq!(names(&response), ["tombolo/n/entry/a", "tombolo/n/entry/b"]);
    assert_eq!(response.removed_resources, ["/10.9.9.9"], "there is none, and that is said");
    heard(&mut session, ack(&response));
    assert_eq!(session.next(&published), None);

    heard(
        &mut session,
        DeltaDiscoveryRequest { resource_names_unsubscribe: strings(&["tombolo/n/entry/a"]), ..request(wire::ADDRESS) },
    );
    let next = plane.with(&[("a", 9), ("b", 2), ("c", 9)]);
    assert_eq!(session.next(&next), None, "only b is of interest, and it is the same");
    let next = plane.with(&[("c", 9)]);
    let response = said(&mut session, &next);
    assert_eq!(
        (names(&response).len(), response.removed_resources.as_slice()),
        (0, &strings(&["tombolo/n/entry/b"])[..])
    );
}

#[test]
fn unknown_types_and_endless_lists_do_no_harm() {
    let mut session = Session::new("vm-1");
    assert_eq!(heard(&mut session, request("type.googleapis.com/envoy.Cluster")), Heard::UnknownType);
    assert_eq!(session.next(&Published::default()), None);
    let names = (0..=MAX_NAMES).map(|n| format!("n{n}")).collect();
    let endless = DeltaDiscoveryRequest { resource_names_subscribe: names, ..request(wire::ADDRESS) };
    let type_url = wire::ADDRESS.to_owned();
    assert_eq!(session.hear(endless), Err(SessionError::TooManyNames { type_url }));
}
