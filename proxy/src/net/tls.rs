//! A TLS 1.3 connection with a peer: rustls shakes hands, the records are sealed and opened in place.
//!
//! Used for every tunnel. HTTP/2 sees an ordinary stream of bytes; `relay.rs` moves
//! those of one flow between a socket and its own connection without copying them. Whom to trust is not decided here:
//! that is in the configurations of `identity`.

mod handshake;
mod incoming;
mod relay;

use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use identity::tls::TrafficSecret;
use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

pub(crate) use handshake::{accept, connect, hello};
use incoming::Incoming;
pub(crate) use relay::Broken;

use crate::net::buffers::{Buffer, SLOT_BYTES, SLOTS, Span};
use crate::net::records::{Content, HEAD_BYTES, MAX_PLAINTEXT_BYTES, Opener, RecordError, Sealer, TAIL_BYTES};

/// An established connection. Dropping it closes the socket without `close_notify`, which the peer
/// takes for a connection that was cut.
pub(crate) struct TlsStream {
    tcp: TcpStream,
    /// Where the next key of what we receive comes from.
    receives: TrafficSecret,
    opener: Opener,
    /// Where the next key of what we send comes from.
    sends: TrafficSecret,
    sealer: Sealer,
    tickets: Tickets,
    incoming: Incoming,
    /// Sealed and not yet written.
    outgoing: Option<(Buffer, Span)>,
    /// The peer has asked for new keys of ours (RFC 8446 §4.6.3).
    keys_wanted: bool,
    /// How far the peer has ended its direction in order.
    peer_ended: Ended,
    /// How far we have ended ours.
    ended: Ended,
    /// Whether an empty record ends a flow (docs/tombolo-1.md). Everywhere else it means nothing
    /// (RFC 8446 §5.1).
    flows: bool,
}

/// How far one direction of a connection has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Not,
    /// This flow; the connection may take another.
    Flow,
    /// By `close_notify`.
    Connection,
}

/// What becomes of the peer's tickets (RFC 8446 §4.6.1).
enum Tickets {
    /// Only servers send them.
    Refused,
    /// rustls, which keeps 2 KiB for that, has a place for them. Ours come before all data.
    Kept(Box<KernelConnection<ClientConnectionData>>),
    /// The data has begun; a client need not use a ticket.
    Ignored,
}

impl TlsStream {
    pub(crate) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// From now on an empty record ends a flow.
    pub(crate) fn carry_flows(&mut self) {
        self.flows = true;
    }

    /// Ends our direction of the flow. The connection stays, unless the peer has ended it. Ready when
    /// the kernel has it.
    pub(crate) fn poll_end_flow(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.peer_ended == Ended::Connection {
            return match ready!(Pin::new(self).poll_shutdown(cx)) {
                // The peer has reset already, after its own end.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
                result => Poll::Ready(result),
            };
        }
        ready!(self.poll_sendable(cx))?;
        if self.ended == Ended::Not {
            let (buffer, sealed) = self.seal_one(Content::Data, &[])?;
            self.ended = Ended::Flow;
            self.send(cx, buffer, sealed)?;
        }
        self.poll_written(cx)
    }

    /// Makes a connection whose flow has ended in both directions ready for another. `false` if the
    /// peer has ended more than the flow.
    pub(crate) fn next_flow(&mut self) -> bool {
        let ended = (self.ended, self.peer_ended) == (Ended::Flow, Ended::Flow);
        if ended {
            (self.ended, self.peer_ended) = (Ended::Not, Ended::Not);
        }
        ended && self.outgoing.is_none()
    }

