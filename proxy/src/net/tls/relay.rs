//! One flow between a socket and its own TLS connection: read, seal in place, write; read, open in
//! place, write. No byte is copied on the way.

use std::io::{self, IoSlice, IoSliceMut};
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::net::TcpStream;

use super::incoming::read_available;
use super::{TlsStream, invalid};
use crate::net::buffers::{Buffer, SLOT_BYTES, SLOTS};
use crate::net::records::{HEAD_BYTES, MAX_PLAINTEXT_BYTES};

/// Which end of a relay failed.
#[derive(Debug)]
pub(crate) enum Broken {
    From(io::Error),
    To(io::Error),
}

impl TlsStream {
    /// Moves what `from` has into the tunnel. Ready with how much it was; 0 is the end of `from`.
    /// Whatever has been taken and not yet written goes out first at the next call.
    pub(crate) fn poll_take_from(&mut self, cx: &mut Context<'_>, from: &TcpStream) -> Poll<Result<usize, Broken>> {
        ready!(self.poll_sendable(cx)).map_err(Broken::To)?;
        loop {
            ready!(from.poll_read_ready(cx)).map_err(Broken::From)?;
            let mut buffer = Buffer::new();
            let mut slots = buffer.chunks_exact_mut(SLOT_BYTES);
            let mut places: [IoSliceMut<'_>; SLOTS] = std::array::from_fn(|_| {
                let slot = slots.next().unwrap_or_default();
                IoSliceMut::new(&mut slot[HEAD_BYTES..HEAD_BYTES + MAX_PLAINTEXT_BYTES])
            });
            let n = match read_available(from, &mut places) {
                Ok(0) => return Poll::Ready(Ok(0)),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Poll::Ready(Err(Broken::From(error))),
            };
            let sealed = self.seal_slots(&mut buffer, n).map_err(|error| Broken::To(invalid(error)))?;
            self.send(cx, buffer, sealed).map_err(Broken::To)?;
            return Poll::Ready(Ok(n));
        }
    }

    /// Moves what the tunnel has to `to`. Ready with how much it was; 0 is the end of the tunnel.
    pub(crate) fn poll_give_to(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<Result<usize, Broken>> {
        if !ready!(self.poll_opened(cx)).map_err(Broken::From)? {
            return Poll::Ready(Ok(0));
        }
        loop {
            ready!(to.poll_write_ready(cx)).map_err(Broken::To)?;
            let (slices, count) = self.incoming.slices();
            match write_available(to, &slices[..count]) {
                Ok(n) => {
                    self.incoming.take(n);
                    return Poll::Ready(Ok(n));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(Broken::To(error))),
            }
        }
    }
}

/// Writes once. A short write means that the socket is full, and spares the call that would say so.
fn write_available(tcp: &TcpStream, parts: &[IoSlice<'_>]) -> io::Result<usize> {
    let wanted: usize = parts.iter().map(|part| part.len()).sum();
    let mut written = None;
    let result = tcp.try_io(Interest::WRITABLE, || {
        let n = rustix::io::writev(tcp, parts)?;
        written = Some(n);
        if n < wanted { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(n) }
    });
    written.map_or(result, |n| if n == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(n) })
}
