//! Peers that are not ours: a bare HTTP/2 client and server with ztunnel's manners (no server name,
//! its settings, its headers).
use super::mesh::*;
use crate::config::Config;
use bytes::Bytes;
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{Method, Request, Response, StatusCode};
use identity::{Credentials, tls};
use std::net::SocketAddr;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// A peer's connection to a tunnel port, without a server name, as ztunnel makes it.
pub(super) async fn connect(to: SocketAddr, own: &Credentials, account: &str) -> SendRequest<Bytes> {
    try_connect(to, own, account).await.expect("the proxy takes tunnels of its mesh")
}

async fn try_connect(to: SocketAddr, own: &Credentials, account: &str) -> std::io::Result<SendRequest<Bytes>> {
    let config =
        tls::client_config(own, &id(account), vec![id("orders")], &[tls::HBONE_ALPN]).expect("a configuration");
    let tcp = TcpStream::connect(to).await?;
    let nobody = rustls_pki_types::ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
    let stream = TlsConnector::from(config).connect(nobody, tcp).await?;
    let mut builder = h2::client::Builder::new();
    builder.enable_push(false).initial_window_size(4 << 20).max_frame_size(1 << 20).max_header_list_size(16 << 10);
    let (send, connection) = builder.handshake(stream).await.map_err(std::io::Error::other)?;
    tokio::spawn(async move {
        // How it ends is seen at the streams.
        let _ = connection.await;
    });
    Ok(send)
}

/// Sends a request and waits for its head.
pub(super) async fn request(
    peer: &SendRequest<Bytes>,
    method: Method,
    authority: &str,
) -> Result<(Response<RecvStream>, SendStream<Bytes>), h2::Error> {
    let uri = match method {
        Method::CONNECT => http::Uri::builder().authority(authority).build(),
        _ => http::Uri::builder().scheme("https").authority(authority).path_and_query("/").build(),
    };
    let request = Request::builder().method(method).uri(uri.expect("a URI")).body(()).expect("a request");
    let mut peer = peer.clone().ready().await?;
    let (response, send) = peer.send_request(request, false)?;
    Ok((within("a response", response).await?, send))
}

