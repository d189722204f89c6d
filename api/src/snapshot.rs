//! What one agent knows of the mesh at one revision. Pure.
//!
//! A snapshot is never edited in place: [`Snapshot::apply`] makes the next one, sharing all that did
//! not change, so that readers keep theirs without a lock and one changed endpoint costs the same in
//! a mesh of ten and of fifty thousand.

use std::collections::BTreeMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use crate::host::HostConfig;
use crate::policy::AuthorizationPolicy;
use crate::service::{NamespacedHostname, Port, Service};
use crate::spiffe::TrustDomain;
use crate::workload::{Class, Workload, WorkloadUid};

mod shared_map;

pub use shared_map::SharedMap;

/// The control plane's count of its writes: higher is newer.
pub type Revision = u64;

/// What one agent obeys. Cloning is cheap.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    revision: Revision,
    workloads: SharedMap<WorkloadUid, Arc<Workload>>,
    /// Each class once, and how many workloads are of it.
    classes: SharedMap<Arc<Class>, usize>,
    workloads_by_address: Index<IpAddr, WorkloadUid>,
    endpoints: Index<NamespacedHostname, WorkloadUid>,
    services: SharedMap<NamespacedHostname, Arc<Service>>,
    services_by_vip: Index<IpAddr, NamespacedHostname>,
    services_by_hostname: Index<String, NamespacedHostname>,
    policies: SharedMap<String, Arc<AuthorizationPolicy>>,
    host: Option<Arc<HostConfig>>,
    bundles: BTreeMap<TrustDomain, Arc<TrustBundle>>,
}

/// The roots that prove identities of one trust domain, DER.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustBundle {
    pub trust_domain: TrustDomain,
    pub roots: Vec<Vec<u8>>,
}

/// What changed between two revisions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Delta {
    pub revision: Revision,
    pub changes: Vec<Change>,
}

/// One object that is new or different, or gone.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    Workload(Workload),
    Service(Service),
    /// A workload uid or a service's `namespace/hostname`.
    AddressRemoved(String),
    Policy(AuthorizationPolicy),
    /// `namespace/name`.
    PolicyRemoved(String),
    Host(HostConfig),
    HostRemoved,
    Bundle(TrustBundle),
    BundleRemoved(TrustDomain),
}

/// One way to reach a service: a workload and the port pair that was asked for.
#[derive(Debug, Clone)]
pub struct Endpoint {
    pub workload: Arc<Workload>,
    pub port: Port,
}

impl Snapshot {
    /// The next snapshot: this one with the changes made, in their order.
    pub fn apply(&self, delta: Delta) -> Self {
        self.next(delta.revision, delta.changes)
    }

