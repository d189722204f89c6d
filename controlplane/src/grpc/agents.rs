//! Which agents have a stream to this replica, and what they have confirmed. In memory: a replica
//! answers for its own streams; what agents say of themselves is in the registry.
//!
//! Nothing of a host's life hangs on it: only leases count.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use api::Revision;

/// A handle; clones share the same contents.
#[derive(Debug, Clone, Default)]
pub struct Agents {
    streams: Arc<Mutex<Streams>>,
}

#[derive(Debug, Default)]
struct Streams {
    next_id: u64,
    open: BTreeMap<u64, Agent>,
}

/// One open stream.
#[derive(Debug, Clone)]
pub struct Agent {
    pub host: String,
    pub address: SocketAddr,
    pub since: SystemTime,
    /// The newest revision of which it has confirmed everything.
    pub acked: Revision,
    /// What it last refused; empty when it has confirmed everything since.
    pub problem: String,
}

/// Holds one stream's place; it is gone when this is dropped.
#[derive(Debug)]
pub(super) struct Connected {
    agents: Agents,
    id: u64,
}

impl Agents {
    pub(super) fn connect(&self, host: &str, address: SocketAddr) -> Connected {
        let mut streams = self.lock();
        streams.next_id += 1;
        let id = streams.next_id;
        let agent =
            Agent { host: host.to_owned(), address, since: SystemTime::now(), acked: 0, problem: String::new() };
        streams.open.insert(id, agent);
        Connected { agents: self.clone(), id }
    }

    /// How many streams are open here.
    pub fn n_connected(&self) -> usize {
        self.lock().open.len()
    }

    /// How many have confirmed everything up to `revision`.
    pub fn n_current(&self, revision: Revision) -> usize {
        self.lock().open.values().filter(|agent| agent.acked >= revision).count()
    }

    /// The newest stream of a host.
    pub fn agent(&self, host: &str) -> Option<Agent> {
        self.lock().open.values().rfind(|agent| agent.host == host).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Streams> {
        // Nothing under this lock waits; a panic in it leaves whole values.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connected {
    pub(super) fn acked(&self, revision: Revision) {
        self.edit(|agent| {
            if revision > agent.acked {
                agent.acked = revision;
                agent.problem.clear();
            }
        });
    }

    pub(super) fn refused(&self, problem: &str) {
        self.edit(|agent| agent.problem = problem.chars().take(MAX_PROBLEM).collect());
    }

    fn edit(&self, edit: impl FnOnce(&mut Agent)) {
        if let Some(agent) = self.agents.lock().open.get_mut(&self.id) {
            edit(agent);
        }
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.agents.lock().open.remove(&self.id);
    }
}

/// Foreign text in a table on a screen.
const MAX_PROBLEM: usize = 500;
