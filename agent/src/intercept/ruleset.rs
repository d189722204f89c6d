//! Pure: the rules that do what is wanted.
//!
//! `build` turns the agent's wish into the table `inet tombolo`. The result prints itself as `nft list
//! table inet tombolo` would, so `plan` shows exactly what `Interception::apply` does.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use api::InboundMode;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proxy::config::{OWN_MARK, SOURCE_PRESERVING_MARK, TPROXY_MARK};

use super::model::{Chain, ChainHook, ChainKind, Element, Family, Key, Set, Statement, Transport};
use super::wanted::{Capture, Destination, Exclusions, Wanted};
use crate::cgroup::{self, CgroupTree};

/// A whole table, and what else the kernel must know for it to work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    pub(crate) table: &'static str,
    pub(crate) sets: Vec<Set>,
    pub(crate) chains: Vec<Chain>,
    pub(crate) routing: Routing,
    units: BTreeSet<String>,
    cgroups: BTreeSet<String>,
}

/// Policy routing that the rules rely on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Routing {
    /// Packets marked [`TPROXY_MARK`] are delivered on this host.
    pub(crate) deliver_marked: bool,
    /// Service addresses need some route, because output NAT runs after routing.
    pub(crate) service_ranges: bool,
}

/// Name of the table, in family `inet`.
pub const TABLE: &str = "tombolo";
/// Name of the ownerless table of `on_agent_loss = "block"`.
pub const BLOCK_TABLE: &str = "tombolo_block";

/// The table that does what is wanted.
pub fn build(wanted: &Wanted) -> Ruleset {
    let observed = wanted.ports_of_mode(InboundMode::Observe);
    let strict = wanted.ports_of_mode(InboundMode::Strict);
    let mut rules = Ruleset {
        table: TABLE,
        sets: Vec::new(),
        chains: Vec::new(),
        routing: Routing {
            deliver_marked: wanted.source_preservation || !observed.is_empty(),
            service_ranges: wanted.leads_to_services(),
        },
        units: wanted.exclusions.units.iter().map(|unit| cgroup::unit_name(unit)).collect(),
        cgroups: wanted.exclusions.cgroups.iter().map(|path| path.trim_matches('/').to_owned()).collect(),
    };
    rules.cgroups.remove("");
    let output = rules.output_chain(wanted);
    rules.chains.push(output);
    if wanted.leads_to_services() || wanted.dns.is_some() {
        let refused = rules.refused_chain();
        rules.chains.push(refused);
    }
    if !strict.is_empty() || !observed.is_empty() || wanted.source_preservation {
        let inbound = rules.inbound_chain(wanted, &strict, &observed);
        rules.chains.push(inbound);
    }
    if !observed.is_empty() {
        rules.chains.push(keep_chain());
    }
    if wanted.source_preservation {
        rules.chains.push(replies_chain());
        rules.chains.push(over_chain());
    }
    rules
}

/// The ownerless table that refuses plaintext to these ports while no agent is there.
pub fn build_block(wanted: &Wanted) -> Ruleset {
    let strict = wanted.ports_of_mode(InboundMode::Strict);
    let mut rules = Ruleset {
        table: BLOCK_TABLE,
        sets: Vec::new(),
        chains: Vec::new(),
        routing: Routing::default(),
        units: BTreeSet::new(),
        cgroups: BTreeSet::new(),
    };
    let only_strict = Wanted { source_preservation: false, ..wanted.clone() };
    let inbound = rules.inbound_chain(&only_strict, &strict, &BTreeSet::new());
    rules.chains.push(inbound);
    rules
}

/// The elements of these destinations, and the sets they are in.
pub(super) fn elements(destinations: &[Destination]) -> Vec<(&'static str, Element)> {
    let element = |destination: &Destination| match *destination {
        Destination::Service(address) => match address.to_canonical() {
            address if !is_remote(&address) => None,
            IpAddr::V4(address) => Some((VIP4, Element::Ipv4(address))),
            IpAddr::V6(address) => Some((VIP6, Element::Ipv6(address))),
        },
        Destination::Workload(endpoint) => match endpoint.ip().to_canonical() {
            address if !is_remote(&address) => None,
            IpAddr::V4(address) => Some((ENDPOINT4, Element::Ipv4Port(address, endpoint.port()))),
            IpAddr::V6(address) => Some((ENDPOINT6, Element::Ipv6Port(address, endpoint.port()))),
        },
    };
    destinations.iter().filter_map(element).collect()
}

impl Ruleset {
    /// The same rules with other elements.
    pub(super) fn change(&mut self, added: &[(&str, Element)], gone: &[(&str, Element)]) {
        for set in &mut self.sets {
            for (_, element) in gone.iter().filter(|(name, _)| *name == set.name) {
                set.elements.remove(element);
            }
            let added = added.iter().filter(|(name, _)| *name == set.name);
            set.elements.extend(added.map(|(_, element)| element.clone()));
        }
    }

