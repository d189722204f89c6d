//! Which connections count as bypassed, and that the host's own sockets are seen.

use std::net::{TcpListener, TcpStream};

use super::*;

fn connection(local: &str, remote: &str) -> Connection {
    let at = |text: &str| text.parse().expect("an address");
    Connection { local: at(local), remote: at(remote), uid: Some(0), owner: "x.service".to_owned(), own: false }
}

#[test]
fn connections_to_captured_destinations_that_miss_the_agent_are_bypassed() {
    let wanted = Wanted {
        vips: ["240.240.0.1".parse().expect("an address")].into(),
        endpoints: ["10.0.0.2:5432".parse().expect("an endpoint")].into(),
        ..Wanted::default()
    };
    let connections = [
        connection("10.0.0.1:40000", "10.0.0.2:5432"),
        connection("10.0.0.1:40001", "240.240.0.1:80"),
        connection("127.0.0.1:15001", "10.0.0.1:40001"),
        connection("10.0.0.1:40002", "10.0.0.2:22"),
        Connection { own: true, ..connection("10.0.0.1:40003", "10.0.0.2:5432") },
    ];
    assert_eq!(bypassed(&connections, &wanted), [&connections[0]]);
}

#[test]
fn own_listeners_and_connections_are_seen_with_an_owner() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let at = listener.local_addr().expect("a bound listener");
    let client = TcpStream::connect(at).expect("loopback");
    let seen = listeners().expect("sock_diag answers");
    assert!(seen.iter().any(|listener| listener.local == at && !listener.owner.is_empty()), "{seen:?}");
    let local = client.local_addr().expect("a connected socket");
    let seen = open_connections().expect("sock_diag answers");
    assert!(seen.iter().any(|connection| connection.local == local && connection.remote == at), "{seen:?}");
}
