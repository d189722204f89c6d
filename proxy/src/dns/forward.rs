//! Asks the host's own resolvers what the mesh does not answer.
//!
//! [`super::DnsServer`] calls it for each such question. Resolvers are tried in their order, over UDP
//! and, when a reply is cut, over TCP; a resolver that did not answer in time rests behind the others
//! for a while. Replies are taken only from the resolver asked, to the question asked.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::config::DnsConfig;
use super::message::{Request, is_truncated, response_code};

/// Why no resolver answered a question.
#[derive(Debug, thiserror::Error)]
pub(super) enum ForwardError {
    #[error("the host has no resolver to ask")]
    NoUpstream,
    #[error("no resolver answered, the last asked was {upstream}")]
    Unanswered {
        upstream: SocketAddr,
        #[source]
        source: AttemptError,
    },
}

/// Why one attempt failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttemptError {
    #[error("no reply within {limit:?}")]
    TimedOut { limit: Duration },
    #[error("it cannot be reached")]
    Unreachable(#[from] io::Error),
    #[error("it said something else over TCP than was asked")]
    WrongReply,
}

/// Asks the host's resolvers.
#[derive(Debug)]
pub(super) struct Forwarder {
    upstreams: watch::Receiver<Vec<SocketAddr>>,
    own: Vec<SocketAddr>,
    mark: u32,
    attempt_timeout: Duration,
    total_timeout: Duration,
    rest: Duration,
    resting: Mutex<HashMap<SocketAddr, Instant>>,
    on_the_way: Mutex<HashSet<Sent>>,
}

/// A question of ours that waits for its reply: our source port and the message's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Sent {
    port: u16,
    id: u16,
}

/// Keeps a [`Sent`] listed for as long as its reply is awaited.
struct OnTheWay<'a> {
    forwarder: &'a Forwarder,
    sent: Sent,
}

/// Times the list of resolvers is gone through, as long as there is time.
const ROUNDS: usize = 3;
/// Longest reply over UDP when the question does not allow for more.
const DATAGRAM_BYTES: usize = 4096;

impl Forwarder {
    /// `own` are the addresses we listen on, which are never asked.
    pub(super) fn new(config: &DnsConfig, own: Vec<SocketAddr>) -> Self {
        Self {
            upstreams: config.upstreams.clone(),
            own,
            mark: config.mark,
            attempt_timeout: config.attempt_timeout,
            total_timeout: config.total_timeout,
            rest: config.rest_after_timeout,
            resting: Mutex::default(),
            on_the_way: Mutex::default(),
        }
    }

    /// The first reply that settles the question. A reply by which a resolver declines (SERVFAIL,
    /// REFUSED, NOTIMP) is passed on only if no other resolver does better.
    pub(super) async fn ask(&self, request: &Request) -> Result<Vec<u8>, ForwardError> {
        let deadline = Instant::now() + self.total_timeout;
        let mut declined = None;
        let mut failed = None;
        for _round in 0..ROUNDS {
            let mut is_worth_another = false;
            for upstream in self.in_order(Instant::now()) {
                match self.attempt(request, upstream, deadline).await {
                    Ok(reply) if is_declined(&reply) => declined = Some(reply),
                    Ok(reply) => return Ok(reply),
                    Err(source) => {
                        is_worth_another |= matches!(source, AttemptError::TimedOut { .. });
                        failed = Some((upstream, source));
                    }
                }
            }
            if declined.is_some() || !is_worth_another || Instant::now() >= deadline {
                break;
            }
        }
        match (declined, failed) {
            (Some(reply), _) => Ok(reply),
            (None, Some((upstream, source))) => Err(ForwardError::Unanswered { upstream, source }),
            (None, None) => Err(ForwardError::NoUpstream),
        }
    }

    /// Whether a question that arrived is one of our own, led back to us by somebody's redirect.
    pub(super) fn is_own(&self, peer: SocketAddr, id: u16) -> bool {
        self.on_the_way.lock().unwrap_or_else(PoisonError::into_inner).contains(&Sent { port: peer.port(), id })
    }

    /// The resolvers of now, without ourselves, those that rest last.
    fn in_order(&self, now: Instant) -> Vec<SocketAddr> {
        let mut upstreams = self.upstreams.borrow().clone();
        upstreams.retain(|upstream| !self.own.iter().any(|own| is_reached_at(*own, *upstream)));
        let mut resting = self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        resting.retain(|_, until| *until > now);
        upstreams.sort_by_key(|upstream| resting.contains_key(upstream)); // stable: the order stays
        upstreams
    }

