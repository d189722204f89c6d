//! Connections that local processes open: the listeners, and what every connection shares.
//!
//! `connection.rs` is one of them, in four steps; `decide.rs` and `balance.rs` are its pure parts.

mod balance;
pub(crate) mod connection;
pub mod decide;
mod load;

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use identity::Credentials;

use crate::Attribution;
use crate::config::Config;
use crate::drain::{DrainWatch, Tasks};
use crate::flow;
use crate::hbone::pool::Pool;
use crate::listener::{BindError, Heartbeats, Listener};
use crate::net::socket::{Listening, OriginalDestination};
use crate::report::Observers;
use crate::view::View;
use connection::Connection;
pub(crate) use load::Loads;

/// The outbound half, bound and not yet running.
pub(crate) struct Outbound {
    listeners: Vec<Listener>,
    shared: Arc<Shared>,
}

/// What all outbound connections share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) view: View,
    pub(crate) credentials: Credentials,
    pub(crate) attribution: Arc<dyn Attribution>,
    pub(crate) original_destination: Arc<dyn OriginalDestination>,
    pub(crate) pool: Pool,
    pub(crate) flows: flow::pool::Pool,
    pub(crate) loads: Loads,
    pub(crate) observers: Observers,
    pub(crate) own_ports: BTreeSet<u16>,
}

impl Outbound {
    pub(crate) fn bind(config: &Config, given: &mut Vec<OwnedFd>) -> Result<Vec<Listener>, BindError> {
        Listener::bind_all(&config.outbound.listen, "outbound connections", Listening::Plain, &config.sockets, given)
    }

    pub(crate) fn new(listeners: Vec<Listener>, shared: Shared) -> Self {
        Self { listeners, shared: Arc::new(shared) }
    }

    /// Serves until the drain begins, and then what is open to its end or the deadline.
    pub(crate) async fn run(self, drain: DrainWatch, heartbeats: Heartbeats) {
        let tasks = Tasks::new();
        for listener in self.listeners {
            let (shared, connections) = (self.shared.clone(), tasks.clone());
            let take = move |app, client| {
                connections.spawn(Connection::new(shared.clone(), client).serve(app));
            };
            let metrics = self.shared.observers.metrics.clone();
            tasks.spawn(listener.run(drain.clone(), heartbeats.clone(), metrics, take));
        }
        tokio::select! {
            () = tasks.finish(&drain) => {}
            () = self.shared.flows.keep() => {}
        }
        // Tunnels go when their last stream has ended, not after the time for unused ones.
        self.shared.flows.close();
        self.shared.pool.close();
        self.shared.flows.tasks().finish(&drain).await;
        self.shared.pool.tasks().finish(&drain).await;
    }
}
