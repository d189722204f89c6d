//! What a local process sees when it dials something.
use super::mesh::*;
use crate::config::Config;
use crate::testing::{endpoint_of, host, local, service, workload};
use api::TunnelProtocol;
use api::snapshot::Change;
use std::io::ErrorKind;
use std::net::SocketAddr;
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn what_the_mesh_does_not_know_passes_through() {
    let app = app().await;
    let mesh = Mesh::start(&app).await;
    let elsewhere = app_at("127.0.0.31").await;
    let address = elsewhere.local_addr().expect("bound");
    echo(elsewhere);
    for workload in [Some(WEB), None] {
        let mut client = mesh.a.dial(address, workload).await;
        assert_eq!(ask(&mut client, "plain").await.expect("echoed"), "plain");
    }
    let line = logged(&[&address.to_string(), "outbound connection closed"]).await;
    assert_eq!(line["protocol"], "tcp");
    assert_eq!(mesh.a.metric("istio_tcp_connections_opened_total", &["connection_security_policy=\"unknown\""]), 2.0);
}

#[tokio::test]
async fn a_refusal_is_a_reset_and_a_sentence() {
    let app = app().await;
    let mesh = Mesh::start(&app).await;
    let empty = service("empty", "shop", &["240.240.0.9"], &[80]);
    let sick = service("sick", "shop", &["240.240.0.10"], &[80]);
    let mut ill = endpoint_of(workload("tombolo/shop/sick/b", "shop", "sick", &["127.0.0.99"]), &sick, 80, 1);
    ill.healthy = false;
    mesh.a.publish(vec![Change::Service(empty), Change::Service(sick), Change::Workload(ill)]);
    let cases = [
        ("240.240.0.1:81", "service orders.shop.mesh has no port 81; it has 80", "NO_ROUTE"),
        ("240.240.0.9:80", "has no workload that serves port 80", "NO_ROUTE"),
        ("240.240.0.10:80", "none of the 1 workloads of service sick.shop.mesh is healthy", "NO_HEALTHY_ENDPOINT"),
        ("192.0.2.1:15008", "is one of the agent's own ports", "LOOP"),
    ];
    // 15008 is nobody's port in this test but the default; the rest of the own ports are dynamic.
    for (dialled, sentence, flag) in cases {
        let dialled: SocketAddr = dialled.parse().expect("an address");
        let dialled =
            if flag == "LOOP" { SocketAddr::new(dialled.ip(), mesh.b.tunnel_address().port()) } else { dialled };
        let mut client = mesh.a.dial(dialled, Some(WEB)).await;
        assert_eq!(refused(&mut client).await, ErrorKind::ConnectionReset, "{dialled}");
        let line = logged(&[&client.local_addr().expect("an address").to_string(), "refused"]).await;
        assert_eq!(line["flag"], flag, "{line}");
        assert!(line["error"].as_str().expect("text").contains(sentence), "{line}");
    }
}

