//! Policies between the domain and `istio.security`. Called by `wire` alone. Pure.
//!
//! Istio's wire has no AUDIT: it travels as a dry-run ALLOW, which a stock ztunnel obeys by doing
//! nothing, with an extension by which an agent knows it again.

use ipnet::IpNet;

use super::security as pb;
use super::{FieldError, FieldProblem, enumeration, ip_bytes, network, port, required};
use crate::policy::{Action, AuthorizationPolicy, Clause, Match, Rule, Scope, ServiceAccountMatch, StringMatch};

/// Marks a dry-run ALLOW that is an AUDIT.
const AUDIT: &str = "tombolo.dev/audit";

impl TryFrom<pb::Authorization> for AuthorizationPolicy {
    type Error = FieldError;

    fn try_from(message: pb::Authorization) -> Result<Self, FieldError> {
        let audit = message.extensions.iter().any(|extension| extension.name == AUDIT);
        let action = match enumeration(message.action).map_err(|p| p.at("action"))? {
            pb::Action::Allow if audit => Action::Audit,
            pb::Action::Allow => Action::Allow,
            pb::Action::Deny => Action::Deny,
        };
        let scope = match enumeration(message.scope).map_err(|p| p.at("scope"))? {
            pb::Scope::Global => Scope::Global,
            pb::Scope::Namespace => Scope::Namespace,
            pb::Scope::WorkloadSelector => Scope::WorkloadSelector,
        };
        Ok(Self {
            name: required(message.name, "name")?,
            namespace: required(message.namespace, "namespace")?,
            scope,
            action,
            rules: each(message.rules, "rules")?,
            dry_run: message.dry_run && !audit,
        })
    }
}

impl TryFrom<pb::Rule> for Rule {
    type Error = FieldError;

    fn try_from(message: pb::Rule) -> Result<Self, FieldError> {
        Ok(Self { clauses: each(message.clauses, "clauses")? })
    }
}

impl TryFrom<pb::Clause> for Clause {
    type Error = FieldError;

    fn try_from(message: pb::Clause) -> Result<Self, FieldError> {
        Ok(Self { matches: each(message.matches, "matches")? })
    }
}

impl TryFrom<pb::Match> for Match {
    type Error = FieldError;

    fn try_from(message: pb::Match) -> Result<Self, FieldError> {
        // An extension narrows a match in a way this version cannot check, so an ALLOW would widen.
        if !message.extensions.is_empty() {
            return Err(FieldProblem::Unsupported { what: "an extension" }.at("extensions"));
        }
        Ok(Self {
            namespaces: each(message.namespaces, "namespaces")?,
            not_namespaces: each(message.not_namespaces, "not_namespaces")?,
            principals: each(message.principals, "principals")?,
            not_principals: each(message.not_principals, "not_principals")?,
            source_ips: each_with(message.source_ips, "source_ips", net)?,
            not_source_ips: each_with(message.not_source_ips, "not_source_ips", net)?,
            destination_ips: each_with(message.destination_ips, "destination_ips", net)?,
            not_destination_ips: each_with(message.not_destination_ips, "not_destination_ips", net)?,
            destination_ports: ports(&message.destination_ports, "destination_ports")?,
            not_destination_ports: ports(&message.not_destination_ports, "not_destination_ports")?,
            service_accounts: each(message.service_accounts, "service_accounts")?,
            not_service_accounts: each(message.not_service_accounts, "not_service_accounts")?,
        })
    }
}

fn each<M, T: TryFrom<M, Error = FieldError>>(found: Vec<M>, field: &str) -> Result<Vec<T>, FieldError> {
    each_with(found, field, T::try_from)
}

fn each_with<M, T>(found: Vec<M>, field: &str, read: fn(M) -> Result<T, FieldError>) -> Result<Vec<T>, FieldError> {
    let one = |(n, message)| read(message).map_err(|fault| fault.below(format_args!("{field}[{n}]")));
    found.into_iter().enumerate().map(one).collect()
}

fn net(message: pb::Address) -> Result<IpNet, FieldError> {
    network(&message.address, message.length).map_err(|problem| match problem {
        FieldProblem::AddressLength { .. } => problem.at("address"),
        _ => problem.at("length"),
    })
}

