//! Two hosts in network namespaces, threads that enter them, and sockets with the options of a proxy.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use agent::intercept::{Interception, Wanted, ruleset};
use socket2::{Domain, SockRef, Socket, Type};

/// Address of the host with the agent.
pub(crate) const A4: &str = "10.77.0.1";
pub(crate) const A6: &str = "fd77::1";
/// Address of the other host.
pub(crate) const B4: &str = "10.77.0.2";
pub(crate) const B6: &str = "fd77::2";
pub(crate) const VIP4: &str = "240.240.0.7";
pub(crate) const VIP6: &str = "fd74:6d62:6f6c::7";
/// Nothing here takes longer unless it hangs.
pub(crate) const LIMIT: Duration = Duration::from_secs(5);

/// One host.
pub(crate) struct Host {
    pub(crate) name: String,
}

/// Hosts `a` and `b`, joined by `eth0`, each with a default route to the other.
pub(crate) struct Lab {
    pub(crate) a: Host,
    pub(crate) b: Host,
}

impl Lab {
    /// None without root.
    pub(crate) fn new() -> Option<Self> {
        let lab = Self::without_default_routes()?;
        lab.a.run(&format!("ip route add default via {B4}"));
        lab.a.run(&format!("ip -6 route add default via {B6}"));
        lab.b.run(&format!("ip route add default via {A4}"));
        lab.b.run(&format!("ip -6 route add default via {A6}"));
        Some(lab)
    }

    pub(crate) fn without_default_routes() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: network namespaces need root");
            return None;
        }
        let (a, b) = (Host::new("a"), Host::new("b"));
        run(&format!("ip link add eth0 netns {} type veth peer name eth0 netns {}", a.name, b.name));
        for (host, v4, v6) in [(&a, A4, A6), (&b, B4, B6)] {
            host.run(&format!("ip address add {v4}/24 dev eth0"));
            host.run(&format!("ip address add {v6}/64 dev eth0 nodad"));
            host.run("ip link set eth0 up");
        }
        Some(Self { a, b })
    }
}

impl Host {
    pub(crate) fn new(role: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tmb{}-{}-{role}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run(&format!("ip netns add {name}"));
        let host = Self { name };
        host.run("ip link set lo up");
        host
    }

    /// Runs this in the host's network namespace, on a thread of its own.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let entered = scope.spawn(|| {
                self.enter();
                work()
            });
            entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread into the host's network namespace, for good.
    pub(crate) fn enter(&self) {
        use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
        use std::os::fd::AsFd;
        let namespace = File::open(format!("/run/netns/{}", self.name)).expect("the namespace exists");
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may enter");
    }

    /// Runs a command line in the host, and panics with its words when it fails.
    pub(crate) fn run(&self, line: &str) -> String {
        run(&self.prefixed(line))
    }

    /// Runs a command line in the host; its words, whether it failed or not.
    pub(crate) fn attempt(&self, line: &str) -> Result<String, String> {
        attempt(&self.prefixed(line))
    }

    /// `nsenter`, because `ip netns exec` hides the cgroup tree.
    fn prefixed(&self, line: &str) -> String {
        format!("nsenter --net=/run/netns/{} {line}", self.name)
    }

    pub(crate) fn write_sysctl(&self, name: &str, value: &str) {
        self.within(|| std::fs::write(format!("/proc/sys/{name}"), value).expect("the sysctl exists"));
    }

    pub(crate) fn listen(&self, address: impl AsRef<str>) -> TcpListener {
        let address: SocketAddr = address.as_ref().parse().expect("an address");
        self.within(|| TcpListener::bind(address).expect("the address is free"))
    }

    /// A listener that TPROXY may hand connections to.
    pub(crate) fn listen_transparent(&self, address: &str) -> TcpListener {
        let address: SocketAddr = address.parse().expect("an address");
        self.within(|| {
            let socket = transparent_socket(address.ip());
            socket.set_reuse_address(true).expect("SO_REUSEADDR");
            if address.is_ipv6() {
                socket.set_only_v6(true).expect("IPV6_V6ONLY");
            }
            socket.bind(&address.into()).expect("the address is free");
            socket.listen(16).expect("listen");
            socket.into()
        })
    }

    pub(crate) fn connect(&self, to: impl AsRef<str>) -> io::Result<TcpStream> {
        let to: SocketAddr = to.as_ref().parse().expect("an address");
        self.within(|| with_limits(TcpStream::connect_timeout(&to, LIMIT)?))
    }

    pub(crate) fn connect_marked(&self, to: impl AsRef<str>, mark: u32) -> io::Result<TcpStream> {
        let to: SocketAddr = to.as_ref().parse().expect("an address");
        self.within(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            socket.set_mark(mark)?;
            socket.connect_timeout(&to.into(), LIMIT)?;
            with_limits(socket.into())
        })
    }

    pub(crate) fn connect_from_port(&self, port: u16, to: impl AsRef<str>) -> io::Result<TcpStream> {
        let to = to.as_ref().parse().expect("an address");
        self.within(|| connect_from_port(port, to))
    }

    /// As the proxy connects to a local server: from the client's address.
    pub(crate) fn connect_from(&self, client: IpAddr, to: impl AsRef<str>) -> io::Result<TcpStream> {
        let to: SocketAddr = to.as_ref().parse().expect("an address");
        self.within(|| {
            let socket = transparent_socket(client);
            socket.set_mark(proxy::config::SOURCE_PRESERVING_MARK)?;
            socket.bind(&SocketAddr::new(client, 0).into())?;
            socket.connect_timeout(&to.into(), LIMIT)?;
            with_limits(socket.into())
        })
    }

    /// Opens interception here and applies what is wanted, once the table of an earlier one is gone.
    pub(crate) fn intercept(&self, wanted: &Wanted) -> Interception {
        self.wait_for_no_table();
        self.within(|| {
            let mut interception = Interception::open(None).expect("nf_tables is there");
            interception.apply(&ruleset::build(wanted)).expect("the rules are taken");
            interception
        })
    }

    /// A test that starts a process holds a copy of every other test's socket until `exec` closes
    /// it, so a dropped table may live a moment longer.
    pub(crate) fn wait_for_no_table(&self) {
        wait_until("the kernel removes the table", || !self.has_table());
    }

    pub(crate) fn has_table(&self) -> bool {
        self.run("nft list tables").contains("inet tombolo")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = attempt(&format!("ip netns del {}", self.name));
    }
}

