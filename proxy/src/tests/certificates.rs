//! Certificates that end: what is open goes on with those who renew, and ends with those who do not.
use super::mesh::*;
use crate::config::{Config, Tunnel};
use crate::tests::peers;
use futures_util::future::join_all;
use http::Method;
use std::io::ErrorKind;
use std::time::{Duration, SystemTime};
use tokio::net::TcpStream;

const SHORT: Duration = Duration::from_secs(6);

/// Publishes a certificate of `account` that ends soon; when.
pub(super) fn shorten(mesh: &Mesh, host: &Host, account: &str) -> SystemTime {
    let svid = mesh.ca.svid_for(&id(account), SHORT);
    let not_after = svid.not_after();
    host.credentials.publish(svid);
    not_after
}

/// The last second of a certificate is valid to its end.
pub(super) async fn until_past(at: SystemTime) {
    until("a certificate to end", || (SystemTime::now() > at + Duration::from_secs(1)).then_some(())).await;
}

fn port(client: &TcpStream) -> String {
    client.local_addr().expect("an address").to_string()
}

/// With keepalive so quick that tunnels look at their certificates often.
pub(super) fn over(tunnel: Tunnel) -> Config {
    let mut config = carried_by(tunnel);
    config.hbone.keepalive_interval = Duration::from_millis(50);
    config
}

#[tokio::test]
async fn a_connection_outlives_the_certificates_that_are_renewed() {
    let outlives = async |tunnel| {
        let app = app().await;
        let mesh = Mesh::start_with(&app, over(tunnel)).await;
        echo(app);
        let ends = shorten(&mesh, &mesh.a, "web").max(shorten(&mesh, &mesh.b, "orders"));
        let mut client = mesh.dial().await;
        assert_eq!(ask(&mut client, "hello").await.expect("echoed"), "hello");
        mesh.a.credentials.publish(mesh.ca.svid(&id("web")));
        mesh.b.credentials.publish(mesh.ca.svid(&id("orders")));
        until_past(ends + Duration::from_secs(3)).await;
        assert_eq!(ask(&mut client, "still").await.expect("it goes on"), "still", "{tunnel:?}");
    };
    join_all(TUNNELS.map(outlives)).await;
}

#[tokio::test]
async fn a_connection_ends_with_the_certificate_of_a_peer_that_renews_none() {
    let ends = async |(tunnel, account, direction)| {
        let app = app().await;
        let mesh = Mesh::start_with(&app, over(tunnel)).await;
        echo(app);
        let (shown_by, seen_by) = if account == "web" { (&mesh.a, &mesh.b) } else { (&mesh.b, &mesh.a) };
        let ends = shorten(&mesh, shown_by, account);
        let mut client = mesh.dial().await;
        assert_eq!(ask(&mut client, "hello").await.expect("echoed"), "hello");
        assert_eq!(refused(&mut client).await, ErrorKind::ConnectionReset, "half an answer must not look whole");
        assert!(SystemTime::now() > ends, "{tunnel:?}: {account} was valid still");
        let line = logged(&[&mesh.app.to_string(), &format!("{direction} connection closed")]).await;
        assert_eq!(line["flag"], "CERTIFICATE_ENDED", "{line}");
        assert!(line["error"].as_str().expect("text").contains("the peer's certificate expired at"), "{line}");
        let flag = ["response_flags=\"CERTIFICATE_ENDED\""];
        assert_eq!(seen_by.metric("istio_tcp_connections_failed_total", &flag), 1.0);
    };
    let cases = TUNNELS.map(|tunnel| [(tunnel, "web", "inbound"), (tunnel, "orders", "outbound")]);
    join_all(cases.into_iter().flatten().map(ends)).await;
}

#[tokio::test]
async fn a_tunnel_is_left_in_good_time_for_one_with_newer_certificates() {
    let app = app().await;
    let mesh = Mesh::start_with(&app, over(Tunnel::Hbone)).await;
    echo(app);
    let ends = shorten(&mesh, &mesh.b, "orders");
    let mut client = mesh.dial().await;
    assert_eq!(ask(&mut client, "hello").await.expect("echoed"), "hello");
    drop(client);
    mesh.b.credentials.publish(mesh.ca.svid(&id("orders")));
    let open = || mesh.a.metric("tombolo_tunnels_open", &[]);
    until("the tunnel to close", || (open() == 0.0).then_some(())).await;
    assert!(SystemTime::now() < ends, "it closed before its certificate ended");
    let mut client = mesh.dial().await;
    until_past(ends + Duration::from_secs(2)).await;
    assert_eq!(ask(&mut client, "again").await.expect("echoed"), "again");
}

#[tokio::test]
async fn a_peer_that_renews_none_is_told_to_go() {
    let app = app().await;
    let mesh = Mesh::start(&app).await;
    let own = mesh.ca.credentials(&[]);
    own.publish(mesh.ca.svid_for(&id("web"), SHORT));
    let peer = peers::connect(mesh.b.tunnel_address(), &own, "web").await;
    let gone = async {
        // Until GOAWAY arrives streams may be opened.
        while peers::request(&peer, Method::CONNECT, &mesh.app.to_string()).await.is_ok() {}
    };
    within("GOAWAY", gone).await;
}

#[tokio::test]
async fn a_host_that_could_not_renew_is_in_the_mesh_again_when_it_has() {
    let comes_back = async |tunnel| {
        let app = app().await;
        let mesh = Mesh::start_with(&app, over(tunnel)).await;
        echo(app);
        let fails = async |flag: &str, why: &str| {
            let mut client = mesh.dial().await;
            assert_eq!(refused(&mut client).await, ErrorKind::ConnectionReset);
            let line = logged(&[&port(&client), "outbound connection refused"]).await;
            assert_eq!(line["flag"], flag, "{line}");
            assert!(line["error"].as_str().expect("text").contains(why), "{line}");
        };
        let works = async || {
            let mut client = mesh.dial().await;
            assert_eq!(ask(&mut client, "hello").await.expect("echoed"), "hello", "{tunnel:?}");
        };
        until_past(shorten(&mesh, &mesh.a, "web")).await;
        fails("IDENTITY_REQUIRED", "the certificate of spiffe://td/ns/shop/sa/web expired on this host").await;
        mesh.a.credentials.publish(mesh.ca.svid(&id("web")));
        works().await;
        mesh.a.credentials.publish(mesh.ca.svid(&id("web")));
        until_past(shorten(&mesh, &mesh.b, "orders")).await;
        fails("TLS_FAILURE", "the peer must renew it, unless this clock is wrong").await;
        mesh.b.credentials.publish(mesh.ca.svid(&id("orders")));
        works().await;
    };
    join_all(TUNNELS.map(comes_back)).await;
}