    /// The same rules with the excluded units and cgroups that exist in this tree.
    pub fn with_cgroups(&self, tree: &CgroupTree) -> Self {
        let mut resolved = self.clone();
        let excluded = tree.select(&self.units, &self.cgroups);
        for set in resolved.sets.iter_mut().filter(|set| set.key == Key::Cgroup) {
            set.elements = excluded
                .iter()
                .filter(|(path, _)| set.name == cgroup_set(level(path)))
                .map(|(path, id)| Element::Cgroup { id: *id, path: path.as_str().into() })
                .collect();
        }
        resolved
    }

    /// Whether the rules depend on which cgroups exist.
    pub fn names_cgroups(&self) -> bool {
        !self.units.is_empty() || !self.cgroups.is_empty()
    }

    fn output_chain(&mut self, wanted: &Wanted) -> Chain {
        let mut chain = Chain::new("output", ChainKind::Nat, ChainHook::Output, PRIORITY);
        chain.rule("the agent's own connections", [Statement::Mark(OWN_MARK), Statement::Return]);
        chain.rule(
            "the agent's own, with a client's address",
            [Statement::Mark(SOURCE_PRESERVING_MARK), Statement::Return],
        );
        self.excluded_processes(&mut chain, &wanted.exclusions);
        self.names(&mut chain, wanted);
        self.excluded_destinations(&mut chain, &wanted.exclusions);
        self.captured(&mut chain, wanted);
        if wanted.capture == Capture::All {
            chain.rule("what stays on this host", [Statement::DestinationIsLocal, Statement::Return]);
            chain.rule(
                "everything else",
                [Statement::PureSyn, Statement::Counter, Statement::Redirect(wanted.ports.outbound)],
            );
        }
        chain
    }

    fn excluded_processes(&mut self, chain: &mut Chain, exclusions: &Exclusions) {
        let uids = exclusions.uids.iter().copied().map(Element::Uid);
        if let Some(set) = self.set_unless_empty("excluded_uid", Key::Uid, uids) {
            chain.rule("excluded users", [Statement::UidIn(set), Statement::Return]);
        }
        let mut levels: BTreeSet<u32> = self.cgroups.iter().map(|path| level(path)).collect();
        if !self.units.is_empty() {
            levels.extend(UNIT_LEVELS);
        }
        for level in levels {
            let set = self.set(&cgroup_set(level), Key::Cgroup, []);
            chain.rule("excluded cgroups", [Statement::CgroupIn { level, set }, Statement::Return]);
        }
    }

    fn names(&mut self, chain: &mut Chain, wanted: &Wanted) {
        let Some(nameservers) = &wanted.dns else { return };
        let addresses: BTreeSet<IpAddr> = nameservers.iter().map(IpAddr::to_canonical).collect();
        for family in [Family::V4, Family::V6] {
            let (name, key) = match family {
                Family::V4 => ("nameserver4", Key::Ipv4),
                Family::V6 => ("nameserver6", Key::Ipv6),
            };
            let set = self.set(name, key, addresses_of(family, &addresses));
            for transport in [Transport::Udp, Transport::Tcp] {
                chain.rule(
                    "names",
                    [
                        Statement::DestinationIn(family, set.clone()),
                        Statement::Port(transport, DNS_PORT),
                        Statement::Counter,
                        Statement::Redirect(wanted.ports.dns),
                    ],
                );
            }
        }
    }

    fn excluded_destinations(&mut self, chain: &mut Chain, exclusions: &Exclusions) {
        if let Some(set) = self.set_unless_empty(EXCLUDED_INTERFACE, Key::Interface, interfaces(exclusions)) {
            chain.rule("excluded interfaces", [Statement::OutputInterfaceIn(set), Statement::Return]);
        }
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for cidr in &exclusions.cidrs {
            match cidr {
                IpNet::V4(net) => v4.push(net.trunc()),
                IpNet::V6(net) => v6.push(net.trunc()),
            }
        }
        let v4 = Ipv4Net::aggregate(&v4).into_iter().map(Element::Ipv4Range);
        if let Some(set) = self.set_unless_empty("excluded4", Key::Ipv4Range, v4) {
            chain.rule("excluded networks", [Statement::DestinationIn(Family::V4, set), Statement::Return]);
        }
        let v6 = Ipv6Net::aggregate(&v6).into_iter().map(Element::Ipv6Range);
        if let Some(set) = self.set_unless_empty("excluded6", Key::Ipv6Range, v6) {
            chain.rule("excluded networks", [Statement::DestinationIn(Family::V6, set), Statement::Return]);
        }
        let ports = exclusions.ports.iter().copied().map(Element::Port);
        if let Some(set) = self.set_unless_empty("excluded_port", Key::Port, ports) {
            chain.rule("excluded ports", [Statement::PortIn(Transport::Tcp, set), Statement::Return]);
        }
    }

