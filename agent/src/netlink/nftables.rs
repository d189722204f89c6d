//! nf_tables over netlink: one atomic batch to change, dumps to read.
//!
//! `intercept` describes tables, sets, chains and rules; this file turns each into its message, sends
//! all of them as one transaction, and says which of ours the kernel refused. Numbers are those of
//! `linux/netfilter/nf_tables.h`.

use rustix::io::Errno;

use super::message::{ACK, APPEND, CREATE, Message, REQUEST, Received, attributes, big_endian_u32, text};
use super::socket::{KernelError, NetlinkError, NetlinkSocket};

pub(crate) mod expression;
pub(crate) mod read;

/// Address family of a table that sees IPv4 and IPv6.
pub(crate) const INET: u8 = 1;
/// The table is its creator's: nobody else changes it, and it ends with its creator's socket.
pub(crate) const TABLE_OWNER: u32 = 2;
/// The set's elements are ranges.
pub(crate) const SET_INTERVAL: u32 = 4;

/// Where a base chain hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hook {
    pub(crate) number: u32,
    pub(crate) priority: i32,
    pub(crate) kind: &'static str,
}

/// What a set holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SetKind {
    /// nft's number of the data type, so that `nft list` prints the elements well.
    pub(crate) data_type: u32,
    pub(crate) key_bytes: u32,
    pub(crate) flags: u32,
    /// The key is in host order, which `nft` needs to know.
    pub(crate) host_order: bool,
}

/// One element of a set; the end of a range is an element of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RawElement {
    pub(crate) key: Vec<u8>,
    pub(crate) range_end: bool,
}

/// The kernel refused a batch: nothing of it was applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BatchError {
    #[error("the kernel refused {object}")]
    Refused { object: String, source: KernelError },
    #[error("somebody else changed the rules meanwhile")]
    Stale,
    #[error("the kernel did not confirm the change")]
    Unconfirmed,
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// A transaction being written: all of it is applied, or nothing.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    entries: Vec<(String, Message)>,
}

impl Batch {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn add_table(&mut self, table: &str, flags: u32) {
        let mut message = message(NEW_TABLE, CREATE, INET);
        message.string(1, table);
        message.big_endian(2, flags);
        self.push(format!("table {table}"), message);
    }

    pub(crate) fn delete_table(&mut self, table: &str) {
        let mut message = message(DELETE_TABLE, 0, INET);
        message.string(1, table);
        self.push(format!("the removal of table {table}"), message);
    }

    pub(crate) fn add_chain(&mut self, table: &str, chain: &str, hook: Option<Hook>) {
        let mut message = message(NEW_CHAIN, CREATE, INET);
        message.string(1, table);
        message.string(3, chain);
        if let Some(hook) = hook {
            message.nest(4, |nest| {
                nest.big_endian(1, hook.number);
                nest.big_endian(2, hook.priority.cast_unsigned());
            });
            message.big_endian(5, POLICY_ACCEPT);
            message.string(7, hook.kind);
        }
        self.push(format!("chain {chain}"), message);
    }

    pub(crate) fn add_set(&mut self, table: &str, set: &str, kind: SetKind) {
        let mut message = message(NEW_SET, CREATE, INET);
        message.string(1, table);
        message.string(2, set);
        message.big_endian(3, kind.flags);
        message.big_endian(4, kind.data_type);
        message.big_endian(5, kind.key_bytes);
        let id = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        message.big_endian(10, id);
        // nft's own note about byte order (libnftnl's NFTNL_UDATA_SET_KEYBYTEORDER).
        let order: u32 = if kind.host_order { 1 } else { 2 };
        let [a, b, c, d] = order.to_ne_bytes();
        message.attribute(13, &[0, 4, a, b, c, d]);
        self.push(format!("set {set}"), message);
    }

    pub(crate) fn add_elements(&mut self, table: &str, set: &str, elements: &[RawElement]) {
        self.elements(NEW_ELEMENTS, CREATE, table, set, elements, "elements of");
    }

    pub(crate) fn delete_elements(&mut self, table: &str, set: &str, elements: &[RawElement]) {
        self.elements(DELETE_ELEMENTS, 0, table, set, elements, "the removal of elements from");
    }

    /// `label` is kept as the rule's comment, where `nft list` shows it and errors name it.
    pub(crate) fn add_rule(&mut self, table: &str, chain: &str, label: &str, write: impl FnOnce(&mut Message)) {
        let mut message = message(NEW_RULE, CREATE | APPEND, INET);
        message.string(1, table);
        message.string(2, chain);
        message.nest(4, write);
        let comment = label.as_bytes();
        let length = u8::try_from(comment.len() + 1).expect("labels stay under nft's 128 bytes");
        message.attribute(7, &[&[0, length], comment, &[0]].concat());
        self.push(format!("rule \"{label}\" of chain {chain}"), message);
    }

