//! Policy routing over rtnetlink: rules, local routes, and whether a destination is reachable.
//!
//! Called by `intercept::routing`. Adding what is there and removing what is not are both success.

use std::net::IpAddr;

use ipnet::IpNet;
use rustix::io::Errno;

use super::message::{CREATE, EXCLUSIVE, Message, REPLACE, REQUEST, Received, u32_at};
use super::socket::{NetlinkError, NetlinkSocket};

/// `fwmark MARK lookup TABLE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MarkRule {
    pub(crate) family: u8,
    pub(crate) priority: u32,
    pub(crate) mark: u32,
    pub(crate) table: u32,
}

/// A route through loopback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LoopbackRoute {
    pub(crate) destination: IpNet,
    pub(crate) table: u32,
    /// The destination is treated as an address of this host.
    pub(crate) local: bool,
}

pub(crate) const IPV4: u8 = 2;
pub(crate) const IPV6: u8 = 10;
pub(crate) const MAIN_TABLE: u32 = 254;

pub(crate) fn add_rule(socket: &NetlinkSocket, rule: MarkRule) -> Result<(), NetlinkError> {
    let added = socket.request(rule_message(NEW_RULE, CREATE | EXCLUSIVE, rule), |_| None::<()>);
    present_is_fine(added, Errno::EXIST)
}

/// Removes every copy of the rule; whether there was one.
pub(crate) fn remove_rule(socket: &NetlinkSocket, rule: MarkRule) -> Result<bool, NetlinkError> {
    let mut removed = false;
    loop {
        match socket.request(rule_message(DELETE_RULE, 0, rule), |_| None::<()>) {
            Ok(_) => removed = true,
            Err(error) if error.errno().is_some_and(is_absent) => return Ok(removed),
            Err(error) => return Err(error),
        }
    }
}

