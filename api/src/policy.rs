//! L4 authorization: who may open which connection. Pure: the proxy enforces with it, `tombolo why`
//! explains with it.
//!
//! Order (Istio's AuthorizationPolicy, as in ztunnel's `src/rbac.rs`): any matching DENY refuses; else with
//! no ALLOW policy in force all is allowed; else one ALLOW must match. Policies in force for a
//! workload are those of the root namespace, of its own namespace, and those that select it.
//! Dry-run and audit policies never change the verdict; they are reported with it.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::spiffe::SpiffeId;
use crate::workload::Workload;

/// The namespace whose policies are in force for the whole mesh, and of the control plane itself
/// (Istio's root namespace).
pub const ROOT_NAMESPACE: &str = "tombolo-system";

/// One policy, as every agent holds it.
#[derive(Debug, Clone, PartialEq)]
pub struct AuthorizationPolicy {
    pub name: String,
    pub namespace: String,
    pub scope: Scope,
    pub action: Action,
    pub rules: Vec<Rule>,
    /// Only say in the log what it would have done.
    pub dry_run: bool,
}

/// For which workloads a policy is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All of the mesh.
    Global,
    /// All of its namespace.
    Namespace,
    /// Those that name it in `authorization_policies`.
    WorkloadSelector,
}

/// What a matching policy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    Allow,
    Deny,
    /// Log that it matched.
    Audit,
}

/// Matches when all of its clauses do. A rule without clauses matches everything.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rule {
    pub clauses: Vec<Clause>,
}

/// Matches when one of its matches does.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Clause {
    pub matches: Vec<Match>,
}

/// Matches when every field that is set does: one of the positive values, none of the negative.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Match {
    pub namespaces: Vec<StringMatch>,
    pub not_namespaces: Vec<StringMatch>,
    pub principals: Vec<StringMatch>,
    pub not_principals: Vec<StringMatch>,
    pub source_ips: Vec<IpNet>,
    pub not_source_ips: Vec<IpNet>,
    pub destination_ips: Vec<IpNet>,
    pub not_destination_ips: Vec<IpNet>,
    pub destination_ports: Vec<u16>,
    pub not_destination_ports: Vec<u16>,
    pub service_accounts: Vec<ServiceAccountMatch>,
    pub not_service_accounts: Vec<ServiceAccountMatch>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StringMatch {
    Exact(String),
    Prefix(String),
    Suffix(String),
    /// Any value, but not none.
    Presence,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccountMatch {
    pub namespace: String,
    pub service_account: String,
}

/// What is known of a connection when it is judged: only what was proved or seen, never headers.
#[derive(Debug, Clone, PartialEq)]
pub struct Connection {
    /// The identity proved by mTLS; `None` for plaintext.
    pub source: Option<SpiffeId>,
    pub source_ip: IpAddr,
    /// The workload's own address and the port it listens on (not the service's).
    pub destination: SocketAddr,
}

/// The answer, and the policy that gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub decision: Decision,
    /// `namespace/name` of policies that matched but only log: audit and dry-run.
    pub audits: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// No ALLOW policy is in force for the workload and no DENY matched.
    AllowedByDefault,
    /// `namespace/name` of the ALLOW policy that matched.
    Allowed { policy: String },
    /// `namespace/name` of the DENY policy that matched.
    Denied { policy: String },
    /// ALLOW policies are in force and none matched; their `namespace/name`s.
    NotAllowed { policies: Vec<String> },
}

impl Verdict {
    pub fn allowed(&self) -> bool {
        match self.decision {
            Decision::AllowedByDefault | Decision::Allowed { .. } => true,
            Decision::Denied { .. } | Decision::NotAllowed { .. } => false,
        }
    }

    /// The sentence for logs and for the refused caller.
    pub fn reason(&self) -> String {
        match &self.decision {
            Decision::AllowedByDefault => "no policy applies".to_owned(),
            Decision::Allowed { policy } => format!("allowed by {policy}"),
            Decision::Denied { policy } => format!("denied by {policy}"),
            Decision::NotAllowed { policies } => format!("no rule of {} allows it", policies.join(", ")),
        }
    }

    /// The policy that decided, when one did.
    pub fn policy(&self) -> Option<&str> {
        match &self.decision {
            Decision::AllowedByDefault => None,
            Decision::Allowed { policy } | Decision::Denied { policy } => Some(policy),
            Decision::NotAllowed { policies } => policies.first().map(String::as_str),
        }
    }
}

