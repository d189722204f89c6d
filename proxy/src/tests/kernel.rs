//! With the kernel's own interception: two hosts as network namespaces, nftables between the
//! application and the proxy. Needs root; says so and passes without it.
use super::mesh::*;
use crate::config::{Config, SocketConfig};
use crate::net::socket::{self, FIRST_PORT, Listening, Redirected};
use crate::testing::{endpoint_of, ip, service, workload};
use crate::{Attribution, Handle, Proxy, View, drain};
use api::WorkloadUid;
use api::snapshot::Change;
use prometheus_client::registry::Registry;
use socket2::SockRef;
use std::fs::File;
use std::future::Future;
use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// A network namespace; deleted when dropped, also after a failure.
struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Self {
        let namespace = Self(format!("tmb-{}-{name}", std::process::id()));
        ip_tool(&format!("netns add {}", namespace.0));
        namespace.ip("link set lo up");
        namespace
    }

    fn ip(&self, arguments: &str) {
        ip_tool(&format!("-n {} {arguments}", self.0));
    }

    fn nft(&self, rules: &str) {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, "nft", "-f", "-"]).stdin(Stdio::piped());
        let mut nft = command.spawn().expect("nft is installed");
        nft.stdin.take().expect("piped").write_all(rules.as_bytes()).expect("nft reads");
        assert!(nft.wait().expect("nft ends").success(), "{rules}");
    }

    /// Runs `future` in a thread that lives in this namespace.
    fn run<F: Future<Output = ()>>(&self, future: impl FnOnce() -> F + Send + 'static) -> std::thread::JoinHandle<()> {
        let namespace = File::open(format!("/run/netns/{}", self.0)).expect("it was made above");
        std::thread::spawn(move || {
            let network = rustix::thread::LinkNameSpaceType::Network;
            rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(network)).expect("root may");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(future());
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let deleted = Command::new("ip").args(["netns", "del", &self.0]).status();
        assert!(deleted.is_ok_and(|status| status.success()) || std::thread::panicking(), "{} is left over", self.0);
    }
}

fn ip_tool(arguments: &str) {
    let status = Command::new("ip").args(arguments.split_whitespace()).status().expect("iproute2 is installed");
    assert!(status.success(), "ip {arguments}");
}

struct Always(&'static str);

impl Attribution for Always {
    fn source(&self, _: SocketAddr, _: SocketAddr) -> Option<WorkloadUid> {
        Some(self.0.into())
    }
}

const A4: &str = "10.77.1.1";
const B4: &str = "10.77.1.2";
const A6: &str = "fd77::1";
const B6: &str = "fd77::2";

/// As `agent` makes them: local connections to the virtual addresses are redirected.
const RULES_A: &str = "table inet t {
chain output { type nat hook output priority -150;
    meta mark 0x106d return
    ip daddr 240.240.0.1 tcp flags & (fin|syn|rst|ack) == syn redirect to :15001
    ip6 daddr fd74::1 tcp flags & (fin|syn|rst|ack) == syn redirect to :15001
}
}
";
/// As `agent` makes them: port 8081 is observed, answers to preserved addresses come back.
const RULES_B: &str = "table inet t {
    chain inbound { type filter hook prerouting priority -155;
        ct direction reply ct mark 0x106f meta mark set 0x106f
        iifname != lo tcp flags & (fin|syn|rst|ack) == syn tcp dport 8081 fib daddr type local tproxy to :15006 meta mark set 0x106f accept
    }
    chain replies { type route hook output priority mangle;
        meta mark 0x106e ct direction original ct mark set 0x106f
        ct direction reply ct mark 0x106f meta mark set 0x106f
    }
}
";

fn changes() -> Vec<Change> {
    let orders = service("orders", "shop", &["240.240.0.1", "fd74::1"], &[80]);
    let b = endpoint_of(workload(ORDERS, "shop", "orders", &[B4, B6]), &orders, 80, 8080);
    let a = workload(WEB, "shop", "web", &[A4, A6]);
    vec![Change::Service(orders), Change::Workload(b), Change::Workload(a)]
}

fn proxy(ca: &Ca, account: &str, uid: &'static str, ports: &[u16]) -> (Handle, drain::DrainTrigger) {
    let view = View::new(seen_by(changes(), &[uid], ports));
    let (credentials, registry) = (ca.credentials(&[account]), &mut Registry::default());
    let attribution = Arc::new(Always(uid));
    let proxy =
        Proxy::bind_with(Config::default(), vec![], view, credentials, attribution, registry, Arc::new(Redirected));
    let proxy = proxy.expect("the namespace is empty");
    let (handle, (trigger, watch)) = (proxy.handle(), drain::channel());
    tokio::spawn(proxy.run(watch));
    (handle, trigger)
}

/// Tells every client from which address it came.
async fn serve_addresses(port: u16) {
    let listener = TcpListener::bind(("::", port)).await.expect("the namespace is empty");
    while let Ok((mut stream, client)) = listener.accept().await {
        stream.write_all(client.to_string().as_bytes()).await.expect("sends");
    }
}

async fn seen_from(to: SocketAddr) -> String {
    let mut stream = within("a connection", TcpStream::connect(to)).await.expect("connects");
    let mut text = String::new();
    within("an answer", stream.read_to_string(&mut text)).await.expect("reads");
    let client: SocketAddr = text.parse().expect("an address");
    assert!(client.port() >= FIRST_PORT, "{client} may be a connection of the caller's own");
    client.ip().to_canonical().to_string()
}

