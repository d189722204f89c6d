//! The server over real sockets, with resolvers behind it that answer, cut, stall, lie and change.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use api::snapshot::Change;
use api::{Delta, Service, Snapshot};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{DnsConfig, DnsServer};
use crate::drain::{self, DrainTrigger, Drained};
use crate::view::View;

const PATIENCE: Duration = Duration::from_secs(10);

/// How a resolver of the test behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behaviour {
    Answers(u8),
    /// Over UDP says TC; over TCP has this many records.
    Cuts(u8),
    Stalls,
    Declines,
    /// Sends replies with another id and to another question before the right one.
    Lies,
}

/// One port for both transports. Connections of other tests hold ports of loopback, too.
async fn bind_both() -> (UdpSocket, TcpListener) {
    for _ in 0..100 {
        let udp = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().expect("bound")).await {
            return (udp, tcp);
        }
    }
    panic!("no port of 127.0.0.1 is free for both UDP and TCP")
}

/// A resolver of the test, and how often it was asked.
struct Resolver {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Resolver {
    async fn start(behaviour: Behaviour) -> Self {
        let (udp, tcp) = bind_both().await;
        let address = udp.local_addr().expect("bound");
        let asked = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        let count = asked.clone();
        tasks.spawn(async move {
            let mut buffer = vec![0; 4096];
            while let Ok((length, peer)) = udp.recv_from(&mut buffer).await {
                count.fetch_add(1, Ordering::SeqCst);
                for reply in datagrams(behaviour, &buffer[..length]) {
                    udp.send_to(&reply, peer).await.expect("sends");
                }
            }
        });
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let length = stream.read_u16().await.expect("a length");
                let mut question = vec![0; usize::from(length)];
                stream.read_exact(&mut question).await.expect("a question");
                let count = if let Behaviour::Cuts(count) = behaviour { count } else { 1 };
                let reply = reply_to(&question, count);
                let length = u16::try_from(reply.len()).expect("short");
                stream.write_all(&[&length.to_be_bytes(), reply.as_slice()].concat()).await.expect("sends");
            }
        });
        Self { address, asked, _tasks: tasks }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn datagrams(behaviour: Behaviour, question: &[u8]) -> Vec<Vec<u8>> {
    let reply = |count| reply_to(question, count);
    match behaviour {
        Behaviour::Answers(count) => vec![reply(count)],
        Behaviour::Cuts(_) => {
            let mut cut = Message::from_vec(&reply(0)).expect("a message");
            cut.metadata.truncation = true;
            vec![cut.to_vec().expect("encodes")]
        }
        Behaviour::Stalls => Vec::new(),
        Behaviour::Declines => {
            let mut declined = Message::from_vec(&reply(0)).expect("a message");
            declined.metadata.response_code = ResponseCode::ServFail;
            vec![declined.to_vec().expect("encodes")]
        }
        Behaviour::Lies => {
            let (mut other_id, mut other_name) = (reply(9), Message::from_vec(&reply(9)).expect("a message"));
            other_id[0] ^= 0xff;
            other_name.queries[0].set_name(Name::from_ascii("evil.example.").expect("a name"));
            vec![b"noise".to_vec(), other_id, other_name.to_vec().expect("encodes"), reply(1)]
        }
    }
}

fn reply_to(question: &[u8], count: u8) -> Vec<u8> {
    let mut message = Message::from_vec(question).expect("the server forwards what can be read");
    message.metadata.message_type = MessageType::Response;
    let name = message.queries[0].name.clone();
    message.add_answers((0..count).map(|n| Record::from_rdata(name.clone(), 60, RData::A(A::new(192, 0, 2, n)))));
    message.to_vec().expect("encodes")
}

/// The server under test.
struct Server {
    address: SocketAddr,
    upstreams: watch::Sender<Vec<SocketAddr>>,
    view: View,
    registry: Registry,
    drain: DrainTrigger,
    running: tokio::task::JoinHandle<()>,
}

impl Server {
    async fn start(upstreams: &[SocketAddr], adapt: impl FnOnce(&mut DnsConfig)) -> Self {
        let (upstreams, following) = watch::channel(upstreams.to_vec());
        let mut config = DnsConfig::new(following);
        config.mark = 0;
        config.listen = vec!["127.0.0.1:0".parse().expect("an address")];
        config.attempt_timeout = Duration::from_millis(300);
        adapt(&mut config);
        let (view, mut registry) = (View::new(snapshot(1)), Registry::default());
        let server = DnsServer::bind(config, vec![], view.clone(), &mut registry).await.expect("binds");
        let address = server.local_addrs()[0];
        let (drain, watch) = drain::channel();
        let running = tokio::spawn(server.run(watch));
        Self { address, upstreams, view, registry, drain, running }
    }

    /// The value of the only sample whose line begins so.
    fn metric(&self, start: &str) -> f64 {
        let text = telemetry::metrics::encode_text(&self.registry);
        let values = text.lines().filter(|line| line.starts_with(start)).filter_map(|line| line.rsplit(' ').next());
        values.map(|value| value.parse::<f64>().expect("a number")).sum()
    }

