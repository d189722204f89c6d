//! A process drains while another one accepts from the same sockets: nobody is refused, and what is open goes
//! on for as long as both sides prove who they are, whichever process they prove it to.
use super::certificates::{over, shorten, until_past};
use super::mesh::*;
use crate::tests::{flow, peers};
use futures_util::future::join_all;
use http::{Method, StatusCode};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

const LONG: Duration = Duration::from_secs(60);

async fn mesh_with_echo(config: crate::Config) -> Mesh {
    let app: TcpListener = app().await;
    let mesh = Mesh::start_with(&app, config).await;
    echo(app);
    mesh
}

#[tokio::test]
async fn new_connections_are_the_successors_and_old_ones_stay() {
    let served = async |tunnel| {
        let mesh = mesh_with_echo(over(tunnel)).await;
        let mut old = mesh.dial().await;
        assert_eq!(ask(&mut old, "hello").await.expect("echoed"), "hello");
        let next = mesh.b.successor(over(tunnel)).await;
        let (a, vip, b) = (mesh.a, mesh.vip, mesh.b);
        assert_eq!(b.handle.sockets().expect("copied").len(), 3);
        let handle = b.handle.clone();
        let draining = tokio::spawn(b.drain(LONG));
        until("it accepts nothing any more", || handle.sockets().expect("none").is_empty().then_some(())).await;
        // The tunnel that has just been made may be used for a moment more.
        let asked = async {
            while next.metric("istio_tcp_connections_opened_total", &[]) < 5.0 {
                let mut new = a.dial(vip, Some(WEB)).await;
                assert_eq!(ask(&mut new, "new").await.expect("echoed"), "new", "{tunnel:?}");
            }
        };
        within("the successor to serve", asked).await;
        assert_eq!(ask(&mut old, "still").await.expect("echoed"), "still", "{tunnel:?}");
        until("only the old one to be open", || (handle.open() == 1).then_some(())).await;
        assert!(!draining.is_finished(), "{tunnel:?}");
        drop(old);
        within("the drain to end with its last connection", draining).await.expect("no panic");
    };
    join_all(TUNNELS.map(served)).await;
}

#[tokio::test]
async fn who_has_just_shaken_hands_may_ask_although_a_drain_has_begun() {
    let mesh = mesh_with_echo(carried_by(crate::config::Tunnel::Auto)).await;
    let own = mesh.ca.credentials(&["web"]);
    let peer = peers::connect(mesh.b.tunnel_address(), &own, "web").await;
    let mut stream = flow::connect(&mesh, &own).await;
    let (app, handle) = (mesh.app, mesh.b.handle.clone());
    let _draining = tokio::spawn(mesh.b.drain(LONG));
    until("the drain to begin", || handle.sockets().expect("none").is_empty().then_some(())).await;
    let (head, ..) = peers::request(&peer, Method::CONNECT, &app.to_string()).await.expect("no GOAWAY yet");
    assert_eq!(head.status(), StatusCode::OK);
    stream.write_all(&flow::header(app)).await.expect("sends");
    assert_eq!(flow::answer(&mut stream).await, Some(crate::flow::Answer::Accepted));
}

#[tokio::test]
async fn what_a_draining_process_has_open_lasts_as_long_as_callers_prove_themselves_to_the_next() {
    let outlives = async |tunnel| {
        let mesh = mesh_with_echo(over(tunnel)).await;
        let ends = shorten(&mesh, &mesh.a, "web");
        let mut client = mesh.dial().await;
        assert_eq!(ask(&mut client, "hello").await.expect("echoed"), "hello");
        let next = mesh.b.successor(over(tunnel)).await;
        let (mut proofs, draining) = (next.handle.proofs(), mesh.b.handle.clone());
        let relay = tokio::spawn(async move {
            while let Ok(proof) = proofs.recv().await {
                draining.heard(proof);
            }
        });
        let _draining = tokio::spawn(mesh.b.drain(LONG));
        mesh.a.credentials.publish(mesh.ca.svid(&id("web")));
        until_past(ends + Duration::from_secs(3)).await;
        assert_eq!(ask(&mut client, "still").await.expect("it goes on"), "still", "{tunnel:?}");
        relay.abort();
    };
    join_all(TUNNELS.map(outlives)).await;
}
