//! What follows the snapshot and the rules all the time: whose processes are whose, and what the lease says.

use std::net::SocketAddr;
use std::sync::Arc;

use proxy::drain::DrainWatch;
use proxy::{Attribution, View};
use tokio::sync::watch;

use crate::attribute::CgroupAttribution;
use crate::intercept_control::Control;

/// The proxy asks who opened a connection.
pub(super) struct Attributed(pub(super) CgroupAttribution);

impl Attribution for Attributed {
    fn source(&self, client: SocketAddr, dialled: SocketAddr) -> Option<api::WorkloadUid> {
        self.0.source(client, dialled)
    }
}

pub(super) fn local_workloads(view: &View) -> Vec<api::LocalWorkload> {
    view.load().host().map(|host| host.workloads.clone()).unwrap_or_default()
}

/// Which processes are whose, as the snapshot says.
pub(super) async fn follow_workloads(view: View, attribution: Arc<Attributed>, drain: DrainWatch) {
    let mut changed = view.subscribe();
    loop {
        attribution.0.update(local_workloads(&view));
        tokio::select! {
            news = changed.changed() => if news.is_err() { return },
            () = drain.signaled() => return,
        }
    }
}

/// Whether interception is on, for the lease.
pub(super) async fn follow_interception(control: Control, intercepting: watch::Sender<bool>, drain: DrainWatch) {
    let mut state = control.subscribe();
    loop {
        let on = state.borrow_and_update().state != api::admin::InterceptState::Off;
        intercepting.send_if_modified(|known| std::mem::replace(known, on) != on);
        tokio::select! {
            news = state.changed() => if news.is_err() { return },
            () = drain.signaled() => return,
        }
    }
}
