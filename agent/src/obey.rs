//! From received to obeyed: a snapshot is obeyed once the kernel's rules know its addresses.
//!
//! Names are answered, and connections judged, by the snapshot that is obeyed. An address that is
//! answered before the rules know it leads past the mesh, or is refused: so what comes is in the rules
//! first and in the snapshot then, and what goes leaves the snapshot first and the rules after
//! (`intercept_control` follows what is obeyed). In between the rules know both.

use std::time::Duration;

use proxy::View;
use proxy::drain::DrainWatch;
use tokio::time::timeout;
use tracing::warn;

use crate::intercept_control::Control;

/// The rules take a millisecond. While interception is tested they wait for the test, and what is
/// obeyed, policies among it, must not.
const LIMIT: Duration = Duration::from_millis(500);

/// Obeys what is received, until the drain.
pub async fn run(received: View, obeyed: View, control: Control, drain: DrainWatch) {
    let mut news = received.subscribe();
    // What came before this task ran.
    news.mark_changed();
    loop {
        tokio::select! {
            changed = news.changed() => if changed.is_err() { return },
            () = drain.signaled() => return,
        }
        let snapshot = received.load();
        if timeout(LIMIT, control.cover(snapshot.clone())).await.is_err() {
            let revision = snapshot.revision();
            warn!(revision, "revision {revision} is obeyed before the rules know its addresses: they are busy");
        }
        obeyed.publish(snapshot);
    }
}
