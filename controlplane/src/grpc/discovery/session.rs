//! Pure: what one delta stream has been told and is still to be told.
//!
//! The protocol is Envoy's incremental xDS as istiod serves it (its `pilot/pkg/xds/delta.go`): a first
//! request without names (or with `*`) subscribes to all of a type; every first request is answered,
//! be it with nothing; one response of a type is under way at a time, and what changes meanwhile is
//! sent together after its ACK; a NACK is not an invitation to send the same again.
//!
//! Large answers go in parts. Only the last part names the revision (`system_version_info`), and a
//! later type waits until the parts of an earlier one are sent, so that an agent which has heard of
//! its [`wire::HOST_CONFIG`] has every policy and workload.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use api::Revision;
use api::wire;
use api::wire::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};

use crate::snapshot::{Diff, Published, Table};

/// What is served, in the order of need: roots before who proves by them, policies before what they
/// protect, what the host itself runs last.
const TYPES: [&str; 4] = [wire::TRUST_BUNDLE, wire::AUTHORIZATION, wire::ADDRESS, wire::HOST_CONFIG];
/// Resources in one response.
const MAX_RESOURCES: usize = 2000;
/// Bytes of resources in one response (gRPC's default limit for a message is 4 MiB).
const MAX_BYTES: usize = 2 << 20;
/// Names that one stream may subscribe to singly, per type.
const MAX_NAMES: usize = 10_000;
/// `subscribe` and `unsubscribe` of everything.
const WILDCARD: &str = "*";

/// One stream of one host.
#[derive(Debug)]
pub(super) struct Session {
    host: String,
    types: BTreeMap<usize, Subscription>,
    nonces: u64,
}

#[derive(Debug, Default)]
struct Subscription {
    wildcard: bool,
    /// Names subscribed to singly, and the versions sent for the resources they mean.
    names: BTreeSet<String>,
    sent: BTreeMap<Arc<str>, String>,
    /// Names to be answered again although nothing changed.
    fresh: BTreeSet<String>,
    /// What a wildcard client has been brought to, or is being.
    table: Option<Arc<Table>>,
    /// What the client said it holds, until it has been compared.
    held: Option<BTreeMap<String, String>>,
    batch: Option<Batch>,
    unacked: Option<Unacked>,
    answered: bool,
    /// The newest revision of which the client has confirmed everything.
    acked: Revision,
    refused: bool,
}

/// What is left to be sent of one answer.
#[derive(Debug)]
struct Batch {
    table: Arc<Table>,
    changed: VecDeque<Arc<str>>,
    removed: Vec<Arc<str>>,
    revision: Revision,
}

#[derive(Debug)]
struct Unacked {
    nonce: String,
    /// Of the last part only.
    revision: Option<Revision>,
}

/// What a request said besides its subscriptions.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Subscribed,
    Acked,
    /// The client could not use something of a response; its words.
    Nacked {
        type_url: String,
        message: String,
    },
    /// Of a type that is not served; it is never answered, as by Envoy.
    UnknownType,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SessionError {
    #[error("more than {MAX_NAMES} names of {type_url} are subscribed to singly; subscribe to *")]
    TooManyNames { type_url: String },
}

impl Session {
    pub(super) fn new(host: &str) -> Self {
        Self { host: host.to_owned(), types: BTreeMap::new(), nonces: 0 }
    }

    pub(super) fn hear(&mut self, request: DeltaDiscoveryRequest) -> Result<Heard, SessionError> {
        let Some(index) = TYPES.iter().position(|known| *known == request.type_url) else {
            return Ok(Heard::UnknownType);
        };
        let first = !self.types.contains_key(&index);
        let subscription = self.types.entry(index).or_default();
        let heard = subscription.hear_answer(&request);
        if first {
            subscription.held = Some(request.initial_resource_versions);
            subscription.wildcard = request.resource_names_subscribe.is_empty();
        }
        subscription.subscribe(request.resource_names_subscribe, &request.resource_names_unsubscribe);
        if subscription.names.len() > MAX_NAMES {
            return Err(SessionError::TooManyNames { type_url: request.type_url });
        }
        Ok(heard)
    }

    /// The next response to send, if there is one; called until there is none.
    pub(super) fn next(&mut self, published: &Published) -> Option<DeltaDiscoveryResponse> {
        for (index, subscription) in &mut self.types {
            let type_url = TYPES[*index];
            if subscription.unacked.is_none() {
                if subscription.batch.is_none() {
                    let empty = Arc::default();
                    let table = published.table(type_url, &self.host).unwrap_or(&empty);
                    subscription.begin(table, published.revision);
                }
                if let Some(batch) = &mut subscription.batch {
                    self.nonces += 1;
                    let response = batch.part(type_url, self.nonces.to_string());
                    let done = batch.changed.is_empty();
                    let revision = done.then_some(batch.revision);
                    if done {
                        subscription.batch = None;
                    }
                    subscription.unacked = Some(Unacked { nonce: response.nonce.clone(), revision });
                    return Some(response);
                }
            }
            if subscription.batch.is_some() {
                return None;
            }
        }
        None
    }

