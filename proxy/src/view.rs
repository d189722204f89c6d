//! The snapshot that the data plane obeys at this moment: swapped whole, read without a lock.
//!
//! The agent's discovery publishes; every connection loads once and keeps what it loaded; the tasks
//! that must act on a change subscribe. It does not keep history and does not write to disk.

use std::sync::Arc;

use api::{Revision, Snapshot};
use arc_swap::ArcSwap;
use tokio::sync::watch;

/// A handle on the current snapshot. Clones see the same one.
#[derive(Debug, Clone)]
pub struct View {
    current: Arc<ArcSwap<Snapshot>>,
    changed: Arc<watch::Sender<Revision>>,
}

impl View {
    pub fn new(snapshot: impl Into<Arc<Snapshot>>) -> Self {
        let snapshot = snapshot.into();
        let changed = Arc::new(watch::Sender::new(snapshot.revision()));
        Self { current: Arc::new(ArcSwap::new(snapshot)), changed }
    }

    /// The snapshot of now. Decisions of one connection step use one loaded snapshot throughout.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Makes `snapshot` the one to obey and wakes the subscribers, also when its revision is the same
    /// (after a restart of the control plane from a backup revisions may repeat).
    pub fn publish(&self, snapshot: impl Into<Arc<Snapshot>>) {
        let snapshot = snapshot.into();
        let revision = snapshot.revision();
        self.current.store(snapshot);
        self.changed.send_replace(revision);
    }

    /// Follows publications: changes are marked after the snapshot can be loaded.
    pub fn subscribe(&self) -> watch::Receiver<Revision> {
        self.changed.subscribe()
    }
}
