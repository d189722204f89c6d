//! Heartbeats: a host's workloads live as long as its agent reports, fenced by the agent's epoch.
//!
//! Most reports change nothing but a time, in one statement that takes no revision. A change of
//! health, of addresses or of being alive at all takes one. Expiry pauses after every time in which
//! nobody could report (start of the control plane, database away), so that an outage of the control
//! plane never empties the mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use sha2::{Digest as _, Sha256};
use tracing::{debug, info, warn};

use super::tokens::list_column;
use super::{hosts, join, workload_uid};
use crate::audit::{self, Event};
use crate::store::{HostRowState, Store, StoreError, Value, Write, WriteError, to_ms};

/// What an agent says of itself.
#[derive(Debug, Clone)]
pub struct Report {
    /// Random, once for each start of the agent.
    pub epoch: u64,
    /// The revision it obeys.
    pub revision: u64,
    pub workloads: Vec<WorkloadReport>,
    /// Where peers reach it; empty leaves what is known.
    pub addresses: Vec<IpAddr>,
    pub version: String,
    pub intercepting: bool,
    /// What it last refused, for people.
    pub problem: String,
    /// Where the report comes from.
    pub peer_ip: IpAddr,
}

#[derive(Debug, Clone)]
pub struct WorkloadReport {
    pub uid: String,
    pub healthy: bool,
    pub reason: String,
}

