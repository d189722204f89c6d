//! What an agent holds of the control plane's resources, and what one response makes of it. Pure.
//!
//! Rules (incremental xDS, and ztunnel's `src/xds/client.rs`): subscriptions are wildcards; after a
//! reconnect each names the versions held, so that only changes come; a resource that does not decode is
//! refused by name while its fellows are obeyed, the older one of its name stays in force, and its version is forgotten so
//! that it comes again. A response of an older revision is refused whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::snapshot::{Change, SharedMap};
use api::wire::tombolo::NamedResource;
use api::wire::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Status};
use api::wire::{self, WireError};
use api::{Revision, Snapshot};
use bytes::Bytes;
use prost::Message;

use crate::state::snapshot_file::Content;

/// What is subscribed to, in the order of need: roots before who proves by them, policies before what
/// they protect.
pub const TYPES: [&str; 4] = [wire::TRUST_BUNDLE, wire::AUTHORIZATION, wire::ADDRESS, wire::HOST_CONFIG];

/// gRPC's INVALID_ARGUMENT, as a NACK's code.
const INVALID_ARGUMENT: i32 = 3;
/// A NACK's text names so many resources; the rest is counted.
const MAX_NAMED: usize = 10;

/// A snapshot and the versions of what it was made of.
#[derive(Debug, Clone, Default)]
pub struct Holdings {
    snapshot: Snapshot,
    types: BTreeMap<&'static str, Held>,
}

#[derive(Debug, Clone, Default)]
struct Held {
    /// Resource name to version.
    versions: SharedMap<Arc<str>, Box<str>>,
    /// The last revision that said something of this type; `None` before the first response.
    revision: Option<Revision>,
}

/// What a response led to.
#[derive(Debug)]
pub struct Taken {
    /// ACK or NACK.
    pub answer: DeltaDiscoveryRequest,
    /// Resources that were not obeyed.
    pub refused: Vec<WireError>,
    /// Why nothing of it was obeyed: it is older than what is held.
    pub stale: Option<String>,
    pub bundles_changed: bool,
    pub revision: Revision,
}

impl Holdings {
    /// Whether every type has been heard of, so that no policy is missing from the snapshot.
    pub fn synced(&self) -> bool {
        TYPES.iter().all(|type_url| self.types.get(type_url).is_some_and(|held| held.revision.is_some()))
    }

    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// The first requests of a new stream.
    pub fn subscriptions(&self, node: &Node) -> Vec<DeltaDiscoveryRequest> {
        let held = |type_url: &str| self.types.get(type_url).map(Held::owned_versions).unwrap_or_default();
        let requests = TYPES.iter().enumerate().map(|(index, type_url)| DeltaDiscoveryRequest {
            node: (index == 0).then(|| node.clone()),
            type_url: (*type_url).to_owned(),
            initial_resource_versions: held(type_url),
            ..DeltaDiscoveryRequest::default()
        });
        requests.collect()
    }

    /// Obeys what can be obeyed of a response.
    pub fn take(&mut self, response: DeltaDiscoveryResponse) -> Taken {
        let Some(type_url) = TYPES.iter().find(|known| **known == response.type_url).copied() else {
            let refused = WireError::UnknownType { type_url: response.type_url.clone() };
            return self.answer(&response, vec![refused], None, false);
        };
        // A control plane that does not count revisions (istiod) has no past that could come back.
        let offered = response.system_version_info.parse::<Revision>().ok();
        let held = self.types.entry(type_url).or_default();
        let obeyed = held.revision.unwrap_or_default();
        if let Some(offered) = offered.filter(|offered| *offered < obeyed) {
            let why = format!(
                "the control plane offers revision {offered}, older than {obeyed}, which this host obeys: it is behind, \
                 or was restored from a backup (then stop the agent, remove its snapshot file and start it)"
            );
            return self.answer(&response, vec![], Some(why), false);
        }

        let mut refused = Vec::new();
        let mut bundles_changed = false;
        let received = response.resources.iter().map(|resource| {
            let body = resource.resource.as_ref().map(|any| any.value.as_slice()).unwrap_or_default();
            (&resource.name, Some((body, &resource.version)))
        });
        let removed = response.removed_resources.iter().map(|name| (name, None));
        let changes = received.chain(removed).filter_map(|(name, resource)| {
            let change = match resource {
                Some((body, _)) => wire::decode(type_url, name, body),
                None => wire::removal(type_url, name),
            };
            match (&change, resource) {
                (Ok(change), Some((_, version))) => held.versions.insert(key(change, name), version.as_str().into()),
                _ => drop(held.versions.remove(name.as_str())),
            }
            bundles_changed |= matches!(change, Ok(Change::Bundle(_) | Change::BundleRemoved(_)));
            change.map_err(|error| refused.push(error)).ok()
        });
        self.snapshot = self.snapshot.next(offered.unwrap_or(obeyed), changes);
        held.revision = Some(offered.unwrap_or(obeyed));
        self.answer(&response, refused, None, bundles_changed)
    }

