//! `tombolo/1`: answers, warm connections, sessions, and who is offered it. What it must have in
//! common with HBONE is in the other files, for both.
use super::mesh::*;
use crate::config::Tunnel;
use crate::drain::Drained;
use crate::flow::{Answer, Header};
use crate::testing::{endpoint_of, service, workload};
use api::snapshot::Change;
use identity::{Credentials, tls};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::HandshakeKind;
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};

/// A bare peer's connection to `orders`' tunnel port.
pub(super) async fn connect(mesh: &Mesh, own: &Credentials) -> TlsStream<TcpStream> {
    let config = tls::flow_client_config(own, &id("web"), vec![id("orders")]).expect("a configuration");
    let tcp = TcpStream::connect(mesh.b.tunnel_address()).await.expect("it listens");
    let stream = TlsConnector::from(config).connect(tls::server_name(&[id("orders")]), tcp).await;
    let stream = stream.expect("shakes hands");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(tls::FLOW_ALPN));
    stream
}

pub(super) fn header(destination: SocketAddr) -> Vec<u8> {
    let client = "127.0.0.11:40000".parse().expect("an address");
    Header { destination, client, service: Some("orders.shop.mesh"), trace: None, baggage: "a=b" }.encode()
}

pub(super) async fn answer(stream: &mut TlsStream<TcpStream>) -> Option<Answer> {
    Answer::of(within("an answer", stream.read_u8()).await.expect("an answer before the end"))
}

async fn made(host: &Host, result: &str) -> f64 {
    host.metric("tombolo_tunnels_made_total", &[&format!("result=\"{result}\"")])
}

async fn until_warm(host: &Host, some: bool) {
    until("warm connections", || ((host.metric("tombolo_tunnels_warm", &[]) > 0.0) == some).then_some(())).await;
}

#[tokio::test]
async fn each_refusal_has_its_answer_and_the_line_of_hbone() {
    let app = app().await;
    let mesh = Mesh::start(&app).await;
    let own = mesh.ca.credentials(&["web"]);
    let (ip, port) = (mesh.app.ip(), mesh.app.port());
    let closed = app_at(&ip.to_string()).await.local_addr().expect("bound");
    let second = service("second", "shop", &[], &[81]);
    let orders = mesh.b.view.load().workload(ORDERS).expect("it is in the mesh").clone();
    let orders = endpoint_of(api::Workload::clone(&orders), &second, 81, closed.port());
    mesh.b.publish(vec![Change::Service(second), Change::Workload(orders)]);
    let at = |port: u16| header(SocketAddr::new(ip, port));
    let with = |at: usize, byte: u8| {
        let mut bytes = header(mesh.app);
        bytes[at] = byte;
        bytes
    };
    let cases = [
        (at(port), Answer::Accepted, "", ""),
        (header(([240, 240, 0, 1], port).into()), Answer::NotOurs, "ip mismatch: 240.240.0.1", "NO_ROUTE"),
        (at(22), Answer::NotListening, "no workload of this host listens on port 22", "NO_ROUTE"),
        (at(mesh.b.tunnel_address().port()), Answer::NotListening, "would be a loop", "LOOP"),
        (at(closed.port()), Answer::Unreachable, "Connection refused", "CONNECT"),
        (with(0, 2), Answer::Malformed, "version 2 of the flow header", "BAD_REQUEST"),
        (with(1, 0xff), Answer::Malformed, "62 to 8192 are allowed", "BAD_REQUEST"),
        (with(64, 0xff), Answer::Malformed, "ends within its service", "BAD_REQUEST"),
    ];
    for (bytes, expect, reason, flag) in cases {
        let mut stream = connect(&mesh, &own).await;
        // Bytes behind the header must not get in the way of the answer.
        stream.write_all(&[&bytes[..], &[7; 100_000]].concat()).await.expect("sends");
        assert_eq!(answer(&mut stream).await, Some(expect), "{reason}");
        if expect == Answer::Accepted {
            continue;
        }
        assert_eq!(within("the end", stream.read(&mut [0])).await.expect("ends in order"), 0, "{reason}");
        let client = stream.get_ref().0.local_addr().expect("an address").to_string();
        let line = logged(&["inbound connection refused", &client]).await;
        assert!(line["error"].as_str().expect("text").contains(reason), "{line}");
        assert_eq!((&line["flag"], &line["protocol"]), (&flag.into(), &"tombolo/1".into()), "{line}");
        assert_eq!(line["src.identity"], id("web").to_string());
    }
}

