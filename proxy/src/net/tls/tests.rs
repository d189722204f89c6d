//! Our records against rustls's own: everything that a peer may send, and what only a hostile one does.
use std::sync::Arc;

use rustls::pki_types::{PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::net::tls;

/// Client and server configurations of one self-signed certificate.
fn configurations() -> (Arc<rustls::ClientConfig>, Arc<rustls::ServerConfig>) {
    let provider = identity::tls::provider().clone();
    let made = rcgen::generate_simple_self_signed(["peer.test".to_owned()]).expect("it can be made");
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).expect("a certificate");
    let versions = &[&rustls::version::TLS13];
    let server = rustls::ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(versions);
    let server = server.expect("supported").with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key);
    let client = rustls::ClientConfig::builder_with_provider(provider).with_protocol_versions(versions);
    let client = client.expect("supported").with_root_certificates(roots).with_no_client_auth();
    let (mut client, mut server) = (client, server.expect("the key fits"));
    (client.enable_secret_extraction, server.enable_secret_extraction) = (true, true);
    (client.key_log, server.key_log) = (identity::tls::key_log(), identity::tls::key_log());
    (Arc::new(client), Arc::new(server))
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let dialled = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("it listens");
    (dialled, listener.accept().await.expect("dialled").0)
}

fn name() -> ServerName<'static> {
    ServerName::try_from("peer.test").expect("a name")
}

/// Ours on both sides: client and server.
async fn ours_on_both_sides() -> (TlsStream, TlsStream) {
    let (client, server) = configurations();
    let (near, far) = sockets().await;
    let (near, far) = tokio::join!(tls::connect(client, name(), near), accept(server, far));
    (near.expect("it trusts the peer").0, far.expect("a handshake").0)
}

/// Our stream as the client of a rustls server.
async fn ours_and_theirs() -> (TlsStream, tokio_rustls::server::TlsStream<TcpStream>) {
    let (client, server) = configurations();
    let (near, far) = sockets().await;
    let accepting = tokio_rustls::TlsAcceptor::from(server);
    let (ours, theirs) = tokio::join!(tls::connect(client, name(), near), accepting.accept(far));
    (ours.expect("it trusts the peer").0, theirs.expect("a handshake"))
}

/// Our stream as the server of a rustls client.
async fn ours_as_server() -> (TlsStream, tokio_rustls::client::TlsStream<TcpStream>) {
    let (client, server) = configurations();
    let (near, far) = sockets().await;
    let connector = tokio_rustls::TlsConnector::from(client);
    let (ours, theirs) = tokio::join!(accept(server, far), connector.connect(name(), near));
    (ours.expect("a handshake").0, theirs.expect("it trusts us"))
}

async fn accept(config: Arc<rustls::ServerConfig>, tcp: TcpStream) -> io::Result<(TlsStream, handshake::Proof)> {
    tls::accept(config, tls::hello(tcp).await?).await
}

/// Bytes that differ at every place.
fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8 ^ (at / 251) as u8).collect()
}