    /// Writes what is sealed. Ready when nothing is left.
    fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some((buffer, sealed)) = &mut self.outgoing {
            ready!(self.tcp.poll_write_ready(cx))?;
            let mut left = sealed.range();
            match write_available(&self.tcp, &buffer[left.clone()]) {
                Ok(n) => left.start += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Poll::Ready(Err(error)),
            }
            *sealed = Span::from(left.clone());
            if left.is_empty() {
                self.outgoing = None;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what is sealed as far as the socket takes it now; the rest waits for the next call.
    fn send(&mut self, cx: &mut Context<'_>, buffer: Buffer, sealed: Range<usize>) -> io::Result<()> {
        self.outgoing = Some((buffer, Span::from(sealed)));
        match self.poll_written(cx) {
            Poll::Ready(result) => result,
            Poll::Pending => Ok(()),
        }
    }

    /// Ready when the next record may be sealed: everything before it is written, the key is fresh.
    fn poll_sendable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_written(cx))?;
        if self.keys_wanted || self.sealer.worn() {
            self.update_keys(cx)?;
            ready!(self.poll_written(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Tells the peer that new keys follow, and takes them (RFC 8446 §4.6.3).
    fn update_keys(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let (buffer, sealed) = self.seal_one(Content::Handshake, &KEY_UPDATE)?;
        self.sends.renew().map_err(invalid)?;
        self.sealer = self.sends.key().and_then(|key| Sealer::new(0, &key)).map_err(invalid)?;
        self.keys_wanted = false;
        self.send(cx, buffer, sealed)
    }

    fn seal_one(&mut self, content: Content, plaintext: &[u8]) -> io::Result<(Buffer, Range<usize>)> {
        let mut buffer = Buffer::new();
        let end = HEAD_BYTES + plaintext.len() + TAIL_BYTES;
        buffer[HEAD_BYTES..HEAD_BYTES + plaintext.len()].copy_from_slice(plaintext);
        self.sealer.seal(content, &mut buffer[..end]).map_err(invalid)?;
        Ok((buffer, 0..end))
    }

    /// Seals the first `plaintext` bytes that lie in the slots of `buffer`, each slot full but the
    /// last. The records lie one behind the other.
    fn seal_slots(&mut self, buffer: &mut Buffer, plaintext: usize) -> Result<Range<usize>, RecordError> {
        let mut left = plaintext;
        let mut end = 0;
        for slot in buffer.chunks_exact_mut(SLOT_BYTES) {
            let bytes = left.min(MAX_PLAINTEXT_BYTES);
            if bytes == 0 {
                break;
            }
            let record = HEAD_BYTES + bytes + TAIL_BYTES;
            self.sealer.seal(Content::Data, &mut slot[..record])?;
            left -= bytes;
            end += record;
        }
        Ok(0..end)
    }
}

impl Tickets {
    /// The peer has begun to send data.
    fn end(&mut self) {
        if let Self::Kept(_) = self {
            *self = Self::Ignored;
        }
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = into.filled().len();
        loop {
            match this.poll_opened(cx)? {
                Poll::Ready(true) => {}
                // The end of the peer's direction is a read of nothing.
                Poll::Ready(false) => return Poll::Ready(Ok(())),
                Poll::Pending if into.filled().len() > before => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
            while let Some(plain) = this.incoming.next() {
                let n = plain.len().min(into.remaining());
                into.put_slice(&plain[..n]);
                this.incoming.take(n);
                if into.remaining() == 0 {
                    return Poll::Ready(Ok(()));
                }
            }
            // What has arrived is worth another round; asking the socket is not.
            if !this.incoming.has_record() {
                this.incoming.rest();
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_sendable(cx))?;
        let mut buffer = Buffer::new();
        let taken = gather(parts, &mut buffer);
        if taken == 0 {
            return Poll::Ready(Ok(0));
        }
        let sealed = this.seal_slots(&mut buffer, taken).map_err(invalid)?;
        this.send(cx, buffer, sealed)?;
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_written(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_written(cx))?;
        if this.ended != Ended::Connection {
            let (buffer, sealed) = this.seal_one(Content::Alert, &CLOSE_NOTIFY)?;
            this.ended = Ended::Connection;
            this.send(cx, buffer, sealed)?;
            ready!(this.poll_written(cx))?;
        }
        Pin::new(&mut this.tcp).poll_shutdown(cx)
    }
}

/// Copies `parts` into the plaintext places of the slots; how much went in.
fn gather(parts: &[IoSlice<'_>], buffer: &mut Buffer) -> usize {
    let mut taken = 0;
    for mut part in parts.iter().map(|part| &**part) {
        while !part.is_empty() && taken < SLOTS * MAX_PLAINTEXT_BYTES {
            let (slot, filled) = (taken / MAX_PLAINTEXT_BYTES, taken % MAX_PLAINTEXT_BYTES);
            let n = part.len().min(MAX_PLAINTEXT_BYTES - filled);
            let at = slot * SLOT_BYTES + HEAD_BYTES + filled;
            buffer[at..at + n].copy_from_slice(&part[..n]);
            part = &part[n..];
            taken += n;
        }
    }
    taken
}

/// Writes once. A short write means that the socket is full, and spares the call that would say so.
fn write_available(tcp: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    let mut written = None;
    let result = tcp.try_io(Interest::WRITABLE, || {
        let n = rustix::io::write(tcp, bytes)?;
        written = Some(n);
        if n < bytes.len() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(n) }
    });
    match (result, written) {
        (Err(error), None) => Err(error),
        (_, Some(0)) => Err(io::ErrorKind::WriteZero.into()),
        (_, Some(n)) => Ok(n),
        (Ok(n), None) => Ok(n),
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// A KeyUpdate that asks for none in return (RFC 8446 §4.6.3).
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
/// Level "warning", description `close_notify` (RFC 8446 §6.1).
const CLOSE_NOTIFY: [u8; 2] = [1, 0];

#[cfg(test)]
mod tests;
