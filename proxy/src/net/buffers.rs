//! Room for bytes on their way, lent to a connection only while it moves some.
//!
//! Every thread keeps a few buffers, the last one used first: it is still in the cache. A connection
//! that waits holds none.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

use crate::net::records::{HEAD_BYTES, MAX_PLAINTEXT_BYTES, TAIL_BYTES};

/// One record of full size.
pub(crate) const SLOT_BYTES: usize = HEAD_BYTES + MAX_PLAINTEXT_BYTES + TAIL_BYTES;
/// Records in a buffer: a read or write of 128 KiB costs little more than its bytes
/// (docs/performance.md), and both buffers of a connection stay in the second-level cache.
pub(crate) const SLOTS: usize = 8;
/// What a thread keeps. More are made when more connections move bytes at once, and freed after.
const KEPT: usize = 4;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// Room for [`SLOTS`] records; goes back when dropped.
pub(crate) struct Buffer(Box<[u8]>);

impl Buffer {
    pub(crate) fn new() -> Self {
        let free = FREE.with_borrow_mut(Vec::pop);
        Self(free.unwrap_or_else(|| vec![0; SLOTS * SLOT_BYTES].into_boxed_slice()))
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
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