#[tokio::test]
async fn a_connection_that_nobody_intercepted_is_a_loop() {
    let app = app().await;
    let mesh = Mesh::start(&app).await;
    let listener = mesh.a.handle.addresses().outbound[0];
    let mut direct = TcpStream::connect(listener).await.expect("it listens");
    assert_eq!(refused(&mut direct).await, ErrorKind::ConnectionReset);
    let line = logged(&[&direct.local_addr().expect("an address").to_string(), "refused"]).await;
    assert_eq!(line["flag"], "LOOP");
    assert!(line["error"].as_str().expect("text").contains("was not intercepted"), "{line}");
    let mut itself = mesh.a.dial(listener, Some(WEB)).await;
    assert_eq!(refused(&mut itself).await, ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn without_an_identity_there_is_no_tunnel_and_no_downgrade() {
    let app = app().await;
    let mesh = Mesh::start(&app).await;
    let mut stranger = mesh.a.dial(mesh.vip, None).await;
    assert_eq!(refused(&mut stranger).await, ErrorKind::ConnectionReset);
    let line = logged(&[&stranger.local_addr().expect("an address").to_string(), "refused"]).await;
    assert_eq!(line["flag"], "IDENTITY_REQUIRED");
    assert!(line["error"].as_str().expect("text").contains("belongs to no workload"), "{line}");
    mesh.a.credentials.withdraw(&id("web"));
    for to in [mesh.vip, mesh.app] {
        let mut client = mesh.a.dial(to, Some(WEB)).await;
        assert_eq!(refused(&mut client).await, ErrorKind::ConnectionReset, "{to}");
        let line = logged(&[&client.local_addr().expect("an address").to_string(), "refused"]).await;
        assert!(
            line["error"].as_str().expect("text").contains("no certificate for spiffe://td/ns/shop/sa/web"),
            "{line}"
        );
    }
    echo(app);
    let mut stranger = mesh.a.dial(mesh.app, None).await;
    assert_eq!(ask(&mut stranger, "as it was").await.expect("passes through"), "as it was");
}

#[tokio::test]
async fn the_next_endpoint_serves_when_one_cannot_be_reached() {
    for tunnel in TUNNELS {
        let app = app().await;
        let mesh = Mesh::over(&app, tunnel).await;
        echo(app);
        let gone = TcpListener::bind("127.0.0.41:0").await.expect("loopback has free ports");
        let gone_port = gone.local_addr().expect("bound").port();
        drop(gone);
        // One whose tunnel port is closed, one without a tunnel whose own port is.
        let tunnelled = workload("tombolo/shop/orders/c", "shop", "orders", &["127.0.0.41"]);
        let mut plain = workload("tombolo/shop/orders/d", "shop", "orders", &["127.0.0.41"]);
        plain.tunnel_protocol = TunnelProtocol::None;
        let orders = orders_service();
        let bad = [tunnelled, plain].map(|workload| Change::Workload(endpoint_of(workload, &orders, 80, gone_port)));
        mesh.a.publish(bad.into());
        for _ in 0..12 {
            let mut client = mesh.dial().await;
            assert_eq!(ask(&mut client, "served").await.expect("by the good one"), "served");
        }
        let line = logged(&[&mesh.app.to_string(), "outbound connection closed", "\"attempt\":"]).await;
        assert!(line["attempt"].as_u64().expect("a number") > 1, "{line}");
    }
}

#[tokio::test]
async fn an_endpoint_without_tunnel_is_plain_tcp() {
    let app = app().await;
    let mesh = Mesh::start(&app).await;
    let legacy = app_at("127.0.0.51").await;
    let port = legacy.local_addr().expect("bound").port();
    echo(legacy);
    let entry = service("legacy", "shop", &["240.240.0.20"], &[80]);
    let mut plain = endpoint_of(workload("tombolo/shop/entry/l", "shop", "legacy", &["127.0.0.51"]), &entry, 80, port);
    plain.tunnel_protocol = TunnelProtocol::None;
    mesh.a.publish(vec![Change::Service(entry), Change::Workload(plain)]);
    for workload in [Some(WEB), None] {
        let mut client = mesh.a.dial(([240, 240, 0, 20], 80).into(), workload).await;
        assert_eq!(ask(&mut client, "plain").await.expect("echoed"), "plain");
    }
}

#[tokio::test]
async fn a_silent_endpoint_costs_one_timeout() {
    let app = app().await;
    let mut config = Config::default();
    config.outbound.connect_timeout = std::time::Duration::from_millis(200);
    let silent = TcpListener::bind((app.local_addr().expect("bound").ip(), 0)).await.expect("loopback has free ports");
    config.outbound.tunnel_port = silent.local_addr().expect("bound").port();
    let ca = Ca::new();
    let seen = seen_by(world(app.local_addr().expect("bound")), &[WEB], &[3000]);
    let host = Host::start(&client_ip(app.local_addr().expect("bound")), seen, ca.credentials(&["web"]), config).await;
    let mut client = host.dial(([240, 240, 0, 1], 80).into(), Some(WEB)).await;
    assert_eq!(refused(&mut client).await, ErrorKind::ConnectionReset);
    let line = logged(&[&client.local_addr().expect("an address").to_string(), "refused"]).await;
    assert!(line["error"].as_str().expect("text").contains("within 200ms"), "{line}");
}

#[tokio::test]
async fn each_workload_of_a_host_proves_itself() {
    for tunnel in TUNNELS {
        let app = app().await;
        let mesh = Mesh::over(&app, tunnel).await;
        echo(app);
        let second = app_at(&mesh.app.ip().to_string()).await;
        let port = second.local_addr().expect("bound").port();
        echo(second);
        let billing_service = service("billing", "shop", &["240.240.0.30"], &[80]);
        let billing = workload("tombolo/shop/billing/b", "shop", "billing", &[&mesh.app.ip().to_string()]);
        let billing = endpoint_of(billing, &billing_service, 80, port);
        let orders = mesh.b.view.load().workload(ORDERS).expect("it is in the mesh").clone();
        let locals = vec![local(&orders, &[mesh.app.port()]), local(&billing, &[port])];
        let changes = vec![Change::Service(billing_service), Change::Workload(billing)];
        mesh.a.publish(changes.clone());
        mesh.b.publish(changes.into_iter().chain([Change::Host(host(locals))]).collect());
        mesh.b.credentials.publish(mesh.ca.svid(&id("billing")));
        for (vip, account) in [("240.240.0.1:80", "orders"), ("240.240.0.30:80", "billing")] {
            let mut client = mesh.a.dial(vip.parse().expect("an address"), Some(WEB)).await;
            assert_eq!(ask(&mut client, "hello").await.expect("echoed"), "hello", "{account}");
            let address = client.local_addr().expect("an address").to_string();
            drop(client);
            let line = logged(&[&address, "outbound connection closed"]).await;
            assert_eq!(line["dst.identity"], id(account).to_string());
        }
    }
}