    /// Sends the batch; with a generation, only if the rules are still of that generation.
    pub(crate) fn send(self, socket: &NetlinkSocket, generation: Option<u32>) -> Result<(), BatchError> {
        let count = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        let first = socket.reserve(count.saturating_add(2));
        let mut begin = Message::new(BATCH_BEGIN, REQUEST).fixed(&SUBSYSTEM_HEADER);
        if let Some(generation) = generation {
            begin.big_endian(1, generation);
        }
        let mut bytes = begin.finish(first);
        let mut labels = vec!["the change as a whole".to_owned()];
        for (label, mut message) in self.entries {
            let position = u32::try_from(labels.len()).unwrap_or(u32::MAX);
            if position == count {
                message.add_flags(ACK);
            }
            bytes.extend(message.finish(first.wrapping_add(position)));
            labels.push(label);
        }
        let end = first.wrapping_add(count).wrapping_add(1);
        bytes.extend(Message::new(BATCH_END, REQUEST).fixed(&SUBSYSTEM_HEADER).finish(end));

        let mut confirmed = false;
        for (sequence, answer) in socket.exchange(&bytes)? {
            let Some(label) = labels.get(sequence.wrapping_sub(first) as usize) else { continue };
            match answer {
                Ok(()) => confirmed = true,
                Err(error) if error.errno.raw_os_error() == ERESTART => return Err(BatchError::Stale),
                Err(source) => return Err(BatchError::Refused { object: label.clone(), source }),
            }
        }
        if confirmed { Ok(()) } else { Err(BatchError::Unconfirmed) }
    }

    fn elements(&mut self, kind: u16, flags: u16, table: &str, set: &str, elements: &[RawElement], verb: &str) {
        let key_bytes = elements.first().map_or(0, |element| element.key.len());
        let chunk = NEST_LIMIT_BYTES / (key_bytes.next_multiple_of(4) + ELEMENT_OVERHEAD_BYTES);
        for part in elements.chunks(chunk) {
            let mut message = message(kind, flags, INET);
            message.string(1, table);
            message.string(2, set);
            message.nest(3, |list| {
                for element in part {
                    list.nest(1, |nest| {
                        nest.nest(1, |key| key.attribute(1, &element.key));
                        if element.range_end {
                            nest.big_endian(3, ELEMENT_INTERVAL_END);
                        }
                    });
                }
            });
            self.push(format!("{verb} set {set}"), message);
        }
    }

    fn push(&mut self, label: String, message: Message) {
        self.entries.push((label, message));
    }
}

/// What is known about a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableState {
    pub(crate) flags: u32,
    /// Port of the socket that owns it.
    pub(crate) owner: Option<u32>,
}

/// The table of this name, if there is one.
pub(crate) fn table(socket: &NetlinkSocket, name: &str) -> Result<Option<TableState>, NetlinkError> {
    let mut request = message(GET_TABLE, 0, INET);
    request.string(1, name);
    let found = socket.request(request, |received: &Received<'_>| {
        let attributes = received.attributes(4);
        Some(TableState {
            flags: attributes.find(2).and_then(big_endian_u32).unwrap_or(0),
            owner: attributes.find(7).and_then(big_endian_u32),
        })
    });
    match found {
        Ok(found) => Ok(found.into_iter().next()),
        Err(error) if error.errno() == Some(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The number of the rules' present generation: it grows with each change by anybody.
pub(crate) fn generation(socket: &NetlinkSocket) -> Result<Option<u32>, NetlinkError> {
    let found = socket
        .request(message(GET_GENERATION, 0, 0), |received| received.attributes(4).find(1).and_then(big_endian_u32))?;
    Ok(found.into_iter().next())
}

fn message(kind: u16, flags: u16, family: u8) -> Message {
    Message::new(SUBSYSTEM | kind, REQUEST | flags).fixed(&[family, 0, 0, 0])
}

const SUBSYSTEM: u16 = 10 << 8;
const SUBSYSTEM_HEADER: [u8; 4] = [0, 0, 0, 10];
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
const NEW_SET: u16 = 9;
const GET_SET: u16 = 10;
const NEW_ELEMENTS: u16 = 12;
const GET_ELEMENTS: u16 = 13;
const DELETE_ELEMENTS: u16 = 14;
const GET_GENERATION: u16 = 16;
const POLICY_ACCEPT: u32 = 1;
const ELEMENT_INTERVAL_END: u32 = 1;
/// Linux's ERESTART, which libc does not name: the generation of a batch is not the present one.
const ERESTART: i32 = 85;
/// An attribute holds at most 64 KiB; some of it stays free for headers.
const NEST_LIMIT_BYTES: usize = 60_000;
/// Three nested headers and the flags of a range's end.
const ELEMENT_OVERHEAD_BYTES: usize = 20;

#[cfg(test)]
mod tests;
