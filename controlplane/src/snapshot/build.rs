//! Pure: the mesh as stored → every object that agents are told about.
//!
//! Called by [`super`] for each revision. Workloads come from the WorkloadGroups of hosts, from
//! WorkloadEntries and from ServiceEntries' endpoints; services from Services and ServiceEntries.
//! Who receives what, and in which form, is not decided here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use api::policy::{AuthorizationPolicy, ROOT_NAMESPACE, Scope};
use api::resource::{self, Resource, Spec};
use api::{Class, HostConfig, LocalWorkload, NamespacedHostname, Port, Service, TrustDomain, TunnelProtocol, Workload};

use super::inbound::{Modes, PeerAuthentications, StrictPorts, selects};
use crate::registry::workload_uid;
use crate::store::{HostRow, HostRowState, World};

/// What does not change while the control plane runs.
#[derive(Debug, Clone)]
pub struct Mesh {
    pub trust_domain: TrustDomain,
    /// DER of each root.
    pub roots: Vec<Vec<u8>>,
    pub lease: Duration,
}

/// Every object of one revision, in the order of their keys.
#[derive(Debug, Default)]
pub struct Objects {
    pub workloads: BTreeMap<String, Workload>,
    pub services: BTreeMap<NamespacedHostname, Service>,
    pub policies: BTreeMap<String, AuthorizationPolicy>,
    /// By name; a host that is not active has no workloads.
    pub hosts: BTreeMap<String, HostConfig>,
}

/// What is being worked out of one workload, before its services are known.
struct Draft {
    workload: Workload,
    labels: BTreeMap<String, String>,
    /// Ports by name.
    ports: BTreeMap<String, u16>,
    modes: Modes,
    /// Of the host that runs it.
    local: Option<LocalWorkload>,
}

pub(super) fn build(world: &World, mesh: &Mesh) -> Objects {
    let kinds = Kinds::sort(&world.resources);
    let mut drafts = kinds.drafts(world, mesh);
    let mut objects = Objects::default();
    for (meta, service) in &kinds.services {
        objects.add_service(meta, service, world);
        let hostname = hostname(meta);
        attach(&mut drafts, &meta.namespace, &hostname, &service.selector, |ports| {
            let port = |port: &resource::service::ServicePort| {
                Some(Port { service_port: port.port, target_port: port.target(ports)?, app_protocol: port.protocol() })
            };
            service.ports.iter().filter_map(port).collect()
        });
    }
    for (meta, entry) in &kinds.service_entries {
        objects.add_service_entry(meta, entry, world);
        for host in entry.hosts.iter().filter(|_| !entry.workload_selector.is_empty()) {
            attach(&mut drafts, &meta.namespace, host, &entry.workload_selector, |ports| entry_ports(entry, ports));
        }
    }
    for (_, policy) in &kinds.policies {
        objects.policies.insert(policy.key(), policy.clone());
    }
    let host =
        |row: &HostRow| (row.name.clone(), HostConfig { host: row.name.clone(), workloads: vec![], lease: mesh.lease });
    objects.hosts = world.hosts.iter().map(host).collect();
    for draft in drafts {
        objects.add_workload(draft, &kinds);
    }
    objects
}

/// The resources by kind.
#[derive(Default)]
struct Kinds<'a> {
    services: Vec<(&'a resource::Meta, &'a resource::Service)>,
    service_entries: Vec<(&'a resource::Meta, &'a resource::ServiceEntry)>,
    groups: BTreeMap<(&'a str, &'a str), &'a resource::WorkloadGroup>,
    entries: Vec<(&'a resource::Meta, &'a resource::WorkloadEntry)>,
    /// The selector beside each translated policy.
    policies: Vec<(Option<&'a BTreeMap<String, String>>, AuthorizationPolicy)>,
    authentications: PeerAuthentications<'a>,
}

impl<'a> Kinds<'a> {
    fn sort(resources: &'a [Arc<Resource>]) -> Self {
        let mut kinds = Self::default();
        let mut authentications = Vec::new();
        for resource in resources {
            let meta = &resource.meta;
            match &resource.spec {
                Spec::Service(spec) => kinds.services.push((meta, spec)),
                Spec::ServiceEntry(spec) => kinds.service_entries.push((meta, spec)),
                Spec::WorkloadGroup(spec) => drop(kinds.groups.insert((&meta.namespace, &meta.name), spec)),
                Spec::WorkloadEntry(spec) => kinds.entries.push((meta, spec)),
                Spec::AuthorizationPolicy(spec) => kinds.policies.push((spec.selector.as_ref(), spec.translate(meta))),
                Spec::PeerAuthentication(spec) => authentications.push((meta, spec)),
            }
        }
        kinds.authentications = PeerAuthentications::new(authentications);
        kinds
    }