#[tokio::test]
async fn bytes_of_every_length_arrive_in_both_directions() {
    for length in [1, 15, 16_383, 16_384, 16_385, 131_072, 131_073, 3_000_017] {
        for (ours, theirs) in [end_of(ours_and_theirs().await), end_of(ours_as_server().await)] {
            let sent = pattern(length);
            let (mut our_read, mut our_write) = tokio::io::split(ours);
            let (mut their_read, mut their_write) = tokio::io::split(theirs);
            let write = async |to: &mut (dyn AsyncWrite + Unpin + Send)| {
                to.write_all(&sent).await.expect("the peer reads");
                to.shutdown().await.expect("the peer reads");
            };
            let (mut at_ours, mut at_theirs) = (Vec::new(), Vec::new());
            tokio::join!(
                write(&mut our_write),
                write(&mut their_write),
                async { our_read.read_to_end(&mut at_ours).await.expect("ended in order") },
                async { their_read.read_to_end(&mut at_theirs).await.expect("ended in order") },
            );
            assert!(at_ours == sent && at_theirs == sent, "{length} bytes were changed on their way");
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

fn end_of<S: Stream + 'static>((ours, theirs): (TlsStream, S)) -> (TlsStream, Box<dyn Stream>) {
    (ours, Box::new(theirs))
}

#[tokio::test]
async fn a_relay_moves_every_byte_and_both_ends() {
    let (client, server) = configurations();
    let ((near, far), (mut app, near_app), (far_app, mut echo)) = tokio::join!(sockets(), sockets(), sockets());
    let (near, far) = tokio::join!(tls::connect(client, name(), near), accept(server, far));
    let (mut near, mut far) = (near.expect("trusted").0, far.expect("trusted").0);
    let sent = pattern(2_345_678);
    let mut got = Vec::new();
    tokio::join!(
        async {
            while std::future::poll_fn(|cx| near.poll_take_from(cx, &near_app)).await.expect("both live") > 0 {}
            near.shutdown().await.expect("the peer reads");
        },
        async {
            while std::future::poll_fn(|cx| far.poll_give_to(cx, &far_app)).await.expect("both live") > 0 {}
            drop((far, far_app));
        },
        async {
            app.write_all(&sent).await.expect("it is read");
            app.shutdown().await.expect("it is read");
        },
        async { echo.read_to_end(&mut got).await.expect("ended in order") },
    );
    assert!(got == sent, "{} of {} bytes arrived", got.len(), sent.len());
}

#[tokio::test]
async fn new_keys_are_taken_and_given() {
    let (mut ours, mut theirs) = ours_and_theirs().await;
    for round in 0..3u8 {
        // The peer says that its keys change and asks for ours to change too.
        theirs.get_mut().1.refresh_traffic_keys().expect("the handshake is over");
        theirs.write_all(&[round; 100]).await.expect("we read");
        let mut got = [0; 100];
        ours.read_exact(&mut got).await.expect("readable with the new keys");
        assert_eq!(got, [round; 100]);
        ours.keys_wanted = true;
        ours.write_all(&[round; 50]).await.expect("the peer reads");
        let mut got = [0; 50];
        theirs.read_exact(&mut got).await.expect("readable with our new keys");
        assert_eq!(got, [round; 50]);
        assert!(!ours.keys_wanted);
    }
}

#[tokio::test]
async fn what_rustls_keeps_is_held_until_the_first_data_and_secrets_nowhere_else() {
    let (mut client, mut server) = ours_on_both_sides().await;
    assert!(identity::tls::TrafficSecrets::take().is_none(), "left behind in the thread");
    assert!(matches!((&client.tickets, &server.tickets), (Tickets::Kept(_), Tickets::Refused)));
    server.write_all(b"data").await.expect("the peer reads");
    client.read_exact(&mut [0; 4]).await.expect("sent");
    assert!(matches!(client.tickets, Tickets::Ignored));
}

#[tokio::test]
async fn a_configuration_that_keeps_no_secrets_is_refused_with_the_reason() {
    let (client, server) = configurations();
    let mut silent = (*client).clone();
    silent.key_log = Arc::new(rustls::NoKeyLog {});
    let (near, far) = sockets().await;
    let (ours, _theirs) = tokio::join!(tls::connect(Arc::new(silent), name(), near), accept(server, far));
    let error = ours.err().expect("no keys could follow the first");
    assert!(error.to_string().contains("does not keep its secrets"), "{error}");
}

#[tokio::test]
async fn an_empty_record_ends_a_flow_and_means_nothing_elsewhere() {
    for flows in [false, true] {
        let (mut sender, mut receiver) = ours_on_both_sides().await;
        if flows {
            [&mut sender, &mut receiver].into_iter().for_each(TlsStream::carry_flows);
        }
        std::future::poll_fn(|cx| sender.poll_end_flow(cx)).await.expect("ends");
        sender.write_all(b"next").await.expect("sends");
        sender.flush().await.expect("sends");
        let mut next = [0; 4];
        if flows {
            assert_eq!(receiver.read(&mut next).await.expect("an end in order"), 0);
            assert!(!receiver.next_flow(), "our own direction has not ended");
            std::future::poll_fn(|cx| receiver.poll_end_flow(cx)).await.expect("ends");
            assert!(receiver.next_flow());
        }
        receiver.read_exact(&mut next).await.expect("the bytes behind it");
        assert_eq!(&next, b"next");
    }
}

#[tokio::test]
async fn a_cut_connection_is_not_taken_for_its_end() {
    let (mut ours, theirs) = ours_and_theirs().await;
    drop(theirs.into_inner().0);
    let error = ours.read(&mut [0; 8]).await.expect_err("there was no close_notify");
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn forged_misplaced_and_oversized_records_end_the_connection() {
    for (what, bytes, says) in [
        ("forged", [&[23, 3, 3, 0, 32][..], &[7; 32]].concat(), "changed on its way"),
        ("plain alert", vec![21, 3, 3, 0, 2, 2, 40], "type 21"),
        ("oversized", [&[23, 3, 3, 0xff, 0xff][..], &[0; 64]].concat(), "65535 bytes"),
        ("too small", vec![23, 3, 3, 0, 3, 1, 2, 3], "3 bytes"),
    ] {
        let (mut ours, theirs) = ours_and_theirs().await;
        let (mut tcp, _) = theirs.into_inner();
        tcp.write_all(&bytes).await.expect("the socket is open");
        let error = ours.read(&mut [0; 8]).await.expect_err(what);
        assert!(error.to_string().contains(says), "{what}: {error}");
    }
}

#[tokio::test]
async fn an_alert_says_why_the_peer_left() {
    let (client, _) = configurations();
    let (_, other_server) = configurations();
    let (near, far) = sockets().await;
    let accepting = tokio_rustls::TlsAcceptor::from(other_server);
    let (ours, theirs) = tokio::join!(tls::connect(client, name(), near), accepting.accept(far));
    assert!(ours.is_err(), "the certificate is another's");
    let told = theirs.expect_err("the client refused").to_string();
    assert!(told.contains("received fatal alert"), "{told}");
}

#[tokio::test]
async fn a_waiting_connection_holds_no_room() {
    let (mut ours, mut theirs) = ours_and_theirs().await;
    theirs.write_all(b"hello").await.expect("we read");
    let mut got = [0; 5];
    ours.read_exact(&mut got).await.expect("sent");
    let waiting = tokio::time::timeout(std::time::Duration::from_millis(50), ours.read(&mut [0; 8])).await;
    assert!(waiting.is_err(), "nothing was sent");
    assert!(ours.incoming.raw().is_empty() && !ours.incoming.is_plain() && ours.outgoing.is_none());
    assert_eq!(ours.incoming.room(), 0);
}
