//! security.istio.io AuthorizationPolicy, the fields that a connection can be judged by, and its
//! translation to the policy that agents enforce. Pure.
//!
//! A rule that would need HTTP is refused rather than narrowed: istiod drops such rules for ztunnel
//! from an ALLOW and empties them in a DENY, which then does nothing (its
//! `pilot/pkg/serviceregistry/ambient/authorization.go`).

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::fields::{At, Fields};
use super::{Meta, names, selector};
use crate::policy::{self, Action, Clause, Match, ROOT_NAMESPACE, Scope, ServiceAccountMatch, StringMatch};

/// Istio's annotation by which a policy is only reported.
const DRY_RUN: &str = "istio.io/dry-run";

#[derive(Debug, Clone, PartialEq)]
pub struct AuthorizationPolicy {
    /// Labels of the workloads it is for; `None` is all of the namespace (of the mesh, in the root
    /// namespace).
    pub selector: Option<BTreeMap<String, String>>,
    pub action: Action,
    /// One of them has to match. None at all never matches.
    pub rules: Vec<Rule>,
}

/// Matches when one source, one operation and all conditions do. An empty rule matches everything.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rule {
    pub from: Vec<Source>,
    pub to: Vec<Operation>,
    pub when: Vec<Condition>,
}

/// Who: all fields that are set have to match. `*` at one end of a text stands for anything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub principals: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_principals: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_namespaces: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip_blocks: Vec<IpNet>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_ip_blocks: Vec<IpNet>,
    /// `NAMESPACE/ACCOUNT`, or `ACCOUNT` of the policy's own namespace.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_service_accounts: Vec<String>,
}

/// Where to: the workload's own port, not the service's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "in_quotes")]
    pub ports: Vec<u16>,
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "in_quotes")]
    pub not_ports: Vec<u16>,
}

/// One attribute of the connection and what it has to be, or must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    SourceIp(Values<IpNet>),
    SourceNamespace(Values<String>),
    SourcePrincipal(Values<String>),
    DestinationIp(Values<IpNet>),
    DestinationPort(Values<u16>),
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Values<T> {
    pub values: Vec<T>,
    pub not_values: Vec<T>,
}

impl AuthorizationPolicy {
    /// The policy as agents enforce it.
    pub fn translate(&self, meta: &Meta) -> policy::AuthorizationPolicy {
        let scope = match &self.selector {
            Some(_) => Scope::WorkloadSelector,
            None if meta.namespace == ROOT_NAMESPACE => Scope::Global,
            None => Scope::Namespace,
        };
        policy::AuthorizationPolicy {
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            scope,
            action: self.action,
            rules: self.rules.iter().map(|rule| rule.translate(&meta.namespace)).collect(),
            dry_run: meta.annotations.get(DRY_RUN).is_some_and(|text| text == "true"),
        }
    }
}

impl Rule {
    fn translate(&self, namespace: &str) -> policy::Rule {
        let to = self.to.iter().map(Operation::translate).collect::<Vec<Match>>();
        let from = self.from.iter().map(|source| source.translate(namespace)).collect();
        let when = self.when.iter().map(|condition| vec![condition.translate()]);
        let clauses = [to, from].into_iter().filter(|matches| !matches.is_empty()).chain(when);
        policy::Rule { clauses: clauses.map(|matches| Clause { matches }).collect() }
    }
}

impl Source {
    fn translate(&self, namespace: &str) -> Match {
        let account = |text: &String| {
            let (namespace, account) = text.split_once('/').unwrap_or((namespace, text));
            ServiceAccountMatch { namespace: namespace.to_owned(), service_account: account.to_owned() }
        };
        Match {
            principals: texts(&self.principals),
            not_principals: texts(&self.not_principals),
            namespaces: texts(&self.namespaces),
            not_namespaces: texts(&self.not_namespaces),
            source_ips: self.ip_blocks.clone(),
            not_source_ips: self.not_ip_blocks.clone(),
            service_accounts: self.service_accounts.iter().map(account).collect(),
            not_service_accounts: self.not_service_accounts.iter().map(account).collect(),
            ..Match::default()
        }
    }
}

