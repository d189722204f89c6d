//! What one relayed connection has moved, and the order to stop it.
//!
//! `copy.rs` writes and obeys it; `connections.rs` shows it, `inbound/authorize.rs` and `standing.rs` stop by it. No
//! lock: a connection touches it for every chunk.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

/// What one connection has moved so far, and whether it has to stop. Shared with whoever shows or
/// ends connections.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// Bytes from the client to the upstream (Istio's "received").
    pub(super) received: AtomicU64,
    /// Bytes from the upstream to the client (Istio's "sent").
    pub(super) sent: AtomicU64,
    received_counted: AtomicU64,
    sent_counted: AtomicU64,
    stopped: OnceLock<Box<Stop>>,
    waker: AtomicWaker,
}

/// The order to end a connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stop {
    /// `policy`: `namespace/name` of the one that forbids it.
    #[error("closed due to policy change: {reason}")]
    PolicyChanged { reason: String, policy: Option<Box<str>> },
    #[error("{reason}")]
    CertificateEnded { reason: String },
}

impl Traffic {
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Received and sent bytes that no earlier call has returned.
    pub(crate) fn take_uncounted(&self) -> (u64, u64) {
        let taken = |now: u64, counted: &AtomicU64| now.saturating_sub(counted.fetch_max(now, Ordering::Relaxed));
        (taken(self.received(), &self.received_counted), taken(self.sent(), &self.sent_counted))
    }

    /// Ends the connection from outside; the first order counts.
    pub(crate) fn stop(&self, stop: Stop) {
        if self.stopped.set(Box::new(stop)).is_ok() {
            self.waker.wake();
        }
    }

    /// Why the connection has to end, if it has to.
    pub(crate) fn stopped(&self) -> Option<&Stop> {
        self.stopped.get().map(Box::as_ref)
    }

    /// Ready when the connection has to end; else its task is woken when it has to.
    pub(crate) fn poll_stopped(&self, cx: &Context<'_>) -> Poll<&Stop> {
        self.waker.register(cx.waker());
        self.stopped().map_or(Poll::Pending, Poll::Ready)
    }
}
