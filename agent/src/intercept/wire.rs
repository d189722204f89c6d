//! Pure: rule sets as nf_tables messages.
//!
//! Writes the same expressions as `nft` does, so that `nft list` reads them back as written. A rule
//! asks for the address family and the transport protocol once, before the first header field.

use std::collections::{BTreeMap, BTreeSet};

use super::model::{Chain, ChainHook, ChainKind, Element, Family, Key, Rule, Set, Statement, Transport};
use super::ruleset::Ruleset;
use crate::netlink::message::Message;
use crate::netlink::nftables::expression::{self as write, Header, Verdict, ct, meta, socket};
use crate::netlink::nftables::{Batch, Hook, RawElement, SET_INTERVAL, SetKind};

/// Everything needed to make the table from nothing.
pub(crate) fn add_all(batch: &mut Batch, rules: &Ruleset, table_flags: u32) {
    batch.add_table(rules.table, table_flags);
    for set in &rules.sets {
        batch.add_set(rules.table, &set.name, set_kind(set.key));
        batch.add_elements(rules.table, &set.name, &raw_elements(set));
    }
    for chain in &rules.chains {
        batch.add_chain(rules.table, chain.name, Some(hook(chain)));
    }
    for chain in &rules.chains {
        for rule in &chain.rules {
            batch.add_rule(rules.table, chain.name, rule.label, |message| write_rule(message, rule));
        }
    }
}

/// Only what differs between the elements of two sets.
pub(crate) fn change_elements(batch: &mut Batch, table: &str, before: &Set, after: &Set) -> usize {
    let raw = |elements: BTreeSet<&Element>| elements.into_iter().map(raw_element).collect::<Vec<_>>();
    let gone = raw(before.elements.difference(&after.elements).collect());
    let added = raw(after.elements.difference(&before.elements).collect());
    batch.delete_elements(table, &before.name, &gone);
    batch.add_elements(table, &before.name, &added);
    gone.len() + added.len()
}