impl Operation {
    fn translate(&self) -> Match {
        Match {
            destination_ports: self.ports.clone(),
            not_destination_ports: self.not_ports.clone(),
            ..Match::default()
        }
    }
}

impl Condition {
    fn translate(&self) -> Match {
        let mut m = Match::default();
        match self {
            Self::SourceIp(ips) => (m.source_ips, m.not_source_ips) = ips.clone().both(),
            Self::DestinationIp(ips) => (m.destination_ips, m.not_destination_ips) = ips.clone().both(),
            Self::DestinationPort(ports) => (m.destination_ports, m.not_destination_ports) = ports.clone().both(),
            Self::SourceNamespace(names) => {
                (m.namespaces, m.not_namespaces) = (texts(&names.values), texts(&names.not_values));
            }
            Self::SourcePrincipal(names) => {
                (m.principals, m.not_principals) = (texts(&names.values), texts(&names.not_values));
            }
        }
        m
    }
}

impl<T> Values<T> {
    fn both(self) -> (Vec<T>, Vec<T>) {
        (self.values, self.not_values)
    }
}

/// `*` is any value but none, `*x` a suffix, `x*` a prefix, anything else itself (Istio's Rule).
fn texts(patterns: &[String]) -> Vec<StringMatch> {
    let one = |pattern: &String| match (pattern.as_str(), pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        ("*", _, _) => StringMatch::Presence,
        (_, Some(suffix), _) => StringMatch::Suffix(suffix.to_owned()),
        (_, _, Some(prefix)) => StringMatch::Prefix(prefix.to_owned()),
        _ => StringMatch::Exact(pattern.clone()),
    };
    patterns.iter().map(one).collect()
}

pub(super) fn read(mut spec: Fields<'_>) -> AuthorizationPolicy {
    let actions = [("ALLOW", Action::Allow), ("DENY", Action::Deny), ("AUDIT", Action::Audit)];
    let action = spec.at("action").and_then(|at| match at.is("CUSTOM") {
        true => at.unsupported("external authorization; use ALLOW, DENY or AUDIT"),
        false => at.one_of(&actions),
    });
    let policy = AuthorizationPolicy {
        selector: selector(&mut spec),
        action: action.unwrap_or(Action::Allow),
        rules: spec.list("rules").into_iter().filter_map(At::object).map(rule).collect(),
    };
    let target = "policies are for workloads; use a selector";
    spec.finish(&[("targetRef", target), ("targetRefs", target), ("provider", "external authorization")]);
    policy
}

fn rule(mut fields: Fields<'_>) -> Rule {
    let empty = "leave it out to mean any";
    let rule = Rule {
        from: filled(&mut fields, "from", empty).into_iter().filter_map(|item| inner(item, "source", source)).collect(),
        to: filled(&mut fields, "to", empty)
            .into_iter()
            .filter_map(|item| inner(item, "operation", operation))
            .collect(),
        when: filled(&mut fields, "when", empty).into_iter().filter_map(condition).collect(),
    };
    fields.finish(&[]);
    rule
}

fn filled<'a>(fields: &mut Fields<'a>, name: &'static str, empty: &str) -> Vec<At<'a>> {
    fields.at(name).map(|at| at.filled_list(empty)).unwrap_or_default()
}

/// The one field of an item of `from` or `to`.
fn inner<'a, T>(item: At<'a>, name: &'static str, read: fn(Fields<'a>) -> T) -> Option<T> {
    let mut fields = item.object()?;
    let found = fields.required(name, "say which").and_then(At::object).map(read);
    fields.finish(&[]);
    found
}

