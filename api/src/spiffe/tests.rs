//! Tables for SPIFFE identities.
use super::*;

#[test]
fn identities_of_this_mesh_survive_a_round_trip() {
    for text in ["spiffe://corp.example/ns/shop/sa/orders", "spiffe://td/host/web-1", "spiffe://a_b/ns/x/sa/a.b"] {
        let id: SpiffeId = text.parse().expect(text);
        assert_eq!(id.to_string(), text);
    }
}

#[test]
fn what_is_not_an_identity_is_refused() {
    let long = format!("spiffe://td/host/{}", "a".repeat(MAX_ID_BYTES));
    for text in [
        "",
        "spiffe://",
        "https://td/ns/a/sa/b",
        "spiffe://TD/ns/a/sa/b",
        "spiffe://td",
        "spiffe://td/",
        "spiffe://td/vm/x",
        "spiffe://td/ns/a/sa/",
        "spiffe://td/ns//sa/b",
        "spiffe://td/ns/a/sa/b/c",
        "spiffe://td/ns/../sa/b",
        "spiffe://td/ns/a%2f/sa/b",
        "spiffe://td:80/host/a",
        "spiffe://td/host/a/b",
        "spiffe://u@td/host/a",
        "spiffe://td/host/a?x",
        &long,
    ] {
        assert!(text.parse::<SpiffeId>().is_err(), "{text:?} was taken");
    }
}

#[test]
fn a_server_name_names_the_workload_and_a_host_has_none() {
    let id: SpiffeId = "spiffe://corp.example/ns/shop/sa/orders".parse().expect("valid");
    assert_eq!(id.server_name().as_deref(), Some("orders.shop.sa.corp.example"));
    assert_eq!(id.principal(), "corp.example/ns/shop/sa/orders");
    let host: SpiffeId = "spiffe://corp.example/host/web".parse().expect("valid");
    assert_eq!(host.server_name(), None);
}

#[test]
fn fuzzed_identities_print_as_they_were_read() {
    for (file, text) in crate::corpus::texts("spiffe") {
        if let Ok(id) = text.parse::<SpiffeId>() {
            assert_eq!(id.to_string(), text, "{file}");
        }
        if let Ok(domain) = text.parse::<TrustDomain>() {
            assert!(SpiffeId::workload(&domain, "a", "b").is_ok(), "{file}");
        }
        if let Ok(key) = text.parse::<crate::NamespacedHostname>() {
            assert_eq!(key.to_string(), text, "{file}");
        }
    }
}