    async fn stop(self) {
        assert_eq!(self.drain.drain(PATIENCE).await, Drained::Finished);
        self.running.await.expect("no panic");
    }
}

fn snapshot(last_octet: u8) -> Snapshot {
    let orders = Service {
        name: "orders".to_owned(),
        namespace: "shop".to_owned(),
        hostname: "orders.shop.mesh".to_owned(),
        vips: vec![IpAddr::from([240, 240, 0, last_octet])],
        ports: Vec::new(),
        subject_alt_names: Vec::new(),
        allow_unhealthy: false,
    };
    Snapshot::default().apply(Delta { revision: u64::from(last_octet), changes: vec![Change::Service(orders)] })
}

fn question(name: &str, payload: Option<u16>) -> Message {
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), RecordType::A));
    if let Some(payload) = payload {
        let mut edns = Edns::new();
        edns.set_max_payload(payload);
        message.set_edns(edns);
    }
    message
}

async fn exchange_udp(server: SocketAddr, bytes: &[u8]) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    socket.connect(server).await.expect("connects");
    socket.send(bytes).await.expect("sends");
    let mut buffer = vec![0; 65535];
    let length = timeout(PATIENCE, socket.recv(&mut buffer)).await.ok()?.expect("receives");
    Some(buffer[..length].to_vec())
}

async fn ask_udp(server: SocketAddr, question: &Message) -> Message {
    let reply = exchange_udp(server, &question.to_vec().expect("encodes")).await.expect("a reply");
    let reply = Message::from_vec(&reply).expect("a message");
    assert_eq!(reply.metadata.id, question.metadata.id);
    reply
}

async fn ask_tcp(stream: &mut TcpStream, question: &Message) -> Message {
    let bytes = question.to_vec().expect("encodes");
    let length = u16::try_from(bytes.len()).expect("short");
    stream.write_all(&[&length.to_be_bytes(), bytes.as_slice()].concat()).await.expect("sends");
    let length = timeout(PATIENCE, stream.read_u16()).await.expect("in time").expect("a length");
    let mut reply = vec![0; usize::from(length)];
    stream.read_exact(&mut reply).await.expect("a reply");
    let reply = Message::from_vec(&reply).expect("a message");
    assert_eq!(reply.metadata.id, question.metadata.id);
    reply
}

