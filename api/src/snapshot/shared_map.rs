//! A map whose copies share what did not change. Pure.
//!
//! The entries are in 256 hash maps, each behind an `Arc`: a copy is one pointer, and a change to a copy
//! makes anew the list of 256 pointers and the one map it is in, which of fifty thousand
//! entries holds two hundred. An entry costs little more than in a hash map: a tree of single nodes would cost three
//! times that.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

/// About the square root of the entries of a large mesh: the list then is as long as each map.
const SHARDS: usize = 256;

/// See the module.
#[derive(Debug, Clone)]
pub struct SharedMap<K, V> {
    shards: Arc<Vec<Arc<HashMap<K, V>>>>,
    hasher: RandomState,
    len: usize,
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        let empty = Arc::new(HashMap::new());
        Self { shards: Arc::new(vec![empty; SHARDS]), hasher: RandomState::new(), len: 0 }
    }
}

impl<K: Eq + Hash, V> SharedMap<K, V> {
    pub fn get<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.shards[self.shard(key)].get(key)
    }

    /// Also the key as it is held.
    pub fn get_key_value<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> Option<(&K, &V)>
    where
        K: Borrow<Q>,
    {
        self.shards[self.shard(key)].get_key_value(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.shards.iter().flat_map(|shard| shard.iter())
    }

    /// Entries of this map that are not the same in `other`. Costs what differs where one was made from the
    /// other: what they share is not looked at.
    pub fn unlike<'a>(
        &'a self,
        other: &'a Self,
        same: impl Fn(&V, &V) -> bool + 'a,
    ) -> impl Iterator<Item = (&'a K, &'a V)> {
        let shards = self.shards.iter().zip(other.shards.iter()).filter(|(own, others)| !Arc::ptr_eq(own, others));
        let entries = shards.flat_map(|(own, _)| own.iter());
        entries.filter(move |(key, value)| !other.get(*key).is_some_and(|others| same(value, others)))
    }

    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn shard<Q: Hash + ?Sized>(&self, key: &Q) -> usize {
        self.hasher.hash_one(key) as usize % SHARDS
    }
}

impl<K: Eq + Hash + Clone, V: Clone> SharedMap<K, V> {
    pub fn insert(&mut self, key: K, value: V) {
        let shard = self.shard(&key);
        let before = self.shard_mut(shard).insert(key, value);
        self.len += usize::from(before.is_none());
    }

    pub fn remove<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let shard = self.shard(key);
        // What has nothing to remove is not copied.
        self.shards[shard].get(key)?;
        let removed = self.shard_mut(shard).remove(key);
        self.len -= usize::from(removed.is_some());
        removed
    }

    pub fn get_mut<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let shard = self.shard(key);
        self.shards[shard].get(key)?;
        self.shard_mut(shard).get_mut(key)
    }

    fn shard_mut(&mut self, shard: usize) -> &mut HashMap<K, V> {
        Arc::make_mut(&mut Arc::make_mut(&mut self.shards)[shard])
    }
}

#[cfg(test)]
mod tests;
