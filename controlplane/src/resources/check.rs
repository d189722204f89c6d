//! What is wrong or strange about resources together. Nothing here writes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::resource::authorization_policy::{AuthorizationPolicy, Condition};
use api::resource::service::{Service, TargetPort};
use api::resource::{Resource, Spec};
use api::{SpiffeId, TrustDomain};
use serde_json::{Value, json};

use super::{Key, key, title};
use crate::store::{StoreError, Transaction};

type Labels = BTreeMap<String, String>;

/// The names at which callers reach a service.
pub(crate) fn hostnames(resource: &Resource) -> Vec<String> {
    match &resource.spec {
        Spec::Service(_) => vec![format!("{}.{}.mesh", resource.name(), resource.namespace())],
        Spec::ServiceEntry(entry) => entry.hosts.clone(),
        _ => Vec::new(),
    }
}

/// Names that two resources of one namespace claim, where one of them has just changed.
pub(super) fn taken_names(all: &[Arc<Resource>], changed: &BTreeSet<Key>) -> Vec<String> {
    let mut holders: BTreeMap<(String, String), &Resource> = BTreeMap::new();
    let mut mistakes = Vec::new();
    for resource in all {
        for hostname in hostnames(resource) {
            let at = (resource.namespace().to_owned(), hostname.clone());
            let Some(other) = holders.insert(at, resource) else { continue };
            let (new, old) =
                if changed.contains(&key(resource)) { (resource.as_ref(), other) } else { (other, resource.as_ref()) };
            if changed.contains(&key(new)) {
                mistakes.push(format!("{}: the name {hostname} belongs to {}; choose another", title(new), title(old)));
            }
        }
    }
    mistakes
}

/// What is legal and probably not meant.
pub(super) fn warnings(all: &[Arc<Resource>], resource: &Resource, trust_domain: &TrustDomain) -> Vec<String> {
    let mesh = Mesh::of(all);
    let namespace = resource.namespace();
    let mut warnings = Vec::new();
    match &resource.spec {
        Spec::Service(service) => {
            warnings.extend(mesh.unmatched(namespace, &service.selector));
            warnings.extend(mesh.unnamed_ports(namespace, service));
        }
        Spec::ServiceEntry(entry) if !entry.workload_selector.is_empty() => {
            warnings.extend(mesh.unmatched(namespace, &entry.workload_selector));
        }
        Spec::AuthorizationPolicy(policy) => {
            let selector = policy.selector.as_ref();
            warnings.extend(selector.and_then(|selector| mesh.unmatched(namespace, selector)));
            warnings.extend(mesh.unknown_sources(namespace, policy, trust_domain));
        }
        Spec::PeerAuthentication(policy) => {
            let selector = policy.selector.as_ref();
            warnings.extend(selector.and_then(|selector| mesh.unmatched(namespace, selector)));
        }
        Spec::ServiceEntry(_) | Spec::WorkloadGroup(_) | Spec::WorkloadEntry(_) => {}
    }
    warnings
}

/// What selectors and policies can refer to.
struct Mesh<'a> {
    /// Namespace, labels and named ports of each WorkloadGroup and WorkloadEntry.
    workloads: Vec<(&'a str, Labels, &'a BTreeMap<String, u16>)>,
    namespaces: BTreeSet<&'a str>,
    accounts: BTreeSet<(&'a str, &'a str)>,
}

impl<'a> Mesh<'a> {
    fn of(all: &'a [Arc<Resource>]) -> Self {
        let mut mesh = Self { workloads: Vec::new(), namespaces: BTreeSet::new(), accounts: BTreeSet::new() };
        for resource in all {
            let namespace = resource.namespace();
            mesh.namespaces.insert(namespace);
            match &resource.spec {
                Spec::WorkloadGroup(group) => {
                    mesh.workloads.push((namespace, group.metadata.labels.clone(), &group.template.ports));
                    mesh.accounts.insert((namespace, group.service_account()));
                }
                Spec::WorkloadEntry(entry) => {
                    mesh.workloads.push((namespace, entry.labels(&resource.meta), &entry.ports));
                    mesh.accounts.insert((namespace, entry.placement.service_account()));
                }
                _ => {}
            }
        }
        mesh
    }