    fn rest(&self, upstream: SocketAddr) {
        let until = Instant::now() + self.rest;
        self.resting.lock().unwrap_or_else(PoisonError::into_inner).insert(upstream, until);
    }

    async fn attempt(
        &self,
        request: &Request,
        upstream: SocketAddr,
        deadline: Instant,
    ) -> Result<Vec<u8>, AttemptError> {
        let end = || deadline.min(Instant::now() + self.attempt_timeout);
        let Ok(reply) = timeout_at(end(), self.over_udp(request, upstream)).await else {
            self.rest(upstream);
            return Err(AttemptError::TimedOut { limit: self.attempt_timeout });
        };
        let reply = reply?;
        if !is_truncated(&reply) {
            return Ok(reply);
        }
        // A cut reply is better than none where TCP is closed.
        match timeout_at(end(), self.over_tcp(request, upstream)).await {
            Ok(Ok(whole)) => Ok(whole),
            Ok(Err(_)) | Err(_) => Ok(reply),
        }
    }

    async fn over_udp(&self, request: &Request, upstream: SocketAddr) -> Result<Vec<u8>, AttemptError> {
        let socket = self.udp_socket(upstream)?;
        let id = rand::random();
        let _on_the_way = self.on_the_way(socket.local_addr()?.port(), id);
        socket.send(&request.with_id(id)).await?;
        let mut buffer = vec![0; request.udp_limit().max(DATAGRAM_BYTES)];
        loop {
            let length = socket.recv(&mut buffer).await?;
            // Anything else is late, forged or broken: the right one may still come.
            if request.is_answered_by(&buffer[..length], id) {
                buffer.truncate(length);
                return Ok(buffer);
            }
        }
    }

    async fn over_tcp(&self, request: &Request, upstream: SocketAddr) -> Result<Vec<u8>, AttemptError> {
        let socket = if upstream.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        set_mark(&socket2::SockRef::from(&socket), self.mark)?;
        let mut stream = socket.connect(upstream).await?;
        stream.set_nodelay(true)?;
        let id = rand::random();
        let _on_the_way = self.on_the_way(stream.local_addr()?.port(), id);
        let question = request.with_id(id);
        let length = u16::try_from(question.len()).map_err(|_| AttemptError::WrongReply)?;
        stream.write_all(&[&length.to_be_bytes(), question.as_slice()].concat()).await?;
        let length = stream.read_u16().await?;
        let mut reply = vec![0; usize::from(length)];
        stream.read_exact(&mut reply).await?;
        if request.is_answered_by(&reply, id) { Ok(reply) } else { Err(AttemptError::WrongReply) }
    }

    /// A socket that takes datagrams from this resolver alone, on a port that the kernel picks at
    /// random: together with the random id that is what keeps forged replies out (RFC 5452 §9).
    fn udp_socket(&self, upstream: SocketAddr) -> io::Result<UdpSocket> {
        let socket = Socket::new(Domain::for_address(upstream), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        set_mark(&socket2::SockRef::from(&socket), self.mark)?;
        socket.connect(&upstream.into())?;
        UdpSocket::from_std(socket.into())
    }

    fn on_the_way(&self, port: u16, id: u16) -> OnTheWay<'_> {
        let sent = Sent { port, id };
        self.on_the_way.lock().unwrap_or_else(PoisonError::into_inner).insert(sent);
        OnTheWay { forwarder: self, sent }
    }
}

impl Drop for OnTheWay<'_> {
    fn drop(&mut self) {
        self.forwarder.on_the_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.sent);
    }
}

/// Marks a socket as ours; 0 leaves it alone.
pub(super) fn set_mark(socket: &socket2::SockRef<'_>, mark: u32) -> io::Result<()> {
    if mark == 0 { Ok(()) } else { socket.set_mark(mark) }
}

/// SERVFAIL, NOTIMP and REFUSED speak of the resolver, not of the name.
fn is_declined(reply: &[u8]) -> bool {
    matches!(response_code(reply), 2 | 4 | 5)
}

/// Whether a packet to `target` arrives at a socket bound to `own`.
fn is_reached_at(own: SocketAddr, target: SocketAddr) -> bool {
    let any_of_ours = own.ip().is_unspecified() && (target.ip().is_loopback() || target.ip().is_unspecified());
    own.port() == target.port() && (own.ip() == target.ip().to_canonical() || any_of_ours)
}

#[cfg(test)]
mod tests;
