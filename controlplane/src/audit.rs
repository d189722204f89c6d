//! Who did what: one row for each write, in the transaction of the write. Never secrets.
//!
//! Read by operators with SQL; rows older than a year are removed.

use std::time::SystemTime;

use crate::store::{Store, StoreError, Value, Write, to_ms};

/// One row of the audit log.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    /// `admin`, `host/NAME`, `token/ID` or `controlplane`.
    pub actor: String,
    /// Such as `host.join` or `resource.apply`.
    pub action: &'static str,
    /// Such as `host/web` or `authorizationpolicy/shop/deny-web`.
    pub object: String,
    /// A sentence or the facts, for people.
    pub detail: String,
}

impl Event {
    pub(crate) fn new(
        actor: impl Into<String>,
        action: &'static str,
        object: impl Into<String>,
        detail: impl Into<String>,
    ) -> Self {
        Self { actor: actor.into(), action, object: object.into(), detail: detail.into() }
    }
}

/// Adds a row that exists only if the write commits.
pub(crate) async fn record(write: &mut Write, now: SystemTime, event: Event) -> Result<(), StoreError> {
    write.execute(INSERT, values(now, event)).await.map(|_| ())
}

/// Adds a row for what was refused, and therefore wrote nothing else.
pub(crate) async fn note(store: &Store, now: SystemTime, event: Event) -> Result<(), StoreError> {
    store.execute_quietly(INSERT, values(now, event)).await.map(|_| ())
}

fn values(now: SystemTime, event: Event) -> Vec<Value> {
    vec![
        to_ms(now).into(),
        event.actor.into(),
        event.action.into(),
        event.object.into(),
        event.detail.chars().take(MAX_DETAIL).collect::<String>().into(),
    ]
}

const INSERT: &str = "INSERT INTO audit (at_ms, actor, action, object, detail) VALUES ($1, $2, $3, $4, $5)";
/// Long enough for a sentence with names, short enough that nobody can fill the disk by errors.
const MAX_DETAIL: usize = 2000;
