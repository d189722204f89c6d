//! Pure: a rule set printed exactly as `nft list table` prints it.
//!
//! `plan`, `intercept show` and the tests read this; the format is that of nft 1.0.

use std::fmt::{self, Display, Formatter};

use super::model::{Chain, ChainHook, ChainKind, Element, Family, Key, Rule, Set, Statement, Transport};
use super::ruleset::Ruleset;

impl Display for Ruleset {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "table inet {} {{", self.table)?;
        let sets = self.sets.iter().map(set);
        let chains = self.chains.iter().map(chain);
        write!(formatter, "{}", sets.chain(chains).collect::<Vec<_>>().join("\n"))?;
        writeln!(formatter, "}}")
    }
}

fn set(set: &Set) -> String {
    let mut lines = format!("\tset {} {{\n\t\ttype {}\n", set.name, key(set.key));
    if set.key.is_range() {
        lines += "\t\tflags interval\n";
    }
    if !set.elements.is_empty() {
        let per_line = match set.key {
            Key::Ipv4 | Key::Ipv4Range => 2,
            Key::Port | Key::Uid => 6,
            _ => 1,
        };
        let elements: Vec<String> = set.elements.iter().map(element).collect();
        let rows: Vec<String> = elements.chunks(per_line).map(|row| row.join(", ")).collect();
        lines += &format!("\t\telements = {{ {} }}\n", rows.join(",\n\t\t\t     "));
    }
    lines + "\t}\n"
}

/// nft's name of a set's type.
pub(crate) fn key(key: Key) -> &'static str {
    match key {
        Key::Ipv4 | Key::Ipv4Range => "ipv4_addr",
        Key::Ipv6 | Key::Ipv6Range => "ipv6_addr",
        Key::Ipv4Port => "ipv4_addr . inet_service",
        Key::Ipv6Port => "ipv6_addr . inet_service",
        Key::Port => "inet_service",
        Key::Uid => "uid",
        Key::Interface => "ifname",
        Key::Cgroup => "cgroupsv2",
    }
}

fn element(element: &Element) -> String {
    match element {
        Element::Ipv4(address) => address.to_string(),
        Element::Ipv6(address) => address.to_string(),
        Element::Ipv4Port(address, port) => format!("{address} . {port}"),
        Element::Ipv6Port(address, port) => format!("{address} . {port}"),
        Element::Ipv4Range(net) if net.prefix_len() == 32 => net.addr().to_string(),
        Element::Ipv4Range(net) => net.to_string(),
        Element::Ipv6Range(net) if net.prefix_len() == 128 => net.addr().to_string(),
        Element::Ipv6Range(net) => net.to_string(),
        Element::Port(port) => port.to_string(),
        Element::Uid(uid) => uid.to_string(),
        Element::Interface(name) => format!("\"{name}\""),
        Element::Cgroup { path, .. } => format!("\"{path}\""),
    }
}

fn chain(chain: &Chain) -> String {
    let mut lines = format!(
        "\tchain {} {{\n\t\ttype {} hook {} priority {}; policy accept;\n",
        chain.name,
        kind(chain.kind),
        hook(chain.hook),
        priority(chain.priority)
    );
    for rule in &chain.rules {
        lines += &format!("\t\t{}\n", self::rule(rule));
    }
    lines + "\t}\n"
}

/// nft's name of a chain's type.
pub(crate) fn kind(kind: ChainKind) -> &'static str {
    match kind {
        ChainKind::Filter => "filter",
        ChainKind::Nat => "nat",
        ChainKind::Route => "route",
    }
}

fn hook(hook: ChainHook) -> &'static str {
    match hook {
        ChainHook::Prerouting => "prerouting",
        ChainHook::Input => "input",
        ChainHook::Output => "output",
    }
}

/// nft prints a priority within ten of a named one by that name.
fn priority(priority: i32) -> String {
    const NAMED: [(&str, i32); 4] = [("raw", -300), ("mangle", -150), ("filter", 0), ("security", 50)];
    let named = NAMED.iter().find(|(_, base)| (priority - base).abs() <= 10);
    match named.map(|(name, base)| (name, priority - base)) {
        Some((name, 0)) => (*name).to_owned(),
        Some((name, offset)) => format!("{name} {} {}", if offset < 0 { '-' } else { '+' }, offset.abs()),
        None => priority.to_string(),
    }
}

fn rule(rule: &Rule) -> String {
    let statements: Vec<String> = rule.statements.iter().map(statement).collect();
    format!("{} comment \"{}\"", statements.join(" "), rule.label)
}

fn statement(statement: &Statement) -> String {
    match statement {
        Statement::Mark(mark) => format!("meta mark {mark:#010x}"),
        Statement::UidIn(set) => format!("meta skuid @{set}"),
        Statement::CgroupIn { level, set } => format!("socket cgroupv2 level {level} @{set}"),
        Statement::InputInterfaceIn(set) => format!("iifname @{set}"),
        Statement::OutputInterfaceIn(set) => format!("oifname @{set}"),
        Statement::FromOutside => "iifname != \"lo\"".to_owned(),
        Statement::DestinationIn(family, set) => format!("{} daddr @{set}", self::family(*family)),
        Statement::EndpointIn(family, set) => format!("{} daddr . tcp dport @{set}", self::family(*family)),
        Statement::PortIn(transport, set) => format!("{} dport @{set}", self::transport(*transport)),
        Statement::Port(transport, port) => format!("{} dport {port}", self::transport(*transport)),
        Statement::Tcp => "meta l4proto tcp".to_owned(),
        Statement::PureSyn => "tcp flags syn / fin,syn,rst,ack".to_owned(),
        Statement::DestinationIsLocal => "fib daddr type local".to_owned(),
        Statement::ForTransparentSocket => "socket transparent 1".to_owned(),
        Statement::OriginalDirection => "ct direction original".to_owned(),
        Statement::ReplyDirection => "ct direction reply".to_owned(),
        Statement::ConnectionMark(mark) => format!("ct mark {mark:#010x}"),
        Statement::SetConnectionMark(mark) => format!("ct mark set {mark:#010x}"),
        Statement::SetMark(mark) => format!("meta mark set {mark:#010x}"),
        Statement::Counter => "counter packets 0 bytes 0".to_owned(),
        Statement::Redirect(port) => format!("redirect to :{port}"),
        Statement::Tproxy(port) => format!("tproxy to :{port}"),
        Statement::KeepDestination(family) => {
            let family = self::family(*family);
            format!("dnat {family} to {family} daddr")
        }
        Statement::RejectWithReset => "reject with tcp reset".to_owned(),
        Statement::Return => "return".to_owned(),
        Statement::Accept => "accept".to_owned(),
    }
}

/// nft's name of an address family.
pub(crate) fn family(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

/// nft's name of a transport protocol.
pub(crate) fn transport(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    }
}
