//! The policy routing that the rules rely on: added, removed and looked at as one.
//!
//! Marked packets are delivered on this host whatever their destination. Service addresses get a
//! route through loopback where the host has none, because output NAT runs after routing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proxy::config::{ROUTING_TABLE, TPROXY_MARK};
use rustix::io::Errno;

use super::ApplyError;
use super::model::Element;
use super::ruleset::Routing;
use crate::netlink::NetlinkError;
use crate::netlink::route::{self, IPV4, IPV6, LoopbackRoute, MAIN_TABLE, MarkRule};
use crate::netlink::socket::NetlinkSocket;

/// Adds what is wanted and missing, before rules rely on it.
pub(crate) fn add(socket: &NetlinkSocket, wanted: Routing) -> Result<(), ApplyError> {
    for family in FAMILIES {
        if wanted.deliver_marked {
            let (rule, local) = (mark_rule(family), local_route(family));
            // Where the family is off there is nothing to deliver, so no rule is needed either.
            if add_route(socket, local)? {
                route::add_rule(socket, rule).map_err(failed(describe_rule(rule)))?;
            }
        }
        let services = service_route(family);
        if wanted.service_ranges && !reaches(socket, services).map_err(failed(describe_route(services)))? {
            add_route(socket, services)?;
        }
    }
    Ok(())
}

/// Removes what is not wanted any more, after the rules that relied on it are gone.
pub(crate) fn prune(socket: &NetlinkSocket, wanted: Routing) -> Result<(), ApplyError> {
    for family in FAMILIES {
        if !wanted.deliver_marked {
            let (rule, local) = (mark_rule(family), local_route(family));
            route::remove_rule(socket, rule).map_err(failed(describe_rule(rule)))?;
            route::remove_route(socket, local).map_err(failed(describe_route(local)))?;
        }
        if !wanted.service_ranges {
            let services = service_route(family);
            route::remove_route(socket, services).map_err(failed(describe_route(services)))?;
        }
    }
    Ok(())
}

/// Removes all of it, and says what there was.
pub(crate) fn remove(socket: &NetlinkSocket) -> Result<Vec<String>, ApplyError> {
    let mut removed = Vec::new();
    for family in FAMILIES {
        let rule = mark_rule(family);
        if route::remove_rule(socket, rule).map_err(failed(describe_rule(rule)))? {
            removed.push(describe_rule(rule));
        }
        for known in [local_route(family), service_route(family)] {
            if route::remove_route(socket, known).map_err(failed(describe_route(known)))? {
                removed.push(describe_route(known));
            }
        }
    }
    Ok(removed)
}

/// What of it the kernel has.
pub(crate) fn present(socket: &NetlinkSocket) -> Result<Vec<String>, NetlinkError> {
    let mut found = Vec::new();
    for family in FAMILIES {
        let rule = mark_rule(family);
        if route::has_rule(socket, rule)? {
            found.push(describe_rule(rule));
        }
        for known in [local_route(family), service_route(family)] {
            if route::has_route(socket, known)? {
                found.push(describe_route(known));
            }
        }
    }
    Ok(found)
}

/// What of it is missing although it is wanted.
pub(crate) fn differences(socket: &NetlinkSocket, wanted: Routing) -> Result<Vec<String>, NetlinkError> {
    let mut missing = Vec::new();
    for family in FAMILIES.into_iter().filter(|_| wanted.deliver_marked) {
        // A host without IPv6 has neither, and needs neither.
        let (rule, local) = (mark_rule(family), local_route(family));
        let (has_rule, has_route) = (route::has_rule(socket, rule)?, route::has_route(socket, local)?);
        if !has_rule && (has_route || family == IPV4) {
            missing.push(format!("{} is missing", describe_rule(rule)));
        }
        if !has_route && (has_rule || family == IPV4) {
            missing.push(format!("{} is missing", describe_route(local)));
        }
    }
    if wanted.service_ranges && !reaches(socket, service_route(IPV4))? {
        missing
            .push(format!("{} is missing, and there is no other way to services", describe_route(service_route(IPV4))));
    }
    Ok(missing)
}

fn reaches(socket: &NetlinkSocket, services: LoopbackRoute) -> Result<bool, NetlinkError> {
    route::reaches(socket, services.destination.addr())
}

/// Whether the route is there now: not where the whole address family is off.
fn add_route(socket: &NetlinkSocket, wanted: LoopbackRoute) -> Result<bool, ApplyError> {
    match route::add_route(socket, wanted) {
        Ok(()) => Ok(true),
        Err(error) if error.errno().is_some_and(|errno| FAMILY_IS_OFF.contains(&errno)) => Ok(false),
        Err(error) => Err(failed(describe_route(wanted))(error)),
    }
}

fn failed(what: String) -> impl FnOnce(NetlinkError) -> ApplyError {
    |source| ApplyError::Routing { what, source }
}

fn mark_rule(family: u8) -> MarkRule {
    MarkRule { family, priority: RULE_PRIORITY, mark: TPROXY_MARK, table: ROUTING_TABLE }
}

fn local_route(family: u8) -> LoopbackRoute {
    let destination = match family {
        IPV4 => IpNet::V4(Ipv4Net::default()),
        _ => IpNet::V6(Ipv6Net::default()),
    };
    LoopbackRoute { destination, table: ROUTING_TABLE, local: true }
}

/// IPv6 turns an ordinary route through loopback into a refusal (`ip6_route_info_create`), so there
/// the range is local.
/// Where service addresses are taken from, as elements of sets: IPv4 and IPv6.
pub(crate) fn service_ranges() -> (Element, Element) {
    let v4 = Ipv4Net::new(SERVICES4, 16).expect("16 is a length of an IPv4 network");
    let v6 = Ipv6Net::new(SERVICES6, 48).expect("48 is a length of an IPv6 network");
    (Element::Ipv4Range(v4), Element::Ipv6Range(v6))
}

fn service_route(family: u8) -> LoopbackRoute {
    let (address, length): (IpAddr, u8) = match family {
        IPV4 => (SERVICES4.into(), 16),
        _ => (SERVICES6.into(), 48),
    };
    let destination = IpNet::new(address, length).expect("both lengths fit their family");
    LoopbackRoute { destination, table: MAIN_TABLE, local: family == IPV6 }
}

fn describe_rule(rule: MarkRule) -> String {
    format!("ip{} rule: fwmark {:#x} lookup {}", flag(rule.family), rule.mark, rule.table)
}

fn describe_route(route: LoopbackRoute) -> String {
    let (family, kind) =
        (if route.destination.addr().is_ipv4() { IPV4 } else { IPV6 }, if route.local { "local " } else { "" });
    format!("ip{} route: {kind}{} dev lo table {}", flag(family), route.destination, route.table)
}

fn flag(family: u8) -> &'static str {
    if family == IPV4 { "" } else { " -6" }
}

const FAMILIES: [u8; 2] = [IPV4, IPV6];
/// Before the rules of VPNs (Tailscale begins at 5210, WireGuard ends at 32765), which catch all.
const RULE_PRIORITY: u32 = 746;
/// Where service addresses come from, as in the control plane.
const SERVICES4: Ipv4Addr = Ipv4Addr::new(240, 240, 0, 0);
const SERVICES6: Ipv6Addr = Ipv6Addr::new(0xfd74, 0x6d62, 0x6f6c, 0, 0, 0, 0, 0);
/// What kernels without IPv6, or with it disabled, answer.
const FAMILY_IS_OFF: [Errno; 3] = [Errno::AFNOSUPPORT, Errno::OPNOTSUPP, Errno::ACCESS];