fn source(mut fields: Fields<'_>) -> Source {
    let before = fields.n_mistakes();
    let source = Source {
        principals: patterns(&mut fields, "principals", principal),
        not_principals: patterns(&mut fields, "notPrincipals", principal),
        namespaces: patterns(&mut fields, "namespaces", pattern),
        not_namespaces: patterns(&mut fields, "notNamespaces", pattern),
        ip_blocks: patterns(&mut fields, "ipBlocks", At::network),
        not_ip_blocks: patterns(&mut fields, "notIpBlocks", At::network),
        service_accounts: patterns(&mut fields, "serviceAccounts", account),
        not_service_accounts: patterns(&mut fields, "notServiceAccounts", account),
    };
    let named = |accounts: &[String], others: [&[String]; 2]| {
        !accounts.is_empty() && others.iter().any(|other| !other.is_empty())
    };
    if named(&source.service_accounts, [&source.principals, &source.namespaces])
        || named(&source.not_service_accounts, [&source.not_principals, &source.not_namespaces])
    {
        fields.conflict("serviceAccounts cannot be combined with principals or namespaces, which it includes");
    }
    let http = "it needs HTTP; connections are judged by principals, serviceAccounts, namespaces, ipBlocks, ports";
    let trust = "write the trust domain in principals, such as corp.example/*";
    let empty = "must say something: an empty source matches nothing; leave `from` out to mean any source";
    let upstream = [
        ("requestPrincipals", http),
        ("notRequestPrincipals", http),
        ("remoteIpBlocks", http),
        ("notRemoteIpBlocks", http),
        ("trustDomains", trust),
        ("notTrustDomains", trust),
    ];
    fields.finish_unless(&upstream, before, (source == Source::default()).then_some(empty));
    source
}

fn operation(mut fields: Fields<'_>) -> Operation {
    let before = fields.n_mistakes();
    let operation = Operation {
        ports: patterns(&mut fields, "ports", At::quoted_port),
        not_ports: patterns(&mut fields, "notPorts", At::quoted_port),
    };
    let http = "it needs HTTP; connections are judged by ports";
    let empty = "must say something: an empty operation matches nothing; leave `to` out to mean any port";
    let upstream = ["hosts", "notHosts", "methods", "notMethods", "paths", "notPaths"].map(|name| (name, http));
    fields.finish_unless(&upstream, before, (operation == Operation::default()).then_some(empty));
    operation
}

/// A list of values; an empty one is refused, because it would mean any.
fn patterns<'a, T>(fields: &mut Fields<'a>, name: &'static str, read: fn(At<'a>) -> Option<T>) -> Vec<T> {
    filled(fields, name, "leave it out to mean any").into_iter().filter_map(read).collect()
}

fn pattern(at: At<'_>) -> Option<String> {
    let text = at.sibling().text()?;
    let inside = text.strip_prefix('*').or_else(|| text.strip_suffix('*')).unwrap_or(&text);
    match inside.contains('*') {
        true => at.invalid(&text, "a pattern: one * at the beginning or at the end stands for anything"),
        false => Some(text),
    }
}

fn principal(at: At<'_>) -> Option<String> {
    match at.sibling().text()?.strip_prefix("spiffe://") {
        Some(rest) => {
            at.invalid(&format!("spiffe://{rest}"), format!("a principal: leave out spiffe://, write {rest}"))
        }
        None => pattern(at),
    }
}

fn account(at: At<'_>) -> Option<String> {
    let text = at.sibling().text()?;
    let (namespace, account) = text.split_once('/').map_or((None, text.as_str()), |(ns, sa)| (Some(ns), sa));
    let sound = namespace.is_none_or(|ns| names::label(ns).is_ok()) && names::subdomain(account).is_ok();
    if sound { Some(text) } else { at.invalid(&text, "NAMESPACE/SERVICE-ACCOUNT or SERVICE-ACCOUNT, without *") }
}