    /// The revision that the client has confirmed for everything it asked for, given that
    /// [`Session::next`] had nothing more to say of `published`. 0 until it has subscribed.
    pub(super) fn acked(&self, published: &Published) -> Revision {
        let of = |subscription: &Subscription| match (&subscription.unacked, &subscription.batch) {
            (None, None) if subscription.answered && !subscription.refused => published.revision,
            _ => subscription.acked,
        };
        self.types.values().map(of).min().unwrap_or_default()
    }
}

impl Subscription {
    fn hear_answer(&mut self, request: &DeltaDiscoveryRequest) -> Heard {
        let Some(unacked) = self.unacked.take_if(|unacked| unacked.nonce == request.response_nonce) else {
            // Of an answer that was answered already, or a change of subscription.
            return Heard::Subscribed;
        };
        if let Some(status) = &request.error_detail {
            self.refused = true;
            return Heard::Nacked { type_url: request.type_url.clone(), message: status.message.clone() };
        }
        if let Some(revision) = unacked.revision {
            self.acked = revision;
            self.refused = false;
        }
        Heard::Acked
    }

    fn subscribe(&mut self, subscribe: Vec<String>, unsubscribe: &[String]) {
        for name in subscribe {
            if name == WILDCARD {
                self.wildcard = true;
            } else {
                self.fresh.insert(name.clone());
                self.names.insert(name);
            }
        }
        for name in unsubscribe {
            if name == WILDCARD {
                self.wildcard = false;
                self.table = None;
            } else {
                self.names.remove(name);
                self.fresh.remove(name);
            }
        }
    }

    /// Starts an answer if there is something to say.
    fn begin(&mut self, table: &Arc<Table>, revision: Revision) {
        let diff = if self.wildcard { self.wildcard_diff(table) } else { self.named_diff(table) };
        if *diff == Diff::default() && self.answered {
            return;
        }
        self.answered = true;
        let (changed, removed) = (diff.changed.iter().cloned().collect(), diff.removed.clone());
        self.batch = Some(Batch { table: table.clone(), changed, removed, revision });
    }

    fn wildcard_diff(&mut self, table: &Arc<Table>) -> Arc<Diff> {
        self.fresh.clear();
        let diff = match (self.held.take(), self.table.take()) {
            (Some(held), _) => Arc::new(table.since_versions(&held)),
            (None, Some(before)) => table.since(&before),
            (None, None) => Arc::new(table.since_versions(&BTreeMap::new())),
        };
        self.table = Some(table.clone());
        diff
    }

    fn named_diff(&mut self, table: &Arc<Table>) -> Arc<Diff> {
        if let Some(held) = self.held.take() {
            self.sent = held.into_iter().map(|(name, version)| (name.into(), version)).collect();
        }
        let mut diff = Diff::default();
        let mut meant = BTreeSet::new();
        for name in &self.names {
            let found = table.named(name);
            let again = self.fresh.contains(name);
            if found.is_empty() && again {
                diff.removed.push(name.as_str().into());
            }
            meant.extend(found.into_iter().map(|name| (name, again)));
        }
        let meant: BTreeMap<Arc<str>, bool> = meant.into_iter().collect();
        for (name, again) in &meant {
            let Some(entry) = table.get(name) else { continue };
            if *again || self.sent.get(name) != Some(&entry.version) {
                diff.changed.push(name.clone());
                self.sent.insert(name.clone(), entry.version.clone());
            }
        }
        let gone: Vec<Arc<str>> = self.sent.keys().filter(|name| table.get(name).is_none()).cloned().collect();
        self.sent.retain(|name, _| meant.contains_key(name));
        diff.removed.extend(gone);
        diff.removed.sort();
        diff.removed.dedup();
        self.fresh.clear();
        Arc::new(diff)
    }
}

impl Batch {
    /// The next part; the last one carries the removals and the revision.
    fn part(&mut self, type_url: &str, nonce: String) -> DeltaDiscoveryResponse {
        let mut resources = Vec::new();
        let mut n_bytes = 0;
        while let Some(name) = self.changed.front() {
            let Some(entry) = self.table.get(name) else {
                self.changed.pop_front();
                continue;
            };
            n_bytes += entry.body.len() + name.len();
            if resources.len() == MAX_RESOURCES || (n_bytes > MAX_BYTES && !resources.is_empty()) {
                break;
            }
            resources.push(Resource {
                name: name.to_string(),
                version: entry.version.clone(),
                aliases: vec![],
                resource: Some(prost_types::Any { type_url: type_url.to_owned(), value: entry.body.clone() }),
            });
            self.changed.pop_front();
        }
        let last = self.changed.is_empty();
        DeltaDiscoveryResponse {
            system_version_info: if last { self.revision.to_string() } else { String::new() },
            resources,
            type_url: type_url.to_owned(),
            nonce,
            removed_resources: if last { self.removed.iter().map(|name| name.to_string()).collect() } else { vec![] },
        }
    }
}

#[cfg(test)]
mod tests;
