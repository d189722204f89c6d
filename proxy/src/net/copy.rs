//! Moves the bytes of one connection, both ways, until both ways have ended.
//!
//! Called by `outbound/connection.rs` and `inbound/*` after everything that can be refused has been
//! decided. One task moves both directions; an idle connection holds no buffer. It keeps what TCP
//! means: an end in one direction is passed on and the other goes on, a reset resets the other side.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use crate::net::socket::reset_on_close;
use crate::net::tls::{Broken, TlsStream};
use crate::net::traffic::{Stop, Traffic};

/// One end of a relayed connection.
pub(crate) enum End {
    Tcp(TcpStream),
    Tunnel {
        send: SendStream<Bytes>,
        recv: RecvStream,
    },
    /// A TLS connection of its own, which is left when the flow has ended in both directions.
    Tls(Box<TlsStream>),
}

/// Why bytes stopped moving before both sides had ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    #[error("the client broke the connection")]
    Client {
        #[source]
        source: io::Error,
    },
    #[error("the upstream broke the connection")]
    Upstream {
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Stopped(Stop),
    #[error("nothing moved for {limit:?}")]
    Idle { limit: Duration },
}

/// Relays until both directions have ended. Dropping the future resets both ends, so that a cut
/// connection is not taken for one that ended.
pub(crate) fn copy_both_ways<'a>(
    client: &'a mut End,
    upstream: &'a mut End,
    traffic: &'a Traffic,
    idle_timeout: Option<Duration>,
) -> impl Future<Output = Result<(), CopyError>> + use<'a> {
    let idle = idle_timeout.map(Idle::new);
    let (request, response) = (Flow::new(), Flow::new());
    let mut relay = Relay { client, upstream, request, response, idle, half_closed: None, whole: false };
    poll_fn(move |cx| relay.poll(cx, traffic))
}

struct Relay<'a> {
    client: &'a mut End,
    upstream: &'a mut End,
    request: Flow,
    response: Flow,
    idle: Option<Idle>,
    /// Runs while one direction has ended.
    half_closed: Option<Pin<Box<Sleep>>>,
    /// Both directions ended as their senders wanted.
    whole: bool,
}

/// One direction.
struct Flow {
    /// Made with the first bytes that go through it.
    copied: Option<Box<Copied>>,
    state: FlowState,
}

/// Bytes on their way where they cannot go from socket to socket.
struct Copied {
    /// Read and not yet written.
    chunk: Bytes,
    /// Room for the next read; given back while nothing comes.
    room: BytesMut,
    read_bytes: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum FlowState {
    Moving,
    /// The sender has ended; the receiver is to be told.
    Ending,
    Ended,
}

struct Idle {
    limit: Duration,
    timer: Pin<Box<Sleep>>,
    moved_before: u64,
}

impl Relay<'_> {
    fn poll(&mut self, cx: &mut Context<'_>, traffic: &Traffic) -> Poll<Result<(), CopyError>> {
        if let Poll::Ready(stop) = traffic.poll_stopped(cx) {
            return Poll::Ready(Err(CopyError::Stopped(stop.clone())));
        }
        let request = self.request.poll(cx, self.client, self.upstream, &traffic.received);
        if let Poll::Ready(Err(broken)) = request {
            return Poll::Ready(Err(self.broken(broken, true)));
        }
        let response = self.response.poll(cx, self.upstream, self.client, &traffic.sent);
        if let Poll::Ready(Err(broken)) = response {
            return Poll::Ready(Err(self.broken(broken, false)));
        }
        if request.is_ready() && response.is_ready() {
            self.whole = true;
            return Poll::Ready(Ok(()));
        }
        // While a direction waits for its TCP side nothing else would notice a reset of the stream.
        if let Poll::Ready(source) = self.upstream.poll_reset(cx) {
            return Poll::Ready(Err(self.broken(Broken::To(source), true)));
        }
        if let Poll::Ready(source) = self.client.poll_reset(cx) {
            return Poll::Ready(Err(self.broken(Broken::From(source), true)));
        }
        if (request.is_ready() || response.is_ready())
            && let Poll::Ready(error) = self.poll_half_closed(cx)
        {
            return Poll::Ready(Err(error));
        }
        match &mut self.idle {
            Some(idle) => idle.poll(cx, traffic).map(Err),
            None => Poll::Pending,
        }
    }

