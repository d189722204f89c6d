//! `on_agent_loss = "block"`: an ownerless table that outlives the agent and refuses plaintext to
//! strict ports, and nothing else.
//!
//! The agent writes it beside its own table; the kernel keeps it when the agent dies.

use super::ruleset::{self, build_block};
use super::wanted::Wanted;
use super::{ApplyError, NETFILTER, NetlinkSocket, nftables, remove_table, replace_table};
use crate::netlink::NetlinkError;

/// The table `inet tombolo_block`.
#[derive(Debug)]
pub struct BlockTable {
    socket: NetlinkSocket,
}

impl BlockTable {
    /// Opens a socket in the network namespace of the calling thread; changes nothing.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { socket: NetlinkSocket::open(NETFILTER)? })
    }

    /// Refuses plaintext to the strict ports of what is wanted; with none of them there is no table.
    pub fn apply(&self, wanted: &Wanted) -> Result<(), ApplyError> {
        let rules = build_block(wanted);
        if rules.chains.iter().all(|chain| chain.rules.is_empty()) {
            return self.remove();
        }
        replace_table(&self.socket, &self.socket, &rules, 0)
    }

    /// Removes the table if it is there.
    pub fn remove(&self) -> Result<(), ApplyError> {
        remove_table(&self.socket, &self.socket, ruleset::BLOCK_TABLE)
    }

    /// Whether the kernel has the table.
    pub fn present(&self) -> Result<bool, NetlinkError> {
        Ok(nftables::table(&self.socket, ruleset::BLOCK_TABLE)?.is_some())
    }
}
