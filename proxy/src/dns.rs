//! Answers the host's processes' DNS questions: mesh names from the snapshot, all others from the
//! host's own resolvers.
//!
//! The agent binds one [`DnsServer`] and runs it until drained. It finds the resolvers and leads
//! questions here (systemd-resolved, or interception of port 53); nothing here reads files or
//! changes the host.

pub mod answer;
pub mod config;
mod forward;
pub mod message;
mod metrics;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::ResponseCode;
use prometheus_client::registry::Registry;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use telemetry::Chain;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

pub use answer::{MESH_DOMAIN, asking_namespace, resolve};
pub use config::DnsConfig;

use crate::drain::{DrainWatch, Tasks};
use crate::view::View;
use answer::answer;
use forward::Forwarder;
use message::Request;
use metrics::{DnsMetrics, Dropped, QuestionLabels, Transport};

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum DnsBindError {
    #[error("cannot serve DNS on {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("none of the addresses to serve DNS on exists on this host")]
    NoAddress,
}

/// A bound DNS server.
#[derive(Debug)]
pub struct DnsServer {
    sockets: Vec<(Arc<UdpSocket>, TcpListener)>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    view: View,
    forwarder: Forwarder,
    metrics: DnsMetrics,
    questions: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    tcp_idle: Duration,
    warned_of_loop: AtomicBool,
}

/// A question over UDP has at most this many bytes: longer ones do not occur.
const DATAGRAM_BYTES: usize = 4096;
/// After receiving or accepting failed, before it is tried again.
const PAUSE: Duration = Duration::from_millis(100);
/// Tries to find one port that is free over both UDP and TCP, for address port 0.
const PORT_TRIES: usize = 16;

impl DnsServer {
    /// Binds every address over UDP and TCP, or takes a socket of `given` that is bound to it already.
    /// An address of a family that the host does not have is left out, as long as one is left.
    pub async fn bind(
        config: DnsConfig,
        given: Vec<OwnedFd>,
        view: View,
        registry: &mut Registry,
    ) -> Result<Self, DnsBindError> {
        let mut sockets = Vec::new();
        let mut given: Vec<Socket> = given.into_iter().map(Socket::from).collect();
        for address in &config.listen {
            match listen(*address, config.mark, &mut given) {
                Ok((udp, tcp)) => sockets.push((Arc::new(udp), tcp)),
                Err(error) if is_absent(&error) => {
                    warn!(%address, "this host has no such address: DNS is not served there");
                }
                Err(source) => return Err(DnsBindError::Listen { address: *address, source }),
            }
        }
        if sockets.is_empty() {
            return Err(DnsBindError::NoAddress);
        }
        let own = sockets.iter().filter_map(|(udp, _)| udp.local_addr().ok()).collect();
        let shared = Shared {
            view,
            forwarder: Forwarder::new(&config, own),
            metrics: DnsMetrics::new(registry),
            questions: Arc::new(Semaphore::new(config.concurrent_questions)),
            connections: Arc::new(Semaphore::new(config.tcp_connections)),
            tcp_idle: config.tcp_idle,
            warned_of_loop: AtomicBool::new(false),
        };
        Ok(Self { sockets, shared: Arc::new(shared) })
    }

    /// Copies of the sockets, for the program that serves after this one.
    pub fn copies(&self) -> io::Result<Vec<OwnedFd>> {
        let sockets = self.sockets.iter().flat_map(|(udp, tcp)| [udp.as_fd(), tcp.as_fd()]);
        sockets.map(|socket| socket.try_clone_to_owned()).collect()
    }

    /// The addresses served, each over UDP and TCP.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.sockets.iter().filter_map(|(udp, _)| udp.local_addr().ok()).collect()
    }

    /// Serves until drained; questions taken before are answered.
    pub async fn run(self, drain: DrainWatch) {
        let listeners = Tasks::new();
        let work = Tasks::new();
        for (udp, tcp) in self.sockets {
            listeners.spawn(serve_udp(self.shared.clone(), udp, work.clone(), drain.clone()));
            listeners.spawn(serve_tcp(self.shared.clone(), tcp, work.clone(), drain.clone()));
        }
        listeners.finish(&drain).await;
        work.finish(&drain).await;
    }
}