    fn drafts(&self, world: &World, mesh: &Mesh) -> Vec<Draft> {
        let mut drafts = Vec::new();
        for host in world.hosts.iter().filter(|host| host.state == HostRowState::Active) {
            for (namespace, name) in &host.groups {
                if let Some(group) = self.groups.get(&(namespace.as_str(), name.as_str())) {
                    drafts.push(self.group_draft(host, namespace, name, group, world, mesh));
                }
            }
        }
        for (meta, entry) in &self.entries {
            let uid = format!("tombolo/{}/entry/{}", meta.namespace, meta.name);
            drafts.push(self.entry_draft(uid, &meta.name, meta, entry, mesh));
        }
        for (meta, service_entry) in &self.service_entries {
            for endpoint in &service_entry.endpoints {
                let uid = format!("tombolo/{}/serviceentry/{}/{}", meta.namespace, meta.name, endpoint.address);
                let name = format!("{}-{}", meta.name, endpoint.address);
                let mut draft = self.entry_draft(uid, &name, meta, endpoint, mesh);
                let ports = entry_ports(service_entry, &endpoint.ports);
                for host in &service_entry.hosts {
                    draft.workload.services.insert(key(&meta.namespace, host), ports.clone());
                }
                drafts.push(draft);
            }
        }
        drafts
    }

    fn group_draft(
        &self,
        host: &HostRow,
        namespace: &str,
        name: &str,
        group: &resource::WorkloadGroup,
        world: &World,
        mesh: &Mesh,
    ) -> Draft {
        let uid = workload_uid(namespace, name, &host.name);
        let labels = &group.metadata.labels;
        let modes = self.authentications.modes(namespace, labels, group.inbound());
        // What its agent has not yet proved healthy is not, when there is a way to prove it.
        let proved = world.health.get(&uid).map_or(group.probe.is_none(), |health| health.healthy);
        let mut workload = Workload {
            name: format!("{name}-{}", host.name),
            addresses: host.addresses.clone(),
            node: host.name.clone(),
            healthy: host.alive && proved,
            ..placed(&uid, namespace, &group.template.placement, labels, name, mesh)
        };
        workload.tunnel_protocol = if modes.disabled() { TunnelProtocol::None } else { TunnelProtocol::Hbone };
        workload.workload_name = name.to_owned();
        let local = LocalWorkload {
            uid: workload.uid.clone(),
            namespace: namespace.to_owned(),
            group: name.to_owned(),
            service_account: workload.service_account.clone(),
            ports: BTreeMap::new(),
            selector: group.selector(),
            probe: group.probe(),
        };
        Draft { workload, labels: labels.clone(), ports: group.template.ports.clone(), modes, local: Some(local) }
    }

    fn entry_draft(
        &self,
        uid: String,
        name: &str,
        meta: &resource::Meta,
        entry: &resource::WorkloadEntry,
        mesh: &Mesh,
    ) -> Draft {
        let labels = entry.labels(meta);
        let modes = self.authentications.modes(&meta.namespace, &labels, None);
        let mut workload = Workload {
            name: name.to_owned(),
            addresses: vec![entry.address],
            ..placed(&uid, &meta.namespace, &entry.placement, &labels, &meta.name, mesh)
        };
        workload.tunnel_protocol = entry.tunnel_protocol(meta);
        workload.workload_name = meta.name.clone();
        Draft { workload, labels, ports: entry.ports.clone(), modes, local: None }
    }

    /// `namespace/name` of the policies that select a workload by its labels.
    fn selecting<'b>(&'b self, draft: &'b Draft) -> impl Iterator<Item = String> + 'b {
        let namespace = &draft.workload.namespace;
        self.policies.iter().filter_map(move |(selector, policy)| {
            let near = policy.namespace == ROOT_NAMESPACE || policy.namespace == *namespace;
            let chosen = policy.scope == Scope::WorkloadSelector && selects((*selector)?, &draft.labels);
            (near && chosen).then(|| policy.key())
        })
    }
}

impl Objects {
    fn add_service(&mut self, meta: &resource::Meta, spec: &resource::Service, world: &World) {
        let ports = spec.ports.iter().map(|port| Port {
            service_port: port.port,
            // A name means another number on each workload: 0, "as the workload says".
            target_port: match &port.target_port {
                Some(resource::service::TargetPort::Name(_)) => 0,
                Some(resource::service::TargetPort::Number(number)) => *number,
                None => port.port,
            },
            app_protocol: port.protocol(),
        });
        let service = Service {
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            hostname: hostname(meta),
            vips: vips(world, &meta.namespace, &hostname(meta), &spec.cluster_ips),
            ports: ports.collect(),
            subject_alt_names: vec![],
            allow_unhealthy: spec.publish_not_ready_addresses,
        };
        self.services.insert(service.key(), service);
    }

