//! The host's traffic to the mesh, taken in the kernel by one nf_tables table.
//!
//! The agent opens one `Interception` and applies rule sets to it; the kernel removes the table when
//! the last copy of its socket closes, so a dead agent intercepts nothing. Only new connections are
//! ever taken. What is wanted is decided elsewhere (`ruleset::Wanted`); nothing here knows services.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use crate::cgroup::{CgroupError, CgroupTree};
use crate::netlink::nftables::{self, Batch, BatchError, TABLE_OWNER};
use crate::netlink::socket::{NETFILTER, NetlinkSocket, ROUTE};
use crate::netlink::{KernelError, NetlinkError};

mod block;
mod json;
pub(crate) mod model;
mod routing;
pub mod ruleset;
mod text;
mod verify;
mod wanted;
mod wire;

pub use block::BlockTable;
pub use ruleset::Ruleset;
pub use verify::Hits;
pub use wanted::{Capture, Destination, Exclusions, OwnPorts, Wanted};

/// Interception could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the host's rules need CAP_NET_ADMIN: run as root, or with AmbientCapabilities=CAP_NET_ADMIN")]
    NotPermitted,
    #[error("cannot talk to nf_tables")]
    Netlink(#[source] NetlinkError),
}

/// The rules are as they were before; none of the new ones is in force.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("the kernel refused {object} of table {table}; {advice}")]
    Refused { table: &'static str, object: String, advice: &'static str, source: KernelError },
    #[error(
        "table inet {table} belongs to another program (netlink port {owner}, most often its process number): \
         is a second agent running?"
    )]
    OwnedByOther { table: &'static str, owner: u32 },
    #[error("changing the rules needs CAP_NET_ADMIN: run as root, or with AmbientCapabilities=CAP_NET_ADMIN")]
    NotPermitted,
    #[error("somebody else changed the host's rules during each of {attempts} attempts; try again")]
    Contended { attempts: u32 },
    #[error("the kernel did not say whether it took the rules")]
    Unconfirmed,
    #[error("cannot set up {what}")]
    Routing { what: String, source: NetlinkError },
    #[error("the excluded units and cgroups cannot be found")]
    Cgroups(#[from] CgroupError),
    #[error("cannot talk to nf_tables")]
    Netlink(#[from] NetlinkError),
}

/// What `apply` had to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// The kernel had these rules already.
    Unchanged,
    /// Only this many elements came or went.
    Elements(usize),
    /// The whole table was replaced, in one transaction.
    Whole,
}

/// Something that a dead agent left in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// What it is, as `nft` and `ip` name it.
    pub what: String,
}

/// The table `inet tombolo` of this host, and the socket that owns it.
#[derive(Debug)]
pub struct Interception {
    /// Owns the table; everything that changes it goes through this socket.
    owner: NetlinkSocket,
    /// Reads, so that answers never mix with those of another holder of the owner socket.
    reader: NetlinkSocket,
    routes: NetlinkSocket,
    want_ownership: bool,
    owned: bool,
    in_force: Option<InForce>,
}

/// What the kernel has of ours.
#[derive(Debug)]
struct InForce {
    /// As it was asked for, where that depends on which cgroups exist.
    asked: Option<Ruleset>,
    resolved: Ruleset,
}

impl Interception {
    /// Opens the sockets in the network namespace of the calling thread. With the socket of an earlier
    /// agent its table lives on, and stays in force until the next `apply` replaces it.
    pub fn open(parked: Option<OwnedFd>) -> Result<Self, OpenError> {
        let owner = match parked {
            Some(fd) => NetlinkSocket::adopt(fd, NETFILTER)?,
            None => NetlinkSocket::open(NETFILTER)?,
        };
        let mut interception = Self {
            owner,
            reader: NetlinkSocket::open(NETFILTER)?,
            routes: NetlinkSocket::open(ROUTE)?,
            want_ownership: true,
            owned: false,
            in_force: None,
        };
        let table = nftables::table(&interception.reader, ruleset::TABLE)?;
        interception.owned = table.is_some_and(|table| table.owner == interception.owner.port());
        Ok(interception)
    }

