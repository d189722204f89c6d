//! What the kernel must be asked about sockets: original destinations, marks, transparency, keepalive.
//!
//! Called by the listeners and by every dial. It decides nothing: callers say which address, which
//! mark, which source. The only file of the crate with unsafe code, for two options that no crate has.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};

use crate::config::SocketConfig;
use crate::net::addr::{OrigDst, canonical};

/// Finds out where an intercepted connection was meant to go. The listeners take it as a value so
/// that a test can bring connections to them without a rule in the kernel.
pub trait OriginalDestination: Send + Sync + 'static {
    /// Where the application dialled. An error or our own address means it was not intercepted.
    fn of(&self, accepted: &TcpStream) -> io::Result<SocketAddr>;
}

/// `SO_ORIGINAL_DST`, as nftables' redirect leaves it with the accepted socket.
#[derive(Debug, Clone, Copy, Default)]
pub struct Redirected;

impl OriginalDestination for Redirected {
    fn of(&self, accepted: &TcpStream) -> io::Result<SocketAddr> {
        let socket = SockRef::from(accepted);
        let dialled = match canonical(accepted.local_addr()?) {
            SocketAddr::V4(_) => socket.original_dst_v4()?,
            SocketAddr::V6(_) => socket.original_dst_v6()?,
        };
        dialled.as_socket().ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))
    }
}

/// How a listening socket is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Listening {
    /// On one family, or on both for `[::]`.
    Plain,
    /// As `Plain`, for tunnels of peers: short paths are not paced.
    Tunnels,
    /// `IP_TRANSPARENT`, one family: may be handed connections to any address. Needs CAP_NET_ADMIN.
    Transparent,
}

/// Binds and listens.
pub(crate) fn listen(address: SocketAddr, kind: Listening, config: &SocketConfig) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(kind == Listening::Transparent)?;
    }
    if kind == Listening::Transparent {
        set_transparent(&socket, address.is_ipv6())?;
    }
    if kind == Listening::Tunnels || address.ip().is_loopback() {
        unpaced(&socket);
    }
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(config.backlog).unwrap_or(i32::MAX))?;
    Ok(socket.into())
}

/// Begins to accept. What is accepted has the options of the listener (`tcp_create_openreq_child`, net/ipv4/tcp_minisocks.c).
pub(crate) fn accepting(listening: OwnedFd, config: &SocketConfig) -> io::Result<TcpListener> {
    prepare(&SockRef::from(&listening), config);
    TcpListener::from_std(listening.into())
}

/// The socket among `given` that listens on `address`. Whoever bound it did so as [`listen`] does.
pub(crate) fn take_listening(given: &mut Vec<OwnedFd>, address: SocketAddr) -> Option<OwnedFd> {
    let fits = |socket: &OwnedFd| {
        let socket = SockRef::from(socket);
        socket.is_listener().unwrap_or(false)
            && socket.local_addr().is_ok_and(|bound| bound.as_socket() == Some(address))
    };
    let position = given.iter().position(fits)?;
    Some(given.swap_remove(position))
}

/// Options of a tunnel that a peer opened, beside those that it has from the listener.
pub(crate) fn prepare_tunnel(accepted: &TcpStream, config: &SocketConfig) {
    pace_long_path(accepted.as_fd(), config.short_path);
}

/// Dials a peer's tunnel port. Dropping the future abandons the attempt.
pub(crate) async fn connect_tunnel(to: SocketAddr, config: &SocketConfig) -> io::Result<TcpStream> {
    let socket = dialling(to)?;
    unpaced(&socket);
    let stream = dial(socket, to, config).await?;
    pace_long_path(stream.as_fd(), config.short_path);
    Ok(stream)
}

/// Dials as the agent itself. Dropping the future abandons the attempt.
pub(crate) async fn connect(to: SocketAddr, config: &SocketConfig) -> io::Result<TcpStream> {
    dial(dialling(to)?, to, config).await
}

/// Dials an application of this host as the agent itself.
pub(crate) async fn connect_here(to: SocketAddr, config: &SocketConfig) -> io::Result<TcpStream> {
    let socket = dialling(to)?;
    unpaced(&socket);
    dial(socket, to, config).await
}

async fn dial(socket: Socket, to: SocketAddr, config: &SocketConfig) -> io::Result<TcpStream> {
    mark(&socket, config.mark);
    prepare(&socket, config);
    established(socket, to).await
}

/// Connects. An application of this host has mostly answered when the call returns, although that says "in
/// progress"; then there is nothing to wait for.
async fn established(socket: Socket, to: SocketAddr) -> io::Result<TcpStream> {
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let stream = TcpStream::from_std(socket.into())?;
    // Only a connection that stands has a peer (getpeername(2)).
    if stream.peer_addr().is_err() {
        stream.writable().await?;
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
    }
    Ok(stream)
}

/// Dials an application of this host with the source address `from`, which need not be ours. Needs CAP_NET_ADMIN and the policy
/// routing that brings the answers back.
///
/// The address is the caller's, so its ports are, too: were one used here that the caller chooses for
/// a connection of its own to the same application, two connections would have one name, and both
/// would hang. So ports are taken where systems do not look for one; only when many in a row are in
/// use does the kernel choose, from all.
pub(crate) async fn connect_from(from: IpAddr, to: SocketAddr, config: &SocketConfig) -> io::Result<TcpStream> {
    for _ in 0..PORT_TRIES {
        let step = NEXT_PORT.fetch_add(1, Ordering::Relaxed) % (u16::MAX - FIRST_PORT);
        match connect_from_port(SocketAddr::new(from, FIRST_PORT + step), to, config).await {
            Err(error) if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable) => {}
            result => return result,
        }
    }
    connect_from_port(SocketAddr::new(from, 0), to, config).await
}

