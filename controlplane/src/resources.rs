//! What operators apply: checked one by one and together, written all or not at all.
//!
//! `api::resource` reads single documents; here is what needs the others: virtual addresses, names
//! that are taken, groups that hosts are in, selectors that select nothing. The REST API calls it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use api::resource::{Resource, Spec};
use api::rest::{ApplyAction, ApplyOutcome, ApplyResponse};
use api::{Revision, TrustDomain};
use serde_json::Value;

use crate::audit::{self, Event};
use crate::store::{Parsed, ResourceRow, Store, StoreError, Write, WriteError, read_resources, to_ms};

mod check;
mod vips;

/// Lower-case kind, namespace and name.
pub(crate) type Key = (String, String, String);

/// Documents to create or replace.
#[derive(Debug, Clone)]
pub struct Apply {
    pub documents: Vec<Value>,
    /// Say what would happen, and change nothing.
    pub dry_run: bool,
    pub actor: String,
    pub trust_domain: TrustDomain,
    pub now: SystemTime,
}

/// Why nothing was applied. Every mistake reads `KIND NS/NAME: what, and what to do`.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error("{}", headline(mistakes))]
    Invalid { mistakes: Vec<String> },
    #[error("{}", headline(mistakes))]
    Conflict { mistakes: Vec<String> },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a resource was not deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    #[error("there is no {kind} {namespace}/{name}")]
    NotFound { kind: String, namespace: String, name: String },
    #[error(
        "WorkloadGroup {namespace}/{name} is in use by {hosts}; let them leave (`tombolo leave`) or delete them first"
    )]
    GroupInUse { namespace: String, name: String, hosts: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn headline(mistakes: &[String]) -> String {
    match mistakes {
        [one] => format!("nothing was applied: {one}"),
        several => format!("nothing was applied: there are {} mistakes", several.len()),
    }
}

impl WriteError for ApplyError {
    fn store_error(&self) -> Option<&StoreError> {
        match self {
            Self::Store(source) => Some(source),
            Self::Invalid { .. } | Self::Conflict { .. } => None,
        }
    }
}

impl WriteError for DeleteError {
    fn store_error(&self) -> Option<&StoreError> {
        match self {
            Self::Store(source) => Some(source),
            Self::NotFound { .. } | Self::GroupInUse { .. } => None,
        }
    }
}

/// Creates or replaces all of the documents in one revision, or none of them.
pub async fn apply(store: &Store, apply: &Apply) -> Result<ApplyResponse, ApplyError> {
    let input = (read_all(&apply.documents)?, apply.clone());
    store.write(&input, |write, (resources, apply)| Box::pin(apply_in(write, resources, apply))).await
}

/// Every document, or every mistake of every document.
fn read_all(documents: &[Value]) -> Result<Vec<Resource>, ApplyError> {
    let (mut resources, mut mistakes, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (n, document) in documents.iter().enumerate() {
        match Resource::from_value(document.clone()) {
            Ok(resource) if seen.insert(key(&resource)) => resources.push(resource),
            Ok(resource) => mistakes.push(format!("{}: occurs twice in what was sent", title(&resource))),
            Err(found) => {
                let title = document_title(document, n);
                mistakes.extend(found.iter().map(|mistake| format!("{title}: {mistake}")));
            }
        }
    }
    if mistakes.is_empty() { Ok(resources) } else { Err(ApplyError::Invalid { mistakes }) }
}

/// What a document calls itself, as far as it does.
fn document_title(document: &Value, n: usize) -> String {
    let text = |pointer| document.pointer(pointer).and_then(Value::as_str);
    match (text("/kind"), text("/metadata/name")) {
        (Some(kind), Some(name)) => {
            format!("{kind} {}/{name}", text("/metadata/namespace").unwrap_or("default"))
        }
        (Some(kind), None) => format!("{kind} (document {})", n + 1),
        (None, _) => format!("document {}", n + 1),
    }
}

async fn apply_in(write: &mut Write, resources: &[Resource], apply: &Apply) -> Result<ApplyResponse, ApplyError> {
    let mut all: BTreeMap<Key, ResourceRow> = BTreeMap::new();
    for row in read_resources(write.as_read(), &Parsed::new()).await? {
        all.insert(key(&row.resource), row);
    }
    let (mut outcomes, mut changed) = (Vec::new(), BTreeSet::new());
    for resource in resources {
        let before = all.get(&key(resource)).map(|row| row.resource.clone());
        let outcome = outcome(before.as_deref(), resource);
        if outcome.action != ApplyAction::Unchanged {
            changed.insert(key(resource));
            put(write, all.get(&key(resource)), resource, apply.now).await?;
            let detail = format!("revision {}", write.revision());
            let event = Event::new(&apply.actor, "resource.apply", path(resource), detail);
            audit::record(write, apply.now, event).await?;
        }
        outcomes.push(outcome);
        all.insert(key(resource), ResourceRow::of(Arc::new(resource.clone())));
    }
    let all: Vec<Arc<Resource>> = all.into_values().map(|row| row.resource).collect();
    let mut mistakes = check::taken_names(&all, &changed);
    mistakes.extend(vips::assign(write, &all, &changed, apply.now).await?);
    if !mistakes.is_empty() {
        return Err(ApplyError::Conflict { mistakes });
    }
    for (outcome, resource) in outcomes.iter_mut().zip(resources) {
        outcome.warnings = check::warnings(&all, resource, &apply.trust_domain);
    }
    let mut revision = write.revision();
    if changed.is_empty() || apply.dry_run {
        write.discard();
        revision -= 1;
    }
    Ok(ApplyResponse { revision, outcomes })
}

fn outcome(before: Option<&Resource>, resource: &Resource) -> ApplyOutcome {
    let action = match before {
        None => ApplyAction::Created,
        Some(before) if before == resource => ApplyAction::Unchanged,
        Some(_) => ApplyAction::Configured,
    };
    ApplyOutcome {
        kind: resource.kind().to_owned(),
        namespace: resource.namespace().to_owned(),
        name: resource.name().to_owned(),
        action,
        warnings: Vec::new(),
        before: before.map(Resource::to_value),
        after: Some(resource.to_value()),
    }
}

async fn put(
    write: &mut Write,
    before: Option<&ResourceRow>,
    resource: &Resource,
    now: SystemTime,
) -> Result<(), StoreError> {
    let (kind, namespace, name) = key(resource);
    let spec_changed = before.is_some_and(|row| row.resource.spec != resource.spec);
    let values = vec![
        kind.into(),
        namespace.into(),
        name.into(),
        before.map_or_else(new_uid, |row| row.uid.clone()).into(),
        resource.to_value().to_string().into(),
        write.revision().cast_signed().into(),
        before.map_or(1, |row| row.generation.cast_signed() + i64::from(spec_changed)).into(),
        to_ms(before.map_or(now, |row| row.created)).into(),
        to_ms(now).into(),
    ];
    write.execute(PUT, values).await.map(|_| ())
}

/// Everything of a kind, in one namespace or all, and the revision that was read.
pub async fn list(
    store: &Store,
    kind: &str,
    namespace: Option<&str>,
) -> Result<(Revision, Vec<(ResourceRow, Value)>), StoreError> {
    let input = (kind.to_owned(), namespace.map(str::to_owned));
    store
        .read(&input, |read, (kind, namespace)| {
            Box::pin(async move {
                let revision = read.fetch("SELECT revision FROM revision WHERE id = 1", vec![]).await?;
                let revision = revision.first().ok_or(StoreError::NoRevision)?.int(0)?.cast_unsigned();
                let mut rows = read_resources(read, &Parsed::new()).await?;
                rows.retain(|row| {
                    row.resource.info().singular == kind
                        && namespace.as_deref().is_none_or(|namespace| namespace == row.resource.namespace())
                });
                let status = check::Status::load(read).await?;
                let with_status = |row: ResourceRow| {
                    let status = status.of(&row.resource);
                    (row, status)
                };
                Ok((revision, rows.into_iter().map(with_status).collect()))
            })
        })
        .await
}

/// What is to be deleted, by whom.
#[derive(Debug, Clone)]
pub struct Delete {
    /// Lower-case singular.
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub actor: String,
    pub now: SystemTime,
}

/// Deletes one resource.
pub async fn delete(store: &Store, delete: &Delete) -> Result<ApplyOutcome, DeleteError> {
    store.write(delete, |write, delete| Box::pin(delete_in(write, delete))).await
}

async fn delete_in(write: &mut Write, delete: &Delete) -> Result<ApplyOutcome, DeleteError> {
    let wanted = (delete.kind.clone(), delete.namespace.clone(), delete.name.clone());
    let rows = read_resources(write.as_read(), &Parsed::new()).await?;
    let Some(row) = rows.into_iter().find(|row| key(&row.resource) == wanted) else {
        let (kind, namespace, name) = wanted;
        return Err(DeleteError::NotFound { kind, namespace, name });
    };
    let Delete { namespace, name, .. } = delete;
    if matches!(row.resource.spec, Spec::WorkloadGroup(_)) {
        let hosts = hosts_of(write, namespace, name).await?;
        if !hosts.is_empty() {
            let hosts = shortened(&hosts);
            return Err(DeleteError::GroupInUse { namespace: namespace.clone(), name: name.clone(), hosts });
        }
    }
    let values = vec![(&delete.kind).into(), namespace.into(), name.into()];
    write.execute("DELETE FROM resources WHERE kind = $1 AND namespace = $2 AND name = $3", values).await?;
    vips::release(write, &path(&row.resource), delete.now).await?;
    audit::record(write, delete.now, Event::new(&delete.actor, "resource.delete", path(&row.resource), "")).await?;
    Ok(ApplyOutcome {
        kind: row.resource.kind().to_owned(),
        namespace: namespace.clone(),
        name: name.clone(),
        action: ApplyAction::Deleted,
        warnings: Vec::new(),
        before: Some(row.resource.to_value()),
        after: None,
    })
}

async fn hosts_of(write: &mut Write, namespace: &str, group: &str) -> Result<Vec<String>, StoreError> {
    let values = vec![namespace.into(), group.into()];
    let rows = write.fetch("SELECT host FROM host_groups WHERE namespace = $1 AND name = $2 ORDER BY host", values);
    rows.await?.iter().map(|row| row.text(0)).collect()
}

/// The first few names of a list.
fn shortened(names: &[String]) -> String {
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

pub(crate) fn key(resource: &Resource) -> Key {
    (resource.info().singular.to_owned(), resource.namespace().to_owned(), resource.name().to_owned())
}

/// `KIND/NAMESPACE/NAME`, as the audit log and the owners of addresses are named.
fn path(resource: &Resource) -> String {
    format!("{}/{}/{}", resource.info().singular, resource.namespace(), resource.name())
}

/// `Kind NAMESPACE/NAME`, as people read it.
fn title(resource: &Resource) -> String {
    format!("{} {}/{}", resource.kind(), resource.namespace(), resource.name())
}

/// A random UUID (RFC 9562 §5.4).
fn new_uid() -> String {
    let random: u128 = rand::random();
    let version = (random & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{version:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

const PUT: &str = "INSERT INTO resources (kind, namespace, name, uid, document, revision, generation, created_ms, \
    updated_ms) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (kind, namespace, name) DO UPDATE SET \
    document = excluded.document, revision = excluded.revision, generation = excluded.generation, \
    updated_ms = excluded.updated_ms";
/// How many names an error lists.
const SHOWN: usize = 5;

#[cfg(test)]
mod tests;