#[test]
fn intercepted_connections_arrive_with_the_callers_address() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("SKIPPED: network namespaces need root");
    }
    let (a, b) = (Namespace::new("pa"), Namespace::new("pb"));
    a.ip(&format!("link add eth0 type veth peer name eth0 netns {}", b.0));
    for (namespace, v4, v6) in [(&a, A4, A6), (&b, B4, B6)] {
        namespace.ip(&format!("addr add {v4}/24 dev eth0"));
        namespace.ip(&format!("addr add {v6}/64 dev eth0 nodad"));
        namespace.ip("link set eth0 up");
    }
    a.ip("route add 240.240.0.0/16 dev lo");
    a.ip("-6 route add fd74::/16 dev lo");
    a.nft(RULES_A);
    b.nft(RULES_B);
    for family in ["-4", "-6"] {
        b.ip(&format!("{family} rule add fwmark 0x106f lookup 29805"));
        b.ip(&format!("{family} route add local default dev lo table 29805"));
    }
    watch_log();
    let ca = Arc::new(Ca::new());
    let (ready, is_ready) = oneshot::channel::<()>();
    let (done, is_done) = oneshot::channel::<()>();
    let authority = ca.clone();
    let host_b = b.run(move || async move {
        let (handle, _trigger) = proxy(&authority, "orders", ORDERS, &[8080, 8081]);
        handle.set_transparent(true);
        for port in [8080, 8081] {
            tokio::spawn(serve_addresses(port));
        }
        tokio::task::yield_now().await;
        ready.send(()).expect("host a waits");
        // An error is as good an end.
        let _ = is_done.await;
    });
    let host_a = a.run(move || async move {
        let (handle, _trigger) = proxy(&ca, "web", WEB, &[3000]);
        is_ready.await.expect("host b is ready");
        for (vip, expected) in [("240.240.0.1", A4), ("fd74::1", A6)] {
            assert_eq!(seen_from(SocketAddr::new(ip(vip), 80)).await, expected, "through the tunnel");
        }
        for (address, expected) in [(B4, A4), (B6, A6)] {
            assert_eq!(seen_from(SocketAddr::new(ip(address), 8081)).await, expected, "observed plaintext");
        }
        for listener in &handle.addresses().outbound {
            let mut direct = TcpStream::connect(listener).await.expect("it listens");
            assert_eq!(refused(&mut direct).await, std::io::ErrorKind::ConnectionReset, "{listener}");
        }
        let line = logged(&["10.77.1.2:8081", "inbound connection closed"]).await;
        assert_eq!((&line["protocol"], &line["src.workload"]), (&"tcp".into(), &"a".into()));
        let line = logged(&["10.77.1.2:8080", "outbound connection closed"]).await;
        assert_eq!((&line["dst.dialled"], &line["protocol"]), (&"240.240.0.1:80".into(), &"tombolo/1".into()));
        // An error means that host b has ended, which its own result tells.
        let _ = done.send(());
    });
    let results = [host_a.join(), host_b.join()];
    assert!(results.iter().all(Result::is_ok), "one of the hosts failed");
}

/// Which congestion control both ends of a tunnel have, the dialling one first.
async fn congestion_of_a_tunnel(config: &SocketConfig) -> [String; 2] {
    let listening =
        socket::listen(SocketAddr::new(ip(A4), 0), Listening::Tunnels, config).expect("the address is here");
    let listener = socket::accepting(listening, config).expect("it listens");
    let address = listener.local_addr().expect("it is bound");
    let (dialled, accepted) = tokio::join!(socket::connect_tunnel(address, config), listener.accept());
    let (dialled, (accepted, _)) = (dialled.expect("it listens"), accepted.expect("somebody dials"));
    socket::prepare_tunnel(&accepted, config);
    [&dialled, &accepted].map(|stream| {
        let name = SockRef::from(stream).tcp_congestion().expect("TCP has one");
        String::from_utf8(name).expect("a name").trim_end_matches('\0').to_owned()
    })
}

#[test]
fn a_short_path_is_not_paced_and_a_long_one_is_as_the_host_has_it() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("SKIPPED: network namespaces need root");
    }
    let host = Namespace::new("pace");
    host.ip(&format!("addr add {A4}/32 dev lo"));
    let ran = host.run(|| async {
        let setting = "/proc/sys/net/ipv4/tcp_congestion_control";
        let short = SocketConfig::default();
        // No path is shorter than nothing.
        let long = SocketConfig { short_path: std::time::Duration::ZERO, ..short.clone() };
        for (host, on_short, on_long) in [("bbr", "cubic", "bbr"), ("reno", "reno", "reno")] {
            if let Err(error) = std::fs::write(setting, host) {
                eprintln!("SKIPPED: this kernel has no {host}: {error}");
                continue;
            }
            assert_eq!(congestion_of_a_tunnel(&short).await, [on_short; 2], "the host has {host}");
            assert_eq!(congestion_of_a_tunnel(&long).await, [on_long; 2], "the host has {host}");
        }
    });
    assert!(ran.join().is_ok(), "the host failed");
}
