//! Peers that mean no good: nothing hangs, nothing panics, the others are served.
use super::mesh::*;
use super::peers;
use crate::config::Config;
use bytes::Bytes;
use http::{Method, Request};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn a_flood_of_half_open_handshakes_keeps_nobody_out() {
    let app = app().await;
    let mut config = Config::default();
    config.inbound.max_handshakes = 8;
    let mesh = Mesh::start_with(&app, config).await;
    echo(app);
    let tunnel = mesh.b.tunnel_address();
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(tunnel).await.expect("it listens"));
    }
    let mut client = mesh.dial().await;
    assert_eq!(ask(&mut client, "served").await.expect("echoed"), "served");
    let mut oldest = silent.remove(0);
    assert_eq!(within("the oldest to be given up", oldest.read(&mut [0])).await.unwrap_or(0), 0);
    logged(&["too many handshakes in progress", "TLS_FAILURE"]).await;
}

#[tokio::test]
async fn a_slow_handshake_ends_at_its_limit() {
    let app = app().await;
    let mut config = Config::default();
    config.inbound.handshake_timeout = Duration::from_millis(100);
    let mesh = Mesh::start_with(&app, config).await;
    let mut slow = TcpStream::connect(mesh.b.tunnel_address()).await.expect("it listens");
    // The first bytes of a TLS record that never comes.
    slow.write_all(&[22, 3, 1, 2]).await.expect("sends");
    assert_eq!(within("the end", slow.read(&mut [0])).await.unwrap_or(0), 0);
    logged(&[&slow.local_addr().expect("an address").to_string(), "no usable handshake within 100ms"]).await;
}

#[tokio::test]
async fn noise_in_place_of_a_handshake_is_refused() {
    let app = app().await;
    let mesh = Mesh::start(&app).await;
    let tunnel = mesh.b.tunnel_address();
    for noise in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 600], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\xff\xff"]
    {
        let mut stream = TcpStream::connect(tunnel).await.expect("it listens");
        let address = stream.local_addr().expect("connected");
        stream.write_all(noise).await.expect("sends");
        stream.shutdown().await.expect("ends");
        let mut answer = Vec::new();
        // A reset or an alert and an end: both are refusals.
        let _ = within("the end", stream.read_to_end(&mut answer)).await;
        // Refused, or gone before there was anything to refuse.
        logged(&[&address.to_string()]).await;
    }
}

#[tokio::test]
async fn oversized_headers_are_refused_and_the_tunnel_lives() {
    let app = app().await;
    let mesh = Mesh::start(&app).await;
    echo(app);
    let own = mesh.ca.credentials(&["web"]);
    let peer = peers::connect(mesh.b.tunnel_address(), &own, "web").await;
    let request = Request::builder().method(Method::CONNECT).uri(mesh.app.to_string());
    let request = request.header("baggage", "x".repeat(100 << 10)).body(()).expect("a request");
    let mut sender = peer.clone().ready().await.expect("ready");
    // A library that knows the peer's limit does not even send it.
    let refused = match sender.send_request(request, false) {
        Err(_) => true,
        Ok((response, _send)) => match within("a response", response).await {
            Err(_) => true,
            Ok(response) => response.status().as_u16() == 431,
        },
    };
    assert!(refused);
    let peer = peers::connect(mesh.b.tunnel_address(), &own, "web").await;
    let (response, _send) = peers::request(&peer, Method::CONNECT, &mesh.app.to_string()).await.expect("an answer");
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn a_peer_that_opens_and_resets_is_cut_off() {
    let app = app().await;
    let mesh = Mesh::start(&app).await;
    echo(app);
    let own = mesh.ca.credentials(&["web"]);
    let peer = peers::connect(mesh.b.tunnel_address(), &own, "web").await;
    let flood = async {
        let mut n = 0;
        loop {
            let request = Request::builder().method(Method::CONNECT).uri(mesh.app.to_string()).body(());
            let Ok(mut sender) = peer.clone().ready().await else { return n };
            let Ok((_, mut send)) = sender.send_request(request.expect("a request"), false) else { return n };
            send.send_reset(h2::Reason::CANCEL);
            n += 1;
            if n % 50 == 0 {
                tokio::task::yield_now().await;
            }
            if n > 20_000 {
                return n;
            }
        }
    };
    let started = Instant::now();
    let sent = within("the flood to end", flood).await;
    let mut client = mesh.dial().await;
    assert_eq!(ask(&mut client, "served").await.expect("others are served"), "served");
    assert!(started.elapsed() < PATIENCE, "{sent} resets");
    until("no stream to be left", || (mesh.b.handle.open() <= 1).then_some(())).await;
}

#[tokio::test]
async fn bytes_before_the_answer_wait_for_it() {
    let app = app().await;
    let mesh = Mesh::start(&app).await;
    echo(app);
    let own = mesh.ca.credentials(&["web"]);
    let peer = peers::connect(mesh.b.tunnel_address(), &own, "web").await;
    let request = Request::builder().method(Method::CONNECT).uri(mesh.app.to_string()).body(());
    let mut sender = peer.clone().ready().await.expect("ready");
    let (response, mut send) = sender.send_request(request.expect("a request"), false).expect("sends");
    send.send_data(Bytes::from_static(b"eager"), true).expect("sends");
    let mut body = within("a response", response).await.expect("an answer").into_body();
    let data = within("the echo", body.data()).await.expect("not the end").expect("bytes");
    assert_eq!(&data[..], b"eager");
}