#[tokio::test]
async fn each_refusal_has_ztunnels_status() {
    let app = app().await;
    let mesh = Mesh::start(&app).await;
    let (ip, port) = (mesh.app.ip(), mesh.app.port());
    let closed = TcpListener::bind((mesh.app.ip(), 0)).await.expect("loopback has free ports");
    let closed_port = closed.local_addr().expect("bound").port();
    let mut seen = world(mesh.app);
    let second = crate::testing::service("second", "shop", &[], &[81]);
    for change in &mut seen {
        if let api::snapshot::Change::Workload(workload) = change
            && &*workload.uid == ORDERS
        {
            let both = crate::testing::endpoint_of(workload.clone(), &second, 81, closed_port);
            *workload = both;
        }
    }
    seen.push(api::snapshot::Change::Service(second));
    drop(closed);
    mesh.b.publish(seen);
    let own_port = mesh.b.tunnel_address().port();
    let client = mesh.ca.credentials(&["web"]);
    let peer = connect(mesh.b.tunnel_address(), &client, "web").await;
    let cases = [
        (Method::CONNECT, mesh.app.to_string(), 200, ""),
        (Method::CONNECT, format!("orders.shop.mesh:{}", 80), 200, ""),
        (Method::GET, mesh.app.to_string(), 400, "only CONNECT is served here, not GET"),
        (Method::CONNECT, ip.to_string(), 400, "has no port"),
        (Method::CONNECT, format!("user@{ip}:{port}"), 400, "neither ADDRESS:PORT nor NAME:PORT"),
        (Method::CONNECT, format!("240.240.0.1:{port}"), 400, "ip mismatch: 240.240.0.1"),
        (Method::CONNECT, format!("127.0.0.1:{port}"), 400, "ip mismatch: 127.0.0.1"),
        (Method::CONNECT, "nobody.shop.mesh:80".to_owned(), 503, "no workload of this host is an endpoint of nobody"),
        (Method::CONNECT, "orders.shop.mesh:99".to_owned(), 503, "no workload of this host is an endpoint of orders"),
        (Method::CONNECT, format!("{ip}:22"), 503, "no workload of this host listens on port 22"),
        (Method::CONNECT, format!("{ip}:{own_port}"), 503, "would be a loop"),
        (Method::CONNECT, format!("{ip}:15001"), 503, "no workload of this host listens on port 15001"),
        (Method::CONNECT, format!("{ip}:{closed_port}"), 503, "Connection refused"),
    ];
    for (method, authority, status, reason) in cases {
        let (response, _send) = request(&peer, method, &authority).await.expect("an answer");
        assert_eq!(response.status().as_u16(), status, "{authority}");
        if status == 200 {
            let baggage = response.headers()["baggage"].to_str().expect("text").to_owned();
            assert!(
                baggage.contains("k8s.namespace.name=shop") && baggage.contains("service.name=orders"),
                "{baggage}"
            );
            continue;
        }
        let line = logged(&["inbound connection refused", reason, &ip.to_string()]).await;
        assert_eq!(line["src.identity"], id("web").to_string());
        let mut body = response.into_body();
        assert!(within("the end", body.data()).await.is_none(), "a refusal ends the stream");
    }
    let (response, _) = request(&peer, Method::CONNECT, &mesh.app.to_string()).await.expect("the tunnel is still good");
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_peer_exchanges_bytes_and_ends_each_direction_on_its_own() {
    let app = app().await;
    let mesh = Mesh::start(&app).await;
    echo(app);
    let client = mesh.ca.credentials(&["web"]);
    let peer = connect(mesh.b.tunnel_address(), &client, "web").await;
    let (response, mut send) = request(&peer, Method::CONNECT, &mesh.app.to_string()).await.expect("an answer");
    send.send_data(Bytes::from_static(b"over the tunnel"), false).expect("sends");
    let mut body = response.into_body();
    let data = within("the echo", body.data()).await.expect("not the end").expect("bytes");
    assert_eq!(&data[..], b"over the tunnel");
    send.send_data(Bytes::new(), true).expect("ends");
    // The end may come in a frame of its own, without bytes.
    while let Some(last) = within("the end", body.data()).await {
        assert_eq!(last.expect("no reset").len(), 0);
    }
    until("the connection to end", || (mesh.b.handle.open() == 0).then_some(())).await;
}

#[tokio::test]
async fn a_stream_that_is_reset_resets_the_application() {
    let app = app().await;
    let mesh = Mesh::start(&app).await;
    let client = mesh.ca.credentials(&["web"]);
    let peer = connect(mesh.b.tunnel_address(), &client, "web").await;
    let (_response, mut send) = request(&peer, Method::CONNECT, &mesh.app.to_string()).await.expect("an answer");
    let (mut server, _) = within("the connection", app.accept()).await.expect("accepts");
    send.send_reset(h2::Reason::CANCEL);
    let mut byte = [0];
    let read = within("the reset", tokio::io::AsyncReadExt::read(&mut server, &mut byte)).await;
    assert_eq!(read.expect_err("not a clean end").kind(), std::io::ErrorKind::ConnectionReset);
    let (response, _send) = request(&peer, Method::CONNECT, &mesh.app.to_string()).await.expect("an answer");
    let (server, _) = within("the connection", app.accept()).await.expect("accepts");
    server.set_zero_linger().expect("sets");
    drop(server);
    let error = within("the reset", response.into_body().data()).await.expect("not the end").expect_err("a reset");
    assert_eq!(error.reason(), Some(h2::Reason::CONNECT_ERROR));
}

#[tokio::test]
async fn a_peer_without_a_certificate_of_the_mesh_gets_no_tunnel() {
    let app = app().await;
    let mesh = Mesh::start(&app).await;
    let nobody = mesh.ca.credentials(&[]);
    let to = mesh.b.tunnel_address();
    let refused = async |own: &Credentials| match try_connect(to, own, "web").await {
        Err(_) => true,
        // With TLS 1.3 the client learns of it after its own handshake.
        Ok(peer) => request(&peer, Method::CONNECT, &mesh.app.to_string()).await.is_err(),
    };
    assert!(refused(&nobody).await, "no certificate");
    logged(&["inbound connection refused", "TLS_FAILURE", "certificate"]).await;
    let foreign = Ca::new().credentials(&["web"]);
    foreign.set_bundles((*mesh.ca.credentials(&[]).bundles()).clone());
    assert!(refused(&foreign).await, "of another authority");
    logged(&["inbound connection refused", "TLS_FAILURE", "not signed by a root that is trusted here"]).await;
    assert!(mesh.b.metric("tombolo_inbound_handshakes_total", &["result=\"failed\""]) >= 2.0);
}

/// How a peer behaves.
#[derive(Clone, Copy)]
struct Manners {
    status: StatusCode,
    /// The limit of its SETTINGS.
    max_streams: u32,
    /// Says GOAWAY on a connection after so many streams.
    streams_before_goaway: usize,
}

const OK: Manners = Manners { status: StatusCode::OK, max_streams: 200, streams_before_goaway: usize::MAX };

/// A tunnel port that is not ours: says what it was asked, answers, echoes.
struct Peer {
    address: SocketAddr,
    asked: tokio::sync::mpsc::UnboundedReceiver<http::request::Parts>,
}

impl Peer {
    async fn start(credentials: Credentials, account: &str, manners: Manners) -> Self {
        let listener = app().await;
        let address = listener.local_addr().expect("bound");
        let config = tls::server_config(&credentials, &id(account), &[tls::HBONE_ALPN]).expect("a configuration");
        let acceptor = TlsAcceptor::from(config);
        let (asks, asked) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, asks) = (acceptor.clone(), asks.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(tcp).await else { return };
                    let mut builder = h2::server::Builder::new();
                    builder.max_concurrent_streams(manners.max_streams);
                    let mut connection = builder.handshake::<_, Bytes>(stream).await.expect("a preface");
                    let mut streams = 0;
                    while let Some(Ok((request, mut respond))) = connection.accept().await {
                        streams += 1;
                        if streams == manners.streams_before_goaway {
                            connection.graceful_shutdown();
                        }
                        let (head, body) = request.into_parts();
                        // The test may have ended.
                        let _ = asks.send(head);
                        let response = Response::builder().status(manners.status).body(()).expect("a response");
                        let refused = manners.status != StatusCode::OK;
                        let send = respond.send_response(response, refused).expect("sends");
                        tokio::spawn(echo_stream(body, send));
                    }
                });
            }
        });
        Self { address, asked }
    }

    /// A host whose tunnels go to this peer, for `orders` at its address, port 8080.
    async fn caller(&self, ca: &Ca) -> Host {
        let mut config = Config::default();
        config.outbound.tunnel_port = self.address.port();
        let app = SocketAddr::new(self.address.ip(), 8080);
        let seen = seen_by(world(app), &[WEB], &[3000]);
        Host::start(&client_ip(app), seen, ca.credentials(&["web"]), config).await
    }
}

