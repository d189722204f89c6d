//! Resources of one type in wire form, and what changed between two tables. Pure.
//!
//! A version is a hash of the content, so that an agent that comes back, to whichever replica, is
//! sent only what differs from what it holds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use api::wire::Encoded;
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

/// One resource as it is sent.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    pub version: String,
    pub body: Vec<u8>,
}

/// All resources of one type, of one moment. Never changed; shared by every stream.
#[derive(Debug, Default)]
pub struct Table {
    /// Tells tables apart without comparing them.
    id: u64,
    entries: BTreeMap<Arc<str>, Arc<Entry>>,
    /// What subscriptions by another name mean: `network/address`, and a service with its endpoints.
    aliases: BTreeMap<String, BTreeSet<Arc<str>>>,
    /// How it came from the table before it.
    step: Option<(u64, Arc<Diff>)>,
}

/// What brings somebody from one table to another.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Diff {
    pub changed: Vec<Arc<str>>,
    pub removed: Vec<Arc<str>>,
}

impl Table {
    /// The next table. Equal content gives the same table, and resources that did not change are
    /// shared with the one before.
    pub fn next(
        before: &Arc<Self>,
        resources: Vec<Encoded>,
        aliases: BTreeMap<String, BTreeSet<Arc<str>>>,
    ) -> Arc<Self> {
        let mut entries = BTreeMap::new();
        for Encoded { name, body, .. } in resources {
            let name: Arc<str> = name.into();
            let entry = match before.entries.get_key_value(&name) {
                Some((name, entry)) if entry.body == body => (name.clone(), entry.clone()),
                _ => (name, Arc::new(Entry { version: version(&body), body })),
            };
            entries.insert(entry.0, entry.1);
        }
        let diff = diff(&before.entries, &entries);
        if diff == Diff::default() && before.aliases == aliases && before.id != 0 {
            return before.clone();
        }
        let step = Some((before.id, Arc::new(diff)));
        Arc::new(Self { id: NEXT_ID.fetch_add(1, Ordering::Relaxed), entries, aliases, step })
    }

    pub fn get(&self, name: &str) -> Option<&Arc<Entry>> {
        self.entries.get(name)
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The resources that a subscription by name means: the one of that name and those it stands for.
    pub fn named(&self, name: &str) -> BTreeSet<Arc<str>> {
        let mut found = self.aliases.get(name).cloned().unwrap_or_default();
        found.extend(self.entries.get_key_value(name).map(|(name, _)| name.clone()));
        found
    }

    pub fn is(&self, other: &Self) -> bool {
        self.id == other.id
    }

    /// From `before` to this one; worked out once for the many streams that make the usual step.
    pub fn since(&self, before: &Self) -> Arc<Diff> {
        match &self.step {
            _ if self.is(before) => Arc::default(),
            Some((id, diff)) if *id == before.id => diff.clone(),
            _ => Arc::new(diff(&before.entries, &self.entries)),
        }
    }

    /// From what a client says it holds to this one.
    pub fn since_versions(&self, held: &BTreeMap<String, String>) -> Diff {
        let differs = |(name, entry): &(&Arc<str>, &Arc<Entry>)| held.get(&***name) != Some(&entry.version);
        let changed = self.entries.iter().filter(differs).map(|(name, _)| name.clone());
        let gone = held.keys().filter(|name| !self.entries.contains_key(name.as_str()));
        Diff { changed: changed.collect(), removed: gone.map(|name| name.as_str().into()).collect() }
    }
}

fn diff(before: &BTreeMap<Arc<str>, Arc<Entry>>, after: &BTreeMap<Arc<str>, Arc<Entry>>) -> Diff {
    let same = |old: &Arc<Entry>, new: &Arc<Entry>| Arc::ptr_eq(old, new) || old.version == new.version;
    let changed = after.iter().filter(|(name, new)| before.get(*name).is_none_or(|old| !same(old, new)));
    let removed = before.keys().filter(|name| !after.contains_key(*name));
    Diff { changed: changed.map(|(name, _)| name.clone()).collect(), removed: removed.cloned().collect() }
}

/// 64 bits of SHA-256: two contents of one name that share it are not to be feared.
fn version(body: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(body)[..8])
}

/// 0 is the empty table that everybody starts from.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

#[cfg(test)]
mod tests;