/// Whether the rule is there.
pub(crate) fn has_rule(socket: &NetlinkSocket, rule: MarkRule) -> Result<bool, NetlinkError> {
    let request = Message::new(GET_RULE, REQUEST).fixed(&[rule.family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let found = socket.dump(&request, |received| {
        let attributes = received.attributes(RULE_HEADER_BYTES);
        let number = |kind| attributes.find(kind).and_then(|value| u32_at(value, 0));
        (number(FRA_MARK) == Some(rule.mark) && number(FRA_TABLE) == Some(rule.table)).then_some(())
    });
    match found {
        Ok(found) => Ok(!found.is_empty()),
        Err(error) if error.errno().is_some_and(is_absent) => Ok(false),
        Err(error) => Err(error),
    }
}

pub(crate) fn add_route(socket: &NetlinkSocket, route: LoopbackRoute) -> Result<(), NetlinkError> {
    let added = socket.request(route_message(NEW_ROUTE, CREATE | REPLACE, route), |_| None::<()>);
    present_is_fine(added, Errno::EXIST)
}

/// Whether the route was there.
pub(crate) fn remove_route(socket: &NetlinkSocket, route: LoopbackRoute) -> Result<bool, NetlinkError> {
    match socket.request(route_message(DELETE_ROUTE, 0, route), |_| None::<()>) {
        Ok(_) => Ok(true),
        Err(error) if error.errno().is_some_and(is_absent) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the route is there.
pub(crate) fn has_route(socket: &NetlinkSocket, route: LoopbackRoute) -> Result<bool, NetlinkError> {
    let family = family(route.destination.addr());
    let request = Message::new(GET_ROUTE, REQUEST).fixed(&[family, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let found = socket.dump(&request, |received| is_route(received, route).then_some(()));
    match found {
        Ok(found) => Ok(!found.is_empty()),
        Err(error) if error.errno().is_some_and(is_absent) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether a packet to this address would find a way out.
pub(crate) fn reaches(socket: &NetlinkSocket, destination: IpAddr) -> Result<bool, NetlinkError> {
    let (octets, family) = (octets(destination), family(destination));
    let prefix = u8::try_from(octets.len() * 8).unwrap_or(u8::MAX);
    let mut request = Message::new(GET_ROUTE, REQUEST).fixed(&[family, prefix, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    request.attribute(RTA_DESTINATION, &octets);
    match socket.request(request, |_| None::<()>) {
        Ok(_) => Ok(true),
        Err(error) if error.errno().is_some_and(|errno| is_absent(errno) || is_unreachable(errno)) => Ok(false),
        Err(error) => Err(error),
    }
}

fn rule_message(kind: u16, flags: u16, rule: MarkRule) -> Message {
    const TO_TABLE: u8 = 1;
    let header = [rule.family, 0, 0, 0, 0, 0, 0, TO_TABLE, 0, 0, 0, 0];
    let mut message = Message::new(kind, REQUEST | flags).fixed(&header);
    message.native(FRA_PRIORITY, rule.priority);
    message.native(FRA_MARK, rule.mark);
    message.native(FRA_TABLE, rule.table);
    message
}

fn route_message(kind: u16, flags: u16, route: LoopbackRoute) -> Message {
    const LOOPBACK_INDEX: u32 = 1;
    let destination = route.destination.trunc();
    let scope = if route.local { SCOPE_HOST } else { SCOPE_LINK };
    let header = [
        family(destination.addr()),
        destination.prefix_len(),
        0,
        0,
        // Tables over 255 are named by attribute only.
        u8::try_from(route.table).unwrap_or(0),
        PROTOCOL,
        scope,
        if route.local { KIND_LOCAL } else { KIND_UNICAST },
        0,
        0,
        0,
        0,
    ];
    let mut message = Message::new(kind, REQUEST | flags).fixed(&header);
    message.attribute(RTA_DESTINATION, &octets(destination.addr()));
    message.native(RTA_OUTPUT_INTERFACE, LOOPBACK_INDEX);
    message.native(RTA_TABLE, route.table);
    message
}

fn is_route(received: &Received<'_>, route: LoopbackRoute) -> bool {
    let [_, prefix, _, _, small_table, protocol, ..] = *received.payload else { return false };
    let attributes = received.attributes(ROUTE_HEADER_BYTES);
    let table = attributes.find(RTA_TABLE).and_then(|value| u32_at(value, 0)).unwrap_or(u32::from(small_table));
    let destination = attributes.find(RTA_DESTINATION).map(<[u8]>::to_vec);
    let wanted = octets(route.destination.network());
    prefix == route.destination.prefix_len()
        && protocol == PROTOCOL
        && table == route.table
        && (prefix == 0 || destination == Some(wanted))
}

fn present_is_fine<T>(result: Result<Vec<T>, NetlinkError>, present: Errno) -> Result<(), NetlinkError> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if error.errno() == Some(present) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The object, its table or its whole address family does not exist on this host.
fn is_absent(errno: Errno) -> bool {
    [Errno::NOENT, Errno::SRCH, Errno::AFNOSUPPORT, Errno::OPNOTSUPP, Errno::NODEV].contains(&errno)
}

fn is_unreachable(errno: Errno) -> bool {
    [Errno::NETUNREACH, Errno::HOSTUNREACH, Errno::INVAL, Errno::ACCESS].contains(&errno)
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { IPV4 } else { IPV6 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;
const NEW_RULE: u16 = 32;
const DELETE_RULE: u16 = 33;
const GET_RULE: u16 = 34;
const RULE_HEADER_BYTES: usize = 12;
const ROUTE_HEADER_BYTES: usize = 12;
const FRA_PRIORITY: u16 = 6;
const FRA_MARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const RTA_DESTINATION: u16 = 1;
const RTA_OUTPUT_INTERFACE: u16 = 4;
const RTA_TABLE: u16 = 15;
const SCOPE_LINK: u8 = 253;
const SCOPE_HOST: u8 = 254;
const KIND_UNICAST: u8 = 1;
const KIND_LOCAL: u8 = 2;
/// Who made a route (`ip route` shows `proto 116`): a number that no routing daemon uses.
const PROTOCOL: u8 = 116;
