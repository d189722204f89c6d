//! How many connections are open to each endpoint: the load that `balance.rs` weighs.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The counts. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Loads(Arc<Mutex<HashMap<SocketAddr, usize>>>);

/// One connection to an endpoint; dropping it takes it off the count.
pub(crate) struct Counted {
    loads: Loads,
    endpoint: SocketAddr,
}

impl Loads {
    pub(crate) fn count(&self, endpoint: SocketAddr) -> Counted {
        *self.counts().entry(endpoint).or_default() += 1;
        Counted { loads: self.clone(), endpoint }
    }

    pub(crate) fn of(&self, endpoint: SocketAddr) -> usize {
        self.counts().get(&endpoint).copied().unwrap_or_default()
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<SocketAddr, usize>> {
        // Nothing that can panic runs under this lock; a poisoned one is still whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.loads.counts();
        if let Some(count) = counts.get_mut(&self.endpoint) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.endpoint);
            }
        }
    }
}