#[tokio::test]
async fn bytes_behind_the_header_reach_the_application() {
    let app = app().await;
    let mesh = Mesh::start(&app).await;
    echo(app);
    let mut stream = connect(&mesh, &mesh.ca.credentials(&["web"])).await;
    stream.write_all(&[&header(mesh.app)[..], b"eager"].concat()).await.expect("sends");
    assert_eq!(answer(&mut stream).await, Some(Answer::Accepted));
    stream.shutdown().await.expect("ends");
    let mut echoed = Vec::new();
    within("the echo", stream.read_to_end(&mut echoed)).await.expect("ends in order");
    assert_eq!(echoed, b"eager");
}

#[tokio::test]
async fn a_header_that_never_ends_is_given_up() {
    let app = app().await;
    let mut config = carried_by(Tunnel::Hbone);
    config.inbound.handshake_timeout = Duration::from_millis(150);
    let mesh = Mesh::start_with(&app, config).await;
    let mut stream = connect(&mesh, &mesh.ca.credentials(&["web"])).await;
    stream.write_all(&header(mesh.app)[..40]).await.expect("sends");
    assert_eq!(answer(&mut stream).await, Some(Answer::Malformed));
    let client = stream.get_ref().0.local_addr().expect("an address").to_string();
    let line = logged(&["inbound connection refused", &client]).await;
    assert_eq!((&line["error"], &line["flag"]), (&"no whole flow header within 150ms".into(), &"BAD_REQUEST".into()));
}

#[tokio::test]
async fn a_connection_without_a_flow_is_closed_with_a_word() {
    let app = app().await;
    let mut config = carried_by(Tunnel::Hbone);
    config.flow.server_unused_timeout = Duration::from_millis(50);
    let mesh = Mesh::start_with(&app, config).await;
    let mut stream = connect(&mesh, &mesh.ca.credentials(&["web"])).await;
    assert_eq!(answer(&mut stream).await, Some(Answer::Closing));
}