/// Why a report does not count.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("there is no host {host} here; join again with a new token")]
    UnknownHost { host: String },
    #[error("the host {host} is {state}: {problem}; {}", cure(host, state))]
    Barred { host: String, state: &'static str, problem: String },
    #[error(
        "another agent with the identity of host {host} has started since and is heard instead: is there a copy of \
         this machine? On the copy run `tombolo leave --purge --local` and join with a new token, then restart this \
         agent"
    )]
    StaleEpoch { host: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn cure(host: &str, state: &str) -> String {
    match state == HostRowState::Locked.as_column() {
        true => format!("an operator can release it with `tombolo host unlock {host}`"),
        false => "delete it and join again with a new token".to_owned(),
    }
}

impl WriteError for ReportError {
    fn store_error(&self) -> Option<&StoreError> {
        match self {
            Self::Store(source) => Some(source),
            _ => None,
        }
    }
}

/// Why a host did not leave.
#[derive(Debug, thiserror::Error)]
pub enum LeaveError {
    #[error("there is no host {host} here")]
    UnknownHost { host: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl WriteError for LeaveError {
    fn store_error(&self) -> Option<&StoreError> {
        match self {
            Self::Store(source) => Some(source),
            Self::UnknownHost { .. } => None,
        }
    }
}

/// Renews the host's lease for `lease` from `now`.
pub async fn report(
    store: &Store,
    host: &str,
    report: &Report,
    lease: Duration,
    now: SystemTime,
) -> Result<(), ReportError> {
    let input = Beat { host: host.to_owned(), fingerprint: fingerprint(report), report: report.clone(), lease, now };
    let values = vec![
        host.into(),
        to_ms(now).into(),
        to_ms(now + lease).into(),
        report.revision.cast_signed().into(),
        epoch_column(report.epoch).into(),
        (&input.fingerprint).into(),
    ];
    if !store.fetch_quietly(BEAT, values).await?.is_empty() {
        return Ok(());
    }
    store.write(&input, |write, beat| Box::pin(report_in(write, beat))).await
}

struct Beat {
    host: String,
    fingerprint: String,
    report: Report,
    lease: Duration,
    now: SystemTime,
}

/// A report that says something new.
async fn report_in(write: &mut Write, beat: &Beat) -> Result<(), ReportError> {
    let host = &beat.host;
    let rows = write.fetch("SELECT state, problem, addresses FROM hosts WHERE name = $1", vec![host.into()]).await?;
    let Some(row) = rows.first() else { return Err(ReportError::UnknownHost { host: host.clone() }) };
    let state = HostRowState::from_column(&row.text(0)?);
    if matches!(state, HostRowState::Locked | HostRowState::Revoked) {
        return Err(ReportError::Barred { host: host.clone(), state: state.as_column(), problem: row.text(1)? });
    }
    let mut changed = keep_addresses(write, beat, &row.text(2)?).await?;
    changed |= keep_health(write, beat).await?;
    changed |= keep_lease(write, beat).await?;
    if !changed {
        write.give_back_revision().await?;
    }
    Ok(())
}

/// Whether the host moved.
async fn keep_addresses(write: &mut Write, beat: &Beat, kept: &str) -> Result<bool, StoreError> {
    let mut addresses = beat.report.addresses.clone();
    addresses.retain(|address| join::usable(*address, beat.report.peer_ip));
    addresses.truncate(join::MAX_ADDRESSES);
    let column = list_column(&addresses);
    if addresses.is_empty() || column == kept {
        return Ok(false);
    }
    info!(host = %beat.host, addresses = %column, "host {} has other addresses", beat.host);
    write.execute("UPDATE hosts SET addresses = $2 WHERE name = $1", vec![(&beat.host).into(), column.into()]).await?;
    Ok(true)
}

/// Whether the health of a workload changed. Only the host's own workloads are heard.
async fn keep_health(write: &mut Write, beat: &Beat) -> Result<bool, StoreError> {
    let groups = hosts::groups_of(write, &beat.host).await?;
    let own: BTreeSet<String> = groups.iter().map(|(ns, group)| workload_uid(ns, group, &beat.host)).collect();
    let mut kept = BTreeMap::new();
    let rows =
        write.fetch("SELECT uid, healthy, reason FROM workload_health WHERE host = $1", vec![(&beat.host).into()]);
    for row in rows.await? {
        kept.insert(row.text(0)?, (row.flag(1)?, row.text(2)?));
    }
    let mut changed = false;
    for workload in &beat.report.workloads {
        if !own.contains(&workload.uid) {
            debug!(host = %beat.host, workload.id = %workload.uid, "a report on a workload that the host does not run");
            continue;
        }
        let reason: String = workload.reason.chars().take(MAX_REASON).collect();
        let before = kept.remove(&workload.uid);
        if before.as_ref() == Some(&(workload.healthy, reason.clone())) {
            continue;
        }
        changed |= before.map(|(healthy, _)| healthy) != Some(workload.healthy);
        let values: Vec<Value> =
            vec![(&workload.uid).into(), (&beat.host).into(), workload.healthy.into(), reason.into()];
        write.execute(HEALTH, values).await?;
    }
    for uid in kept.keys() {
        write.execute("DELETE FROM workload_health WHERE uid = $1", vec![uid.into()]).await?;
        changed = true;
    }
    Ok(changed)
}

/// Whether the host was not alive before.
async fn keep_lease(write: &mut Write, beat: &Beat) -> Result<bool, ReportError> {
    let epoch = epoch_column(beat.report.epoch);
    let rows =
        write.fetch("SELECT epoch, retired, alive FROM leases WHERE host = $1", vec![(&beat.host).into()]).await?;
    let (mut retired, mut alive) = (Vec::<String>::new(), false);
    if let Some(row) = rows.first() {
        (retired, alive) = (row.json(1)?, row.flag(2)?);
        let current = row.text(0)?;
        if retired.contains(&epoch) {
            return Err(ReportError::StaleEpoch { host: beat.host.clone() });
        }
        if current != epoch {
            retired.insert(0, current);
            retired.truncate(MAX_RETIRED);
        }
    }
    let report = &beat.report;
    let values = vec![
        (&beat.host).into(),
        epoch.into(),
        list_column(&retired).into(),
        (&beat.fingerprint).into(),
        to_ms(beat.now).into(),
        to_ms(beat.now + beat.lease).into(),
        report.revision.cast_signed().into(),
        shortened(&report.version).into(),
        report.intercepting.into(),
        shortened(&report.problem).into(),
    ];
    write.execute(LEASE, values).await?;
    Ok(!alive)
}

/// Withdraws the host's workloads at once; with `forget` the host is no longer known.
pub async fn leave(store: &Store, host: &str, forget: bool, now: SystemTime) -> Result<(), LeaveError> {
    let input = (host.to_owned(), forget, now);
    store.write(&input, |write, (host, forget, now)| Box::pin(leave_in(write, host, *forget, *now))).await
}

async fn leave_in(write: &mut Write, host: &str, forget: bool, now: SystemTime) -> Result<(), LeaveError> {
    let found = if forget {
        hosts::remove(write, host).await?
    } else {
        write.execute("DELETE FROM workload_health WHERE host = $1", vec![host.into()]).await?;
        write
            .execute(
                "UPDATE leases SET alive = 0, expires_ms = $2 WHERE host = $1",
                vec![host.into(), to_ms(now).into()],
            )
            .await?;
        !write.fetch("SELECT 1 FROM hosts WHERE name = $1", vec![host.into()]).await?.is_empty()
    };
    if !found {
        return Err(LeaveError::UnknownHost { host: host.to_owned() });
    }
    let action = if forget { "host.forget" } else { "host.leave" };
    audit::record(write, now, Event::new(format!("host/{host}"), action, format!("host/{host}"), "")).await?;
    Ok(())
}

/// Takes the leases that have run out; how many.
pub async fn expire(store: &Store, now: SystemTime) -> Result<u64, StoreError> {
    let now = to_ms(now);
    let due = store
        .read(&now, |read, now| Box::pin(async move { Ok(!read.fetch(DUE, vec![(*now).into()]).await?.is_empty()) }));
    if !due.await? {
        return Ok(0);
    }
    store
        .write(&now, |write, now| {
            Box::pin(async move {
                let rows = write.fetch(EXPIRE, vec![(*now).into()]).await?;
                if rows.is_empty() {
                    write.discard();
                }
                for row in &rows {
                    let host = row.text(0)?;
                    warn!(host = %host, "host {host} has not reported in time: its workloads are withdrawn");
                }
                Ok(rows.len() as u64)
            })
        })
        .await
}

/// Takes leases that run out and old rows, until it is dropped.
pub async fn keep_leases(store: Store, lease: Duration, grace: Duration) {
    let mut pause = Pause::new(lease.max(grace), Instant::now(), SystemTime::now());
    let mut tidied: Option<Instant> = None;
    loop {
        tokio::time::sleep(TICK).await;
        let now = SystemTime::now();
        if !pause.may_expire(store.available(), Instant::now(), now) {
            continue;
        }
        if let Err(error) = expire(&store, now).await {
            debug!(error = %telemetry::Chain(&error), "leases could not be looked at");
        }
        if tidied.is_none_or(|at| at.elapsed() > TIDY_EVERY) {
            tidied = Some(Instant::now());
            if let Err(error) = tidy(&store, now).await {
                warn!(error = %telemetry::Chain(&error), "old rows could not be removed");
            }
        }
    }
}

/// Removes what nobody needs any more.
async fn tidy(store: &Store, now: SystemTime) -> Result<(), StoreError> {
    let before = |days: u64| vec![to_ms(now - Duration::from_secs(days * 24 * 3600)).into()];
    store.execute_quietly("DELETE FROM tokens WHERE expires_ms < $1", before(7)).await?;
    store.execute_quietly("DELETE FROM certificates WHERE not_after_ms < $1", before(7)).await?;
    store.execute_quietly("DELETE FROM audit WHERE at_ms < $1", before(365)).await?;
    Ok(())
}

/// When leases may run out: not until hosts had the time to report after nobody could.
pub(super) struct Pause {
    grace: Duration,
    until: Instant,
    last: SystemTime,
}

impl Pause {
    pub(super) fn new(grace: Duration, at: Instant, now: SystemTime) -> Self {
        Self { grace, until: at + grace, last: now }
    }

    /// Asked at every tick. A database that is away and a clock that jumped (a suspended machine, a
    /// stopped process) both start the grace period again.
    pub(super) fn may_expire(&mut self, available: bool, at: Instant, now: SystemTime) -> bool {
        let steady = now.duration_since(self.last).is_ok_and(|since| since < MAX_GAP);
        self.last = now;
        if !available || !steady {
            self.until = at + self.grace;
        }
        at >= self.until
    }
}

/// Everything that a report says besides the revision: the same again takes the short way.
fn fingerprint(report: &Report) -> String {
    let digest = Sha256::digest(format!(
        "{:?}",
        (&report.workloads, &report.addresses, &report.version, report.intercepting, &report.problem)
    ));
    digest.iter().take(16).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn epoch_column(epoch: u64) -> String {
    format!("{epoch:016x}")
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_REASON).collect()
}

const BEAT: &str = "UPDATE leases SET reported_ms = $2, expires_ms = $3, revision = $4 \
    WHERE host = $1 AND epoch = $5 AND fingerprint = $6 AND alive = 1 RETURNING host";
const LEASE: &str = "INSERT INTO leases (host, epoch, retired, fingerprint, alive, reported_ms, expires_ms, revision, \
    version, intercepting, problem) VALUES ($1, $2, $3, $4, 1, $5, $6, $7, $8, $9, $10) \
    ON CONFLICT (host) DO UPDATE SET epoch = excluded.epoch, retired = excluded.retired, \
    fingerprint = excluded.fingerprint, alive = 1, reported_ms = excluded.reported_ms, \
    expires_ms = excluded.expires_ms, revision = excluded.revision, version = excluded.version, \
    intercepting = excluded.intercepting, problem = excluded.problem";
const HEALTH: &str = "INSERT INTO workload_health (uid, host, healthy, reason) VALUES ($1, $2, $3, $4) \
    ON CONFLICT (uid) DO UPDATE SET host = excluded.host, healthy = excluded.healthy, reason = excluded.reason";
const DUE: &str = "SELECT host FROM leases WHERE alive = 1 AND expires_ms <= $1 LIMIT 1";
const EXPIRE: &str = "UPDATE leases SET alive = 0 WHERE alive = 1 AND expires_ms <= $1 RETURNING host";
/// How many agents before the present one are remembered; each start of the agent adds one.
const MAX_RETIRED: usize = 16;
/// Texts of agents are for a table on a screen.
const MAX_REASON: usize = 300;
/// A lease ends at most this much late.
const TICK: Duration = Duration::from_millis(500);
/// More than this between two ticks means that the process did not run.
const MAX_GAP: Duration = Duration::from_secs(5);
const TIDY_EVERY: Duration = Duration::from_secs(3600);