    /// As `open`, but the table is an ordinary one that outlives the agent: for kernels without owned
    /// tables, which `open` finds out by itself, and for hosts where others must write to the sets.
    pub fn open_ordinary() -> Result<Self, OpenError> {
        let mut interception = Self::open(None)?;
        interception.want_ownership = false;
        Ok(interception)
    }

    /// Makes the kernel's rules these, in one transaction. On error the earlier rules stay.
    pub fn apply(&mut self, rules: &Ruleset) -> Result<Applied, ApplyError> {
        let resolved = resolve(rules)?;
        routing::add(&self.routes, resolved.routing)?;
        let done = match self.in_force.as_ref().map(|present| &present.resolved) {
            Some(present) if *present == resolved => Applied::Unchanged,
            Some(present) if same_shape(present, &resolved) => match self.change_elements(present, &resolved) {
                Err(ApplyError::Refused { source, .. }) if source.errno == Errno::NOENT => self.replace(&resolved)?,
                done => done?,
            },
            _ => self.replace(&resolved)?,
        };
        let asked = resolved.names_cgroups().then(|| rules.clone());
        let routing = resolved.routing;
        self.in_force = Some(InForce { asked, resolved });
        routing::prune(&self.routes, routing)?;
        Ok(done)
    }

    /// Captures these destinations, too, and those no more; all other rules stay. Costs what changes, however many
    /// there are. On error the earlier rules stay. Without rules in force it does nothing.
    pub fn change(&mut self, added: &[Destination], gone: &[Destination]) -> Result<Applied, ApplyError> {
        let Some(present) = &mut self.in_force else { return Ok(Applied::Unchanged) };
        let (added, gone) = (ruleset::elements(added), ruleset::elements(gone));
        let count = added.len() + gone.len();
        if count == 0 {
            return Ok(Applied::Unchanged);
        }
        let mut batch = Batch::default();
        for (set, elements) in wire::by_set(&gone) {
            batch.delete_elements(ruleset::TABLE, set, &elements);
        }
        for (set, elements) in wire::by_set(&added) {
            batch.add_elements(ruleset::TABLE, set, &elements);
        }
        let sent = batch.send(&self.owner, None).map_err(|error| explain(error, ruleset::TABLE));
        // Somebody else removed what was to be changed: then all is written again.
        let is_lost = match sent {
            Ok(()) => false,
            Err(ApplyError::Refused { source, .. }) if source.errno == Errno::NOENT => true,
            Err(error) => return Err(error),
        };
        for rules in [Some(&mut present.resolved), present.asked.as_mut()].into_iter().flatten() {
            rules.change(&added, &gone);
        }
        if is_lost {
            return self.repair().map(|()| Applied::Whole);
        }
        Ok(Applied::Elements(count))
    }

    /// Looks again which excluded units and cgroups exist; whether anything changed. A restarted
    /// unit is a new cgroup, so call this whenever units start, and now and then.
    pub fn refresh_cgroups(&mut self) -> Result<bool, ApplyError> {
        match self.in_force.as_ref().and_then(|present| present.asked.clone()) {
            Some(asked) => Ok(self.apply(&asked)? != Applied::Unchanged),
            None => Ok(false),
        }
    }

    /// Looks again whether service addresses need a route of ours: default routes come and go.
    pub fn refresh_routes(&self) -> Result<(), ApplyError> {
        match &self.in_force {
            Some(present) => routing::add(&self.routes, present.resolved.routing),
            None => Ok(()),
        }
    }

    /// Writes the whole table again, whatever the kernel has: the cure for what `verify` finds.
    pub fn repair(&mut self) -> Result<(), ApplyError> {
        let Some(present) = self.in_force.take() else { return Ok(()) };
        self.apply(present.asked.as_ref().unwrap_or(&present.resolved)).map(drop)
    }

    /// Removes the table, the rules and the routes. Connections that are captured now lose their
    /// address translation: apply `Wanted::quiet` and wait for them first.
    pub fn remove(&mut self) -> Result<(), ApplyError> {
        self.in_force = None;
        remove_table(&self.owner, &self.reader, ruleset::TABLE)?;
        self.owned = false;
        routing::remove(&self.routes).map(drop)
    }

    /// Whether the kernel removes the table when this process dies.
    pub fn owned(&self) -> bool {
        self.owned
    }

