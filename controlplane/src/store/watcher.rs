//! Finds out that there is a newer revision. One task for each store, ended with it.
//!
//! A notification only wakes it; what it reads is the truth. So a lost notification, a restart of
//! Postgres or another process on the SQLite file cost half a second and nothing else.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tracing::{info, warn};

use super::{Shared, StoreError};

pub(super) async fn run(shared: Arc<Shared>) {
    loop {
        tokio::select! {
            () = shared.backend.woken() => {}
            () = tokio::time::sleep(POLL) => {}
        }
        look(&shared).await;
    }
}

async fn look(shared: &Shared) {
    // A pool that hangs must not hide for its own, longer time limit that the database is away.
    let asked = tokio::time::timeout(PATIENCE, shared.current_revision()).await;
    let silent = || StoreError::Unavailable { source: sqlx::Error::PoolTimedOut };
    match asked.unwrap_or_else(|_| Err(silent())) {
        Ok(revision) => {
            if !shared.available.swap(true, Ordering::Relaxed) {
                info!(revision, "the database is back");
            }
            shared.publish(revision);
        }
        Err(error) => {
            shared.n_errors.fetch_add(1, Ordering::Relaxed);
            if shared.available.swap(false, Ordering::Relaxed) {
                warn!(error = %telemetry::Chain(&error), "the database does not answer: {}", error.hint());
            }
        }
    }
}

/// Half of the second within which replicas see each other's writes (the promise of the store).
const POLL: Duration = Duration::from_millis(500);
/// A database that takes longer to say one number is away for all that is served from it.
const PATIENCE: Duration = Duration::from_secs(2);
