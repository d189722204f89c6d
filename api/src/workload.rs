//! One running instance with one identity. Pure.
//!
//! Field names follow Istio's `workload.proto` where the thing is the same.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crate::locality::Locality;
use crate::service::{NamespacedHostname, Port};
use crate::spiffe::{SpiffeError, SpiffeId, TrustDomain};

/// Names one workload instance for its whole life: `tombolo/NAMESPACE/GROUP/HOST` for our own,
/// whatever the cluster says for those of Kubernetes.
pub type WorkloadUid = Arc<str>;

/// How peers reach a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TunnelProtocol {
    /// Plain TCP: it is not meshed.
    None,
    /// HTTP/2 CONNECT over mTLS to its address, port 15008.
    Hbone,
}

/// One running instance with one identity; a host may run several. The fields of its [`Class`] are read
/// and written as if they were its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Workload {
    pub uid: WorkloadUid,
    pub name: String,
    /// Empty when it is reached by `hostname` only.
    pub addresses: Vec<IpAddr>,
    pub hostname: String,
    /// The host it runs on.
    pub node: String,
    pub class: Arc<Class>,
    pub healthy: bool,
    /// Weight among the endpoints of a service; 1 unless said otherwise.
    pub capacity: u32,
}

/// What a workload has in common with its like: most of what is said of it, which a snapshot holds
/// once for all of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Class {
    pub namespace: String,
    /// Addresses are comparable within one network; empty is the default network.
    pub network: String,
    pub tunnel_protocol: TunnelProtocol,
    pub trust_domain: TrustDomain,
    pub service_account: String,
    pub canonical_name: String,
    pub canonical_revision: String,
    pub workload_name: String,
    pub cluster_id: String,
    pub locality: Locality,
    /// Which services it is an endpoint of, and with which ports.
    pub services: BTreeMap<NamespacedHostname, Vec<Port>>,
    /// `namespace/name` of the policies that select this workload by label.
    pub authorization_policies: Vec<String>,
}

impl Workload {
    /// The identity that its certificate proves.
    pub fn identity(&self) -> Result<SpiffeId, SpiffeError> {
        SpiffeId::workload(&self.trust_domain, &self.namespace, &self.service_account)
    }
}

impl Deref for Workload {
    type Target = Class;

    fn deref(&self) -> &Class {
        &self.class
    }
}

/// A class that others have, too, stays theirs: what is changed is a copy.
impl DerefMut for Workload {
    fn deref_mut(&mut self) -> &mut Class {
        Arc::make_mut(&mut self.class)
    }
}
