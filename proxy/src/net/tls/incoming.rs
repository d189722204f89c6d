//! The receiving half: bytes off the socket, whole records opened, what the peer says between them.

use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::task::{Context, Poll, ready};

use rustls::{AlertDescription, Error};
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::{Ended, Tickets, TlsStream, invalid};
use crate::net::buffers::{Buffer, SLOT_BYTES, SLOTS, Span};
use crate::net::records::{Content, Opener, length};

/// Bytes that have arrived. It holds room only while there are some.
#[derive(Default)]
pub(super) struct Incoming {
    buffer: Option<Buffer>,
    /// Not yet opened.
    raw: Span,
    /// How much the buffer's notes say of what is opened and not yet passed on, in order; the first `first` are used
    /// up.
    opened: u8,
    first: u8,
}

impl Incoming {
    /// The first plaintext that has not been taken.
    pub(super) fn next(&self) -> Option<&[u8]> {
        self.parts().next()
    }

    /// All the plaintext that has not been taken.
    pub(super) fn parts(&self) -> impl Iterator<Item = &[u8]> {
        let notes = usize::from(self.first)..usize::from(self.opened);
        self.buffer.iter().flat_map(move |buffer| notes.clone().map(|number| &buffer[buffer.noted(number).range()]))
    }

    /// At most [`SLOTS`] parts, for one write.
    pub(super) fn slices(&self) -> ([IoSlice<'_>; SLOTS], usize) {
        let mut slices = [IoSlice::new(&[]); SLOTS];
        let mut count = 0;
        for (slice, part) in slices.iter_mut().zip(self.parts()) {
            *slice = IoSlice::new(part);
            count += 1;
        }
        (slices, count)
    }

    /// `n` bytes of plaintext have been passed on.
    pub(super) fn take(&mut self, mut n: usize) {
        while self.first < self.opened
            && let Some(buffer) = &mut self.buffer
        {
            let number = usize::from(self.first);
            let place = buffer.noted(number).range();
            if n < place.len() {
                return buffer.note(number, Span::from(place.start + n..place.end));
            }
            n -= place.len();
            self.first += 1;
        }
        (self.first, self.opened) = (0, 0);
    }

    pub(super) fn is_plain(&self) -> bool {
        self.first < self.opened
    }

    /// Whether a whole record is here that has not been opened. What is no record counts: opening it
    /// says why.
    pub(super) fn has_record(&self) -> bool {
        let raw = self.raw();
        length(raw).map_or(true, |length| length.is_some_and(|length| length <= raw.len()))
    }

    pub(super) fn raw(&self) -> &[u8] {
        self.buffer.as_deref().map_or(&[], |bytes| &bytes[self.raw.range()])
    }

    pub(super) fn raw_mut(&mut self) -> &mut [u8] {
        let raw = self.raw.range();
        self.buffer.as_deref_mut().map_or(&mut [], |bytes| &mut bytes[raw])
    }

    /// Bytes of room that it holds.
    #[cfg(test)]
    pub(super) fn room(&self) -> usize {
        self.buffer.as_deref().map_or(0, <[u8]>::len)
    }

    /// The first `n` bytes of what is not opened are done with.
    pub(super) fn discard(&mut self, n: usize) {
        let raw = self.raw.range();
        self.raw = Span::from(raw.start + n..raw.end);
    }

    /// Takes plaintext that rustls opened during the handshake, in front of what is not opened.
    pub(super) fn hold(&mut self, plain: &[u8]) -> io::Result<()> {
        if plain.is_empty() {
            return Ok(());
        }
        // The handshake has used up at least as many bytes in front as its plaintext has.
        let end = self.raw.range().start;
        let start = end.checked_sub(plain.len()).ok_or(io::ErrorKind::InvalidData)?;
        let Some(buffer) = &mut self.buffer else { return Err(io::ErrorKind::InvalidData.into()) };
        buffer[start..end].copy_from_slice(plain);
        buffer.note(0, Span::from(start..end));
        (self.first, self.opened) = (0, 1);
        Ok(())
    }

    /// Gives the room back when nothing is in it.
    pub(super) fn rest(&mut self) {
        if !self.is_plain() && self.raw.range().is_empty() {
            self.buffer = None;
        }
    }

    /// Reads once, when the socket is ready. `Ok(0)` is the end.
    pub(super) fn read(&mut self, tcp: &TcpStream) -> io::Result<usize> {
        let buffer = self.buffer.get_or_insert_with(|| {
            self.raw = Span::default();
            Buffer::new()
        });
        let mut raw = self.raw.range();
        // Only a part of a record is left here: make room for the rest, and for others.
        if raw.start > 0 {
            buffer.copy_within(raw.clone(), 0);
            raw = 0..raw.len();
            self.raw = Span::from(raw.clone());
        }
        let n = read_available(tcp, &mut [IoSliceMut::new(&mut buffer[raw.end..])])?;
        self.raw = Span::from(raw.start..raw.end + n);
        Ok(n)
    }

    /// Opens whole records while they are data and there is a place to note them. Whatever else comes
    /// is returned.
    fn open(&mut self, opener: &mut Opener) -> io::Result<Option<(Content, Range<usize>)>> {
        let Some(buffer) = &mut self.buffer else { return Ok(None) };
        while usize::from(self.opened) < SLOTS {
            let raw = self.raw.range();
            let record = &mut buffer[raw.clone()];
            let Some(length) = length(record).map_err(invalid)?.filter(|length| *length <= record.len()) else { break };
            let (content, plain) = opener.open(&mut record[..length]).map_err(invalid)?;
            let place = plain.start + raw.start..plain.end + raw.start;
            self.raw = Span::from(raw.start + length..raw.end);
            if content != Content::Data || place.is_empty() {
                return Ok(Some((content, place)));
            }
            buffer.note(usize::from(self.opened), Span::from(place));
            self.opened += 1;
        }
        Ok(None)
    }
}

impl TlsStream {
    /// Ready with whether there is plaintext: `false` once the peer has ended its direction, or the flow.
    pub(super) fn poll_opened(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            if self.incoming.is_plain() {
                return Poll::Ready(Ok(true));
            }
            while self.peer_ended == Ended::Not
                && let Some((content, place)) = self.incoming.open(&mut self.opener)?
            {
                self.obey(content, place)?;
            }
            if self.incoming.is_plain() {
                self.tickets.end();
                continue;
            }
            if self.peer_ended != Ended::Not {
                self.incoming.rest();
                return Poll::Ready(Ok(false));
            }
            self.incoming.rest();
            ready!(self.tcp.poll_read_ready(cx))?;
            match self.incoming.read(&self.tcp) {
                // A connection that was cut, which `close_notify` tells from one that ended.
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Poll::Ready(Err(error)),
                _ => {}
            }
        }
    }

