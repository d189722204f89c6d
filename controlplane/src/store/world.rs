//! Everything that agents are told about, read in one transaction. The snapshot builder turns it into
//! what each agent receives; nothing here decides who may see what.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use api::Revision;
use api::resource::{Mistake, Resource};

use super::backend::Transaction;
use super::{Row, StoreError, from_ms};

/// The mesh at one revision.
#[derive(Debug, Clone, Default)]
pub struct World {
    pub revision: Revision,
    /// In the order of kind, namespace, name.
    pub resources: Vec<Arc<Resource>>,
    /// In the order of names.
    pub hosts: Vec<HostRow>,
    /// By workload uid; a workload without an entry has not been reported on.
    pub health: BTreeMap<String, WorkloadHealthRow>,
    /// By namespace and hostname, in the order of addresses.
    pub vips: BTreeMap<(String, String), Vec<IpAddr>>,
}

/// One applied resource with what the store knows of it.
#[derive(Debug, Clone)]
pub struct ResourceRow {
    pub resource: Arc<Resource>,
    pub uid: String,
    /// Of its last change.
    pub revision: Revision,
    pub generation: u64,
    pub created: SystemTime,
    pub updated: SystemTime,
}

/// One host.
#[derive(Debug, Clone)]
pub struct HostRow {
    pub name: String,
    pub addresses: Vec<IpAddr>,
    /// Namespace and name of each WorkloadGroup.
    pub groups: Vec<(String, String)>,
    pub state: HostRowState,
    /// Whether its lease is current. Only the workloads of an active host that is alive exist for peers.
    pub alive: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostRowState {
    /// Waits for an operator's approval.
    Pending,
    Active,
    /// Until an operator unlocks it.
    Locked,
    /// For good.
    Revoked,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadHealthRow {
    pub host: String,
    pub healthy: bool,
    pub reason: String,
}

impl World {
    /// The world, and what was parsed for it.
    pub(super) async fn load(read: &mut dyn Transaction, parsed: &Parsed) -> Result<(Self, Parsed), StoreError> {
        let rows = read.fetch("SELECT revision FROM revision WHERE id = 1", vec![]).await?;
        let revision = rows.first().ok_or(StoreError::NoRevision)?.int(0)?.cast_unsigned();
        let rows = read_resources(read, parsed).await?;
        let parsed = rows.iter().map(|row| (row.uid.clone(), (row.revision, row.resource.clone()))).collect();
        let world = Self {
            revision,
            resources: rows.into_iter().map(|row| row.resource).collect(),
            hosts: hosts(read).await?,
            health: health(read).await?,
            vips: vips(read).await?,
        };
        Ok((world, parsed))
    }

    pub fn host(&self, name: &str) -> Option<&HostRow> {
        let found = self.hosts.binary_search_by(|host| host.name.as_str().cmp(name)).ok()?;
        self.hosts.get(found)
    }
}

impl ResourceRow {
    /// One that is not written yet.
    pub(crate) fn of(resource: Arc<Resource>) -> Self {
        let (created, updated) = (UNIX_EPOCH, UNIX_EPOCH);
        Self { resource, uid: String::new(), revision: 0, generation: 0, created, updated }
    }

    fn read(row: &Row, parsed: &Parsed) -> Result<Self, StoreError> {
        let (uid, revision) = (row.text(1)?, row.int(2)?.cast_unsigned());
        let resource = match parsed.get(&uid) {
            Some((of, resource)) if *of == revision => resource.clone(),
            _ => Arc::new(Self::parse(row)?),
        };
        let (created, updated) = (from_ms(row.int(4)?), from_ms(row.int(6)?));
        Ok(Self { resource, uid, revision, generation: row.int(3)?.cast_unsigned(), created, updated })
    }

    fn parse(row: &Row) -> Result<Resource, StoreError> {
        // A document that was accepted once and cannot be read now must not be left out: without a
        // DENY policy more would be allowed.
        let unreadable = |mistakes: Vec<Mistake>| StoreError::Unreadable {
            object: row.text(5).unwrap_or_default(),
            mistakes: mistakes.iter().map(Mistake::to_string).collect::<Vec<_>>().join("; "),
        };
        Resource::from_value(row.json(0)?).map_err(unreadable)
    }
}

/// Resources that were read before, by uid, with their revision: reading a document again costs more
/// than all the rest of a world.
pub(crate) type Parsed = HashMap<String, (Revision, Arc<Resource>)>;

/// Every resource, in the order of kind, namespace and name.
pub(crate) async fn read_resources(
    read: &mut dyn Transaction,
    parsed: &Parsed,
) -> Result<Vec<ResourceRow>, StoreError> {
    let rows = read.fetch(
        "SELECT document, uid, revision, generation, created_ms, kind || '/' || namespace || '/' || name, updated_ms \
         FROM resources",
        vec![],
    );
    let mut rows = rows.await?.iter().map(|row| ResourceRow::read(row, parsed)).collect::<Result<Vec<_>, _>>()?;
    // By bytes, whatever the database's collation.
    rows.sort_by(|a, b| order(&a.resource).cmp(&order(&b.resource)));
    Ok(rows)
}

fn order(resource: &Resource) -> (&str, &str, &str) {
    (resource.info().singular, resource.namespace(), resource.name())
}

async fn hosts(read: &mut dyn Transaction) -> Result<Vec<HostRow>, StoreError> {
    let mut groups: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    let rows = read.fetch("SELECT host, namespace, name FROM host_groups ORDER BY host, namespace, name", vec![]);
    for row in rows.await? {
        groups.entry(row.text(0)?).or_default().push((row.text(1)?, row.text(2)?));
    }
    let rows = read.fetch(
        "SELECT h.name, h.state, h.addresses, COALESCE(l.alive, 0) \
         FROM hosts h LEFT JOIN leases l ON l.host = h.name ORDER BY h.name",
        vec![],
    );
    let mut hosts = Vec::new();
    for row in rows.await? {
        let name = row.text(0)?;
        let groups = groups.remove(&name).unwrap_or_default();
        let state = HostRowState::from_column(&row.text(1)?);
        hosts.push(HostRow { name, addresses: row.json(2)?, groups, state, alive: row.flag(3)? });
    }
    // By bytes, whatever the database's collation.
    hosts.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(hosts)
}

async fn health(read: &mut dyn Transaction) -> Result<BTreeMap<String, WorkloadHealthRow>, StoreError> {
    let rows = read.fetch("SELECT uid, host, healthy, reason FROM workload_health", vec![]).await?;
    let entry = |row: &Row| {
        let health = WorkloadHealthRow { host: row.text(1)?, healthy: row.flag(2)?, reason: row.text(3)? };
        Ok((row.text(0)?, health))
    };
    rows.iter().map(entry).collect()
}

async fn vips(read: &mut dyn Transaction) -> Result<BTreeMap<(String, String), Vec<IpAddr>>, StoreError> {
    let rows = read.fetch("SELECT namespace, hostname, address FROM vips WHERE released_ms = 0", vec![]).await?;
    let mut vips: BTreeMap<(String, String), Vec<IpAddr>> = BTreeMap::new();
    for row in rows {
        let Ok(address) = row.text(2)?.parse() else { continue };
        vips.entry((row.text(0)?, row.text(1)?)).or_default().push(address);
    }
    vips.values_mut().for_each(|addresses| addresses.sort());
    Ok(vips)
}

impl HostRowState {
    pub(crate) fn as_column(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Locked => "locked",
            Self::Revoked => "revoked",
        }
    }

    /// What is not known is locked: the safe side.
    pub(crate) fn from_column(text: &str) -> Self {
        match text {
            "pending" => Self::Pending,
            "active" => Self::Active,
            "revoked" => Self::Revoked,
            _ => Self::Locked,
        }
    }
}