impl AuthorizationPolicy {
    /// `namespace/name`, as logs and workloads name it.
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    pub fn applies_to(&self, workload: &Workload) -> bool {
        match self.scope {
            Scope::Global => true,
            Scope::Namespace => self.namespace == workload.namespace,
            Scope::WorkloadSelector => workload.authorization_policies.contains(&self.key()),
        }
    }

    pub fn matches(&self, connection: &Connection) -> bool {
        self.rules.iter().any(|rule| rule.clauses.iter().all(|clause| clause.matches(connection)))
    }
}

/// Judges one connection. `policies` are those in force for the destination workload.
pub fn evaluate<'a>(policies: impl Iterator<Item = &'a AuthorizationPolicy>, connection: &Connection) -> Verdict {
    let mut audits = Vec::new();
    let mut denied = None;
    let mut allowed = None;
    let mut allow_policies = Vec::new();
    for policy in policies {
        let matched = policy.matches(connection);
        if policy.dry_run || policy.action == Action::Audit {
            if matched {
                audits.push(policy.key());
            }
            continue;
        }
        match policy.action {
            Action::Deny if matched && denied.is_none() => denied = Some(policy.key()),
            Action::Allow if matched && allowed.is_none() => allowed = Some(policy.key()),
            Action::Allow => allow_policies.push(policy.key()),
            Action::Deny | Action::Audit => {}
        }
    }
    let decision = match (denied, allowed) {
        (Some(policy), _) => Decision::Denied { policy },
        (None, Some(policy)) => Decision::Allowed { policy },
        (None, None) if allow_policies.is_empty() => Decision::AllowedByDefault,
        (None, None) => Decision::NotAllowed { policies: allow_policies },
    };
    Verdict { decision, audits }
}

impl Clause {
    fn matches(&self, connection: &Connection) -> bool {
        self.matches.iter().any(|m| m.matches(connection))
    }
}

impl Match {
    fn matches(&self, connection: &Connection) -> bool {
        // A match without any field is what remains of a rule that this level cannot express; as in
        // ztunnel's `src/rbac.rs` it matches nothing.
        if *self == Self::default() {
            return false;
        }
        let namespace = connection.source.as_ref().and_then(SpiffeId::namespace);
        let account = connection.source.as_ref().and_then(SpiffeId::service_account);
        let principal = connection.source.as_ref().map(SpiffeId::principal);
        let principal = principal.as_deref();
        let is_account = |m: &ServiceAccountMatch| {
            namespace == Some(m.namespace.as_str()) && account == Some(m.service_account.as_str())
        };
        let (from, to) = (connection.source_ip.to_canonical(), connection.destination.ip().to_canonical());
        let port = connection.destination.port();
        field(&self.namespaces, &self.not_namespaces, |m| m.matches(namespace))
            && field(&self.principals, &self.not_principals, |m| m.matches(principal))
            && field(&self.service_accounts, &self.not_service_accounts, is_account)
            && field(&self.source_ips, &self.not_source_ips, |net| net.contains(&from))
            && field(&self.destination_ips, &self.not_destination_ips, |net| net.contains(&to))
            && field(&self.destination_ports, &self.not_destination_ports, |p| *p == port)
    }
}

/// One field of a match: unset, or one of the wanted values; and none of the unwanted.
fn field<T>(wanted: &[T], unwanted: &[T], is: impl Fn(&T) -> bool) -> bool {
    (wanted.is_empty() || wanted.iter().any(&is)) && !unwanted.iter().any(&is)
}

/// An IPv4 network in IPv6 dress (`::ffff:10.0.0.0/104`) as what it is: connections are judged by
/// their canonical addresses, which such a network would never hold.
pub(crate) fn canonical(net: IpNet) -> IpNet {
    let mapped = match net {
        IpNet::V6(v6) => v6.network().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96)),
        IpNet::V4(_) => None,
    };
    mapped.and_then(|(address, bits)| IpNet::new(address.into(), bits).ok()).unwrap_or(net)
}

impl StringMatch {
    fn matches(&self, value: Option<&str>) -> bool {
        match (self, value) {
            (_, None) => false,
            (Self::Exact(text), Some(value)) => value == text,
            (Self::Prefix(text), Some(value)) => value.starts_with(text.as_str()),
            (Self::Suffix(text), Some(value)) => value.ends_with(text.as_str()),
            (Self::Presence, Some(value)) => !value.is_empty(),
        }
    }
}

#[cfg(test)]
mod tests;