    fn captured(&mut self, chain: &mut Chain, wanted: &Wanted) {
        let vips: BTreeSet<IpAddr> = wanted.vips.iter().map(IpAddr::to_canonical).filter(is_remote).collect();
        let endpoints: BTreeSet<SocketAddr> = wanted
            .endpoints
            .iter()
            .map(|endpoint| SocketAddr::new(endpoint.ip().to_canonical(), endpoint.port()))
            .filter(|endpoint| is_remote(&endpoint.ip()))
            .collect();
        for family in [Family::V4, Family::V6] {
            let (vip, vip_key, endpoint, endpoint_key) = match family {
                Family::V4 => (VIP4, Key::Ipv4, ENDPOINT4, Key::Ipv4Port),
                Family::V6 => (VIP6, Key::Ipv6, ENDPOINT6, Key::Ipv6Port),
            };
            let vip = self.set(vip, vip_key, addresses_of(family, &vips));
            let endpoint = self.set(endpoint, endpoint_key, endpoints_of(family, &endpoints));
            for (label, destination) in [
                ("services", Statement::DestinationIn(family, vip)),
                ("workloads' ports", Statement::EndpointIn(family, endpoint)),
            ] {
                let redirect = Statement::Redirect(wanted.ports.outbound);
                chain.rule(label, [Statement::PureSyn, destination, Statement::Counter, redirect]);
            }
        }
    }

    /// Service addresses lead nowhere but to the agent. One that is not captured, because the service
    /// is gone or so new that its name was answered before the rules knew it, is refused at once: a
    /// first packet that got past would leave conntrack an entry without translation, and its
    /// retransmissions would never be captured.
    fn refused_chain(&mut self) -> Chain {
        // After translation, which the kernel does at −100 whatever a NAT chain's own priority is.
        let mut chain = Chain::new("refused", ChainKind::Filter, ChainHook::Output, 0);
        let (v4, v6) = super::routing::service_ranges();
        let sets = [("services4", Key::Ipv4Range, v4, Family::V4), ("services6", Key::Ipv6Range, v6, Family::V6)];
        for (name, key, range, family) in sets {
            let set = self.set(name, key, [range]);
            let destination = Statement::DestinationIn(family, set);
            let refuse = [Statement::PureSyn, destination, Statement::Counter, Statement::RejectWithReset];
            chain.rule("addresses of no service", refuse);
        }
        chain
    }

    fn inbound_chain(&mut self, wanted: &Wanted, strict: &BTreeSet<u16>, observed: &BTreeSet<u16>) -> Chain {
        // Before NAT, so that a port which Docker publishes is still seen under its own number.
        let mut chain = Chain::new("inbound", ChainKind::Filter, ChainHook::Prerouting, PRIORITY - 5);
        if wanted.source_preservation {
            chain.rule("answers to a client's address", answers());
        }
        if strict.is_empty() && observed.is_empty() {
            return chain;
        }
        let interfaces = interfaces(&wanted.exclusions);
        if let Some(set) = self.set_unless_empty(EXCLUDED_INTERFACE, Key::Interface, interfaces) {
            chain.rule("excluded interfaces", [Statement::InputInterfaceIn(set), Statement::Return]);
        }
        let arrives_at = |set| {
            let port = Statement::PortIn(Transport::Tcp, set);
            [Statement::FromOutside, Statement::PureSyn, port, Statement::DestinationIsLocal, Statement::Counter]
        };
        let elements = strict.iter().copied().map(Element::Port);
        if let Some(set) = self.set_unless_empty("strict_port", Key::Port, elements) {
            let refuse = arrives_at(set).into_iter().chain([Statement::RejectWithReset]);
            chain.rule("plaintext to strict ports", refuse);
        }
        let elements = observed.iter().copied().map(Element::Port);
        if let Some(set) = self.set_unless_empty("observed_port", Key::Port, elements) {
            let take =
                [Statement::Tproxy(wanted.ports.inbound_plaintext), Statement::SetMark(TPROXY_MARK), Statement::Accept];
            chain.rule("plaintext to observed ports", arrives_at(set).into_iter().chain(take));
        }
        chain
    }

    fn set_unless_empty(
        &mut self,
        name: &str,
        key: Key,
        elements: impl IntoIterator<Item = Element>,
    ) -> Option<String> {
        let elements: BTreeSet<Element> = elements.into_iter().collect();
        (!elements.is_empty()).then(|| self.set(name, key, elements))
    }

    fn set(&mut self, name: &str, key: Key, elements: impl IntoIterator<Item = Element>) -> String {
        if self.sets.iter().all(|set| set.name != name) {
            self.sets.push(Set { name: name.to_owned(), key, elements: elements.into_iter().collect() });
        }
        name.to_owned()
    }
}