    /// The same for changes that are made one by one, and need not all be in memory at a time.
    pub fn next(&self, revision: Revision, changes: impl IntoIterator<Item = Change>) -> Self {
        let mut next = self.clone();
        next.revision = revision.max(self.revision);
        for change in changes {
            next.change(change);
        }
        next
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Workload(workload) => self.put_workload(workload),
            Change::Service(service) => {
                self.remove_service(&service.key());
                self.insert_service(service);
            }
            Change::AddressRemoved(name) => {
                self.remove_workload(&name);
                if let Ok(key) = name.parse() {
                    self.remove_service(&key);
                }
            }
            Change::Policy(policy) => {
                self.policies.insert(policy.key(), Arc::new(policy));
            }
            Change::PolicyRemoved(key) => {
                self.policies.remove(&key);
            }
            Change::Host(host) => self.host = Some(Arc::new(host)),
            Change::HostRemoved => self.host = None,
            Change::Bundle(bundle) => {
                self.bundles.insert(bundle.trust_domain.clone(), Arc::new(bundle));
            }
            Change::BundleRemoved(trust_domain) => {
                self.bundles.remove(&trust_domain);
            }
        }
    }

    fn put_workload(&mut self, mut workload: Workload) {
        if let Some(before) = self.workloads.get(&workload.uid).cloned() {
            // Whoever keeps the name keeps no second copy of it.
            workload.uid = before.uid.clone();
            // The usual change is one of health, and moves nothing.
            if before.addresses == workload.addresses && before.class == workload.class {
                workload.class = before.class.clone();
                self.workloads.insert(workload.uid.clone(), Arc::new(workload));
                return;
            }
            self.remove_workload(&before.uid);
        }
        self.insert_workload(workload);
    }

    fn insert_workload(&mut self, mut workload: Workload) {
        let uid = workload.uid.clone();
        workload.class = self.share(workload.class);
        for address in &workload.addresses {
            add(&mut self.workloads_by_address, *address, uid.clone());
        }
        for service in workload.services.keys() {
            add(&mut self.endpoints, service.clone(), uid.clone());
        }
        self.workloads.insert(uid, Arc::new(workload));
    }

    fn remove_workload(&mut self, uid: &str) {
        let Some(workload) = self.workloads.remove(uid) else { return };
        for address in &workload.addresses {
            take(&mut self.workloads_by_address, address, &workload.uid);
        }
        for service in workload.services.keys() {
            take(&mut self.endpoints, service, &workload.uid);
        }
        self.release(&workload.class);
    }

    /// The class that equal workloads have already, or this one.
    fn share(&mut self, class: Arc<Class>) -> Arc<Class> {
        let known = self.classes.get_key_value(&class).map(|(known, count)| (known.clone(), *count));
        let (class, count) = known.unwrap_or((class, 0));
        self.classes.insert(class.clone(), count + 1);
        class
    }

    fn release(&mut self, class: &Arc<Class>) {
        match self.classes.get_mut(class) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(self.classes.remove(class)),
        }
    }

    fn insert_service(&mut self, service: Service) {
        let key = service.key();
        for vip in &service.vips {
            add(&mut self.services_by_vip, *vip, key.clone());
        }
        add(&mut self.services_by_hostname, service.hostname.clone(), key.clone());
        self.services.insert(key, Arc::new(service));
    }

    fn remove_service(&mut self, key: &NamespacedHostname) {
        let Some(service) = self.services.remove(key) else { return };
        for vip in &service.vips {
            take(&mut self.services_by_vip, vip, key);
        }
        take(&mut self.services_by_hostname, &service.hostname, key);
    }

    pub fn revision(&self) -> Revision {
        self.revision
    }

    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// Workloads that `other` does not have, or has otherwise. Cheap where one was made from the other.
    pub fn workloads_unlike<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a Arc<Workload>> {
        self.workloads.unlike(&other.workloads, Arc::ptr_eq).map(|(_, workload)| workload)
    }

    /// Every workload at an address; a host that runs several has them all at the same one.
    pub fn workloads_at(&self, address: IpAddr) -> impl Iterator<Item = &Arc<Workload>> {
        let uids = self.workloads_by_address.get(&address).into_iter().flat_map(Keys::iter);
        uids.filter_map(|uid| self.workloads.get(uid))
    }

    pub fn service(&self, key: &NamespacedHostname) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// The service with this virtual address. Where two claim one, the lesser key wins, everywhere.
    pub fn service_by_vip(&self, vip: IpAddr) -> Option<&Arc<Service>> {
        let key = self.services_by_vip.get(&vip)?.iter().min()?;
        self.services.get(key)
    }

    /// Services that `other` does not have, or has otherwise. Cheap where one was made from the other.
    pub fn services_unlike<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a Arc<Service>> {
        self.services.unlike(&other.services, Arc::ptr_eq).map(|(_, service)| service)
    }

    pub fn has_vip(&self, address: IpAddr) -> bool {
        self.services_by_vip.get(&address).is_some()
    }

    /// Every service that has a virtual address, with its addresses.
    pub fn vips(&self) -> impl Iterator<Item = &IpAddr> {
        self.services_by_vip.keys()
    }

    /// Services of this name, those of the caller's own namespace first.
    pub fn services_by_hostname(&self, hostname: &str, own_namespace: Option<&str>) -> Vec<&Arc<Service>> {
        let keys = self.services_by_hostname.get(hostname).into_iter().flat_map(Keys::iter);
        let mut found: Vec<&Arc<Service>> = keys.filter_map(|key| self.services.get(key)).collect();
        found.sort_by_key(|service| (Some(service.namespace.as_str()) != own_namespace, service.key()));
        found
    }

    /// Every endpoint of one port of a service, healthy or not, in no particular order.
    pub fn endpoints(&self, service: &NamespacedHostname, service_port: u16) -> Vec<Endpoint> {
        let uids = self.endpoints.get(service).into_iter().flat_map(Keys::iter);
        let workloads = uids.filter_map(|uid| self.workloads.get(uid));
        workloads
            .filter_map(|workload| {
                let ports = workload.services.get(service)?;
                let port = *ports.iter().find(|port| port.service_port == service_port)?;
                Some(Endpoint { workload: workload.clone(), port })
            })
            .collect()
    }

    pub fn policies(&self) -> impl Iterator<Item = &Arc<AuthorizationPolicy>> {
        self.policies.values()
    }

    pub fn policy(&self, key: &str) -> Option<&Arc<AuthorizationPolicy>> {
        self.policies.get(key)
    }

    /// The policies in force for a workload, in the order of their keys.
    pub fn policies_for(&self, workload: &Workload) -> Vec<&AuthorizationPolicy> {
        let mut found: Vec<_> = self.policies.values().map(Arc::as_ref).filter(|p| p.applies_to(workload)).collect();
        found.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        found
    }

    /// What this host runs; `None` until the control plane has said so.
    pub fn host(&self) -> Option<&Arc<HostConfig>> {
        self.host.as_ref()
    }

    pub fn bundles(&self) -> impl Iterator<Item = &Arc<TrustBundle>> {
        self.bundles.values()
    }

    pub fn len_workloads(&self) -> usize {
        self.workloads.len()
    }

    pub fn len_services(&self) -> usize {
        self.services.len()
    }
}