/// Elements as the kernel keeps them, with those of the same set.
pub(crate) fn by_set(elements: &[(&'static str, Element)]) -> BTreeMap<&'static str, Vec<RawElement>> {
    let mut sets: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (set, element) in elements {
        sets.entry(*set).or_default().push(raw_element(element));
    }
    sets
}

/// The elements of a set as the kernel keeps them.
pub(crate) fn raw_elements(set: &Set) -> Vec<RawElement> {
    if set.key.is_range() { ranges(&set.elements) } else { set.elements.iter().map(raw_element).collect() }
}

/// Hook number and priority of a chain.
pub(crate) fn hook(chain: &Chain) -> Hook {
    Hook {
        number: match chain.hook {
            ChainHook::Prerouting => 0,
            ChainHook::Input => 1,
            ChainHook::Output => 3,
        },
        priority: chain.priority,
        kind: match chain.kind {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
            ChainKind::Route => "route",
        },
    }
}

/// Writes a rule's expressions.
pub(crate) fn write_rule(message: &mut Message, rule: &Rule) {
    let mut writer = RuleWriter { message, family: None, transport: None };
    for statement in &rule.statements {
        writer.statement(statement);
    }
}

struct RuleWriter<'a> {
    message: &'a mut Message,
    family: Option<Family>,
    transport: Option<Transport>,
}

impl RuleWriter<'_> {
    fn statement(&mut self, statement: &Statement) {
        match statement {
            Statement::Mark(mark) => self.meta_is(meta::MARK, &mark.to_ne_bytes()),
            Statement::UidIn(set) => self.meta_in(meta::SOCKET_UID, set),
            Statement::CgroupIn { level, set } => {
                write::socket_load(self.message, socket::CGROUP_V2, Some(*level));
                write::lookup(self.message, set);
            }
            Statement::InputInterfaceIn(set) => self.meta_in(meta::INPUT_INTERFACE, set),
            Statement::OutputInterfaceIn(set) => self.meta_in(meta::OUTPUT_INTERFACE, set),
            Statement::FromOutside => {
                write::meta_load(self.message, meta::INPUT_INTERFACE);
                write::not_equal(self.message, &interface_name("lo"));
            }
            Statement::DestinationIn(family, set) => {
                self.destination(*family);
                write::lookup(self.message, set);
            }
            Statement::EndpointIn(family, set) => self.endpoint(*family, set),
            Statement::PortIn(transport, set) => {
                self.destination_port(*transport);
                write::lookup(self.message, set);
            }
            Statement::Port(transport, port) => {
                self.destination_port(*transport);
                write::equal(self.message, &port.to_be_bytes());
            }
            Statement::Tcp => self.need_transport(Transport::Tcp),
            Statement::PureSyn => self.pure_syn(),
            Statement::DestinationIsLocal => {
                write::destination_kind(self.message);
                write::equal(self.message, &ROUTE_KIND_LOCAL.to_ne_bytes());
            }
            Statement::ForTransparentSocket => {
                write::socket_load(self.message, socket::TRANSPARENT, None);
                write::equal(self.message, &[1]);
            }
            Statement::OriginalDirection => self.ct_is(ct::DIRECTION, &[0]),
            Statement::ReplyDirection => self.ct_is(ct::DIRECTION, &[1]),
            Statement::ConnectionMark(mark) => self.ct_is(ct::MARK, &mark.to_ne_bytes()),
            effect => self.effect(effect),
        }
    }

    fn effect(&mut self, statement: &Statement) {
        match statement {
            Statement::SetConnectionMark(mark) => write::ct_set(self.message, ct::MARK, *mark),
            Statement::SetMark(mark) => write::meta_set(self.message, meta::MARK, *mark),
            Statement::Counter => write::counter(self.message),
            Statement::Redirect(port) => write::redirect(self.message, *port),
            Statement::Tproxy(port) => write::tproxy(self.message, *port),
            Statement::KeepDestination(family) => {
                self.destination(*family);
                write::keep_destination(self.message, u32::from(family_number(*family)));
            }
            Statement::RejectWithReset => write::reject_with_reset(self.message),
            Statement::Return => write::verdict(self.message, Verdict::Return),
            Statement::Accept => write::verdict(self.message, Verdict::Accept),
            // Conditions are written by `statement`.
            _ => {}
        }
    }

    fn meta_is(&mut self, key: u32, value: &[u8]) {
        write::meta_load(self.message, key);
        write::equal(self.message, value);
    }

    fn meta_in(&mut self, key: u32, set: &str) {
        write::meta_load(self.message, key);
        write::lookup(self.message, set);
    }

    fn ct_is(&mut self, key: u32, value: &[u8]) {
        write::ct_load(self.message, key);
        write::equal(self.message, value);
    }

    fn destination(&mut self, family: Family) {
        self.need_family(family);
        let (offset, length) = destination_field(family);
        write::payload(self.message, Header::Network, offset, length, write::REGISTER);
    }

    fn destination_port(&mut self, transport: Transport) {
        self.need_transport(transport);
        write::payload(self.message, Header::Transport, 2, 2, write::REGISTER);
    }

    fn endpoint(&mut self, family: Family, set: &str) {
        self.need_transport(Transport::Tcp);
        self.destination(family);
        let after = match family {
            Family::V4 => write::AFTER_IPV4,
            Family::V6 => write::AFTER_IPV6,
        };
        write::payload(self.message, Header::Transport, 2, 2, after);
        write::lookup(self.message, set);
    }

    fn pure_syn(&mut self) {
        const FIN_SYN_RST_ACK: u8 = 0x17;
        const SYN: u8 = 0x02;
        const FLAGS_OFFSET: u32 = 13;
        self.need_transport(Transport::Tcp);
        write::payload(self.message, Header::Transport, FLAGS_OFFSET, 1, write::REGISTER);
        write::mask(self.message, &[FIN_SYN_RST_ACK]);
        write::equal(self.message, &[SYN]);
    }

    fn need_family(&mut self, family: Family) {
        if self.family.replace(family) != Some(family) {
            self.meta_is(meta::NETWORK_PROTOCOL, &[family_number(family)]);
        }
    }

    fn need_transport(&mut self, transport: Transport) {
        if self.transport.replace(transport) != Some(transport) {
            let number = match transport {
                Transport::Tcp => 6,
                Transport::Udp => 17,
            };
            self.meta_is(meta::TRANSPORT_PROTOCOL, &[number]);
        }
    }
}

fn set_kind(key: Key) -> SetKind {
    /// A pair of types is both numbers in six bits each.
    const PORT: u32 = 13;
    let (data_type, key_bytes, host_order) = match key {
        Key::Ipv4 | Key::Ipv4Range => (7, 4, false),
        Key::Ipv6 | Key::Ipv6Range => (8, 16, false),
        Key::Ipv4Port => (7 << 6 | PORT, 8, false),
        Key::Ipv6Port => (8 << 6 | PORT, 20, false),
        Key::Port => (PORT, 2, false),
        Key::Uid => (0x18, 4, true),
        Key::Interface => (0x29, 16, true),
        Key::Cgroup => (0x2e, 8, true),
    };
    SetKind { data_type, key_bytes, flags: if key.is_range() { SET_INTERVAL } else { 0 }, host_order }
}

fn raw_element(element: &Element) -> RawElement {
    let key = match element {
        Element::Ipv4(address) => address.octets().to_vec(),
        Element::Ipv6(address) => address.octets().to_vec(),
        Element::Ipv4Port(address, port) => with_port(&address.octets(), *port),
        Element::Ipv6Port(address, port) => with_port(&address.octets(), *port),
        Element::Ipv4Range(net) => net.network().octets().to_vec(),
        Element::Ipv6Range(net) => net.network().octets().to_vec(),
        Element::Port(port) => port.to_be_bytes().to_vec(),
        Element::Uid(uid) => uid.to_ne_bytes().to_vec(),
        Element::Interface(name) => interface_name(name).to_vec(),
        Element::Cgroup { id, .. } => id.to_ne_bytes().to_vec(),
    };
    RawElement { key, range_end: false }
}

/// A range is its first key, and an end mark at the key after its last; at the end of the address
/// space there is none. The kernel takes them in this order only, for it looks for overlaps.
fn ranges(elements: &BTreeSet<Element>) -> Vec<RawElement> {
    let mut raw = Vec::new();
    for element in elements {
        raw.push(raw_element(element));
        let end = match element {
            Element::Ipv4Range(net) => net.broadcast().to_bits().checked_add(1).map(|next| next.to_be_bytes().to_vec()),
            Element::Ipv6Range(net) => net.broadcast().to_bits().checked_add(1).map(|next| next.to_be_bytes().to_vec()),
            _ => None,
        };
        raw.extend(end.map(|key| RawElement { key, range_end: true }));
    }
    raw
}

/// Each half of a pair fills whole 4-byte registers.
fn with_port(address: &[u8], port: u16) -> Vec<u8> {
    [address, &port.to_be_bytes(), &[0, 0]].concat()
}

/// Kernel names have at most 15 bytes and a zero; a longer one is no interface's.
fn interface_name(name: &str) -> [u8; 16] {
    let mut padded = [0; 16];
    let length = name.len().min(15);
    padded[..length].copy_from_slice(&name.as_bytes()[..length]);
    padded
}

fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// Offset and length of the destination address in the header.
fn destination_field(family: Family) -> (u32, u32) {
    match family {
        Family::V4 => (16, 4),
        Family::V6 => (24, 16),
    }
}

/// RTN_LOCAL of `linux/rtnetlink.h`.
const ROUTE_KIND_LOCAL: u32 = 2;