    fn matching(&self, namespace: &str, selector: &Labels) -> impl Iterator<Item = &'a BTreeMap<String, u16>> {
        let everywhere = namespace == api::policy::ROOT_NAMESPACE;
        let matching = self.workloads.iter().filter(move |(ns, labels, _)| {
            (everywhere || *ns == namespace) && selector.iter().all(|(name, value)| labels.get(name) == Some(value))
        });
        matching.map(|(_, _, ports)| *ports)
    }

    fn unmatched(&self, namespace: &str, selector: &Labels) -> Option<String> {
        if self.matching(namespace, selector).next().is_some() {
            return None;
        }
        let labels = selector.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",");
        Some(format!("the selector {labels} matches no WorkloadGroup and no WorkloadEntry in namespace {namespace}"))
    }

    /// Target ports by a name that none of the selected workloads has.
    fn unnamed_ports(&self, namespace: &str, service: &Service) -> Vec<String> {
        let named = service.ports.iter().filter_map(|port| match &port.target_port {
            Some(TargetPort::Name(name)) => Some((port.port, name)),
            _ => None,
        });
        let workloads: Vec<_> = self.matching(namespace, &service.selector).collect();
        named
            .filter(|(_, name)| !workloads.is_empty() && !workloads.iter().any(|ports| ports.contains_key(*name)))
            .map(|(port, name)| format!("port {port}: no selected workload has a port named {name}"))
            .collect()
    }

    /// Namespaces and service accounts that a policy names and nobody has.
    fn unknown_sources(&self, own: &str, policy: &AuthorizationPolicy, trust_domain: &TrustDomain) -> Vec<String> {
        let mut warnings = Vec::new();
        for rule in &policy.rules {
            for source in &rule.from {
                let namespaces = source.namespaces.iter().chain(&source.not_namespaces);
                warnings.extend(namespaces.filter_map(|pattern| self.unknown_namespace(pattern)));
                let principals = source.principals.iter().chain(&source.not_principals);
                warnings.extend(principals.filter_map(|pattern| self.unknown_principal(pattern, trust_domain)));
                let accounts = source.service_accounts.iter().chain(&source.not_service_accounts);
                warnings.extend(accounts.filter_map(|account| {
                    let (namespace, account) = account.split_once('/').unwrap_or((own, account));
                    self.unknown_account(namespace, account)
                }));
            }
            for condition in &rule.when {
                match condition {
                    Condition::SourceNamespace(values) => {
                        let patterns = values.values.iter().chain(&values.not_values);
                        warnings.extend(patterns.filter_map(|pattern| self.unknown_namespace(pattern)));
                    }
                    Condition::SourcePrincipal(values) => {
                        let patterns = values.values.iter().chain(&values.not_values);
                        warnings.extend(patterns.filter_map(|pattern| self.unknown_principal(pattern, trust_domain)));
                    }
                    Condition::SourceIp(_) | Condition::DestinationIp(_) | Condition::DestinationPort(_) => {}
                }
            }
        }
        let mut seen = BTreeSet::new();
        warnings.retain(|warning| seen.insert(warning.clone()));
        warnings
    }

    fn unknown_namespace(&self, pattern: &str) -> Option<String> {
        let known = pattern.contains('*') || self.namespaces.contains(pattern);
        (!known).then(|| format!("it names the namespace {pattern}, in which there is nothing"))
    }

    fn unknown_principal(&self, pattern: &str, trust_domain: &TrustDomain) -> Option<String> {
        if pattern.contains('*') {
            return None;
        }
        let Ok(id) = format!("spiffe://{pattern}").parse::<SpiffeId>() else {
            return Some(format!("{pattern} is no principal: write TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT"));
        };
        if id.trust_domain() != trust_domain {
            return Some(format!(
                "{pattern} is of the trust domain {}; this mesh's is {trust_domain}",
                id.trust_domain()
            ));
        }
        let (namespace, account) = id.namespace().zip(id.service_account())?;
        self.unknown_account(namespace, account)
    }

    fn unknown_account(&self, namespace: &str, account: &str) -> Option<String> {
        let known = self.accounts.contains(&(namespace, account));
        (!known).then(|| format!("it names the service account {namespace}/{account}, which no workload has"))
    }
}

/// What the control plane adds to a resource when it is read.
pub(super) struct Status {
    vips: BTreeMap<(String, String), Vec<String>>,
    hosts: BTreeMap<(String, String), i64>,
}

impl Status {
    pub(super) async fn load(read: &mut dyn Transaction) -> Result<Self, StoreError> {
        let mut status = Self { vips: BTreeMap::new(), hosts: BTreeMap::new() };
        let sql = "SELECT namespace, hostname, address FROM vips WHERE released_ms = 0 ORDER BY number, address";
        for row in read.fetch(sql, vec![]).await? {
            status.vips.entry((row.text(0)?, row.text(1)?)).or_default().push(row.text(2)?);
        }
        let sql = "SELECT namespace, name, COUNT(*) FROM host_groups GROUP BY namespace, name";
        for row in read.fetch(sql, vec![]).await? {
            status.hosts.insert((row.text(0)?, row.text(1)?), row.int(2)?);
        }
        Ok(status)
    }

    pub(super) fn of(&self, resource: &Resource) -> Value {
        let namespace = resource.namespace().to_owned();
        match &resource.spec {
            Spec::Service(_) | Spec::ServiceEntry(_) => {
                let addresses = |hostname: &String| self.vips.get(&(namespace.clone(), hostname.clone())).cloned();
                let hostnames = hostnames(resource);
                let named =
                    hostnames.iter().map(|hostname| (hostname.clone(), json!(addresses(hostname).unwrap_or_default())));
                json!({ "addresses": named.collect::<serde_json::Map<_, _>>() })
            }
            Spec::WorkloadGroup(_) => {
                json!({ "hosts": self.hosts.get(&(namespace, resource.name().to_owned())).copied().unwrap_or_default() })
            }
            Spec::WorkloadEntry(_) | Spec::AuthorizationPolicy(_) | Spec::PeerAuthentication(_) => json!({}),
        }
    }
}
