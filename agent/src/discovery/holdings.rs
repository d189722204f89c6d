//! What an agent holds of the control plane's resources, and what one response makes of it. Pure.
//!
//! Rules (incremental xDS, and ztunnel's `src/xds/client.rs`): subscriptions are wildcards; after a
//! reconnect each names the versions held, so that only changes come; a resource that does not decode is
//! refused by name while its fellows are obeyed, the older one of its name stays in force, and its version is forgotten so
//! that it comes again. A response of an older revision is refused whole.

use std::collections::BTreeMap;

use api::snapshot::Change;
use api::wire::tombolo::{NamedResource, SnapshotFile};
use api::wire::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Status};
use api::wire::{self, WireError};
use api::{Delta, Revision, Snapshot};

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
    versions: BTreeMap<String, String>,
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
        let held = |type_url: &str| self.types.get(type_url).map(|held| held.versions.clone()).unwrap_or_default();
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
        let mut changes = Vec::new();
        for resource in &response.resources {
            let body = resource.resource.as_ref().map(|any| any.value.as_slice()).unwrap_or_default();
            match wire::decode(type_url, &resource.name, body) {
                Ok(change) => {
                    held.versions.insert(resource.name.clone(), resource.version.clone());
                    changes.push(change);
                }
                Err(error) => {
                    held.versions.remove(&resource.name);
                    refused.push(error);
                }
            }
        }
        for name in &response.removed_resources {
            held.versions.remove(name);
            match wire::removal(type_url, name) {
                Ok(change) => changes.push(change),
                Err(error) => refused.push(error),
            }
        }
        held.revision = Some(offered.unwrap_or(obeyed));
        let bundles_changed =
            changes.iter().any(|change| matches!(change, Change::Bundle(_) | Change::BundleRemoved(_)));
        self.snapshot = self.snapshot.apply(Delta { revision: offered.unwrap_or(obeyed), changes });
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

    /// The content of the snapshot file.
    pub fn to_file(&self) -> SnapshotFile {
        let snapshot = &self.snapshot;
        let changes = (snapshot.bundles().map(|it| Change::Bundle((**it).clone())))
            .chain(snapshot.policies().map(|it| Change::Policy((**it).clone())))
            .chain(snapshot.services().map(|it| Change::Service((**it).clone())))
            .chain(snapshot.workloads().map(|it| Change::Workload((**it).clone())))
            .chain(snapshot.host().map(|it| Change::Host((**it).clone())));
        let resources = changes.filter_map(|change| wire::encode(&change)).map(|encoded| {
            let versions = self.types.get(encoded.type_url).map(|held| &held.versions);
            let version = versions.and_then(|versions| versions.get(&encoded.name)).cloned().unwrap_or_default();
            NamedResource { type_url: encoded.type_url.to_owned(), name: encoded.name, version, body: encoded.body }
        });
        SnapshotFile { revision: snapshot.revision(), resources: resources.collect() }
    }

    /// What a snapshot file holds. Resources that this version does not understand are left out, and
    /// come again.
    pub fn from_file(content: SnapshotFile) -> (Self, Vec<WireError>) {
        let (snapshot, refused) = crate::state::snapshot_file::snapshot(&content);
        let mut types: BTreeMap<&'static str, Held> = BTreeMap::new();
        for type_url in TYPES {
            types.entry(type_url).or_default().revision = Some(content.revision);
        }
        for NamedResource { type_url, name, version, body } in content.resources {
            // Without a version it was never acknowledged; the control plane decides what it is.
            let known = !version.is_empty() && wire::decode(&type_url, &name, &body).is_ok();
            if let Some(held) = types.get_mut(type_url.as_str()).filter(|_| known) {
                held.versions.insert(name, version);
            }
        }
        (Self { snapshot, types }, refused)
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
