//! Room for bytes on their way, lent to a connection only while it moves some.
//!
//! Every thread keeps a few buffers, the last one used first: it is still in the cache. A connection
//! that waits holds none.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut, Range};

use crate::net::records::{HEAD_BYTES, MAX_PLAINTEXT_BYTES, TAIL_BYTES};

/// One record of full size.
pub(crate) const SLOT_BYTES: usize = HEAD_BYTES + MAX_PLAINTEXT_BYTES + TAIL_BYTES;
/// Records in a buffer: a read or write of 128 KiB costs little more than its bytes
/// (docs/performance.md), and both buffers of a connection stay in the second-level cache.
pub(crate) const SLOTS: usize = 8;
/// What a thread keeps. More are made when more connections move bytes at once, and freed after.
const KEPT: usize = 4;
const RECORDS_BYTES: usize = SLOTS * SLOT_BYTES;
const NOTE_BYTES: usize = size_of::<Span>();

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// Room for [`SLOTS`] records, and behind them for a note about each; goes back when dropped.
pub(crate) struct Buffer(Box<[u8]>);

/// Where something lies in a buffer. A buffer is far smaller than 4 GiB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Span {
    start: u32,
    end: u32,
}

impl Buffer {
    pub(crate) fn new() -> Self {
        let free = FREE.with_borrow_mut(Vec::pop);
        Self(free.unwrap_or_else(|| vec![0; RECORDS_BYTES + SLOTS * NOTE_BYTES].into_boxed_slice()))
    }

    /// What [`Buffer::note`] has noted as the `number`th, of [`SLOTS`]. Whoever holds no buffer needs no room for notes.
    pub(crate) fn noted(&self, number: usize) -> Span {
        let note = &self.0[RECORDS_BYTES + number * NOTE_BYTES..];
        let place =
            |at: usize| note.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_ne_bytes(*bytes));
        Span { start: place(0), end: place(NOTE_BYTES / 2) }
    }

    pub(crate) fn note(&mut self, number: usize, span: Span) {
        let note = &mut self.0[RECORDS_BYTES + number * NOTE_BYTES..][..NOTE_BYTES];
        let (start, end) = note.split_at_mut(NOTE_BYTES / 2);
        start.copy_from_slice(&span.start.to_ne_bytes());
        end.copy_from_slice(&span.end.to_ne_bytes());
    }
}

impl Span {
    pub(crate) fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

impl From<Range<usize>> for Span {
    fn from(range: Range<usize>) -> Self {
        let place = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        Self { start: place(range.start), end: place(range.end) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        // A thread that ends has no list any more; the buffer is freed.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < KEPT {
                free.push(buffer);
            }
        });
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0[..RECORDS_BYTES]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0[..RECORDS_BYTES]
    }
}
