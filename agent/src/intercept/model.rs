//! Pure: tables, sets, chains and rules as values.
//!
//! `ruleset` builds them, `text` and `json` print them as `nft` would, `wire` turns them into netlink
//! messages, `verify` compares them with the kernel. Only what our rules need exists here.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

/// What the elements of a set are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    Ipv4,
    Ipv6,
    Ipv4Port,
    Ipv6Port,
    Ipv4Range,
    Ipv6Range,
    Port,
    Uid,
    Interface,
    Cgroup,
}

/// One element of a set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Element {
    Ipv4(Ipv4Addr),
    Ipv6(Ipv6Addr),
    Ipv4Port(Ipv4Addr, u16),
    Ipv6Port(Ipv6Addr, u16),
    Ipv4Range(Ipv4Net),
    Ipv6Range(Ipv6Net),
    Port(u16),
    Uid(u32),
    Interface(Box<str>),
    /// A cgroup's path, for people, and its number, which is what the kernel compares.
    Cgroup {
        path: Box<str>,
        id: u64,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) name: String,
    pub(crate) key: Key,
    pub(crate) elements: BTreeSet<Element>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) name: &'static str,
    pub(crate) kind: ChainKind,
    pub(crate) hook: ChainHook,
    pub(crate) priority: i32,
    pub(crate) rules: Vec<Rule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChainKind {
    Filter,
    Nat,
    Route,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChainHook {
    Prerouting,
    Input,
    Output,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) statements: Vec<Statement>,
    /// Why it is there, in a few words: nft's comment, and its name in errors.
    pub(crate) label: &'static str,
}

/// One condition or effect of a rule; all conditions before an effect must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Statement {
    Mark(u32),
    UidIn(String),
    CgroupIn {
        level: u32,
        set: String,
    },
    InputInterfaceIn(String),
    OutputInterfaceIn(String),
    /// It did not come over loopback.
    FromOutside,
    DestinationIn(Family, String),
    /// Address and TCP port together.
    EndpointIn(Family, String),
    PortIn(Transport, String),
    Port(Transport, u16),
    Tcp,
    /// The first packet of a TCP connection and nothing else.
    PureSyn,
    /// The destination is an address of this host.
    DestinationIsLocal,
    /// A socket of this host that may have any address (`IP_TRANSPARENT`) waits for it.
    ForTransparentSocket,
    OriginalDirection,
    ReplyDirection,
    ConnectionMark(u32),
    SetConnectionMark(u32),
    SetMark(u32),
    Counter,
    Redirect(u16),
    Tproxy(u16),
    /// The destination stays as it is, also for NAT chains that follow.
    KeepDestination(Family),
    RejectWithReset,
    Return,
    Accept,
}

impl Chain {
    pub(crate) fn new(name: &'static str, kind: ChainKind, hook: ChainHook, priority: i32) -> Self {
        Self { name, kind, hook, priority, rules: Vec::new() }
    }

    pub(crate) fn rule(&mut self, label: &'static str, statements: impl IntoIterator<Item = Statement>) {
        self.rules.push(Rule { statements: statements.into_iter().collect(), label });
    }
}

impl Key {
    /// Ranges are replaced whole; elements of all other sets come and go one by one.
    pub(crate) fn is_range(self) -> bool {
        matches!(self, Self::Ipv4Range | Self::Ipv6Range)
    }
}
