//! The last good snapshot on disk, so that a reboot without a control plane still serves.
//!
//! [`load`] never fails: a file that is damaged is moved aside, told of, and the agent starts with
//! nothing. [`run`] writes what changed, at most once a second, and once more when the agent stops.
//! A full disk is told once; the agent goes on with what it has in memory.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::Revision;
use identity::Credentials;
use proxy::drain::DrainWatch;
use telemetry::Chain;
use tokio::sync::watch;
use tracing::{info, warn};

use super::Holdings;
use crate::state::{StateDir, StateError, snapshot_file};

/// Writes are at least this far apart.
const LEAST_PAUSE: Duration = Duration::from_secs(1);
/// How long after a write that failed the next one is tried.
const RETRY: Duration = Duration::from_secs(10);

/// What is on disk, or nothing.
pub fn load(state: &StateDir) -> Holdings {
    let bytes = match state.snapshot_bytes() {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Holdings::default(),
        Err(error) => {
            warn!(error = %Chain(&error), "the snapshot on disk cannot be read, starting without one");
            return Holdings::default();
        }
    };
    match snapshot_file::decode(bytes) {
        Ok(content) => {
            let (holdings, refused) = Holdings::from_file(content);
            for error in refused {
                warn!(error = %Chain(&error), "an object of the snapshot on disk is left out");
            }
            info!(revision = holdings.snapshot().revision(), "starting from the snapshot on disk");
            holdings
        }
        Err(error) => {
            let aside = state.set_snapshot_aside();
            let kept = aside.map_or_else(|error| Chain(&error).to_string(), |path| path.display().to_string());
            warn!(error = %Chain(&error), "the snapshot on disk is damaged, starting without one; it is kept as {kept}");
            Holdings::default()
        }
    }
}

/// Writes the holdings whenever the view changed, until the drain. `failing` says why they are not on
/// disk; empty when they are.
pub async fn run(
    state: StateDir,
    holdings: Arc<Mutex<Holdings>>,
    credentials: Credentials,
    mut changed: watch::Receiver<Revision>,
    failing: watch::Sender<String>,
    drain: DrainWatch,
) {
    let mut pending = false;
    loop {
        if !pending {
            tokio::select! {
                news = changed.changed() => if news.is_err() { return },
                () = drain.signaled() => break,
            }
        }
        pending = !write(&state, &holdings, &credentials, &failing).await;
        let pause = if pending { RETRY } else { LEAST_PAUSE };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = drain.signaled() => break,
        }
    }
    if pending || changed.has_changed().unwrap_or(false) {
        write(&state, &holdings, &credentials, &failing).await;
    }
}

/// Answers whether it is on disk.
pub(crate) async fn write(
    state: &StateDir,
    holdings: &Arc<Mutex<Holdings>>,
    credentials: &Credentials,
    failing: &watch::Sender<String>,
) -> bool {
    // The copy is cheap; encoding and fsync happen outside the lock.
    let copy = holdings.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let (state, credentials) = (state.clone(), credentials.clone());
    let written = tokio::task::spawn_blocking(move || -> Result<(), StateError> {
        state.set_snapshot_bytes(&snapshot_file::encode(copy.snapshot().revision(), copy.resources()))?;
        super::store_roots(&state, &credentials)
    });
    let problem = match written.await {
        Ok(Ok(())) => String::new(),
        Ok(Err(error)) => Chain(&error).to_string(),
        Err(error) => error.to_string(),
    };
    if *failing.borrow() != problem {
        match problem.is_empty() {
            true => info!("the snapshot is on disk again"),
            false => {
                warn!(error = problem, "the snapshot is not on disk: the agent goes on with what it has in memory")
            }
        }
        failing.send_replace(problem.clone());
    }
    problem.is_empty()
}
