//! Pure: a rule set as the JSON that `nft -j list table` prints.
//!
//! Written with the `nftables` crate's types, so that scripts which read nft's JSON read ours; the set
//! types that the crate lacks (`uid`, `cgroupsv2`) are written by hand. It is for reading: nft's JSON
//! has no level for `socket cgroupv2`, so a rule set with excluded cgroups cannot be loaded from it.

use std::borrow::Cow;
use std::collections::HashSet;

use nftables::expr::{self, BinaryOperation, Expression, NamedExpression};
use nftables::schema::{NfListObject, Rule as JsonRule, SetFlag, SetType, SetTypeValue};
use nftables::stmt::{self, Operator, Statement as JsonStatement};
use nftables::{schema, types};
use serde_json::{Value, json};

use super::model::{Chain, ChainHook, ChainKind, Element, Family, Key, Rule, Set, Statement, Transport};
use super::ruleset::Ruleset;
use super::text;

impl Ruleset {
    /// The rule set as nft's JSON.
    pub fn to_json(&self) -> Value {
        let table =
            NfListObject::Table(schema::Table { family: types::NfFamily::INet, name: self.table.into(), handle: None });
        let mut objects = vec![value(&table)];
        objects.extend(self.sets.iter().map(|set| self.json_set(set)));
        objects.extend(self.chains.iter().map(|chain| value(&self.json_chain(chain))));
        for chain in &self.chains {
            objects.extend(chain.rules.iter().map(|rule| value(&self.json_rule(chain, rule))));
        }
        json!({ "nftables": objects })
    }

    fn json_set(&self, set: &Set) -> Value {
        let elements: Vec<Expression<'_>> = set.elements.iter().map(element).collect();
        let Some(set_type) = set_type(set.key) else {
            let mut object =
                json!({ "family": "inet", "name": set.name, "table": self.table, "type": text::key(set.key) });
            if !elements.is_empty() {
                object["elem"] = json!(elements);
            }
            return json!({ "set": object });
        };
        value(&NfListObject::Set(Box::new(schema::Set {
            family: types::NfFamily::INet,
            table: self.table.into(),
            name: set.name.as_str().into(),
            handle: None,
            set_type,
            policy: None,
            flags: set.key.is_range().then(|| HashSet::from([SetFlag::Interval])),
            elem: (!elements.is_empty()).then(|| elements.into()),
            timeout: None,
            gc_interval: None,
            size: None,
            comment: None,
        })))
    }

    fn json_chain(&self, chain: &Chain) -> NfListObject<'_> {
        NfListObject::Chain(schema::Chain {
            family: types::NfFamily::INet,
            table: self.table.into(),
            name: chain.name.into(),
            newname: None,
            handle: None,
            _type: Some(match chain.kind {
                ChainKind::Filter => types::NfChainType::Filter,
                ChainKind::Nat => types::NfChainType::NAT,
                ChainKind::Route => types::NfChainType::Route,
            }),
            hook: Some(match chain.hook {
                ChainHook::Prerouting => types::NfHook::Prerouting,
                ChainHook::Input => types::NfHook::Input,
                ChainHook::Output => types::NfHook::Output,
            }),
            prio: Some(chain.priority),
            dev: None,
            policy: Some(types::NfChainPolicy::Accept),
        })
    }

    fn json_rule<'a>(&'a self, chain: &'a Chain, rule: &'a Rule) -> NfListObject<'a> {
        NfListObject::Rule(JsonRule {
            family: types::NfFamily::INet,
            table: self.table.into(),
            chain: chain.name.into(),
            expr: rule.statements.iter().map(statement).collect(),
            handle: None,
            index: None,
            comment: Some(rule.label.into()),
        })
    }
}

fn statement(statement: &Statement) -> JsonStatement<'_> {
    match statement {
        Statement::Mark(mark) => is(meta(expr::MetaKey::Mark), Expression::Number(*mark)),
        Statement::UidIn(set) => is(meta(expr::MetaKey::Skuid), in_set(set)),
        Statement::CgroupIn { set, .. } => is(socket(expr::SocketAttr::Cgroupv2), in_set(set)),
        Statement::InputInterfaceIn(set) => is(meta(expr::MetaKey::Iifname), in_set(set)),
        Statement::OutputInterfaceIn(set) => is(meta(expr::MetaKey::Oifname), in_set(set)),
        Statement::FromOutside => matching(Operator::NEQ, meta(expr::MetaKey::Iifname), word("lo")),
        Statement::DestinationIn(family, set) => is(destination(*family), in_set(set)),
        Statement::EndpointIn(family, set) => {
            let both = vec![destination(*family), header("tcp", "dport")];
            is(named(NamedExpression::Concat(both)), in_set(set))
        }
        Statement::PortIn(transport, set) => is(header(text::transport(*transport), "dport"), in_set(set)),
        Statement::Port(transport, port) => is(destination_port(*transport), Expression::Number(u32::from(*port))),
        Statement::Tcp => is(meta(expr::MetaKey::L4proto), word("tcp")),
        Statement::PureSyn => pure_syn(),
        Statement::DestinationIsLocal => {
            let fib = expr::Fib { result: expr::FibResult::Type, flags: HashSet::from([expr::FibFlag::Daddr]) };
            is(named(NamedExpression::Fib(fib)), word("local"))
        }
        Statement::ForTransparentSocket => is(socket(expr::SocketAttr::Transparent), Expression::Number(1)),
        Statement::OriginalDirection => is(connection("direction"), word("original")),
        Statement::ReplyDirection => is(connection("direction"), word("reply")),
        Statement::ConnectionMark(mark) => is(connection("mark"), Expression::Number(*mark)),
        effect => self::effect(effect),
    }
}