/// Docker and others translate destinations of what arrives; what is observed keeps its own.
fn keep_chain() -> Chain {
    let mut chain = Chain::new("keep", ChainKind::Nat, ChainHook::Prerouting, PRIORITY);
    for family in [Family::V4, Family::V6] {
        chain.rule("observed connections", [Statement::Mark(TPROXY_MARK), Statement::KeepDestination(family)]);
    }
    chain
}

/// A local server answers to the client's address, which is elsewhere: the answer must come back to
/// the agent. Only connections *from* the agent with that address are marked: marking what TPROXY
/// took as well would send the agent's own answers into the loop.
fn replies_chain() -> Chain {
    let mut chain = Chain::new("replies", ChainKind::Route, ChainHook::Output, PRIORITY);
    chain.rule(
        "to local servers with a client's address",
        [
            Statement::Mark(SOURCE_PRESERVING_MARK),
            Statement::OriginalDirection,
            Statement::SetConnectionMark(TPROXY_MARK),
        ],
    );
    chain.rule("answers to a client's address", answers());
    chain
}

/// A server that has lost a packet asks back when a reset comes out of turn (RFC 5961 §3.2), and keeps the connection
/// until it is answered. The kernel answers for connections that are over only where the address is its own.
fn over_chain() -> Chain {
    // After the translation of what a container answers, by which its socket is found.
    let mut chain = Chain::new("over", ChainKind::Filter, ChainHook::Input, 150);
    // Marked by the rules for answers: all else is spared the look at its connection.
    let [reply, ours, _] = answers();
    let answer = [Statement::Mark(TPROXY_MARK), reply, ours];
    let waits = answer.iter().cloned().chain([Statement::ForTransparentSocket, Statement::Return]);
    chain.rule("answers that the agent waits for", waits);
    let refuse = answer.into_iter().chain([Statement::Tcp, Statement::Counter, Statement::RejectWithReset]);
    chain.rule("answers to what is over", refuse);
    chain
}

fn answers() -> [Statement; 3] {
    [Statement::ReplyDirection, Statement::ConnectionMark(TPROXY_MARK), Statement::SetMark(TPROXY_MARK)]
}

fn addresses_of(family: Family, addresses: &BTreeSet<IpAddr>) -> impl Iterator<Item = Element> {
    addresses.iter().filter_map(move |address| match (family, address) {
        (Family::V4, IpAddr::V4(address)) => Some(Element::Ipv4(*address)),
        (Family::V6, IpAddr::V6(address)) => Some(Element::Ipv6(*address)),
        _ => None,
    })
}

fn endpoints_of(family: Family, endpoints: &BTreeSet<SocketAddr>) -> impl Iterator<Item = Element> {
    endpoints.iter().filter_map(move |endpoint| match (family, endpoint) {
        (Family::V4, SocketAddr::V4(endpoint)) => Some(Element::Ipv4Port(*endpoint.ip(), endpoint.port())),
        (Family::V6, SocketAddr::V6(endpoint)) => Some(Element::Ipv6Port(*endpoint.ip(), endpoint.port())),
        _ => None,
    })
}

/// No interface has an empty name or one over 15 bytes (IFNAMSIZ); cut short it would be another's.
fn interfaces(exclusions: &Exclusions) -> impl Iterator<Item = Element> {
    let possible = exclusions.interfaces.iter().filter(|name| (1..=15).contains(&name.len()));
    possible.map(|name| Element::Interface(name.as_str().into()))
}

/// Loopback, multicast and unspecified addresses are no peers, whatever the snapshot says.
fn is_remote(address: &IpAddr) -> bool {
    !address.is_loopback() && !address.is_multicast() && !address.is_unspecified()
}

/// How deep below the root of the tree a cgroup is.
fn level(path: &str) -> u32 {
    u32::try_from(path.split('/').count()).unwrap_or(u32::MAX)
}

fn cgroup_set(level: u32) -> String {
    format!("excluded_cgroup{level}")
}

/// Before Docker's and firewalld's NAT chains (-100), after connection tracking (-200).
const PRIORITY: i32 = -150;
const DNS_PORT: u16 = 53;
const VIP4: &str = "vip4";
const VIP6: &str = "vip6";
const ENDPOINT4: &str = "endpoint4";
const ENDPOINT6: &str = "endpoint6";
const EXCLUDED_INTERFACE: &str = "excluded_interface";
/// Units live at these depths: `system.slice/x.service` to
/// `user.slice/user-1000.slice/user@1000.service/app.slice/x.service`, and one slice more.
const UNIT_LEVELS: std::ops::RangeInclusive<u32> = 1..=6;

#[cfg(test)]
mod tests;