async fn echo_stream(mut body: RecvStream, mut send: SendStream<Bytes>) {
    while let Some(Ok(data)) = body.data().await {
        let released = body.flow_control().release_capacity(data.len());
        if released.is_err() || send.send_data(data, false).is_err() {
            return;
        }
    }
    // The caller may have reset, which is as good an end.
    let _ = send.send_data(Bytes::new(), true);
}

fn vip() -> SocketAddr {
    ([240, 240, 0, 1], 80).into()
}

#[tokio::test]
async fn a_peer_reads_the_request_that_ztunnel_would_send() {
    let ca = Ca::new();
    let mut peer = Peer::start(ca.credentials(&["orders"]), "orders", OK).await;
    let host = peer.caller(&ca).await;
    let mut client = host.dial(vip(), Some(WEB)).await;
    assert_eq!(ask(&mut client, "hello").await.expect("echoed"), "hello");
    let head = within("the request", peer.asked.recv()).await.expect("asked");
    assert_eq!(head.method, Method::CONNECT);
    assert_eq!(
        head.uri.to_string(),
        format!("{}:8080", peer.address.ip()),
        "the authority is the workload's, with its target port"
    );
    let header = |name: &str| head.headers[name].to_str().expect("text");
    let client = client.local_addr().expect("an address");
    assert_eq!(header("forwarded"), format!("for=\"{client}\";host=orders.shop.mesh"));
    let baggage = "k8s.namespace.name=shop,k8s.deployment.name=web,service.name=web,service.version=latest";
    assert_eq!(header("baggage"), baggage);
    assert_eq!(header("traceparent").len(), 55);
    assert_eq!(head.headers.len(), 3, "nothing else is sent: {:?}", head.headers);
}