fn effect(statement: &Statement) -> JsonStatement<'_> {
    match statement {
        Statement::SetConnectionMark(mark) => set_to(connection("mark"), *mark),
        Statement::SetMark(mark) => set_to(meta(expr::MetaKey::Mark), *mark),
        Statement::Redirect(port) => JsonStatement::Redirect(Some(stmt::NAT {
            addr: None,
            family: None,
            port: Some(Expression::Number(u32::from(*port))),
            flags: None,
        })),
        Statement::Tproxy(port) => JsonStatement::TProxy(stmt::TProxy { family: None, port: *port, addr: None }),
        Statement::KeepDestination(family) => JsonStatement::DNAT(Some(stmt::NAT {
            addr: Some(destination(*family)),
            family: Some(match family {
                Family::V4 => stmt::NATFamily::IP,
                Family::V6 => stmt::NATFamily::IP6,
            }),
            port: None,
            flags: None,
        })),
        Statement::RejectWithReset => {
            JsonStatement::Reject(Some(stmt::Reject::new(Some(stmt::RejectType::TCPReset), None)))
        }
        Statement::Return => JsonStatement::Return(None),
        Statement::Accept => JsonStatement::Accept(None),
        // Conditions are written by `statement`; what is left is the counter.
        _ => JsonStatement::Counter(stmt::Counter::Anonymous(Some(stmt::AnonymousCounter {
            packets: Some(0),
            bytes: Some(0),
        }))),
    }
}

fn pure_syn() -> JsonStatement<'static> {
    let flags = ["fin", "syn", "rst", "ack"].map(word).to_vec();
    let masked = BinaryOperation::AND(header("tcp", "flags"), Expression::List(flags));
    is(Expression::BinaryOperation(Box::new(masked)), word("syn"))
}

fn element(element: &Element) -> Expression<'static> {
    let pair = |address: String, port: u16| {
        let both = vec![Expression::String(address.into()), Expression::Number(u32::from(port))];
        named(NamedExpression::Concat(both))
    };
    let range = |address: String, length: u8, whole: u8| {
        let addr = Expression::String(address.into());
        if length == whole {
            return addr;
        }
        named(NamedExpression::Prefix(expr::Prefix { addr: Box::new(addr), len: u32::from(length) }))
    };
    match element {
        Element::Ipv4(address) => Expression::String(address.to_string().into()),
        Element::Ipv6(address) => Expression::String(address.to_string().into()),
        Element::Ipv4Port(address, port) => pair(address.to_string(), *port),
        Element::Ipv6Port(address, port) => pair(address.to_string(), *port),
        Element::Ipv4Range(net) => range(net.addr().to_string(), net.prefix_len(), 32),
        Element::Ipv6Range(net) => range(net.addr().to_string(), net.prefix_len(), 128),
        Element::Port(port) => Expression::Number(u32::from(*port)),
        Element::Uid(uid) => Expression::Number(*uid),
        Element::Interface(name) => Expression::String(name.to_string().into()),
        Element::Cgroup { path, .. } => Expression::String(path.to_string().into()),
    }
}

fn set_type(key: Key) -> Option<SetTypeValue<'static>> {
    Some(match key {
        Key::Ipv4 | Key::Ipv4Range => SetTypeValue::Single(SetType::Ipv4Addr),
        Key::Ipv6 | Key::Ipv6Range => SetTypeValue::Single(SetType::Ipv6Addr),
        Key::Ipv4Port => SetTypeValue::Concatenated(vec![SetType::Ipv4Addr, SetType::InetService].into()),
        Key::Ipv6Port => SetTypeValue::Concatenated(vec![SetType::Ipv6Addr, SetType::InetService].into()),
        Key::Port => SetTypeValue::Single(SetType::InetService),
        Key::Interface => SetTypeValue::Single(SetType::Ifname),
        Key::Uid | Key::Cgroup => return None,
    })
}

fn is<'a>(left: Expression<'a>, right: Expression<'a>) -> JsonStatement<'a> {
    matching(Operator::EQ, left, right)
}

fn matching<'a>(op: Operator, left: Expression<'a>, right: Expression<'a>) -> JsonStatement<'a> {
    JsonStatement::Match(stmt::Match { left, right, op })
}

fn set_to(key: Expression<'_>, mark: u32) -> JsonStatement<'_> {
    JsonStatement::Mangle(stmt::Mangle { key, value: Expression::Number(mark) })
}

fn in_set(set: &str) -> Expression<'_> {
    Expression::String(format!("@{set}").into())
}

fn word(word: &'static str) -> Expression<'static> {
    Expression::String(word.into())
}

fn meta(key: expr::MetaKey) -> Expression<'static> {
    named(NamedExpression::Meta(expr::Meta { key }))
}

fn socket(key: expr::SocketAttr) -> Expression<'static> {
    named(NamedExpression::Socket(expr::Socket { key: Cow::Owned(key) }))
}

fn connection(key: &'static str) -> Expression<'static> {
    named(NamedExpression::CT(expr::CT { key: key.into(), family: None, dir: None }))
}

fn destination(family: Family) -> Expression<'static> {
    header(text::family(family), "daddr")
}

fn destination_port(transport: Transport) -> Expression<'static> {
    header(text::transport(transport), "dport")
}

fn header(protocol: &'static str, field: &'static str) -> Expression<'static> {
    let field = expr::PayloadField { protocol: protocol.into(), field: field.into() };
    named(NamedExpression::Payload(expr::Payload::PayloadField(field)))
}

fn named(expression: NamedExpression<'_>) -> Expression<'_> {
    Expression::Named(expression)
}

fn value(object: &NfListObject<'_>) -> Value {
    serde_json::to_value(object).expect("the types are plain data with string keys")
}