    /// What the peer says beside its data: alerts (RFC 8446 §6), tickets and new keys (§4.6).
    fn obey(&mut self, content: Content, place: Range<usize>) -> io::Result<()> {
        let message = self.incoming.buffer.as_deref().map_or(&[][..], |bytes| &bytes[place]);
        match (content, message) {
            (Content::Alert, [_, 0]) => self.peer_ended = Ended::Connection,
            (Content::Data, []) if self.flows => self.peer_ended = Ended::Flow,
            (Content::Data, []) => {}
            (Content::Alert, [_, description]) => {
                return Err(invalid(Error::AlertReceived(AlertDescription::from(*description))));
            }
            (Content::Handshake, message) => {
                let mut rest = message;
                while let [kind, a, b, c, after @ ..] = rest {
                    let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
                    let (body, after) = after.split_at_checked(length).ok_or_else(garbled)?;
                    match (*kind, body) {
                        (KEY_UPDATE, [asked @ (0 | 1)]) => {
                            self.keys_wanted |= *asked == 1;
                            self.receives.renew().map_err(invalid)?;
                            let key = self.receives.key().map_err(invalid)?;
                            self.opener = Opener::new(0, &key).map_err(invalid)?;
                        }
                        (NEW_SESSION_TICKET, body) => match &mut self.tickets {
                            Tickets::Kept(session) => session.handle_new_session_ticket(body).map_err(invalid)?,
                            Tickets::Ignored => {}
                            Tickets::Refused => return Err(garbled()),
                        },
                        _ => return Err(garbled()),
                    }
                    rest = after;
                }
                if !rest.is_empty() || message.is_empty() {
                    return Err(garbled());
                }
            }
            (Content::Alert | Content::Data, _) => return Err(garbled()),
        }
        Ok(())
    }
}

/// Reads once into `room`. A short read means that the socket is empty, and spares the call that
/// would say so.
pub(super) fn read_available(tcp: &TcpStream, room: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
    let capacity: usize = room.iter().map(|part| part.len()).sum();
    let mut read = None;
    let result = tcp.try_io(Interest::READABLE, || {
        let n = rustix::io::readv(tcp, room)?;
        read = Some(n);
        if n < capacity && n > 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(n) }
    });
    read.map_or(result, Ok)
}

fn garbled() -> io::Error {
    invalid("the peer sent a TLS message that has no place or no meaning here")
}

/// Handshake types (RFC 8446 §4).
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
/// A whole record fits behind a part of one.
const _: () = assert!(SLOTS >= 2 && SLOT_BYTES > 0);
