//! Tunnels that are shared, left, renewed and drained.
use super::mesh::*;
use crate::config::{Config, Tunnel};
use crate::drain::Drained;
use crate::tests::peers;
use http::Method;
use std::io::ErrorKind;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn made(mesh: &Mesh) -> f64 {
    mesh.a.metric("tombolo_tunnels_made_total", &["result=\"ok\""])
}

#[tokio::test]
async fn connections_of_one_identity_share_a_tunnel_and_of_two_never() {
    let app = app().await;
    let mesh = Mesh::start(&app).await;
    echo(app);
    for n in 0..10 {
        let mut client = mesh.dial().await;
        assert_eq!(ask(&mut client, "hello").await.expect("echoed"), "hello", "{n}");
    }
    assert_eq!(made(&mesh).await, 1.0);
    let mut cron = mesh.a.dial(mesh.vip, Some(CRON)).await;
    assert_eq!(ask(&mut cron, "hello").await.expect("echoed"), "hello");
    assert_eq!(made(&mesh).await, 2.0);
    assert_eq!(mesh.a.metric("tombolo_tunnels_open", &[]), 2.0);
}

#[tokio::test]
async fn many_at_once_make_as_few_tunnels_as_can_hold_them() {
    let app = app().await;
    let mesh = Mesh::start(&app).await;
    echo(app);
    let mut clients = Vec::new();
    for _ in 0..250 {
        clients.push(mesh.dial().await);
    }
    for client in &mut clients {
        assert_eq!(ask(client, "hello").await.expect("echoed"), "hello");
    }
    assert_eq!(made(&mesh).await, 3.0);
    assert_eq!(mesh.a.handle.open(), 250);
}

#[tokio::test]
async fn an_unused_tunnel_is_closed() {
    let app = app().await;
    let mut config = carried_by(Tunnel::Hbone);
    config.hbone.pool_unused_timeout = Duration::from_millis(50);
    config.hbone.keepalive_interval = Duration::from_millis(40);
    let mesh = Mesh::start_with(&app, config).await;
    echo(app);
    let mut client = mesh.dial().await;
    assert_eq!(ask(&mut client, "hello").await.expect("echoed"), "hello");
    // A younger tunnel, left at once, is the clock: when it is closed, the used one outlived the limit.
    let mut cron = mesh.a.dial(mesh.vip, Some(CRON)).await;
    assert_eq!(ask(&mut cron, "hello").await.expect("echoed"), "hello");
    assert_eq!(mesh.a.metric("tombolo_tunnels_open", &[]), 2.0);
    drop(cron);
    until("the unused tunnel to close", || (mesh.a.metric("tombolo_tunnels_open", &[]) == 1.0).then_some(())).await;
    assert_eq!(ask(&mut client, "again").await.expect("a used one is kept"), "again");
    assert_eq!(made(&mesh).await, 2.0);
    drop(client);
    until("the other to close", || (mesh.a.metric("tombolo_tunnels_open", &[]) == 0.0).then_some(())).await;
}

#[tokio::test]
async fn what_a_burst_leaves_is_closed_down_to_one_tunnel() {
    let app = app().await;
    let mut config = carried_by(Tunnel::Hbone);
    config.hbone.pool_max_streams = 1;
    config.hbone.pool_spare_timeout = Duration::from_millis(50);
    config.hbone.keepalive_interval = Duration::from_millis(40);
    let mesh = Mesh::start_with(&app, config).await;
    echo(app);
    let mut clients = [mesh.dial().await, mesh.dial().await, mesh.dial().await];
    for client in &mut clients {
        assert_eq!(ask(client, "hello").await.expect("echoed"), "hello");
    }
    assert_eq!(mesh.a.metric("tombolo_tunnels_open", &[]), 3.0);
    // The two older ones end: one of their tunnels is spare then.
    let [first, second, mut youngest] = clients;
    drop((first, second));
    until("the spare tunnel to close", || (mesh.a.metric("tombolo_tunnels_open", &[]) == 2.0).then_some(())).await;
    assert_eq!(ask(&mut youngest, "again").await.expect("a used one is kept"), "again");
    drop(youngest);
    until("the other spare to close", || (mesh.a.metric("tombolo_tunnels_open", &[]) == 1.0).then_some(())).await;
    let mut next = mesh.dial().await;
    assert_eq!(ask(&mut next, "hello").await.expect("echoed"), "hello");
    assert_eq!(made(&mesh).await, 3.0);
}

#[tokio::test]
async fn a_renewed_certificate_is_used_for_new_connections_only() {
    let app = app().await;
    let mesh = Mesh::start(&app).await;
    echo(app);
    let mut old = mesh.dial().await;
    assert_eq!(ask(&mut old, "hello").await.expect("echoed"), "hello");
    mesh.a.credentials.publish(mesh.ca.svid(&id("cron")));
    let mut other = mesh.dial().await;
    assert_eq!(ask(&mut other, "hello").await.expect("echoed"), "hello");
    assert_eq!(made(&mesh).await, 1.0, "another workload's certificate is no reason");
    mesh.a.credentials.publish(mesh.ca.svid(&id("web")));
    let mut new = mesh.dial().await;
    assert_eq!(ask(&mut new, "hello").await.expect("echoed"), "hello");
    assert_eq!(made(&mesh).await, 2.0);
    assert_eq!(ask(&mut old, "still").await.expect("the old tunnel lives"), "still");
    drop((old, other));
    until("the old tunnel to close", || (mesh.a.metric("tombolo_tunnels_open", &[]) == 1.0).then_some(())).await;
    assert_eq!(ask(&mut new, "still").await.expect("the new tunnel lives"), "still");
}