/// A map from an index value to the keys that have it.
type Index<I, K> = SharedMap<I, Keys<K>>;

/// Mostly there is one, and then it costs no list. Many are sorted; a change copies the list, which
/// for ten thousand endpoints of one service is a tenth of a millisecond.
#[derive(Debug, Clone)]
enum Keys<K> {
    One(K),
    Many(Vec<K>),
}

impl<K: Ord + Clone> Keys<K> {
    fn iter(&self) -> std::slice::Iter<'_, K> {
        match self {
            Self::One(key) => std::slice::from_ref(key).iter(),
            Self::Many(keys) => keys.iter(),
        }
    }

    fn insert(&mut self, key: K) {
        match self {
            Self::One(present) if *present == key => {}
            Self::One(present) => {
                let (first, second) = if *present < key { (present.clone(), key) } else { (key, present.clone()) };
                *self = Self::Many(vec![first, second]);
            }
            Self::Many(keys) => {
                if let Err(at) = keys.binary_search(&key) {
                    keys.insert(at, key);
                }
            }
        }
    }

    /// Answers whether none is left.
    fn remove(&mut self, key: &K) -> bool {
        match self {
            Self::One(present) => present == key,
            Self::Many(keys) => {
                if let Ok(at) = keys.binary_search(key) {
                    keys.remove(at);
                }
                keys.is_empty()
            }
        }
    }
}

fn add<I: Eq + Hash + Clone, K: Ord + Clone>(index: &mut Index<I, K>, at: I, key: K) {
    match index.get_mut(&at) {
        Some(keys) => keys.insert(key),
        None => index.insert(at, Keys::One(key)),
    }
}

fn take<I: Eq + Hash + Clone, K: Ord + Clone>(index: &mut Index<I, K>, at: &I, key: &K) {
    if index.get_mut(at).is_some_and(|keys| keys.remove(key)) {
        index.remove(at);
    }
}

#[cfg(test)]
mod tests;