    /// Once nothing is read from a socket any more, nothing tells that its peer is gone for good: the
    /// kernel knows (keepalive, a reset), and is asked now and then.
    fn poll_half_closed(&mut self, cx: &mut Context<'_>) -> Poll<CopyError> {
        let timer = self.half_closed.get_or_insert_with(|| Box::pin(sleep(HALF_CLOSED_CHECK)));
        loop {
            ready!(timer.as_mut().poll(cx));
            if let Some(source) = self.client.error() {
                return Poll::Ready(CopyError::Client { source });
            }
            if let Some(source) = self.upstream.error() {
                return Poll::Ready(CopyError::Upstream { source });
            }
            timer.as_mut().reset(Instant::now() + HALF_CLOSED_CHECK);
        }
    }

    /// Names the end that failed and resets the other, as RFC 9113 §8.5 asks of a CONNECT proxy.
    fn broken(&mut self, broken: Broken, request: bool) -> CopyError {
        let (of_client, source) = match broken {
            Broken::From(source) => (request, source),
            Broken::To(source) => (!request, source),
        };
        if of_client {
            self.upstream.reset(Reason::CONNECT_ERROR);
            CopyError::Client { source }
        } else {
            self.client.reset(Reason::CONNECT_ERROR);
            CopyError::Upstream { source }
        }
    }
}

impl Drop for Relay<'_> {
    fn drop(&mut self) {
        if !self.whole {
            self.client.reset(Reason::CANCEL);
            self.upstream.reset(Reason::CANCEL);
        }
    }
}

impl Flow {
    fn new() -> Self {
        Self { copied: None, state: FlowState::Moving }
    }

