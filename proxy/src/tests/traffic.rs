//! Bytes through two proxies are the bytes that were sent, and ends are the ends.
use super::mesh::*;
use crate::config::Tunnel;
use rand::RngExt;
use sha2::{Digest, Sha256};
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn a_call_by_service_or_by_address_goes_through_a_tunnel() {
    for tunnel in TUNNELS {
        let app = app().await;
        let mesh = Mesh::over(&app, tunnel).await;
        echo(app);
        for to in [mesh.vip, mesh.app] {
            let mut client = mesh.a.dial(to, Some(WEB)).await;
            assert_eq!(ask(&mut client, "hello").await.expect("echoed"), "hello", "{to}");
            let client_addr = client.local_addr().expect("connected").to_string();
            let open = mesh.a.handle.connections();
            let protocol = if tunnel == Tunnel::Hbone { "hbone" } else { "tombolo/1" };
            let shown = open.iter().find(|open| open.src == client_addr).expect("the connection is shown");
            assert_eq!((shown.dst.as_str(), shown.direction.as_str()), (mesh.app.to_string().as_str(), "outbound"));
            assert_eq!(
                (shown.src_identity.as_str(), shown.protocol.as_str()),
                (id("web").to_string().as_str(), protocol)
            );
            drop(client);
            let line = logged(&[&client_addr, "\"outbound\"", "access"]).await;
            assert_eq!(line["src.identity"], id("web").to_string());
            assert_eq!(line["dst.identity"], id("orders").to_string());
            assert_eq!(line["dst.addr"], mesh.app.to_string());
            assert_eq!(line["dst.hbone_addr"], mesh.b.tunnel_address().to_string());
            assert_eq!(
                (&line["bytes_sent"], &line["bytes_received"], &line["flag"]),
                (&5.into(), &5.into(), &"-".into())
            );
            assert_eq!(line["protocol"], protocol);
        }
        let line = logged(&[&mesh.app.to_string(), "\"inbound\"", "access"]).await;
        assert_eq!(line["src.identity"], id("web").to_string());
        assert_eq!((&line["workload.id"], &line["dst.service"]), (&ORDERS.into(), &"orders.shop.mesh".into()));
        let labels =
            ["reporter=\"source\"", "destination_service=\"orders.shop.mesh\"", "security_policy=\"mutual_tls\""];
        assert_eq!(mesh.a.metric("istio_tcp_connections_opened_total", &labels), 1.0);
        assert_eq!(mesh.a.metric("istio_tcp_connections_closed_total", &["source_workload=\"web\""]), 2.0);
        assert_eq!(mesh.a.metric("istio_tcp_received_bytes_total", &["source_workload=\"web\""]), 10.0);
        until("b to count", || {
            (mesh.b.metric("istio_tcp_sent_bytes_total", &["reporter=\"destination\""]) == 10.0).then_some(())
        })
        .await;
        assert_eq!(mesh.b.handle.open(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_mebibytes_arrive_whole_in_both_directions_at_once() {
    for tunnel in TUNNELS {
        for ip in ["127.0.0.12", "::1"] {
            let app = app_at(ip).await;
            let mesh = Mesh::over(&app, tunnel).await;
            echo(app);
            let mut sent = vec![0; 10 << 20];
            rand::rng().fill(&mut sent[..]);
            let expected = Sha256::digest(&sent);
            let (mut read, mut write) = mesh.dial().await.into_split();
            let sender = tokio::spawn(async move {
                write.write_all(&sent).await.expect("sends");
                write.shutdown().await.expect("ends");
            });
            let mut received = Vec::new();
            within("all of it", read.read_to_end(&mut received)).await.expect("reads");
            sender.await.expect("does not panic");
            assert_eq!(received.len(), 10 << 20, "{ip}");
            assert_eq!(Sha256::digest(&received), expected, "{ip}");
        }
    }
}

#[tokio::test]
async fn the_end_of_one_direction_leaves_the_other_open() {
    for tunnel in TUNNELS {
        let app = app().await;
        let mesh = Mesh::over(&app, tunnel).await;
        let mut client = mesh.dial().await;
        client.write_all(b"question").await.expect("sends");
        client.shutdown().await.expect("half-closes");
        let (mut server, _) = within("the connection", app.accept()).await.expect("accepts");
        let mut question = String::new();
        within("the question's end", server.read_to_string(&mut question)).await.expect("reads");
        assert_eq!(question, "question");
        server.write_all(b"answer").await.expect("the other direction is open");
        server.shutdown().await.expect("closes");
        let mut answer = String::new();
        within("the answer's end", client.read_to_string(&mut answer)).await.expect("reads");
        assert_eq!(answer, "answer");
    }
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard() {
    for tunnel in TUNNELS {
        let app = app().await;
        let mesh = Mesh::over(&app, tunnel).await;
        let mut client = mesh.dial().await;
        let (mut server, _) = within("the connection", app.accept()).await.expect("accepts");
        server.write_all(b"220 ready").await.expect("sends");
        let mut banner = [0; 9];
        within("the banner", client.read_exact(&mut banner)).await.expect("reads");
        assert_eq!(&banner, b"220 ready");
    }
}

#[tokio::test]
async fn a_reset_on_one_side_is_a_reset_on_the_other() {
    for tunnel in TUNNELS {
        let app = app().await;
        let mesh = Mesh::over(&app, tunnel).await;
        for client_resets in [true, false] {
            let mut client = mesh.dial().await;
            client.write_all(b"x").await.expect("sends");
            let (mut server, _) = within("the connection", app.accept()).await.expect("accepts");
            let mut byte = [0];
            server.read_exact(&mut byte).await.expect("reads");
            let client_addr = client.local_addr().expect("connected").to_string();
            let (gone, mut left) = if client_resets { (client, server) } else { (server, client) };
            gone.set_zero_linger().expect("sets");
            drop(gone);
            let error = within("the reset", left.read(&mut byte)).await.expect_err("not a clean end");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "client resets: {client_resets}");
            let line = logged(&[&client_addr, "\"outbound\"", "access"]).await;
            assert_eq!(line["flag"], if client_resets { "CLIENT_RESET" } else { "UPSTREAM_RESET" }, "{line}");
        }
    }
}

#[tokio::test]
async fn a_slow_reader_does_not_stop_the_other_streams_of_its_tunnel() {
    for tunnel in TUNNELS {
        let app = app().await;
        let mesh = Mesh::over(&app, tunnel).await;
        let mut slow = mesh.dial().await;
        slow.write_all(b"x").await.expect("sends");
        let (mut flood, _) = within("the connection", app.accept()).await.expect("accepts");
        flood.read_u8().await.expect("reads");
        // 64 MiB is more than all windows and socket buffers between the two hold.
        let sender = tokio::spawn(async move { flood.write_all(&vec![7; 64 << 20]).await });
        echo(app);
        for _ in 0..3 {
            let mut other = mesh.dial().await;
            assert_eq!(ask(&mut other, "still there").await.expect("echoed"), "still there");
        }
        let mut received = vec![0; 64 << 20];
        within("the flood", slow.read_exact(&mut received)).await.expect("reads");
        assert!(received.iter().all(|byte| *byte == 7));
        sender.await.expect("does not panic").expect("sends");
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_only_where_a_limit_is_set() {
    for tunnel in TUNNELS {
        let app = app().await;
        let mut config = carried_by(tunnel);
        config.outbound.idle_timeout = Some(Duration::from_millis(150));
        let mesh = Mesh::start_with(&app, config).await;
        echo(app);
        let mut client = mesh.dial().await;
        // A younger connection that says nothing is the clock: when it is closed, the busy one outlived the limit.
        let mut idle = mesh.dial().await;
        let mut byte = [0];
        let closed = async {
            while tokio::time::timeout(Duration::from_millis(20), idle.read(&mut byte)).await.is_err() {
                assert_eq!(ask(&mut client, "busy").await.expect("echoed"), "busy");
            }
        };
        within("the end of the idle one", closed).await;
        assert_eq!(ask(&mut client, "busy").await.expect("echoed"), "busy");
        assert_eq!(refused(&mut client).await, ErrorKind::ConnectionReset);
        let line = logged(&[&client.local_addr().expect("an address").to_string(), "access"]).await;
        assert_eq!(line["flag"], "IDLE_TIMEOUT");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_connections_of_every_kind_leave_nothing_behind() {
    for tunnel in TUNNELS {
        let app = app().await;
        let mesh = Arc::new(Mesh::over(&app, tunnel).await);
        echo(app);
        let mut clients = tokio::task::JoinSet::new();
        for n in 0..300_usize {
            let mesh = mesh.clone();
            clients.spawn(async move {
                let (mut read, mut write) = mesh.dial().await.into_split();
                let sent = vec![u8::try_from(n % 251).expect("small"); (n * 7919) % 200_000];
                let expected = sent.clone();
                let sender = tokio::spawn(async move {
                    // A third is cut in the middle; the others end in order.
                    let cut = if n % 3 == 0 { sent.len() / 2 } else { sent.len() };
                    let written = write.write_all(&sent[..cut]).await;
                    if n % 3 == 0 {
                        write.as_ref().set_zero_linger().expect("sets");
                    } else {
                        write.shutdown().await.expect("half-closes");
                    }
                    written
                });
                let mut received = Vec::new();
                if n % 3 == 0 {
                    // Both halves are dropped with a linger of zero: a reset, at any point of the transfer.
                    let _ = sender.await.expect("does not panic");
                    return;
                }
                let result = within("the echo", read.read_to_end(&mut received)).await;
                sender.await.expect("does not panic").expect("sends");
                result.expect("ends in order");
                assert!(received == expected, "{n}: {} of {} bytes", received.len(), expected.len());
            });
        }
        while let Some(result) = clients.join_next().await {
            result.expect("does not panic");
        }
        until("all to end", || (mesh.a.handle.open() + mesh.b.handle.open() == 0).then_some(())).await;
        assert_eq!(mesh.a.metric("istio_tcp_sockets_open", &[]), 0.0);
        let mut client = mesh.dial().await;
        assert_eq!(ask(&mut client, "and it goes on").await.expect("echoed"), "and it goes on");
    }
}