    fn add_service_entry(&mut self, meta: &resource::Meta, spec: &resource::ServiceEntry, world: &World) {
        for host in &spec.hosts {
            let service = Service {
                name: meta.name.clone(),
                namespace: meta.namespace.clone(),
                hostname: host.clone(),
                vips: vips(world, &meta.namespace, host, &spec.addresses),
                ports: entry_ports(spec, &BTreeMap::new()),
                subject_alt_names: spec.subject_alt_names.clone(),
                allow_unhealthy: false,
            };
            self.services.insert(service.key(), service);
        }
    }

    fn add_workload(&mut self, draft: Draft, kinds: &Kinds<'_>) {
        let mut policies: BTreeSet<String> = kinds.selecting(&draft).collect();
        let ports = listening(&draft);
        if draft.workload.tunnel_protocol == TunnelProtocol::Hbone {
            let strict = draft.modes.strict(&ports);
            if let Some(policy) = strict.policy().filter(|_| strict != StrictPorts::None) {
                policies.insert(policy.key());
                self.policies.insert(policy.key(), policy);
            }
        }
        let mut workload = draft.workload;
        workload.authorization_policies = policies.into_iter().collect();
        if let Some(mut local) = draft.local {
            local.ports = ports.into_iter().map(|port| (port, draft.modes.mode(port))).collect();
            if let Some(host) = self.hosts.get_mut(&workload.node) {
                host.workloads.push(local);
            }
        }
        self.workloads.insert(workload.uid.to_string(), workload);
    }
}

/// The ports it declares and those that services send to.
fn listening(draft: &Draft) -> BTreeSet<u16> {
    let targets = draft.workload.services.values().flatten().map(|port| port.target_port);
    draft.ports.values().copied().chain(targets).collect()
}

/// Makes the workloads that a selector picks endpoints of a service.
fn attach(
    drafts: &mut [Draft],
    namespace: &str,
    hostname: &str,
    selector: &BTreeMap<String, String>,
    ports: impl Fn(&BTreeMap<String, u16>) -> Vec<Port>,
) {
    // Inline endpoints belong to their own ServiceEntry only; they carry its services already.
    let free = drafts.iter_mut().filter(|draft| !draft.workload.uid.contains("/serviceentry/"));
    for draft in free.filter(|draft| draft.workload.namespace == namespace && selects(selector, &draft.labels)) {
        let ports = ports(&draft.ports);
        if !ports.is_empty() {
            draft.workload.services.insert(key(namespace, hostname), ports);
        }
    }
}

fn entry_ports(entry: &resource::ServiceEntry, named: &BTreeMap<String, u16>) -> Vec<Port> {
    let port = |port: &resource::service_entry::ServiceEntryPort| Port {
        service_port: port.number,
        target_port: port.target(named),
        app_protocol: port.protocol(),
    };
    entry.ports.iter().map(port).collect()
}

/// What every workload has, whatever it was made from.
fn placed(
    uid: &str,
    namespace: &str,
    placement: &resource::workload_entry::Placement,
    labels: &BTreeMap<String, String>,
    fallback_name: &str,
    mesh: &Mesh,
) -> Workload {
    let label = |keys: &[&str]| keys.iter().find_map(|key| labels.get(*key)).filter(|value| !value.is_empty()).cloned();
    Workload {
        uid: uid.into(),
        name: String::new(),
        addresses: vec![],
        hostname: String::new(),
        node: String::new(),
        healthy: true,
        capacity: placement.weight(),
        class: Class {
            namespace: namespace.to_owned(),
            network: placement.network.clone(),
            tunnel_protocol: TunnelProtocol::None,
            trust_domain: mesh.trust_domain.clone(),
            service_account: placement.service_account().to_owned(),
            canonical_name: label(&CANONICAL_NAME).unwrap_or_else(|| fallback_name.to_owned()),
            canonical_revision: label(&CANONICAL_REVISION).unwrap_or_else(|| "latest".to_owned()),
            workload_name: String::new(),
            cluster_id: CLUSTER_ID.to_owned(),
            locality: placement.locality(),
            services: BTreeMap::new(),
            authorization_policies: vec![],
        }
        .into(),
    }
}

fn vips(world: &World, namespace: &str, hostname: &str, declared: &[IpAddr]) -> Vec<IpAddr> {
    match world.vips.get(&(namespace.to_owned(), hostname.to_owned())) {
        Some(allocated) => allocated.clone(),
        None => declared.to_vec(),
    }
}

fn hostname(meta: &resource::Meta) -> String {
    format!("{}.{}.mesh", meta.name, meta.namespace)
}

fn key(namespace: &str, hostname: &str) -> NamespacedHostname {
    NamespacedHostname { namespace: namespace.to_owned(), hostname: hostname.to_owned() }
}

/// Istio's order of labels for `canonical_name` (pkg/kube/labels).
const CANONICAL_NAME: [&str; 3] = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];
const CANONICAL_REVISION: [&str; 3] = ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];
/// Where our own workloads live; an empty one would mean "Kubernetes".
const CLUSTER_ID: &str = "tombolo";

#[cfg(test)]
mod tests;
