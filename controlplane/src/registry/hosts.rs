//! Hosts as operators see and handle them.

use std::net::IpAddr;
use std::time::SystemTime;

use crate::audit::{self, Event};
use crate::store::{HostRowState, Row, Store, StoreError, Write, WriteError};

/// One host with its lease and its newest certificate.
#[derive(Debug, Clone)]
pub struct HostRecord {
    pub name: String,
    pub state: HostRowState,
    /// Why it is locked, else what its agent complains of.
    pub problem: String,
    pub addresses: Vec<IpAddr>,
    /// `NAMESPACE/NAME`.
    pub groups: Vec<String>,
    pub joined_ms: i64,
    /// Whether its lease is current.
    pub alive: bool,
    /// 0 when it never reported.
    pub reported_ms: i64,
    /// The revision its agent obeys.
    pub revision: u64,
    pub version: String,
    pub intercepting: bool,
    /// End of its newest certificate; 0 when it has none.
    pub certificate_not_after_ms: i64,
}

/// Why something was not done to a host.
#[derive(Debug, thiserror::Error)]
pub enum HostActionError {
    #[error("there is no host {host}; `tombolo host list` shows them")]
    NotFound { host: String },
    #[error("the host {host} is {state}, so it cannot be {wanted}")]
    WrongState { host: String, state: &'static str, wanted: &'static str },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl WriteError for HostActionError {
    fn store_error(&self) -> Option<&StoreError> {
        match self {
            Self::Store(source) => Some(source),
            _ => None,
        }
    }
}

/// Every host, by name.
pub async fn list(store: &Store) -> Result<Vec<HostRecord>, StoreError> {
    store
        .read(&(), |read, ()| {
            Box::pin(async move {
                let mut hosts =
                    read.fetch(LIST, vec![]).await?.iter().map(HostRecord::read).collect::<Result<Vec<_>, _>>()?;
                hosts.sort_by(|a, b| a.name.cmp(&b.name));
                for row in read.fetch("SELECT host, namespace, name FROM host_groups ORDER BY 1, 2, 3", vec![]).await? {
                    let host = row.text(0)?;
                    if let Ok(at) = hosts.binary_search_by(|record| record.name.cmp(&host)) {
                        hosts[at].groups.push(format!("{}/{}", row.text(1)?, row.text(2)?));
                    }
                }
                Ok(hosts)
            })
        })
        .await
}

/// Lets a pending host have its workloads.
pub async fn approve(store: &Store, host: &str, actor: &str, now: SystemTime) -> Result<(), HostActionError> {
    use HostRowState::{Active, Pending};
    transition(store, &Transition::new(host, actor, now, "host.approve", &[Pending, Active], Active)).await
}

/// Withdraws the host's workloads and renews nothing until it is unlocked.
pub async fn lock(store: &Store, host: &str, actor: &str, now: SystemTime) -> Result<(), HostActionError> {
    use HostRowState::{Active, Locked, Pending};
    transition(store, &Transition::new(host, actor, now, "host.lock", &[Active, Pending, Locked], Locked)).await
}

pub async fn unlock(store: &Store, host: &str, actor: &str, now: SystemTime) -> Result<(), HostActionError> {
    use HostRowState::{Active, Locked};
    transition(store, &Transition::new(host, actor, now, "host.unlock", &[Locked, Active], Active)).await
}

/// Locks for good.
pub async fn revoke(store: &Store, host: &str, actor: &str, now: SystemTime) -> Result<(), HostActionError> {
    use HostRowState::{Active, Locked, Pending, Revoked};
    let from = &[Active, Pending, Locked, Revoked];
    transition(store, &Transition::new(host, actor, now, "host.revoke", from, Revoked)).await
}

/// Forgets the host: the name is free again.
pub async fn delete(store: &Store, host: &str, actor: &str, now: SystemTime) -> Result<(), HostActionError> {
    let input = (host.to_owned(), actor.to_owned(), now);
    store
        .write(&input, |write, (host, actor, now)| {
            Box::pin(async move {
                if !remove(write, host).await? {
                    return Err(HostActionError::NotFound { host: host.clone() });
                }
                audit::record(write, *now, Event::new(actor, "host.delete", format!("host/{host}"), "")).await?;
                Ok(())
            })
        })
        .await
}

/// One operator's change of a host's state.
struct Transition {
    host: String,
    actor: String,
    now: SystemTime,
    action: &'static str,
    from: &'static [HostRowState],
    to: HostRowState,
}

impl Transition {
    fn new(
        host: &str,
        actor: &str,
        now: SystemTime,
        action: &'static str,
        from: &'static [HostRowState],
        to: HostRowState,
    ) -> Self {
        Self { host: host.to_owned(), actor: actor.to_owned(), now, action, from, to }
    }
}

async fn transition(store: &Store, change: &Transition) -> Result<(), HostActionError> {
    store.write(change, |write, change| Box::pin(transition_in(write, change))).await
}

async fn transition_in(write: &mut Write, change: &Transition) -> Result<(), HostActionError> {
    let rows = write.fetch("SELECT state FROM hosts WHERE name = $1", vec![(&change.host).into()]).await?;
    let Some(row) = rows.first() else { return Err(HostActionError::NotFound { host: change.host.clone() }) };
    let state = HostRowState::from_column(&row.text(0)?);
    if state == change.to {
        write.discard();
        return Ok(());
    }
    if !change.from.contains(&state) {
        let (state, wanted) = (state.as_column(), change.to.as_column());
        return Err(HostActionError::WrongState { host: change.host.clone(), state, wanted });
    }
    let problem = match change.to {
        HostRowState::Locked => format!("locked by {}", change.actor),
        HostRowState::Revoked => format!("revoked by {}", change.actor),
        HostRowState::Active | HostRowState::Pending => String::new(),
    };
    set_state(write, &change.host, change.to, &problem).await?;
    if state == HostRowState::Locked {
        // Its number may be the one that was taken for a clone's: the next renewal may have any.
        write.execute("UPDATE hosts SET previous_sequence = -1 WHERE name = $1", vec![(&change.host).into()]).await?;
    }
    let event =
        Event::new(&change.actor, change.action, format!("host/{}", change.host), format!("was {}", state.as_column()));
    audit::record(write, change.now, event).await?;
    Ok(())
}

/// Changes the state; a host that is put out loses its lease at once.
pub(super) async fn set_state(
    write: &mut Write,
    host: &str,
    state: HostRowState,
    problem: &str,
) -> Result<(), StoreError> {
    let values = vec![host.into(), state.as_column().into(), problem.into()];
    write.execute("UPDATE hosts SET state = $2, problem = $3 WHERE name = $1", values).await?;
    if matches!(state, HostRowState::Locked | HostRowState::Revoked) {
        write.execute("UPDATE leases SET alive = 0 WHERE host = $1", vec![host.into()]).await?;
    }
    Ok(())
}

/// Whether there was such a host.
pub(super) async fn remove(write: &mut Write, host: &str) -> Result<bool, StoreError> {
    Ok(write.execute("DELETE FROM hosts WHERE name = $1", vec![host.into()]).await? > 0)
}

/// Namespace and name of each group of a host.
pub(super) async fn groups_of(write: &mut Write, host: &str) -> Result<Vec<(String, String)>, StoreError> {
    let rows = write.fetch("SELECT namespace, name FROM host_groups WHERE host = $1 ORDER BY 1, 2", vec![host.into()]);
    rows.await?.iter().map(|row| Ok((row.text(0)?, row.text(1)?))).collect()
}

impl HostRecord {
    fn read(row: &Row) -> Result<Self, StoreError> {
        let (locked, reported) = (row.text(2)?, row.text(9)?);
        Ok(Self {
            name: row.text(0)?,
            state: HostRowState::from_column(&row.text(1)?),
            problem: if locked.is_empty() { reported } else { locked },
            addresses: row.json(3)?,
            groups: Vec::new(),
            joined_ms: row.int(4)?,
            alive: row.flag(5)?,
            reported_ms: row.int(6)?,
            revision: row.int(7)?.cast_unsigned(),
            version: row.text(8)?,
            intercepting: row.flag(10)?,
            certificate_not_after_ms: row.int(11)?,
        })
    }
}

const LIST: &str = "SELECT h.name, h.state, h.problem, h.addresses, h.joined_ms, \
    COALESCE(l.alive, 0), COALESCE(l.reported_ms, 0), COALESCE(l.revision, 0), COALESCE(l.version, h.version), \
    COALESCE(l.problem, ''), COALESCE(l.intercepting, 0), \
    COALESCE((SELECT MAX(c.not_after_ms) FROM certificates c WHERE c.host = h.name), 0) \
    FROM hosts h LEFT JOIN leases l ON l.host = h.name";