#[tokio::test]
async fn a_drained_host_finishes_what_is_open_and_says_goaway() {
    let app = app().await;
    let mesh = Mesh::start(&app).await;
    let Mesh { ca, a, b, app: address, vip } = mesh;
    let own = ca.credentials(&["web"]);
    let tunnel = b.tunnel_address();
    let peer = peers::connect(tunnel, &own, "web").await;
    let mut client = a.dial(vip, Some(WEB)).await;
    client.write_all(b"x").await.expect("sends");
    let (mut server, _) = within("the connection", app.accept()).await.expect("accepts");
    server.read_u8().await.expect("reads");
    let draining = tokio::spawn(b.drain(Duration::from_secs(20)));
    let gone = async {
        // Until GOAWAY arrives streams may still be opened.
        while peers::request(&peer, Method::CONNECT, &address.to_string()).await.is_ok() {}
    };
    within("GOAWAY", gone).await;
    assert!(TcpStream::connect(tunnel).await.is_err(), "the listener is closed");
    server.write_all(b"done").await.expect("the connection is still open");
    drop(server);
    let mut answer = String::new();
    within("the answer", client.read_to_string(&mut answer)).await.expect("ends in order");
    assert_eq!(answer, "done");
    drop((client, peer));
    assert_eq!(within("the drain", draining).await.expect("no panic"), Drained::Finished);
    assert_eq!(a.drain(Duration::from_secs(5)).await, Drained::Finished);
}

#[tokio::test]
async fn a_drain_ends_by_force_at_its_deadline() {
    let app = app().await;
    let mesh = Mesh::start(&app).await;
    let mut client = mesh.dial().await;
    client.write_all(b"x").await.expect("sends");
    let (mut server, _) = within("the connection", app.accept()).await.expect("accepts");
    server.read_u8().await.expect("reads");
    assert_eq!(mesh.a.drain(Duration::from_millis(100)).await, Drained::Forced);
    assert_eq!(refused(&mut client).await, ErrorKind::ConnectionReset, "half an answer must not look whole");
    let error = within("the reset", server.read_u8()).await.expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let line = logged(&[&client.local_addr().expect("an address").to_string(), "outbound connection closed"]).await;
    assert_eq!(line["flag"], "ABORTED");
}

#[tokio::test]
async fn a_peer_that_restarts_is_reached_again() {
    let app = app().await;
    let mesh = Mesh::start(&app).await;
    let Mesh { ca, a, b, app: address, vip } = mesh;
    echo(app);
    let mut client = a.dial(vip, Some(WEB)).await;
    assert_eq!(ask(&mut client, "hello").await.expect("echoed"), "hello");
    let tunnel = b.tunnel_address();
    b.drain(Duration::ZERO).await;
    assert_eq!(refused(&mut client).await, ErrorKind::ConnectionReset);
    let mut nobody = a.dial(vip, Some(WEB)).await;
    assert_eq!(refused(&mut nobody).await, ErrorKind::ConnectionReset);
    let mut config = Config::default();
    config.inbound.listen = vec![tunnel];
    let seen = seen_by(world(address), &[ORDERS], &[address.port()]);
    let _b = Host::start(&address.ip().to_string(), seen, ca.credentials(&["orders"]), config).await;
    let mut again = a.dial(vip, Some(WEB)).await;
    assert_eq!(ask(&mut again, "again").await.expect("echoed"), "again");
}

#[tokio::test]
async fn a_peer_that_vanishes_without_a_word_is_noticed() {
    let app = app().await;
    let mut config = carried_by(Tunnel::Hbone);
    config.hbone.keepalive_interval = Duration::from_millis(50);
    config.hbone.keepalive_timeout = Duration::from_millis(100);
    let mesh = Mesh::start_with(&app, config).await;
    echo(app);
    // The older tunnel: when the silent one is closed, it has outlived the same limits.
    let mut client = mesh.dial().await;
    assert_eq!(ask(&mut client, "alive").await.expect("echoed"), "alive");
    // A peer that finishes its handshakes and then never reads: a host that lost its power.
    let own = mesh.ca.credentials(&["web"]);
    let tls = identity::tls::client_config(&own, &id("web"), vec![id("orders")], &[b"h2"]).expect("a configuration");
    let tcp = TcpStream::connect(mesh.b.tunnel_address()).await.expect("it listens");
    let name = identity::tls::server_name(&[id("orders")]);
    let mut peer = tokio_rustls::TlsConnector::from(tls).connect(name, tcp).await.expect("shakes hands");
    // Preface and an empty SETTINGS frame (RFC 9113 §3.4).
    peer.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.expect("sends");
    logged(&["a peer's tunnel broke", "did not answer a PING"]).await;
    assert_eq!(ask(&mut client, "alive").await.expect("others answer their PINGs and are kept"), "alive");
    assert_eq!(made(&mesh).await, 1.0);
}

#[tokio::test]
async fn the_accept_loops_say_that_they_are_alive() {
    let app = app().await;
    let mesh = Mesh::start(&app).await;
    let first = mesh.a.handle.alive();
    until("a beat", || (mesh.a.handle.alive() > first).then_some(())).await;
    assert!(mesh.a.handle.alive().elapsed() < Duration::from_secs(5));
}