    /// The rules in force, if `apply` has been called.
    pub fn applied(&self) -> Option<&Ruleset> {
        self.in_force.as_ref().map(|present| &present.resolved)
    }

    /// What differs between the rules that were applied and those in the kernel, one sentence each.
    pub fn verify(&self) -> Result<Vec<String>, NetlinkError> {
        let Some(present) = &self.in_force else { return Ok(Vec::new()) };
        let owner = self.owned.then(|| self.owner.port()).flatten();
        let mut differences = verify::differences(&self.reader, &present.resolved, owner)?;
        differences.extend(routing::differences(&self.routes, present.resolved.routing)?);
        Ok(differences)
    }

    /// How often each rule with a counter has matched since it was written.
    pub fn hits(&self) -> Result<Vec<Hits>, NetlinkError> {
        verify::hits(&self.reader, ruleset::TABLE)
    }

    fn replace(&mut self, rules: &Ruleset) -> Result<Applied, ApplyError> {
        if self.want_ownership {
            match replace_table(&self.owner, &self.reader, rules, TABLE_OWNER) {
                Ok(()) => {
                    self.owned = true;
                    return Ok(Applied::Whole);
                }
                Err(error) if refuses_ownership(&error) => self.want_ownership = false,
                Err(error) => return Err(error),
            }
        }
        self.owned = false;
        replace_table(&self.owner, &self.reader, rules, 0)?;
        Ok(Applied::Whole)
    }

    fn change_elements(&self, before: &Ruleset, after: &Ruleset) -> Result<Applied, ApplyError> {
        let mut batch = Batch::default();
        let pairs = before.sets.iter().zip(&after.sets);
        let changed =
            pairs.map(|(before, present)| wire::change_elements(&mut batch, after.table, before, present)).sum();
        if !batch.is_empty() {
            batch.send(&self.owner, None).map_err(|error| explain(error, after.table))?;
        }
        Ok(Applied::Elements(changed))
    }
}

impl From<NetlinkError> for OpenError {
    fn from(error: NetlinkError) -> Self {
        if error.errno() == Some(Errno::PERM) { Self::NotPermitted } else { Self::Netlink(error) }
    }
}

impl AsFd for Interception {
    /// The socket that owns the table, for the service manager's file descriptor store.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.owner.as_fd()
    }
}

/// What a dead agent left behind: nothing, where its table was owned and it had no routes.
pub fn leftovers() -> Result<Vec<Leftover>, NetlinkError> {
    let reader = NetlinkSocket::open(NETFILTER)?;
    let mut found = Vec::new();
    if nftables::table(&reader, ruleset::TABLE)?.is_some_and(|table| table.owner.is_none()) {
        found.push(Leftover { what: format!("table inet {}", ruleset::TABLE) });
    }
    let routes = NetlinkSocket::open(ROUTE)?;
    found.extend(routing::present(&routes)?.into_iter().map(|what| Leftover { what }));
    Ok(found)
}

/// Whether a process, or the service manager for the next one, holds the socket that owns the table.
pub fn is_owned() -> Result<bool, NetlinkError> {
    let reader = NetlinkSocket::open(NETFILTER)?;
    Ok(nftables::table(&reader, ruleset::TABLE)?.is_some_and(|table| table.owner.is_some()))
}

/// Removes what a dead agent left behind, and says what that was. A table that is owned goes with its
/// owner and not here; while its owner lives do not call this, because it needs its routes. The block
/// table is `BlockTable`'s.
pub fn clean() -> Result<Vec<Leftover>, ApplyError> {
    let socket = NetlinkSocket::open(NETFILTER)?;
    let mut removed = Vec::new();
    if nftables::table(&socket, ruleset::TABLE)?.is_some_and(|table| table.owner.is_none()) {
        remove_table(&socket, &socket, ruleset::TABLE)?;
        removed.push(Leftover { what: format!("table inet {}", ruleset::TABLE) });
    }
    let routes = NetlinkSocket::open(ROUTE)?;
    removed.extend(routing::remove(&routes)?.into_iter().map(|what| Leftover { what }));
    Ok(removed)
}

fn resolve(rules: &Ruleset) -> Result<Ruleset, ApplyError> {
    if rules.names_cgroups() { Ok(rules.with_cgroups(&CgroupTree::load()?)) } else { Ok(rules.clone()) }
}