#[tokio::test]
async fn an_end_without_close_notify_resets_the_application() {
    let app = app().await;
    let mesh = Mesh::start(&app).await;
    let mut stream = connect(&mesh, &mesh.ca.credentials(&["web"])).await;
    stream.write_all(&header(mesh.app)).await.expect("sends");
    assert_eq!(answer(&mut stream).await, Some(Answer::Accepted));
    let (mut server, _) = within("the connection", app.accept()).await.expect("accepts");
    // Somebody on the way who ends TCP does not end the flow.
    stream.get_mut().0.shutdown().await.expect("ends");
    let error = within("the reset", server.read(&mut [0])).await.expect_err("not a clean end");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_warm_connection_takes_the_next_flow_and_is_replaced_while_it_lasts() {
    let app = app().await;
    let mesh = Mesh::over(&app, Tunnel::Auto).await;
    echo(app);
    let mut flows = Vec::new();
    for n in 1..=4 {
        let mut client = mesh.dial().await;
        assert_eq!(ask(&mut client, "hello").await.expect("echoed"), "hello");
        flows.push(client);
        let open = mesh.a.handle.connections();
        assert!(open.iter().all(|open| open.protocol == "tombolo/1"), "{n}: {open:?}");
        until_warm(&mesh.a, true).await;
    }
    // The first of all waited for its own; from then on each flow found one and another was made.
    assert!(made(&mesh.a, "ok").await + made(&mesh.a, "resumed").await >= 5.0);
    assert!(made(&mesh.a, "resumed").await >= 3.0, "one ticket comes with each connection");
    assert_eq!(mesh.a.metric("tombolo_tunnels_open", &[]), 0.0, "no HBONE was needed");
}

#[tokio::test]
async fn flows_that_end_in_order_leave_their_connection_to_the_next() {
    let app = app().await;
    let mut config = carried_by(Tunnel::Flow);
    config.flow.handshake_burst = 0.0;
    let mesh = Mesh::start_with(&app, config).await;
    echo(app);
    for n in 0..20 {
        let mut client = mesh.dial().await;
        // Less and more than a record, and nothing at all.
        let sent = vec![7; n * 1000];
        client.write_all(&sent).await.expect("sends");
        client.shutdown().await.expect("half-closes");
        let mut echoed = Vec::new();
        within("the echo", client.read_to_end(&mut echoed)).await.expect("ends in order");
        assert!(echoed == sent, "{n}");
        until_warm(&mesh.a, true).await;
    }
    assert_eq!(made(&mesh.a, "ok").await + made(&mesh.a, "resumed").await, 1.0);
    // One that broke is not used again.
    let client = mesh.dial().await;
    client.set_zero_linger().expect("sets");
    until("the flow", || (mesh.b.handle.open() == 1).then_some(())).await;
    drop(client);
    until("its end", || (mesh.b.handle.open() == 0).then_some(())).await;
    let mut client = mesh.dial().await;
    assert_eq!(ask(&mut client, "hello").await.expect("echoed"), "hello");
    assert_eq!(made(&mesh.a, "ok").await + made(&mesh.a, "resumed").await, 2.0);
}

#[tokio::test]
async fn flows_beyond_the_budget_of_handshakes_go_over_hbone() {
    let app = app().await;
    let mut config = carried_by(Tunnel::Auto);
    (config.flow.handshake_burst, config.flow.handshakes_per_second) = (3.0, 0.0);
    let mesh = Mesh::start_with(&app, config).await;
    echo(app);
    let mut open = Vec::new();
    for _ in 0..20 {
        let mut client = mesh.dial().await;
        assert_eq!(ask(&mut client, "hello").await.expect("echoed"), "hello");
        open.push(client);
    }
    let count = |protocol: &str| mesh.a.handle.connections().iter().filter(|open| open.protocol == protocol).count();
    assert_eq!((count("tombolo/1"), count("hbone")), (3, 17));
    assert_eq!(mesh.a.metric("tombolo_tunnels_open", &[]), 1.0);
    assert_eq!(made(&mesh.a, "ok").await + made(&mesh.a, "resumed").await, 4.0);
}

#[tokio::test]
async fn changed_credentials_leave_warm_connections_and_sessions() {
    let app = app().await;
    let mesh = Mesh::over(&app, Tunnel::Auto).await;
    echo(app);
    let mut old = mesh.dial().await;
    assert_eq!(ask(&mut old, "hello").await.expect("echoed"), "hello");
    until_warm(&mesh.a, true).await;
    let whole = made(&mesh.a, "ok").await;
    mesh.a.credentials.publish(mesh.ca.svid(&id("web")));
    until_warm(&mesh.a, false).await;
    let mut new = mesh.dial().await;
    assert_eq!(ask(&mut new, "hello").await.expect("echoed"), "hello");
    assert!(made(&mesh.a, "ok").await > whole, "the first with the new certificate shows it");
    assert_eq!(ask(&mut old, "still").await.expect("the old flow lives"), "still");
    // A bundle that no longer has the root of the peer: nothing that was agreed before may help.
    until_warm(&mesh.a, true).await;
    let (whole, resumed) = (made(&mesh.a, "ok").await, made(&mesh.a, "resumed").await);
    mesh.a.credentials.set_bundles((*Ca::new().credentials(&[]).bundles()).clone());
    let mut refused_now = mesh.dial().await;
    assert_eq!(refused(&mut refused_now).await, ErrorKind::ConnectionReset);
    assert_eq!((made(&mesh.a, "ok").await, made(&mesh.a, "resumed").await), (whole, resumed));
}

#[tokio::test]
async fn a_server_forgets_sessions_when_its_credentials_change() {
    let app = app().await;
    let mesh = Mesh::start(&app).await;
    let own = mesh.ca.credentials(&["web"]);
    let config = tls::flow_client_config(&own, &id("web"), vec![id("orders")]).expect("a configuration");
    let kind = async || {
        let tcp = TcpStream::connect(mesh.b.tunnel_address()).await.expect("it listens");
        let connector = TlsConnector::from(config.clone());
        let mut stream = connector.connect(tls::server_name(&[id("orders")]), tcp).await.expect("shakes hands");
        // The ticket comes before the answer.
        stream.write_all(&header(([240, 240, 0, 1], 80).into())).await.expect("sends");
        assert_eq!(answer(&mut stream).await, Some(Answer::NotOurs));
        stream.get_ref().1.handshake_kind().expect("it is over")
    };
    assert_eq!(kind().await, HandshakeKind::Full);
    assert_eq!(kind().await, HandshakeKind::Resumed);
    mesh.b.credentials.set_bundles((*mesh.b.credentials.bundles()).clone());
    assert_eq!(kind().await, HandshakeKind::Full);
    mesh.b.credentials.publish(mesh.ca.svid(&id("orders")));
    assert_eq!(kind().await, HandshakeKind::Full);
    assert_eq!(kind().await, HandshakeKind::Resumed);
}

#[tokio::test]
async fn a_peer_that_restarts_loses_no_flow() {
    let app = app().await;
    let Mesh { ca, a, b, app: address, vip } = Mesh::over(&app, Tunnel::Auto).await;
    echo(app);
    let mut client = a.dial(vip, Some(WEB)).await;
    assert_eq!(ask(&mut client, "hello").await.expect("echoed"), "hello");
    drop(client);
    until_warm(&a, true).await;
    let tunnel = b.tunnel_address();
    assert_eq!(within("the drain", b.drain(Duration::from_secs(20))).await, Drained::Finished);
    let mut config = carried_by(Tunnel::Auto);
    config.inbound.listen = vec![tunnel];
    let seen = seen_by(world(address), &[ORDERS], &[address.port()]);
    let _b = Host::start(&address.ip().to_string(), seen, ca.credentials(&["orders"]), config).await;
    for _ in 0..3 {
        let mut again = a.dial(vip, Some(WEB)).await;
        assert_eq!(ask(&mut again, "again").await.expect("echoed"), "again");
    }
}

#[tokio::test]
async fn a_drain_says_so_to_warm_connections_and_finishes_flows() {
    let app = app().await;
    let Mesh { ca: _ca, a, b, app: _, vip } = Mesh::over(&app, Tunnel::Auto).await;
    let mut client = a.dial(vip, Some(WEB)).await;
    client.write_all(b"x").await.expect("sends");
    let (mut server, _) = within("the connection", app.accept()).await.expect("accepts");
    server.read_u8().await.expect("reads");
    until_warm(&a, true).await;
    let draining = tokio::spawn(b.drain(Duration::from_secs(20)));
    logged(&["closing a connection without a flow", "the agent is shutting down"]).await;
    until_warm(&a, false).await;
    server.write_all(b"done").await.expect("the flow is still open");
    drop(server);
    let mut answer = String::new();
    within("the answer", client.read_to_string(&mut answer)).await.expect("ends in order");
    assert_eq!(answer, "done");
    drop(client);
    assert_eq!(within("the drain", draining).await.expect("no panic"), Drained::Finished);
    assert_eq!(a.drain(Duration::from_secs(5)).await, Drained::Finished);
}

#[tokio::test]
async fn only_tombolo_hosts_are_offered_it_and_only_once_in_a_while() {
    for (uid, tunnel, expect) in [
        ("tombolo/shop/orders/b", Tunnel::Auto, &[&b"tombolo/1"[..], b"h2"][..]),
        ("tombolo/shop/orders/b", Tunnel::Flow, &[b"tombolo/1", b"h2"]),
        ("tombolo/shop/orders/b", Tunnel::Hbone, &[b"h2"]),
        ("cluster-1//Pod/shop/orders", Tunnel::Flow, &[b"h2"]),
    ] {
        let tunnels = app().await;
        let address = tunnels.local_addr().expect("bound");
        let pod = workload(uid, "shop", "orders", &[&address.ip().to_string()]);
        let pod = endpoint_of(pod, &orders_service(), 80, 8080);
        let web = workload(WEB, "shop", "web", &[&client_ip(address)]);
        let changes = vec![Change::Service(orders_service()), Change::Workload(pod), Change::Workload(web)];
        let ca = Ca::new();
        let mut config = carried_by(tunnel);
        config.outbound.tunnel_port = address.port();
        let seen = seen_by(changes, &[WEB], &[3000]);
        let host = Host::start(&client_ip(address), seen, ca.credentials(&["web"]), config).await;
        let _client = host.dial(([240, 240, 0, 1], 80).into(), Some(WEB)).await;
        assert_eq!(offered(&tunnels).await, expect, "{uid} {tunnel:?}");
    }
}

/// What the next connection offers by ALPN.
async fn offered(listener: &TcpListener) -> Vec<Vec<u8>> {
    let (tcp, _) = within("a connection", listener.accept()).await.expect("accepts");
    let start = LazyConfigAcceptor::new(tokio_rustls::rustls::server::Acceptor::default(), tcp).await;
    let start = start.expect("a hello");
    start.client_hello().alpn().expect("a choice").map(<[u8]>::to_vec).collect()
}
