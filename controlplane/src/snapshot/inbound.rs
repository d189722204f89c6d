//! Pure: what happens to plaintext at each port of a workload, and the policy that says the same to
//! peers that are not ours.
//!
//! Precedence is Istio's (`ComposePeerAuthentication`): mesh < namespace < workload < port; UNSET
//! inherits; one with a selector in the root namespace counts for nobody. Of several at one level the
//! first by name counts (istiod's choice, the oldest, would change with a restore). The group's annotation `tombolo.dev/inbound` replaces the result.

use std::collections::{BTreeMap, BTreeSet};

use api::InboundMode;
use api::policy::{self, Action, Clause, Match, ROOT_NAMESPACE, Rule, Scope, StringMatch};
use api::resource::Meta;
use api::resource::peer_authentication::{MutualTls, PeerAuthentication};

/// Every PeerAuthentication, in the order of their names.
#[derive(Debug, Default)]
pub(super) struct PeerAuthentications<'a> {
    all: Vec<(&'a Meta, &'a PeerAuthentication)>,
}

/// The modes of one workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Modes {
    /// Where no port level says otherwise.
    workload: MutualTls,
    ports: BTreeMap<u16, MutualTls>,
    /// What the group's annotation says instead.
    annotation: Option<InboundMode>,
}

impl<'a> PeerAuthentications<'a> {
    pub(super) fn new(all: impl IntoIterator<Item = (&'a Meta, &'a PeerAuthentication)>) -> Self {
        let mut all: Vec<_> = all.into_iter().collect();
        all.sort_by_key(|(meta, _)| (&meta.namespace, &meta.name));
        Self { all }
    }

    pub(super) fn modes(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        annotation: Option<InboundMode>,
    ) -> Modes {
        let wide = |namespace: &str| self.first(|meta, spec| meta.namespace == namespace && spec.selector.is_none());
        let narrow = self.first(|meta, spec| {
            let chosen = spec.selector.as_ref().is_some_and(|selector| selects(selector, labels));
            meta.namespace == namespace && meta.namespace != ROOT_NAMESPACE && chosen
        });
        let mut workload = MutualTls::Permissive;
        for level in [wide(ROOT_NAMESPACE), wide(namespace), narrow].into_iter().flatten() {
            workload = inherit(level.mtls, workload);
        }
        let ports = narrow.map(|spec| &spec.port_level_mtls).into_iter().flatten();
        Modes { workload, ports: ports.map(|(port, mode)| (*port, inherit(*mode, workload))).collect(), annotation }
    }

    fn first(&self, is: impl Fn(&Meta, &PeerAuthentication) -> bool) -> Option<&'a PeerAuthentication> {
        self.all.iter().find(|(meta, spec)| is(meta, spec)).map(|(_, spec)| *spec)
    }
}

impl Modes {
    pub(super) fn mode(&self, port: u16) -> InboundMode {
        if let Some(mode) = self.annotation {
            return mode;
        }
        match self.ports.get(&port).copied().unwrap_or(self.workload) {
            MutualTls::Strict => InboundMode::Strict,
            MutualTls::Permissive | MutualTls::Unset | MutualTls::Disable => InboundMode::Permissive,
        }
    }

    /// mTLS is switched off for all of it: peers reach it by plain TCP.
    pub(super) fn disabled(&self) -> bool {
        self.annotation.is_none() && self.workload == MutualTls::Disable && self.ports.is_empty()
    }

    /// Which of these ports refuse plaintext, and whether those are all.
    pub(super) fn strict(&self, ports: &BTreeSet<u16>) -> StrictPorts {
        let strict: BTreeSet<u16> =
            ports.iter().copied().filter(|port| self.mode(*port) == InboundMode::Strict).collect();
        let workload = self.annotation.map_or(self.workload == MutualTls::Strict, |mode| mode == InboundMode::Strict);
        let exceptions = self.annotation.is_none() && self.ports.values().any(|mode| *mode != MutualTls::Strict);
        match (workload && !exceptions, strict.is_empty()) {
            (true, _) => StrictPorts::All,
            (false, true) => StrictPorts::None,
            (false, false) => StrictPorts::Some(strict),
        }
    }
}

/// At which ports of a workload only mTLS peers are heard.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum StrictPorts {
    None,
    All,
    Some(BTreeSet<u16>),
}

impl StrictPorts {
    /// The policy by which a stock ztunnel refuses plaintext there: DENY whoever proves no identity
    /// (istiod's `istio_converted_static_strict`). Our own agents refuse it in the kernel; a peer
    /// over mTLS proves an identity, so for it the policy changes nothing.
    pub(super) fn policy(&self) -> Option<policy::AuthorizationPolicy> {
        let (name, ports) = match self {
            Self::None => return None,
            Self::All => ("strict-mtls".to_owned(), Vec::new()),
            Self::Some(ports) => {
                let list: Vec<String> = ports.iter().map(u16::to_string).collect();
                (format!("strict-mtls-{}", list.join("-")), ports.iter().copied().collect())
            }
        };
        let anonymous = Match { not_principals: vec![StringMatch::Presence], ..Match::default() };
        let mut clauses = vec![Clause { matches: vec![anonymous] }];
        if !ports.is_empty() {
            clauses.push(Clause { matches: vec![Match { destination_ports: ports, ..Match::default() }] });
        }
        Some(policy::AuthorizationPolicy {
            name,
            namespace: ROOT_NAMESPACE.to_owned(),
            scope: Scope::WorkloadSelector,
            action: Action::Deny,
            rules: vec![Rule { clauses }],
            dry_run: false,
        })
    }
}

/// Every label of the selector is there with its value.
pub(super) fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn inherit(own: MutualTls, wider: MutualTls) -> MutualTls {
    if own == MutualTls::Unset { wider } else { own }
}

#[cfg(test)]
mod tests;