    /// Moves what can be moved; ready when this direction has ended.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut End,
        to: &mut End,
        moved: &AtomicU64,
    ) -> Poll<Result<(), Broken>> {
        loop {
            if let Some(copied) = self.copied.as_deref_mut().filter(|copied| !copied.chunk.is_empty()) {
                let n = ready!(to.poll_write(cx, &mut copied.chunk)).map_err(Broken::To)?;
                moved.fetch_add(n as u64, Ordering::Relaxed);
                from.written(n);
                continue;
            }
            // What TLS holds back is on its way before more is read.
            ready!(to.poll_flush(cx)).map_err(Broken::To)?;
            if self.state == FlowState::Moving
                && let Some(relayed) = relay(cx, from, to)
            {
                match ready!(relayed)? {
                    0 => self.state = FlowState::Ending,
                    n => drop(moved.fetch_add(n as u64, Ordering::Relaxed)),
                }
                continue;
            }
            match self.state {
                FlowState::Moving => {
                    let copied = self.copied.get_or_insert_default();
                    match ready!(copied.poll_read(cx, from)).map_err(Broken::From)? {
                        Some(chunk) => copied.chunk = chunk,
                        None => self.state = FlowState::Ending,
                    }
                }
                FlowState::Ending => {
                    ready!(to.poll_end(cx)).map_err(Broken::To)?;
                    self.copied = None;
                    self.state = FlowState::Ended;
                }
                FlowState::Ended => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl Default for Copied {
    fn default() -> Self {
        Self { chunk: Bytes::new(), room: BytesMut::new(), read_bytes: SMALL_READ_BYTES }
    }
}

impl Copied {
    /// The next bytes, or `None` when the sender has ended.
    fn poll_read(&mut self, cx: &mut Context<'_>, from: &mut End) -> Poll<io::Result<Option<Bytes>>> {
        match from {
            End::Tcp(stream) => self.poll_read_tcp(cx, stream),
            End::Tunnel { recv, .. } => match ready!(recv.poll_data(cx)) {
                Some(Ok(data)) => Poll::Ready(Ok(Some(data))),
                Some(Err(error)) => Poll::Ready(Err(broken_stream(error))),
                None => Poll::Ready(Ok(None)),
            },
            End::Tls(stream) => self.poll_read_tls(cx, stream),
        }
    }

    /// The room stays for as long as bytes come: TLS does not tell in advance whether it has some.
    fn poll_read_tls(&mut self, cx: &mut Context<'_>, stream: &mut TlsStream) -> Poll<io::Result<Option<Bytes>>> {
        if self.room.capacity() < SMALLEST_ROOM_BYTES {
            self.room.reserve(SMALL_READ_BYTES);
        }
        match pin!(stream.read_buf(&mut self.room)).poll(cx)? {
            Poll::Ready(0) => Poll::Ready(Ok(None)),
            Poll::Ready(_) => Poll::Ready(Ok(Some(self.room.split().freeze()))),
            Poll::Pending => {
                self.room = BytesMut::new();
                Poll::Pending
            }
        }
    }

    fn poll_read_tcp(&mut self, cx: &mut Context<'_>, stream: &mut TcpStream) -> Poll<io::Result<Option<Bytes>>> {
        // Readiness first: only a connection that has something to read needs room for it.
        if stream.poll_read_ready(cx)?.is_pending() {
            self.room = BytesMut::new();
            return Poll::Pending;
        }
        if self.room.capacity() < SMALLEST_ROOM_BYTES {
            self.room.reserve(self.read_bytes);
        }
        let room = self.room.capacity();
        let n = match pin!(stream.read_buf(&mut self.room)).poll(cx)? {
            Poll::Ready(n) => n,
            Poll::Pending => {
                self.room = BytesMut::new();
                return Poll::Pending;
            }
        };
        if n == 0 {
            return Poll::Ready(Ok(None));
        }
        // A read that fills its room says that more is waiting; a small one that little is coming.
        if n == room && n >= SMALL_READ_BYTES {
            self.read_bytes = LARGE_READ_BYTES;
        } else if n < SMALL_READ_BYTES {
            self.read_bytes = SMALL_READ_BYTES;
        }
        Poll::Ready(Ok(Some(self.room.split().freeze())))
    }
}

/// Moves bytes between a socket and a TLS connection of its own without keeping any here; `None` for
/// every other pair. Ready with how much it was, 0 at the end of `from`.
fn relay(cx: &mut Context<'_>, from: &mut End, to: &mut End) -> Option<Poll<Result<usize, Broken>>> {
    match (from, to) {
        (End::Tcp(from), End::Tls(to)) => Some(to.poll_take_from(cx, from)),
        (End::Tls(from), End::Tcp(to)) => Some(from.poll_give_to(cx, to)),
        (End::Tcp(_) | End::Tunnel { .. } | End::Tls(_), _) => None,
    }
}

impl End {
    /// Writes a part of `chunk` and takes it off. Ready with how much it was.
    fn poll_write(&mut self, cx: &mut Context<'_>, chunk: &mut Bytes) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(stream) => {
                let n = ready!(Pin::new(stream).poll_write(cx, chunk))?;
                if n == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                drop(chunk.split_to(n));
                Poll::Ready(Ok(n))
            }
            Self::Tls(stream) => {
                let n = ready!(Pin::new(stream).poll_write(cx, chunk))?;
                drop(chunk.split_to(n));
                Poll::Ready(Ok(n))
            }
            Self::Tunnel { send, .. } => {
                let n = ready!(poll_capacity(send, cx, chunk.len()))?.min(chunk.len());
                send.send_data(chunk.split_to(n), false).map_err(broken_stream)?;
                Poll::Ready(Ok(n))
            }
        }
    }

    /// Hands what is held back to the kernel. HTTP/2 does so in a task of its own.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(_) | Self::Tunnel { .. } => Poll::Ready(Ok(())),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    /// Tells the other side that no more will come.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => match ready!(Pin::new(stream).poll_shutdown(cx)) {
                // The peer has reset already; reading from it says so.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
                result => Poll::Ready(result),
            },
            Self::Tunnel { send, .. } => Poll::Ready(send.send_data(Bytes::new(), true).map_err(broken_stream)),
            Self::Tls(stream) => stream.poll_end_flow(cx),
        }
    }

    /// `n` bytes that came from here have been passed on: the peer may send as many more.
    fn written(&mut self, n: usize) {
        if let Self::Tunnel { recv, .. } = self {
            // Fails only for more than was received, which `Flow` never releases.
            let _ = recv.flow_control().release_capacity(n);
        }
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        match self {
            Self::Tcp(_) | Self::Tls(_) => Poll::Pending,
            Self::Tunnel { send, .. } => match ready!(send.poll_reset(cx)) {
                Ok(reason) => Poll::Ready(broken_stream(reason.into())),
                Err(error) => Poll::Ready(broken_stream(error)),
            },
        }
    }

    /// The TLS connection, if its flow has ended in order and it can take another.
    pub(crate) fn next_flow(self) -> Option<Box<TlsStream>> {
        match self {
            Self::Tls(mut stream) => stream.next_flow().then_some(stream),
            Self::Tcp(_) | Self::Tunnel { .. } => None,
        }
    }

    /// What the kernel has found out about the socket and nobody has read yet.
    fn error(&self) -> Option<io::Error> {
        match self {
            Self::Tcp(stream) => stream.take_error().ok().flatten(),
            Self::Tls(stream) => stream.tcp().take_error().ok().flatten(),
            Self::Tunnel { .. } => None,
        }
    }

    fn reset(&mut self, reason: Reason) {
        match self {
            Self::Tcp(stream) => reset_on_close(stream),
            Self::Tls(stream) => reset_on_close(stream.tcp()),
            Self::Tunnel { send, .. } => send.send_reset(reason),
        }
    }
}