async fn serve_udp(shared: Arc<Shared>, socket: Arc<UdpSocket>, work: Tasks, drain: DrainWatch) {
    let mut buffer = vec![0; DATAGRAM_BYTES];
    loop {
        let received = tokio::select! {
            () = drain.signaled() => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        let (length, peer) = match received {
            Ok(received) => received,
            Err(error) => {
                debug!(%error, "receiving a DNS question failed");
                sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(slot) = shared.questions.clone().try_acquire_owned() else {
            shared.metrics.dropped(Dropped::Busy);
            continue;
        };
        let (shared, socket, bytes) = (shared.clone(), socket.clone(), buffer[..length].to_vec());
        work.spawn(async move {
            if let Some(reply) = shared.answer(&bytes, peer, Transport::Udp).await
                && let Err(error) = socket.send_to(&reply, peer).await
            {
                debug!(%error, "a DNS answer could not be sent");
            }
            drop(slot);
        });
    }
}

async fn serve_tcp(shared: Arc<Shared>, listener: TcpListener, work: Tasks, drain: DrainWatch) {
    loop {
        let accepted = tokio::select! {
            () = drain.signaled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!(%error, "accepting a DNS connection failed");
                sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(slot) = shared.connections.clone().try_acquire_owned() else {
            shared.metrics.dropped(Dropped::Busy);
            continue;
        };
        let (shared, drain) = (shared.clone(), drain.clone());
        work.spawn(async move {
            if let Err(error) = shared.serve_connection(stream, peer, &drain).await {
                debug!(%error, "a DNS connection broke");
            }
            drop(slot);
        });
    }
}

impl Shared {
    /// Questions of one TCP client, one after the other, until it closes, idles, or we drain.
    async fn serve_connection(&self, mut stream: TcpStream, peer: SocketAddr, drain: &DrainWatch) -> io::Result<()> {
        stream.set_nodelay(true)?;
        loop {
            let length = tokio::select! {
                () = drain.signaled() => return Ok(()),
                length = timeout(self.tcp_idle, stream.read_u16()) => length,
            };
            let length = match length {
                Ok(Ok(length)) => length,
                Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Ok(Err(error)) => return Err(error),
                Err(_) => return Ok(()),
            };
            let mut question = vec![0; usize::from(length)];
            timeout(self.tcp_idle, stream.read_exact(&mut question)).await??;
            let Ok(_slot) = self.questions.acquire().await else { return Ok(()) };
            // A client that breaks the rules on a connection loses it.
            let Some(reply) = self.answer(&question, peer, Transport::Tcp).await else { return Ok(()) };
            let Ok(length) = u16::try_from(reply.len()) else { return Ok(()) };
            timeout(self.tcp_idle, stream.write_all(&[&length.to_be_bytes(), reply.as_slice()].concat())).await??;
        }
    }

    /// The reply to a message, or `None` where there must be none.
    async fn answer(&self, bytes: &[u8], peer: SocketAddr, transport: Transport) -> Option<Vec<u8>> {
        let request = match Request::read(bytes) {
            Ok(request) => request,
            Err(malformed) => {
                self.metrics.dropped(Dropped::Malformed);
                return malformed.reply;
            }
        };
        let labels = QuestionLabels::new(request.question().query_type(), transport);
        self.metrics.received(&labels);
        let limit = match transport {
            Transport::Udp => request.udp_limit(),
            Transport::Tcp => usize::from(u16::MAX),
        };
        let snapshot = self.view.load();
        let decided = answer(&snapshot, request.question(), asking_namespace(&snapshot));
        if let Some(reply) = request.reply(decided, snapshot.revision(), limit) {
            return Some(reply);
        }
        drop(snapshot);
        if self.forwarder.is_own(peer, request.id()) {
            self.note_loop();
            return None;
        }
        self.forward(&request, &labels, limit).await
    }

    async fn forward(&self, request: &Request, labels: &QuestionLabels, limit: usize) -> Option<Vec<u8>> {
        let begun = Instant::now();
        match self.forwarder.ask(request).await {
            Ok(reply) => {
                self.metrics.forwarded(labels, Some(begun.elapsed()));
                Some(request.relay(reply, limit))
            }
            Err(error) => {
                self.metrics.forwarded(labels, None);
                debug!(error = %Chain(&error), "a forwarded DNS question was not answered");
                Some(request.failure(ResponseCode::ServFail))
            }
        }
    }

    fn note_loop(&self) {
        self.metrics.dropped(Dropped::Loop);
        if !self.warned_of_loop.swap(true, Ordering::Relaxed) {
            warn!("a DNS question that this agent sent came back to it: some other rule redirects port 53 to it");
        }
    }
}

/// One address over UDP and TCP, the same port for both.
fn listen(address: SocketAddr, mark: u32, given: &mut Vec<Socket>) -> io::Result<(UdpSocket, TcpListener)> {
    let (udp, tcp) = (take(given, address, Type::DGRAM), take(given, address, Type::STREAM));
    if let (Some(udp), Some(tcp)) = (udp, tcp) {
        return Ok((UdpSocket::from_std(udp.into())?, TcpListener::from_std(tcp.into())?));
    }
    let mut tries = if address.port() == 0 { PORT_TRIES } else { 1 };
    loop {
        tries -= 1;
        let udp = socket(address, Type::DGRAM, Protocol::UDP, mark)?;
        let udp = UdpSocket::from_std(udp.into())?;
        let bound = socket(udp.local_addr()?, Type::STREAM, Protocol::TCP, mark);
        match bound.and_then(|tcp| tcp.listen(128).map(|()| tcp)) {
            Ok(tcp) => return Ok((udp, TcpListener::from_std(tcp.into())?)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
            Err(error) => return Err(error),
        }
    }
}

/// The socket of this kind that is bound to the address. Whoever bound it did so as [`socket`] does.
fn take(given: &mut Vec<Socket>, address: SocketAddr, kind: Type) -> Option<Socket> {
    let fits = |socket: &Socket| {
        socket.r#type().is_ok_and(|found| found == kind)
            && socket.local_addr().is_ok_and(|bound| bound.as_socket() == Some(address))
    };
    let position = given.iter().position(fits)?;
    Some(given.swap_remove(position))
}

/// With a fixed port, `SO_REUSEPORT` lets the agent's next process serve while this one drains.
fn socket(address: SocketAddr, kind: Type, protocol: Protocol, mark: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_port(true)?;
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    forward::set_mark(&SockRef::from(&socket), mark)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn is_absent(error: &io::Error) -> bool {
    let no_family = rustix::io::Errno::AFNOSUPPORT.raw_os_error();
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(no_family)
}

#[cfg(test)]
mod tests;