#[tokio::test]
async fn a_peer_that_refuses_is_told_with_its_status() {
    let ca = Ca::new();
    for (status, flag) in [(StatusCode::UNAUTHORIZED, "DENY"), (StatusCode::SERVICE_UNAVAILABLE, "CONNECT")] {
        let peer = Peer::start(ca.credentials(&["orders"]), "orders", Manners { status, ..OK }).await;
        let host = peer.caller(&ca).await;
        let mut client = host.dial(vip(), Some(WEB)).await;
        assert_eq!(refused(&mut client).await, std::io::ErrorKind::ConnectionReset);
        let line = logged(&[&peer.address.to_string(), "outbound connection refused"]).await;
        assert_eq!(line["flag"], flag);
        assert!(line["error"].as_str().expect("text").contains(status.as_str()), "{line}");
        assert_eq!(host.metric("istio_tcp_connections_failed_total", &[&format!("response_flags=\"{flag}\"")]), 1.0);
    }
}

#[tokio::test]
async fn a_peer_that_proves_to_be_another_gets_no_byte() {
    let ca = Ca::new();
    let mut peer = Peer::start(ca.credentials(&["impostor"]), "impostor", OK).await;
    let host = peer.caller(&ca).await;
    let mut client = host.dial(vip(), Some(WEB)).await;
    assert_eq!(refused(&mut client).await, std::io::ErrorKind::ConnectionReset);
    let line = logged(&[&peer.address.to_string(), "outbound connection refused"]).await;
    assert_eq!(line["flag"], "TLS_FAILURE");
    let error = line["error"].as_str().expect("text");
    assert!(error.contains(&id("impostor").to_string()) && error.contains(&id("orders").to_string()), "{error}");
    assert!(peer.asked.try_recv().is_err(), "no CONNECT was sent");
}

#[tokio::test]
async fn an_identity_of_the_service_is_as_good_as_the_workloads() {
    let ca = Ca::new();
    let peer = Peer::start(ca.credentials(&["gateway"]), "gateway", OK).await;
    let host = peer.caller(&ca).await;
    let mut service = orders_service();
    service.subject_alt_names = vec![id("gateway").to_string()];
    host.publish(vec![api::snapshot::Change::Service(service)]);
    let mut client = host.dial(vip(), Some(WEB)).await;
    assert_eq!(ask(&mut client, "hello").await.expect("echoed"), "hello");
}

#[tokio::test]
async fn a_peer_that_says_goaway_is_left_for_a_new_connection() {
    let ca = Ca::new();
    let manners = Manners { streams_before_goaway: 2, ..OK };
    let peer = Peer::start(ca.credentials(&["orders"]), "orders", manners).await;
    let host = peer.caller(&ca).await;
    let mut open = Vec::new();
    for n in 0..9 {
        let mut client = host.dial(vip(), Some(WEB)).await;
        assert_eq!(ask(&mut client, "hello").await.expect("echoed"), "hello", "{n}");
        open.push(client);
    }
    for client in &mut open {
        assert_eq!(ask(client, "still").await.expect("streams before GOAWAY go on"), "still");
    }
    assert!(host.metric("tombolo_tunnels_made_total", &["result=\"ok\""]) >= 2.0);
    drop(open);
    until("the old connections to close", || (host.metric("tombolo_tunnels_open", &[]) <= 1.0).then_some(())).await;
}

#[tokio::test]
async fn a_peer_that_allows_one_stream_gets_one_on_each_connection() {
    let ca = Ca::new();
    let manners = Manners { max_streams: 1, ..OK };
    let peer = Peer::start(ca.credentials(&["orders"]), "orders", manners).await;
    let host = peer.caller(&ca).await;
    let mut open = Vec::new();
    for n in 0..5 {
        let mut client = host.dial(vip(), Some(WEB)).await;
        assert_eq!(ask(&mut client, "hello").await.expect("echoed"), "hello", "{n}");
        open.push(client);
    }
    assert_eq!(host.metric("tombolo_tunnels_open", &[]), 5.0);
}
