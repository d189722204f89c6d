//! What this process can prove and whom it trusts, shared by every TLS connection.
//!
//! The agent publishes here when a certificate was renewed or a bundle changed; TLS configurations
//! made by [`crate::tls`] read it at each handshake, so they are made once and never again.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::{SpiffeId, TrustDomain};
use arc_swap::ArcSwap;

use crate::bundle::Bundles;
use crate::svid::Svid;

/// A handle; clones share the same contents.
#[derive(Clone)]
pub struct Credentials {
    shared: Arc<Shared>,
}

struct Shared {
    trust_domain: TrustDomain,
    state: ArcSwap<State>,
}

#[derive(Clone, Default)]
struct State {
    bundles: Arc<Bundles>,
    svids: BTreeMap<SpiffeId, Arc<Svid>>,
    /// Lower-case [`SpiffeId::server_name`] of each.
    by_server_name: BTreeMap<String, Arc<Svid>>,
    generation: u64,
}

impl Credentials {
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self { shared: Arc::new(Shared { trust_domain, state: ArcSwap::default() }) }
    }

    /// The mesh this process is part of.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.shared.trust_domain
    }

    pub fn set_bundles(&self, bundles: Bundles) {
        let bundles = Arc::new(bundles);
        self.change(|state| state.bundles = bundles.clone());
    }

    pub fn bundles(&self) -> Arc<Bundles> {
        self.shared.state.load().bundles.clone()
    }

    /// From here on handshakes prove this identity with this certificate. Open connections keep
    /// the one they began with.
    pub fn publish(&self, svid: Svid) {
        let svid = Arc::new(svid);
        let server_name = server_name(svid.identity());
        self.change(|state| {
            state.svids.insert(svid.identity().clone(), svid.clone());
            if let Some(name) = &server_name {
                state.by_server_name.insert(name.clone(), svid.clone());
            }
        });
    }

    /// From here on nobody proves this identity from here.
    pub fn withdraw(&self, identity: &SpiffeId) {
        let server_name = server_name(identity);
        self.change(|state| {
            state.svids.remove(identity);
            if let Some(name) = &server_name {
                state.by_server_name.remove(name);
            }
        });
    }

    pub fn svid(&self, identity: &SpiffeId) -> Option<Arc<Svid>> {
        self.shared.state.load().svids.get(identity).cloned()
    }

    pub fn identities(&self) -> Vec<SpiffeId> {
        self.shared.state.load().svids.keys().cloned().collect()
    }

    /// Counts every change, so that whoever pools connections can tell whether to make new ones.
    pub fn generation(&self) -> u64 {
        self.shared.state.load().generation
    }

    /// The certificate for a server name that a caller sent.
    pub(crate) fn svid_by_server_name(&self, name: &str) -> Option<Arc<Svid>> {
        self.shared.state.load().by_server_name.get(&name.to_ascii_lowercase()).cloned()
    }

    fn change(&self, edit: impl Fn(&mut State)) {
        self.shared.state.rcu(|state| {
            let mut next = State::clone(state);
            edit(&mut next);
            next.generation += 1;
            next
        });
    }
}

fn server_name(identity: &SpiffeId) -> Option<String> {
    identity.server_name().map(|name| name.to_ascii_lowercase())
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({}, {:?})", self.trust_domain(), self.identities())
    }
}