fn condition(item: At<'_>) -> Option<Condition> {
    let mut fields = item.object()?;
    let key = fields.required("key", "an attribute such as source.ip")?;
    let condition = match key.sibling().text()?.as_str() {
        "source.ip" => Some(Condition::SourceIp(values(&mut fields, At::network))),
        "source.namespace" => Some(Condition::SourceNamespace(values(&mut fields, pattern))),
        "source.principal" => Some(Condition::SourcePrincipal(values(&mut fields, principal))),
        "destination.ip" => Some(Condition::DestinationIp(values(&mut fields, At::network))),
        "destination.port" => Some(Condition::DestinationPort(values(&mut fields, At::quoted_port))),
        other => {
            let known = "source.ip, source.namespace, source.principal, destination.ip, destination.port";
            fields.at("values");
            fields.at("notValues");
            match ["request.", "remote.", "source.", "destination.", "connection.", "experimental."]
                .iter()
                .any(|prefix| other.starts_with(prefix))
            {
                true => key.unsupported(&format!("{other}; connections are judged by {known}")),
                false => key.invalid(other, format!("one of {known}")),
            }
        }
    };
    fields.finish(&[]);
    condition
}

fn values<'a, T>(fields: &mut Fields<'a>, read: fn(At<'a>) -> Option<T>) -> Values<T> {
    if fields.at("values").is_none() && fields.at("notValues").is_none() {
        fields.conflict("must have values or notValues");
    }
    Values { values: patterns(fields, "values", read), not_values: patterns(fields, "notValues", read) }
}

impl Serialize for AuthorizationPolicy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut spec = serializer.serialize_struct("AuthorizationPolicySpec", 3)?;
        if let Some(labels) = &self.selector {
            spec.serialize_field("selector", &BTreeMap::from([("matchLabels", labels)]))?;
        }
        spec.serialize_field("action", &self.action)?;
        if !self.rules.is_empty() {
            spec.serialize_field("rules", &self.rules)?;
        }
        spec.end()
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        fn each<T: Serialize>(name: &'static str, items: &[T]) -> Vec<BTreeMap<&'static str, serde_json::Value>> {
            let one = |item| BTreeMap::from([(name, serde_json::to_value(item).unwrap_or_default())]);
            items.iter().map(one).collect()
        }
        let mut rule = serializer.serialize_struct("Rule", 3)?;
        if !self.from.is_empty() {
            rule.serialize_field("from", &each("source", &self.from))?;
        }
        if !self.to.is_empty() {
            rule.serialize_field("to", &each("operation", &self.to))?;
        }
        if !self.when.is_empty() {
            rule.serialize_field("when", &self.when)?;
        }
        rule.end()
    }
}

impl Serialize for Condition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let strings = |list: &[IpNet]| list.iter().map(IpNet::to_string).collect::<Vec<_>>();
        let ports = |list: &[u16]| list.iter().map(u16::to_string).collect::<Vec<_>>();
        let (key, (values, not_values)) = match self {
            Self::SourceIp(v) => ("source.ip", (strings(&v.values), strings(&v.not_values))),
            Self::DestinationIp(v) => ("destination.ip", (strings(&v.values), strings(&v.not_values))),
            Self::DestinationPort(v) => ("destination.port", (ports(&v.values), ports(&v.not_values))),
            Self::SourceNamespace(v) => ("source.namespace", (v.values.clone(), v.not_values.clone())),
            Self::SourcePrincipal(v) => ("source.principal", (v.values.clone(), v.not_values.clone())),
        };
        let mut condition = serializer.serialize_struct("Condition", 3)?;
        condition.serialize_field("key", key)?;
        if !values.is_empty() {
            condition.serialize_field("values", &values)?;
        }
        if !not_values.is_empty() {
            condition.serialize_field("notValues", &not_values)?;
        }
        condition.end()
    }
}

fn in_quotes<S: Serializer>(ports: &[u16], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(ports.iter().map(u16::to_string))
}