/// Whether going from one to the other needs only elements.
fn same_shape(before: &Ruleset, after: &Ruleset) -> bool {
    before.table == after.table
        && before.chains == after.chains
        && before.sets.len() == after.sets.len()
        && before.sets.iter().zip(&after.sets).all(|(before, after)| {
            before.name == after.name
                && before.key == after.key
                && (!before.key.is_range() || before.elements == after.elements)
        })
}

/// Replaces a table in one transaction, which `add` followed by `delete` could not do on an owned one.
fn replace_table(
    writer: &NetlinkSocket,
    reader: &NetlinkSocket,
    rules: &Ruleset,
    flags: u32,
) -> Result<(), ApplyError> {
    for _ in 0..ATTEMPTS {
        let generation = nftables::generation(reader)?;
        let present = nftables::table(reader, rules.table)?;
        refuse_foreign(writer, rules.table, present.as_ref())?;
        let mut batch = Batch::default();
        if present.is_some() {
            batch.delete_table(rules.table);
        }
        wire::add_all(&mut batch, rules, flags);
        match batch.send(writer, generation) {
            Err(BatchError::Stale) => {}
            done => return done.map_err(|error| explain(error, rules.table)),
        }
    }
    Err(ApplyError::Contended { attempts: ATTEMPTS })
}

fn remove_table(writer: &NetlinkSocket, reader: &NetlinkSocket, table: &'static str) -> Result<(), ApplyError> {
    let Some(present) = nftables::table(reader, table)? else { return Ok(()) };
    refuse_foreign(writer, table, Some(&present))?;
    let mut batch = Batch::default();
    batch.delete_table(table);
    match batch.send(writer, None) {
        Err(BatchError::Refused { source, .. }) if source.errno == Errno::NOENT => Ok(()),
        done => done.map_err(|error| explain(error, table)),
    }
}

fn refuse_foreign(
    writer: &NetlinkSocket,
    table: &'static str,
    present: Option<&nftables::TableState>,
) -> Result<(), ApplyError> {
    match present.and_then(|present| present.owner) {
        Some(owner) if Some(owner) != writer.port() => Err(ApplyError::OwnedByOther { table, owner }),
        _ => Ok(()),
    }
}

/// Kernels before 5.12 call the flag invalid.
fn refuses_ownership(error: &ApplyError) -> bool {
    matches!(error, ApplyError::Refused { object, source, .. }
        if object.starts_with("table") && [Errno::INVAL, Errno::OPNOTSUPP].contains(&source.errno))
}

fn explain(error: BatchError, table: &'static str) -> ApplyError {
    match error {
        BatchError::Refused { source, .. } if [Errno::PERM, Errno::ACCESS].contains(&source.errno) => {
            ApplyError::NotPermitted
        }
        BatchError::Refused { object, source } => {
            ApplyError::Refused { table, advice: advice(&object, source.errno), object, source }
        }
        BatchError::Stale => ApplyError::Contended { attempts: 1 },
        BatchError::Unconfirmed => ApplyError::Unconfirmed,
        BatchError::Netlink(error) => ApplyError::Netlink(error),
    }
}

/// What an operator can do about it.
fn advice(object: &str, errno: Errno) -> &'static str {
    match errno {
        Errno::NOENT | Errno::OPNOTSUPP if object.starts_with("rule") => {
            "a kernel module is missing: nft_redir, nft_tproxy, nft_socket, nft_fib_inet, nft_reject_inet or nft_ct \
             must be loadable (on cut-down kernels install the package with extra modules)"
        }
        Errno::NOENT | Errno::OPNOTSUPP if object.starts_with("chain") => {
            "the kernel lacks NAT for family inet (nft_chain_nat, Linux 5.2 or newer)"
        }
        Errno::NOENT => "the table was removed by somebody else; it is written again at the next attempt",
        Errno::NOMEM | Errno::NOBUFS => "the host has too little memory free for them",
        Errno::INVAL => "this kernel does not know one of its fields; please report the kernel's version",
        _ => "please report this with the output of `nft list ruleset`",
    }
}

/// Attempts to replace a table while others keep changing theirs.
const ATTEMPTS: u32 = 20;