    fn answer(
        &self,
        response: &DeltaDiscoveryResponse,
        refused: Vec<WireError>,
        stale: Option<String>,
        bundles_changed: bool,
    ) -> Taken {
        let message = stale.clone().or_else(|| nack(&refused));
        let answer = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: message.map(|message| Status { code: INVALID_ARGUMENT, message }),
            ..DeltaDiscoveryRequest::default()
        };
        Taken { answer, refused, stale, bundles_changed, revision: self.snapshot.revision() }
    }

    /// What the snapshot file holds, made one by one.
    pub fn resources(&self) -> impl Iterator<Item = NamedResource> {
        let snapshot = &self.snapshot;
        let changes = (snapshot.bundles().map(|it| Change::Bundle((**it).clone())))
            .chain(snapshot.policies().map(|it| Change::Policy((**it).clone())))
            .chain(snapshot.services().map(|it| Change::Service((**it).clone())))
            .chain(snapshot.workloads().map(|it| Change::Workload((**it).clone())))
            .chain(snapshot.host().map(|it| Change::Host((**it).clone())));
        changes.filter_map(|change| wire::encode(&change)).map(|encoded| {
            let versions = self.types.get(encoded.type_url).map(|held| &held.versions);
            let version = versions.and_then(|versions| versions.get(encoded.name.as_str()));
            let version = version.map(|version| version.to_string()).unwrap_or_default();
            NamedResource { type_url: encoded.type_url.to_owned(), name: encoded.name, version, body: encoded.body }
        })
    }

    /// What a snapshot file holds. Resources that this version does not understand are left out, and
    /// come again.
    pub fn from_file(content: Content) -> (Self, Vec<WireError>) {
        let held = || Held { revision: Some(content.revision), ..Held::default() };
        let mut types: BTreeMap<&'static str, Held> = TYPES.into_iter().map(|type_url| (type_url, held())).collect();
        let mut refused = Vec::new();
        let changes = content.resources.into_iter().filter_map(|bytes| match stored(bytes) {
            Ok((change, NamedResource { type_url, name, version, .. })) => {
                // Without a version it was never acknowledged; the control plane decides what it is.
                if let Some(held) = types.get_mut(type_url.as_str()).filter(|_| !version.is_empty()) {
                    held.versions.insert(key(&change, &name), version.into());
                }
                Some(change)
            }
            Err(error) => {
                refused.push(error);
                None
            }
        });
        let snapshot = Snapshot::default().next(content.revision, changes);
        (Self { snapshot, types }, refused)
    }
}

impl Held {
    fn owned_versions(&self) -> BTreeMap<String, String> {
        self.versions.iter().map(|(name, version)| (name.to_string(), version.to_string())).collect()
    }
}

/// One resource of the snapshot file.
fn stored(bytes: Bytes) -> Result<(Change, NamedResource), WireError> {
    let undecodable = |source| WireError::Undecodable { type_url: "stored resource", name: String::new(), source };
    let resource = NamedResource::decode(bytes).map_err(undecodable)?;
    let change = wire::decode(&resource.type_url, &resource.name, &resource.body)?;
    Ok((change, resource))
}

/// A resource's name; that of a workload is in memory already.
fn key(change: &Change, name: &str) -> Arc<str> {
    match change {
        Change::Workload(workload) => workload.uid.clone(),
        _ => name.into(),
    }
}

/// The text of a NACK; `None` when nothing was refused.
fn nack(refused: &[WireError]) -> Option<String> {
    let named: Vec<String> = refused.iter().take(MAX_NAMED).map(|error| telemetry::Chain(error).to_string()).collect();
    let more = refused.len().saturating_sub(MAX_NAMED);
    match (named.is_empty(), more) {
        (true, _) => None,
        (false, 0) => Some(named.join("; ")),
        (false, more) => Some(format!("{}; and {more} more", named.join("; "))),
    }
}

#[cfg(test)]
pub(super) mod tests;