fn ports(found: &[u32], field: &str) -> Result<Vec<u16>, FieldError> {
    let one = |(n, value): (usize, &u32)| port(*value).map_err(|p| p.at(format!("{field}[{n}]")));
    found.iter().enumerate().map(one).collect()
}

impl TryFrom<pb::StringMatch> for StringMatch {
    type Error = FieldError;

    fn try_from(message: pb::StringMatch) -> Result<Self, FieldError> {
        use pb::string_match::MatchType;
        match message.match_type {
            Some(MatchType::Exact(text)) => Ok(Self::Exact(text)),
            Some(MatchType::Prefix(text)) => Ok(Self::Prefix(text)),
            Some(MatchType::Suffix(text)) => Ok(Self::Suffix(text)),
            Some(MatchType::Presence(())) => Ok(Self::Presence),
            None => Err(FieldProblem::Missing.at("match_type")),
        }
    }
}

impl TryFrom<pb::ServiceAccountMatch> for ServiceAccountMatch {
    type Error = FieldError;

    fn try_from(message: pb::ServiceAccountMatch) -> Result<Self, FieldError> {
        Ok(Self {
            namespace: required(message.namespace, "namespace")?,
            service_account: required(message.service_account, "service_account")?,
        })
    }
}

impl From<&AuthorizationPolicy> for pb::Authorization {
    fn from(policy: &AuthorizationPolicy) -> Self {
        let audit = policy.action == Action::Audit;
        let action = match policy.action {
            Action::Allow | Action::Audit => pb::Action::Allow,
            Action::Deny => pb::Action::Deny,
        };
        let scope = match policy.scope {
            Scope::Global => pb::Scope::Global,
            Scope::Namespace => pb::Scope::Namespace,
            Scope::WorkloadSelector => pb::Scope::WorkloadSelector,
        };
        Self {
            name: policy.name.clone(),
            namespace: policy.namespace.clone(),
            scope: scope.into(),
            action: action.into(),
            rules: policy.rules.iter().map(pb::Rule::from).collect(),
            dry_run: policy.dry_run || audit,
            extensions: audit.then(|| pb::Extension { name: AUDIT.to_owned(), config: None }).into_iter().collect(),
        }
    }
}

impl From<&Rule> for pb::Rule {
    fn from(rule: &Rule) -> Self {
        let clause = |clause: &Clause| pb::Clause { matches: clause.matches.iter().map(pb::Match::from).collect() };
        Self { clauses: rule.clauses.iter().map(clause).collect() }
    }
}

impl From<&Match> for pb::Match {
    fn from(m: &Match) -> Self {
        let texts = |texts: &[StringMatch]| texts.iter().map(pb::StringMatch::from).collect();
        let nets = |nets: &[IpNet]| nets.iter().map(address).collect();
        let ports = |ports: &[u16]| ports.iter().copied().map(u32::from).collect();
        let account = |m: &ServiceAccountMatch| pb::ServiceAccountMatch {
            namespace: m.namespace.clone(),
            service_account: m.service_account.clone(),
        };
        Self {
            namespaces: texts(&m.namespaces),
            not_namespaces: texts(&m.not_namespaces),
            principals: texts(&m.principals),
            not_principals: texts(&m.not_principals),
            source_ips: nets(&m.source_ips),
            not_source_ips: nets(&m.not_source_ips),
            destination_ips: nets(&m.destination_ips),
            not_destination_ips: nets(&m.not_destination_ips),
            destination_ports: ports(&m.destination_ports),
            not_destination_ports: ports(&m.not_destination_ports),
            service_accounts: m.service_accounts.iter().map(account).collect(),
            not_service_accounts: m.not_service_accounts.iter().map(account).collect(),
            extensions: Vec::new(),
        }
    }
}

fn address(net: &IpNet) -> pb::Address {
    pb::Address { address: ip_bytes(net.network()), length: net.prefix_len().into() }
}

impl From<&StringMatch> for pb::StringMatch {
    fn from(m: &StringMatch) -> Self {
        use pb::string_match::MatchType;
        let match_type = match m {
            StringMatch::Exact(text) => MatchType::Exact(text.clone()),
            StringMatch::Prefix(text) => MatchType::Prefix(text.clone()),
            StringMatch::Suffix(text) => MatchType::Suffix(text.clone()),
            StringMatch::Presence => MatchType::Presence(()),
        };
        Self { match_type: Some(match_type) }
    }
}