#[tokio::test]
async fn mesh_names_are_answered_and_follow_the_snapshot() {
    let server = Server::start(&[], |_| ()).await;
    let address = |reply: &Message| reply.answers[0].data.ip_addr().expect("an address");
    let orders = question("orders.shop.mesh.", None);
    assert_eq!(address(&ask_udp(server.address, &orders).await), IpAddr::from([240, 240, 0, 1]));
    server.view.publish(snapshot(2));
    assert_eq!(address(&ask_udp(server.address, &orders).await), IpAddr::from([240, 240, 0, 2]));
    let mut stream = TcpStream::connect(server.address).await.expect("connects");
    for _ in 0..2 {
        assert_eq!(address(&ask_tcp(&mut stream, &orders).await), IpAddr::from([240, 240, 0, 2]));
    }
    let unknown = ask_udp(server.address, &question("nobody.shop.mesh.", None)).await;
    assert_eq!(unknown.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(unknown.authorities.len(), 1);
    assert!((server.metric("istio_dns_requests_total{") - 5.0).abs() < 0.1);
    server.stop().await;
}

#[tokio::test]
async fn without_a_resolver_other_names_fail_at_once() {
    let server = Server::start(&[], |_| ()).await;
    let reply = ask_udp(server.address, &question("example.com.", None)).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert!((server.metric("istio_dns_upstream_failures_total{") - 1.0).abs() < 0.1);
    server.stop().await;
}

#[tokio::test]
async fn resolvers_are_tried_in_order_until_one_answers() {
    let dead = UdpSocket::bind("127.0.0.1:0").await.expect("binds").local_addr().expect("bound");
    let table: [(&[Behaviour], usize, ResponseCode); 5] = [
        (&[Behaviour::Answers(2), Behaviour::Answers(1)], 2, ResponseCode::NoError),
        (&[Behaviour::Stalls, Behaviour::Answers(1)], 1, ResponseCode::NoError),
        (&[Behaviour::Declines, Behaviour::Answers(1)], 1, ResponseCode::NoError),
        (&[Behaviour::Declines, Behaviour::Stalls], 0, ResponseCode::ServFail),
        (&[Behaviour::Lies], 1, ResponseCode::NoError),
    ];
    for (behaviours, answers, code) in table {
        let mut resolvers = Vec::new();
        for behaviour in behaviours {
            resolvers.push(Resolver::start(*behaviour).await);
        }
        let upstreams: Vec<_> = std::iter::once(dead).chain(resolvers.iter().map(|r| r.address)).collect();
        let server = Server::start(&upstreams, |_| ()).await;
        let reply = ask_udp(server.address, &question("example.com.", Some(1232))).await;
        assert_eq!((reply.answers.len(), reply.metadata.response_code), (answers, code), "{behaviours:?}");
        server.stop().await;
    }
}

#[tokio::test]
async fn nobody_waits_longer_than_the_total() {
    let resolvers = [Resolver::start(Behaviour::Stalls).await, Resolver::start(Behaviour::Stalls).await];
    let upstreams = resolvers.each_ref().map(|resolver| resolver.address);
    let server = Server::start(&upstreams, |config| config.total_timeout = Duration::from_millis(1000)).await;
    let begun = Instant::now();
    let reply = ask_udp(server.address, &question("example.com.", None)).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert!(resolvers[0].asked() >= 2, "a lost datagram is sent again");
    server.stop().await;
}

#[tokio::test]
async fn a_cut_reply_is_fetched_whole_over_tcp() {
    let resolver = Resolver::start(Behaviour::Cuts(60)).await;
    let server = Server::start(&[resolver.address], |_| ()).await;
    let large = ask_udp(server.address, &question("example.com.", Some(4096))).await;
    assert_eq!((large.answers.len(), large.metadata.truncation), (60, false));
    let small = ask_udp(server.address, &question("example.com.", None)).await;
    assert_eq!((small.answers.len(), small.metadata.truncation), (0, true), "512 bytes do not hold 60 records");
    let mut stream = TcpStream::connect(server.address).await.expect("connects");
    let whole = ask_tcp(&mut stream, &question("example.com.", None)).await;
    assert_eq!((whole.answers.len(), whole.metadata.truncation), (60, false));
    drop(stream);
    server.stop().await;
}

#[tokio::test]
async fn a_change_of_resolvers_counts_for_the_next_question() {
    let (old, new) = (Resolver::start(Behaviour::Answers(1)).await, Resolver::start(Behaviour::Answers(2)).await);
    let server = Server::start(&[old.address], |_| ()).await;
    let example = question("example.com.", None);
    assert_eq!(ask_udp(server.address, &example).await.answers.len(), 1);
    server.upstreams.send_replace(vec![new.address]);
    assert_eq!(ask_udp(server.address, &example).await.answers.len(), 2);
    assert_eq!((old.asked(), new.asked()), (1, 1));
    server.upstreams.send_replace(vec![server.address]);
    let itself = ask_udp(server.address, &example).await;
    assert_eq!(itself.metadata.response_code, ResponseCode::ServFail, "never asks itself");
    server.stop().await;
}

#[tokio::test]
async fn noise_is_survived_and_counted() {
    let server = Server::start(&[], |_| ()).await;
    let good = question("orders.shop.mesh.", None).to_vec().expect("encodes");
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    for length in 0..good.len() {
        socket.send_to(&good[..length], server.address).await.expect("sends");
    }
    let formerr = exchange_udp(server.address, &good[..good.len() - 1]).await.expect("a reply");
    assert_eq!((formerr.len(), formerr[3] & 0x0f), (12, 1));
    let mut stream = TcpStream::connect(server.address).await.expect("connects");
    stream.write_all(&[0, 3, 1, 2, 3]).await.expect("sends");
    let closed = timeout(PATIENCE, stream.read(&mut [0; 16])).await.expect("in time");
    assert_eq!(closed.expect("closed in order"), 0);
    assert_eq!(ask_udp(server.address, &question("orders.shop.mesh.", None)).await.answers.len(), 1);
    assert!(server.metric("tombolo_dns_dropped_total{reason=\"malformed\"}") >= 2.0);
    server.stop().await;
}

#[tokio::test]
async fn more_questions_than_the_limit_are_dropped() {
    let stalled = Resolver::start(Behaviour::Stalls).await;
    let server = Server::start(&[stalled.address], |config| config.concurrent_questions = 4).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
    let example = question("example.com.", None).to_vec().expect("encodes");
    for _ in 0..12 {
        socket.send_to(&example, server.address).await.expect("sends");
    }
    let mut replies = 0;
    let mut buffer = [0; 512];
    while replies < 4 && timeout(PATIENCE, socket.recv(&mut buffer)).await.is_ok() {
        replies += 1;
    }
    assert_eq!(replies, 4);
    assert!((server.metric("tombolo_dns_dropped_total{reason=\"busy\"}") - 8.0).abs() < 0.1);
    server.stop().await;
}

#[tokio::test]
async fn idle_tcp_clients_are_let_go() {
    let server = Server::start(&[], |config| config.tcp_idle = Duration::from_millis(50)).await;
    let mut stream = TcpStream::connect(server.address).await.expect("connects");
    let closed = timeout(PATIENCE, stream.read(&mut [0; 16])).await.expect("closed in time");
    assert_eq!(closed.expect("closed in order"), 0);
    server.stop().await;
}
