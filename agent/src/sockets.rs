//! The host's open TCP connections and listeners with their owners, as `plan` and `status` show them.
//!
//! Read from the kernel at the moment of asking; connections inside containers are not seen.

use std::collections::HashSet;
use std::net::SocketAddr;

use proxy::config::{OWN_MARK, SOURCE_PRESERVING_MARK};

use crate::cgroup::{self, CgroupTree};
use crate::intercept::Wanted;
use crate::netlink::NetlinkError;
use crate::netlink::diag::{Diagnosis, ESTABLISHED, LISTEN, TcpSocket};

/// An established connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub uid: Option<u32>,
    /// Its unit, else its cgroup, else its user.
    pub owner: String,
    /// It is the agent's own.
    pub own: bool,
}

/// A listening socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    pub local: SocketAddr,
    pub uid: Option<u32>,
    /// Its unit, else its cgroup, else its user.
    pub owner: String,
}

/// Every established connection of the host.
pub fn open_connections() -> Result<Vec<Connection>, NetlinkError> {
    let owners = Owners::load();
    let sockets = Diagnosis::open()?.all(ESTABLISHED)?;
    Ok(sockets.into_iter().map(|socket| owners.connection(&socket)).collect())
}

/// Every listening socket of the host.
pub fn listeners() -> Result<Vec<Listener>, NetlinkError> {
    let owners = Owners::load();
    let sockets = Diagnosis::open()?.all(LISTEN)?;
    let listener = |socket: &TcpSocket| Listener { local: socket.local, uid: socket.uid, owner: owners.name(socket) };
    Ok(sockets.iter().map(listener).collect())
}

/// The connections to captured destinations that do not go through the agent: they were open before
/// interception began, or their processes are excluded.
pub fn bypassed<'a>(connections: &'a [Connection], wanted: &Wanted) -> Vec<&'a Connection> {
    // The agent's end of a captured connection is at its outbound listener, with the client's
    // address at the other end.
    let through_agent: HashSet<SocketAddr> = connections
        .iter()
        .filter(|connection| connection.local.ip().is_loopback() && connection.local.port() == wanted.ports.outbound)
        .map(|connection| connection.remote)
        .collect();
    let bypasses = |connection: &&Connection| {
        !connection.own
            && connection.remote.ip() != connection.local.ip()
            && wanted.captures(connection.remote)
            && !through_agent.contains(&connection.local)
    };
    connections.iter().filter(bypasses).collect()
}

/// Turns numbers into names.
struct Owners {
    tree: CgroupTree,
}

impl Owners {
    /// A host without cgroup v2 still has users.
    fn load() -> Self {
        Self { tree: CgroupTree::load().unwrap_or_default() }
    }

    fn connection(&self, socket: &TcpSocket) -> Connection {
        Connection {
            local: socket.local,
            remote: socket.remote,
            uid: socket.uid,
            owner: self.name(socket),
            own: socket.mark.is_some_and(|mark| mark == OWN_MARK || mark == SOURCE_PRESERVING_MARK),
        }
    }

    fn name(&self, socket: &TcpSocket) -> String {
        let path = socket.cgroup.and_then(|id| self.tree.path(id));
        let by_path = path.map(|path| cgroup::unit(path).unwrap_or(path).to_owned());
        let by_user = || socket.uid.map_or_else(|| "no process".to_owned(), |uid| format!("uid {uid}"));
        by_path.filter(|name| !name.is_empty()).unwrap_or_else(by_user)
    }
}

#[cfg(test)]
mod tests;
