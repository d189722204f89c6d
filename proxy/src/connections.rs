//! The connections that are open at this moment: for `tap` and `status`, for counting bytes of long
//! ones, and for closing those that a new policy forbids.
//!
//! `report.rs` adds and removes; `inbound/authorize.rs` judges again. It decides nothing itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::admin::ConnectionView;

use crate::metrics::Series;
use crate::net::traffic::Traffic;
use crate::report::Noted;

/// The list. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Connections(Arc<Mutex<List>>);

#[derive(Default)]
struct List {
    next: u64,
    open: HashMap<u64, Arc<Open>>,
}

/// One open connection.
pub(crate) struct Open {
    pub(crate) id: u64,
    pub(crate) facts: Noted,
    pub(crate) traffic: Traffic,
    /// What counts it.
    pub(crate) series: Arc<Series>,
}

impl Connections {
    pub(crate) fn add(&self, facts: Noted, series: Arc<Series>) -> Arc<Open> {
        let mut list = self.list();
        let id = list.next;
        list.next += 1;
        let open = Arc::new(Open { id, facts, traffic: Traffic::default(), series });
        list.open.insert(id, open.clone());
        open
    }

    pub(crate) fn remove(&self, id: u64) {
        self.list().open.remove(&id);
    }

    pub(crate) fn len(&self) -> usize {
        self.list().open.len()
    }

    /// All that are open now, oldest first.
    pub(crate) fn all(&self) -> Vec<Arc<Open>> {
        let mut all: Vec<_> = self.list().open.values().cloned().collect();
        all.sort_by_key(|open| open.id);
        all
    }

    fn list(&self) -> MutexGuard<'_, List> {
        // Nothing that can panic runs under this lock; a poisoned one is still whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    pub(crate) fn view(&self) -> ConnectionView {
        let facts = &self.facts;
        let text = |value: Option<String>| value.unwrap_or_default();
        ConnectionView {
            id: self.id,
            direction: facts.direction.as_str().to_owned(),
            protocol: facts.carrier.as_str().to_owned(),
            src: facts.client.to_string(),
            src_identity: text(facts.source.identity.as_ref().map(ToString::to_string)),
            dst: text(facts.upstream.or(facts.dialled).map(|address| address.to_string())),
            dst_service: text(facts.service.as_ref().map(|service| service.hostname.clone())),
            bytes_sent: self.traffic.sent(),
            bytes_received: self.traffic.received(),
            age_ms: u64::try_from(facts.since.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }
}