/// Waits until the peer and the send buffer take some of `wanted` bytes.
fn poll_capacity(send: &mut SendStream<Bytes>, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
    // Capacity is asked for only while there is something to send: a stream that held some while idle
    // would take it from the others of its connection.
    send.reserve_capacity(wanted);
    loop {
        match send.capacity() {
            0 => match ready!(send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken_stream(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            },
            capacity => return Poll::Ready(Ok(capacity)),
        }
    }
}

fn broken_stream(error: h2::Error) -> io::Error {
    match error.reason() {
        _ if error.is_io() => error.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()),
        Some(_) => io::Error::new(io::ErrorKind::ConnectionReset, error),
        None => io::Error::other(error),
    }
}

impl Idle {
    fn new(limit: Duration) -> Self {
        Self { limit, timer: Box::pin(sleep(limit)), moved_before: 0 }
    }

    /// Ready when nothing moved for the whole limit. Bytes do not touch the timer: it looks at the
    /// counters when it fires, so a connection is closed between one and two limits after its last.
    fn poll(&mut self, cx: &mut Context<'_>, traffic: &Traffic) -> Poll<CopyError> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let moved = traffic.received() + traffic.sent();
            if moved == self.moved_before {
                return Poll::Ready(CopyError::Idle { limit: self.limit });
            }
            self.moved_before = moved;
            self.timer.as_mut().reset(Instant::now() + self.limit);
        }
    }
}

/// The first read of a burst: with the 9 bytes of a frame header it fills one TLS record exactly
/// (RFC 8446 §5.1, RFC 9113 §4.1).
const SMALL_READ_BYTES: usize = (16 << 10) - 9;
/// Reads of a stream that keeps the reader busy: four records in one frame.
const LARGE_READ_BYTES: usize = (64 << 10) - 9;
/// How often a half-closed connection is looked after. Keepalive gives a silent peer up after longer.
const HALF_CLOSED_CHECK: Duration = Duration::from_secs(60);
/// Less room than this is not worth a read; new room is made.
const SMALLEST_ROOM_BYTES: usize = 2 << 10;