/// What the tests capture: one VIP and one workload port in each family, at host `b`.
pub(crate) fn mesh() -> Wanted {
    Wanted {
        vips: [VIP4, VIP6].map(|vip| vip.parse().expect("an address")).into(),
        endpoints: [format!("{B4}:80"), format!("[{B6}]:80")].map(|at| at.parse().expect("an endpoint")).into(),
        ..Wanted::default()
    }
}

/// Accepts one connection, or panics when none comes.
pub(crate) fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    try_accept(listener, LIMIT).expect("a connection arrives")
}

/// Whether a connection arrives within the time.
pub(crate) fn try_accept(listener: &TcpListener, limit: Duration) -> Option<(TcpStream, SocketAddr)> {
    listener.set_nonblocking(true).expect("O_NONBLOCK");
    let deadline = Instant::now() + limit;
    loop {
        match listener.accept() {
            Ok((stream, peer)) => {
                stream.set_nonblocking(false).expect("O_NONBLOCK");
                return Some((with_limits(stream).expect("timeouts"), peer));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                std::thread::park_timeout(Duration::from_millis(2));
            }
            Err(_) => return None,
        }
    }
}

/// Both ends can talk to each other.
pub(crate) fn talk(one: &mut TcpStream, other: &mut TcpStream) {
    send(one, other);
    send(other, one);
}

fn send(from: &mut TcpStream, to: &mut TcpStream) {
    let mut buffer = [0; 5];
    from.write_all(b"hello").expect("the connection is open");
    to.read_exact(&mut buffer).expect("what was sent arrives");
    assert_eq!(&buffer, b"hello");
}

/// Where the application wanted to go before the kernel redirected it.
pub(crate) fn original_destination(stream: &TcpStream) -> SocketAddr {
    let socket = SockRef::from(stream);
    let local = stream.local_addr().expect("a connected socket");
    let found = if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    found.expect("conntrack knows it").as_socket().expect("an IP address")
}

/// Waits until this holds; panics with what it was for.
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    wait_for(what, || holds().then_some(()));
}

/// Waits until there is an answer; panics with what it was for.
pub(crate) fn wait_for<T>(what: &str, mut answer: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(answer) = answer() {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {LIMIT:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// From a port that other connections use too, as busy hosts do.
pub(crate) fn connect_from_port(port: u16, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    socket.bind(&SocketAddr::new(any, port).into())?;
    socket.connect_timeout(&to.into(), LIMIT)?;
    with_limits(socket.into())
}

pub(crate) fn run(line: &str) -> String {
    attempt(line).unwrap_or_else(|words| panic!("{line}: {words}"))
}

pub(crate) fn attempt(line: &str) -> Result<String, String> {
    let output = Command::new("sh").args(["-c", line]).output().map_err(|error| error.to_string())?;
    let words = String::from_utf8_lossy(if output.status.success() { &output.stdout } else { &output.stderr });
    if output.status.success() { Ok(words.into_owned()) } else { Err(words.into_owned()) }
}

fn transparent_socket(address: IpAddr) -> Socket {
    let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::STREAM, None).expect("a socket");
    let transparent =
        if address.is_ipv4() { socket.set_ip_transparent_v4(true) } else { socket.set_ip_transparent_v6(true) };
    transparent.expect("CAP_NET_ADMIN");
    socket
}

fn with_limits(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    Ok(stream)
}