async fn connect_from_port(from: SocketAddr, to: SocketAddr, config: &SocketConfig) -> io::Result<TcpStream> {
    let socket = dialling(to)?;
    // The same port serves connections to different applications.
    socket.set_reuse_address(true)?;
    set_transparent(&socket, to.is_ipv6())?;
    mark(&socket, Some(config.source_preserving_mark));
    unpaced(&socket);
    prepare(&socket, config);
    set_bind_address_no_port(socket.as_fd())?;
    socket.bind(&from.into())?;
    established(socket, to).await
}

/// Makes the next close of the socket a reset, so that the peer does not take it for a clean end.
pub(crate) fn reset_on_close(stream: &TcpStream) {
    // Fails only on a socket that is gone, where there is nobody left to reset.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

fn dialling(to: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(to), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))
}

fn set_transparent(socket: &Socket, v6: bool) -> io::Result<()> {
    if v6 { socket.set_ip_transparent_v6(true) } else { socket.set_ip_transparent_v4(true) }
}

/// `IP_BIND_ADDRESS_NO_PORT` (ip(7)): the port is chosen at connect, by the whole tuple, so that many
/// connections of one caller do not use up the ports that binds would reserve. Both families.
#[expect(unsafe_code, reason = "neither socket2 nor rustix knows this option")]
fn set_bind_address_no_port(socket: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&on)).expect("an int is four bytes");
    let value = std::ptr::from_ref(&on).cast();
    // SAFETY: the descriptor is borrowed for the call, and `value` points to `length` bytes that
    // live longer than the call.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, value, length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn mark(socket: &Socket, mark: Option<u32>) {
    if let Some(mark) = mark {
        // Without CAP_NET_ADMIN there can be no interception either, which is all the mark is for.
        let _ = socket.set_mark(mark);
    }
}

/// Where BBR is the host's default, asks for CUBIC; accepted sockets inherit it. BBR paces every connection
/// by a timer (tcp(7), `tcp_congestion_control`), which on a path without delay costs more than the bytes
/// (docs/performance.md). It must be set before the connection stands: pacing that has begun goes on.
/// Every other choice of the operator stays as it is.
fn unpaced(socket: &Socket) {
    if socket.tcp_congestion().is_ok_and(|host| host.starts_with(b"bbr")) {
        // Only tunes. CUBIC is Linux' own default, and may be missing only where somebody took it out.
        let _ = socket.set_tcp_congestion(b"cubic");
    }
}

/// Gives a connection that stands the host's congestion control unless its handshake found a path shorter than `short`.
fn pace_long_path(connection: BorrowedFd<'_>, short: Duration) {
    if round_trip(connection).is_some_and(|time| time < short) {
        return;
    }
    // What a new socket has is the default of now; each step only tunes.
    let host = Socket::new(Domain::IPV4, Type::STREAM, None).and_then(|socket| socket.tcp_congestion());
    if let Ok(host) = host {
        let name = host.split(|byte| *byte == 0).next().unwrap_or_default();
        let _ = SockRef::from(&connection).set_tcp_congestion(name);
    }
}

/// The smoothed round trip of a connection, `tcpi_rtt` of `TCP_INFO` (linux/tcp.h). `None` if none was
/// measured, as when the handshake's own packets were lost.
#[expect(unsafe_code, reason = "neither socket2 nor rustix reads this structure")]
fn round_trip(connection: BorrowedFd<'_>) -> Option<Duration> {
    // SAFETY: the structure is integers only, for which zeros are a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of_val(&info)).expect("some hundred bytes");
    let value = std::ptr::from_mut(&mut info).cast();
    // SAFETY: the descriptor is borrowed for the call, and `value` points to `length` bytes that live longer than it.
    let result =
        unsafe { libc::getsockopt(connection.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, value, &raw mut length) };
    (result == 0 && info.tcpi_rtt > 0).then(|| Duration::from_micros(info.tcpi_rtt.into()))
}

fn prepare(socket: &Socket, config: &SocketConfig) {
    // Each of these only tunes; a connection that lacks one still carries its bytes.
    let _ = socket.set_tcp_nodelay(true);
    let keepalive = TcpKeepalive::new().with_time(config.keepalive).with_interval(config.keepalive);
    let _ = socket.set_tcp_keepalive(&keepalive.with_retries(config.keepalive_probes));
}

/// The address of the far end of an accepted connection as the original destination: what TPROXY
/// leaves, since it translates nothing.
pub(crate) fn local_as_dialled(accepted: &TcpStream) -> io::Result<OrigDst> {
    accepted.local_addr().map(OrigDst::new)
}

/// Linux chooses up to 60999 (ip_local_port_range in ip-sysctl), Windows and BSDs from 49152 on, seldom this high.
pub(crate) const FIRST_PORT: u16 = 61_000;
/// So many ports in use one after the other are no chance: all may be.
const PORT_TRIES: usize = 16;
static NEXT_PORT: AtomicU16 = AtomicU16::new(0);
