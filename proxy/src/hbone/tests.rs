//! Tables for the header values, and the fuzz corpora replayed.
use super::*;
use proptest::prelude::*;

#[test]
fn authorities_are_an_address_or_a_name_with_a_port() {
    let ok = |text: &str| text.parse::<Authority>().map(|authority| authority.to_string());
    let cases = [
        ("10.0.0.1:80", "10.0.0.1:80"),
        ("[fd00::1]:8080", "[fd00::1]:8080"),
        ("[::ffff:10.0.0.1]:80", "10.0.0.1:80"),
        ("orders.shop.mesh:80", "orders.shop.mesh:80"),
        ("Orders.Shop.mesh.:80", "orders.shop.mesh:80"),
        ("my_svc:1", "my_svc:1"),
    ];
    for (text, expected) in cases {
        assert_eq!(ok(text).as_deref(), Ok(expected), "{text}");
    }
    let named = |text: &str| AuthorityError::NoPort { authority: text.into() };
    let port = |text: &str| AuthorityError::Port { authority: text.into() };
    let host = |text: &str| AuthorityError::Host { authority: text.into() };
    let bad = [
        ("", named("")),
        ("10.0.0.1", named("10.0.0.1")),
        ("[fd00::1]", named("[fd00::1]")),
        ("10.0.0.1:", port("10.0.0.1:")),
        ("10.0.0.1:0", port("10.0.0.1:0")),
        ("10.0.0.1:+80", port("10.0.0.1:+80")),
        ("10.0.0.1:65536", port("10.0.0.1:65536")),
        (":80", host(":80")),
        (".:80", host(".:80")),
        ("a..b:80", host("a..b:80")),
        ("::1:80", host("::1:80")),
        ("user@10.0.0.1:80", host("user@10.0.0.1:80")),
        ("10.0.0.1/8:80", host("10.0.0.1/8:80")),
        ("ä:80", host("ä:80")),
    ];
    for (text, expected) in bad {
        assert_eq!(text.parse::<Authority>(), Err(expected), "{text}");
    }
    assert_eq!("a".repeat(300).parse::<Authority>(), Err(AuthorityError::TooLong { bytes: 300 }));
}

#[test]
fn baggage_says_what_is_known_in_ztunnels_words() {
    let mut workload = crate::testing::workload("tombolo/shop/orders/a", "shop", "orders", &[]);
    workload.canonical_revision = String::new();
    workload.locality.region = "eu north".into();
    let text = Baggage::of(&workload).to_string();
    let expected = "k8s.namespace.name=shop,k8s.deployment.name=orders,service.name=orders,cloud.region=eu%20north";
    assert_eq!(text, expected);
    assert_eq!(Baggage::parse(&text), Baggage::of(&workload));
}

#[test]
fn baggage_of_others_is_read_as_far_as_it_goes() {
    let cases = [
        ("", Baggage::default()),
        ("k8s.job.name=nightly;ttl=3, service.name = a ", {
            Baggage { workload: "nightly".into(), service: "a".into(), ..Baggage::default() }
        }),
        ("=,,==,service.name", Baggage::default()),
        ("service.name=%ff,service.version=%zz%", Baggage { revision: "%zz%".into(), ..Baggage::default() }),
        ("service.name=%+1", Baggage { service: "%+1".into(), ..Baggage::default() }),
    ];
    for (text, expected) in cases {
        assert_eq!(Baggage::parse(text), expected, "{text}");
    }
    assert_eq!(Baggage::parse(&format!("service.name={}", "x".repeat(9000))), Baggage::default());
}

#[test]
fn forwarded_names_the_client_and_the_service() {
    let client: SocketAddr = "10.77.0.2:42426".parse().expect("an address");
    let cases = [
        (Forwarded { client, host: None }, "for=\"10.77.0.2:42426\""),
        (Forwarded { client, host: Some("a.b.mesh") }, "for=\"10.77.0.2:42426\";host=a.b.mesh"),
        (Forwarded { client: "[fd00::1]:1".parse().expect("an address"), host: None }, "for=\"[fd00::1]:1\""),
    ];
    for (forwarded, text) in cases {
        assert_eq!(forwarded.to_string(), text);
        assert_eq!(Forwarded::parse(text), Some(forwarded));
    }
    for bad in ["", "for=unknown", "host=a", "for=\"10.0.0.1\"", ";;;=", "for"] {
        assert_eq!(Forwarded::parse(bad), None, "{bad}");
    }
}

#[test]
fn a_traceparent_is_55_characters_of_version_00() {
    let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    assert_eq!(TraceParent::parse(text).map(|parent| parent.to_string()).as_deref(), Some(text));
    let long = format!("{text}0");
    let bad = [
        "",
        "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c+b7ad6b7169203331-01",
        "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        long.as_str(),
    ];
    for text in bad {
        assert_eq!(TraceParent::parse(text), None, "{text}");
    }
    assert_eq!(TraceParent::fresh(0, 0).to_string(), "00-00000000000000000000000000000001-0000000000000001-00");
}

/// What the fuzz targets check, on one input.
fn check_parsers(text: &str) {
    if let Ok(authority) = text.parse::<Authority>() {
        assert_eq!(authority.to_string().parse(), Ok(authority), "{text:?}");
    }
    let baggage = Baggage::parse(text);
    let printed = baggage.to_string();
    // Percent-encoding can make a value longer than a reader takes.
    if printed.len() <= text.len() {
        assert_eq!(Baggage::parse(&printed), baggage, "{text:?}");
    }
    if let Some(forwarded) = Forwarded::parse(text) {
        assert_eq!(Forwarded::parse(&forwarded.to_string()).map(|again| again.client), Some(forwarded.client));
    }
    if let Some(parent) = TraceParent::parse(text) {
        assert_eq!(TraceParent::parse(&parent.to_string()), Some(parent), "{text:?}");
    }
}

#[test]
fn the_fuzz_corpora_hold_no_surprise() {
    let corpora = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fuzz/corpus");
    for target in ["authority", "baggage"] {
        let folder = std::fs::read_dir(format!("{corpora}/{target}")).expect("the corpus is checked in");
        let mut replayed = 0;
        for file in folder {
            let bytes = std::fs::read(file.expect("readable").path()).expect("readable");
            check_parsers(&String::from_utf8_lossy(&bytes));
            replayed += 1;
        }
        assert!(replayed >= 10, "{target} has only {replayed} inputs");
    }
}

proptest! {
    #[test]
    fn no_text_breaks_a_parser(text in "\\PC{0,80}") {
        check_parsers(&text);
    }

    #[test]
    fn text_that_looks_right_breaks_no_parser(text in "[a-z0-9.:%=,;\"\\[\\]/@+-]{0,60}") {
        check_parsers(&text);
    }
}
