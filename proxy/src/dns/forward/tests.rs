//! Which resolvers are asked, in which order.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::{Forwarder, is_reached_at};
use crate::dns::DnsConfig;

fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
    texts.iter().map(|text| text.parse().expect("an address")).collect()
}

#[test]
fn our_own_listeners_are_recognised() {
    let check = |own: &str, target: &str, expect: bool| {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        assert_eq!(is_reached_at(address(own), address(target)), expect, "{own} {target}");
    };
    check("127.0.0.1:53", "127.0.0.1:53", true);
    check("127.0.0.1:53", "127.0.0.1:54", false);
    check("127.0.0.1:53", "127.0.0.53:53", false);
    check("127.0.0.1:53", "[::ffff:127.0.0.1]:53", true);
    check("0.0.0.0:53", "127.0.0.1:53", true);
    check("0.0.0.0:53", "127.0.0.53:53", true);
    check("[::]:53", "[::1]:53", true);
    check("0.0.0.0:53", "10.0.0.1:53", false);
}

#[tokio::test]
async fn a_resolver_that_timed_out_is_asked_last_for_a_while() {
    let (upstreams, following) = watch::channel(addresses(&["10.0.0.1:53", "127.0.0.1:15053", "10.0.0.2:53"]));
    let mut config = DnsConfig::new(following);
    config.rest_after_timeout = Duration::from_secs(10);
    let forwarder = Forwarder::new(&config, addresses(&["127.0.0.1:15053"]));
    let now = Instant::now();
    assert_eq!(forwarder.in_order(now), addresses(&["10.0.0.1:53", "10.0.0.2:53"]));
    forwarder.rest("10.0.0.1:53".parse().expect("an address"));
    assert_eq!(forwarder.in_order(now), addresses(&["10.0.0.2:53", "10.0.0.1:53"]));
    assert_eq!(forwarder.in_order(now + Duration::from_secs(11)), addresses(&["10.0.0.1:53", "10.0.0.2:53"]));
    upstreams.send_replace(addresses(&["10.0.0.3:53"]));
    assert_eq!(forwarder.in_order(now), addresses(&["10.0.0.3:53"]));
}

#[tokio::test]
async fn a_question_on_the_way_is_known_as_our_own() {
    let (_upstreams, following) = watch::channel(Vec::new());
    let forwarder = Forwarder::new(&DnsConfig::new(following), Vec::new());
    let peer = |port| SocketAddr::from(([10, 0, 0, 5], port));
    let on_the_way = forwarder.on_the_way(4000, 77);
    assert!(forwarder.is_own(peer(4000), 77));
    assert!(!forwarder.is_own(peer(4000), 78) && !forwarder.is_own(peer(4001), 77));
    drop(on_the_way);
    assert!(!forwarder.is_own(peer(4000), 77));
}
