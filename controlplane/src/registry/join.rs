//! A host becomes one of the mesh: its token is checked and one use consumed in one transaction.

use std::net::IpAddr;
use std::time::SystemTime;

use api::token::{JoinToken, TokenError};
use tracing::{info, warn};

use super::tokens::{self, TokenRecord, list_column};
use super::{hosts, parse_group};
use crate::audit::{self, Event};
use crate::store::{HostRowState, Store, StoreError, Write, WriteError, rfc3339, to_ms};

/// What a joining host says of itself, and what its connection shows.
#[derive(Debug, Clone)]
pub struct JoinAttempt {
    /// As it was pasted.
    pub token: String,
    pub name: String,
    /// `NAMESPACE/NAME`; empty means every group of the token.
    pub groups: Vec<String>,
    /// Where peers reach it; empty means where it connects from.
    pub addresses: Vec<IpAddr>,
    pub version: String,
    /// Where it connects from.
    pub peer_ip: IpAddr,
    /// SHA-256 of the public key in its certificate request: the same key with the same token is the
    /// same host asking again because the answer was lost, and costs no second use.
    pub key_hash: [u8; 32],
    pub now: SystemTime,
}

/// A host that may have its certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinGrant {
    pub host: String,
    pub groups: Vec<String>,
    /// To be presented at the next renewal.
    pub join_sequence: u64,
    /// It gets a host certificate, but workloads only after `tombolo host approve`.
    pub pending: bool,
}

/// Why a host may not join. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("{source}")]
    Damaged { source: TokenError },
    #[error(
        "this control plane does not know the join token {id}: it was revoked, or another control plane made it; \
         make a new one here with `tombolo token create`"
    )]
    UnknownToken { id: String },
    #[error("the join token {id} expired at {at}; make a new one with `tombolo token create`")]
    Expired { id: String, at: String },
    #[error("the join token {id} is spent: every use has been made; make a new one with `tombolo token create`")]
    Spent { id: String },
    #[error(
        "{name:?} cannot be a host's name: 1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit; \
         give another with --name"
    )]
    NameInvalid { name: String },
    #[error("the join token is for hosts named {pattern}, not {name}; give a fitting --name or make another token")]
    NameNotAllowed { name: String, pattern: String },
    #[error("the join token is for hosts at {cidrs}, not {address}; join from there or make another token")]
    AddressNotAllowed { address: IpAddr, cidrs: String },
    #[error("peers cannot reach a host at {address}; give the address they use with --advertise")]
    AddressUnusable { address: IpAddr },
    #[error("the join token is for the groups {allowed}, not for {group}; leave --group away or make another token")]
    GroupNotAllowed { group: String, allowed: String },
    #[error("there is no WorkloadGroup {group} any more; apply it again or make a token for another group")]
    GroupUnknown { group: String },
    #[error("there is already a host {name}: {why}")]
    NameTaken { name: String, why: &'static str },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl WriteError for JoinError {
    fn store_error(&self) -> Option<&StoreError> {
        match self {
            Self::Store(source) => Some(source),
            _ => None,
        }
    }
}

/// Registers the host and consumes one use of its token, or neither.
pub async fn join(store: &Store, attempt: &JoinAttempt) -> Result<JoinGrant, JoinError> {
    let token = JoinToken::parse(&attempt.token).map_err(|source| JoinError::Damaged { source })?;
    let id = token.id();
    let input = (attempt.clone(), token);
    let outcome = store.write(&input, |write, (attempt, token)| Box::pin(join_in(write, attempt, token))).await;
    match &outcome {
        Ok(grant) => info!(host = %grant.host, token = %id, groups = ?grant.groups, "host {} joined", grant.host),
        Err(error) => refused(store, attempt, &id, error).await,
    }
    outcome
}

/// Refusals are logged; those of a token whose secret was right are audited too (others could be sent
/// by anyone, as often as they like).
async fn refused(store: &Store, attempt: &JoinAttempt, id: &str, error: &JoinError) {
    warn!(host = %attempt.name, token = %id, src.addr = %attempt.peer_ip, error = %error, "a host was refused");
    if matches!(error, JoinError::Damaged { .. } | JoinError::UnknownToken { .. } | JoinError::Store(_)) {
        return;
    }
    let object = format!("host/{}", attempt.name.chars().take(63).collect::<String>());
    let event = Event::new(format!("token/{id}"), "host.join.refused", object, error.to_string());
    if let Err(error) = audit::note(store, attempt.now, event).await {
        warn!(error = %telemetry::Chain(&error), "a refused join could not be written to the audit log");
    }
}

async fn join_in(write: &mut Write, attempt: &JoinAttempt, token: &JoinToken) -> Result<JoinGrant, JoinError> {
    let record = tokens::proved(write, token).await?.ok_or_else(|| JoinError::UnknownToken { id: token.id() })?;
    if let Some(grant) = repeated(write, attempt, &record).await? {
        write.discard();
        return Ok(grant);
    }
    let groups = allowed(attempt, &record)?;
    for group in &groups {
        if !tokens::group_exists(write, group).await? {
            return Err(JoinError::GroupUnknown { group: group.clone() });
        }
    }
    let last_sequence = free_name(write, attempt).await?;
    if !tokens::consume(write, &record.id).await? {
        return Err(JoinError::Spent { id: record.id });
    }
    register(write, attempt, &record, &groups, last_sequence + 1).await?;
    let detail = format!("groups {} from {}", groups.join(" "), attempt.peer_ip);
    let event = Event::new(format!("token/{}", record.id), "host.join", format!("host/{}", attempt.name), detail);
    audit::record(write, attempt.now, event).await?;
    Ok(JoinGrant {
        host: attempt.name.clone(),
        groups,
        join_sequence: (last_sequence + 1).cast_unsigned(),
        pending: record.approval,
    })
}

/// The grant of an earlier attempt of the same key with the same token, whose answer was lost.
async fn repeated(
    write: &mut Write,
    attempt: &JoinAttempt,
    token: &TokenRecord,
) -> Result<Option<JoinGrant>, JoinError> {
    let rows = write
        .fetch(
            "SELECT sequence, state FROM hosts WHERE name = $1 AND token_id = $2 AND key_hash = $3 \
             AND previous_sequence = 0 AND state IN ('active', 'pending')",
            vec![(&attempt.name).into(), (&token.id).into(), attempt.key_hash.to_vec().into()],
        )
        .await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let groups = hosts::groups_of(write, &attempt.name).await?;
    Ok(Some(JoinGrant {
        host: attempt.name.clone(),
        groups: groups.iter().map(|(namespace, name)| format!("{namespace}/{name}")).collect(),
        join_sequence: row.int(0)?.cast_unsigned(),
        pending: row.text(1)? == HostRowState::Pending.as_column(),
    }))
}

/// The groups that the host joins, if the token lets this host in at all.
fn allowed(attempt: &JoinAttempt, token: &TokenRecord) -> Result<Vec<String>, JoinError> {
    if to_ms(attempt.now) >= token.expires_ms {
        return Err(JoinError::Expired { id: token.id.clone(), at: rfc3339(token.expires_ms) });
    }
    if token.uses_left <= 0 {
        return Err(JoinError::Spent { id: token.id.clone() });
    }
    let name = &attempt.name;
    if !is_host_name(name) {
        return Err(JoinError::NameInvalid { name: name.chars().take(80).collect() });
    }
    if !token.allows_name(name) {
        return Err(JoinError::NameNotAllowed { name: name.clone(), pattern: token.name_pattern.clone() });
    }
    if !token.allows_address(attempt.peer_ip) {
        return Err(JoinError::AddressNotAllowed { address: attempt.peer_ip, cidrs: token.cidrs.join(", ") });
    }
    if let Some(address) = attempt.addresses.iter().find(|address| !usable(**address, attempt.peer_ip)) {
        return Err(JoinError::AddressUnusable { address: *address });
    }
    if attempt.groups.is_empty() {
        return Ok(token.groups.clone());
    }
    let mut groups = attempt.groups.clone();
    groups.sort();
    groups.dedup();
    match groups.iter().find(|group| !token.groups.contains(group)) {
        Some(group) => Err(JoinError::GroupNotAllowed { group: group.clone(), allowed: token.groups.join(", ") }),
        None => Ok(groups),
    }
}

/// The join sequence that a host of this name had last, 0 if there was none.
async fn free_name(write: &mut Write, attempt: &JoinAttempt) -> Result<i64, JoinError> {
    let rows = write
        .fetch(
            "SELECT h.sequence, h.state, COALESCE(l.alive, 0) FROM hosts h LEFT JOIN leases l ON l.host = h.name \
             WHERE h.name = $1",
            vec![(&attempt.name).into()],
        )
        .await?;
    let Some(row) = rows.first() else { return Ok(0) };
    let why = match HostRowState::from_column(&row.text(1)?) {
        HostRowState::Locked => "it is locked; `tombolo host unlock` it, or `tombolo delete host` it first",
        HostRowState::Revoked => "it is revoked; `tombolo delete host` it first, or take another --name",
        HostRowState::Active | HostRowState::Pending if row.flag(2)? => {
            "it is alive; `tombolo leave` there first, or take another --name"
        }
        HostRowState::Active | HostRowState::Pending => return Ok(row.int(0)?),
    };
    Err(JoinError::NameTaken { name: attempt.name.clone(), why })
}

async fn register(
    write: &mut Write,
    attempt: &JoinAttempt,
    token: &TokenRecord,
    groups: &[String],
    sequence: i64,
) -> Result<(), StoreError> {
    let state = if token.approval { HostRowState::Pending } else { HostRowState::Active };
    let addresses = if attempt.addresses.is_empty() { vec![attempt.peer_ip] } else { attempt.addresses.clone() };
    let addresses = &addresses[..addresses.len().min(MAX_ADDRESSES)];
    // What an earlier host of this name left behind goes with its row.
    hosts::remove(write, &attempt.name).await?;
    let values = vec![
        (&attempt.name).into(),
        state.as_column().into(),
        list_column(addresses).into(),
        sequence.into(),
        attempt.key_hash.to_vec().into(),
        (&token.id).into(),
        to_ms(attempt.now).into(),
        (&attempt.version).into(),
    ];
    write.execute(INSERT, values).await?;
    for (namespace, name) in groups.iter().filter_map(|group| parse_group(group)) {
        let values = vec![(&attempt.name).into(), namespace.into(), name.into()];
        write.execute("INSERT INTO host_groups (host, namespace, name) VALUES ($1, $2, $3)", values).await?;
    }
    Ok(())
}

/// A DNS label in lower case (RFC 1123 §2.1): it becomes part of names and of the identity.
fn is_host_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&name.len()) && name.bytes().all(inner) && !name.starts_with('-') && !name.ends_with('-')
}

/// Loopback is where peers find themselves; only a control plane on the same machine may mean it.
pub(super) fn usable(address: IpAddr, peer_ip: IpAddr) -> bool {
    let loopback = address.is_loopback() && !peer_ip.to_canonical().is_loopback();
    !(address.is_unspecified() || address.is_multicast() || loopback)
}

const INSERT: &str = "INSERT INTO hosts (name, state, problem, addresses, sequence, previous_sequence, key_hash, \
    token_id, joined_ms, version) VALUES ($1, $2, '', $3, $4, 0, $5, $6, $7, $8)";
/// More than any host has, fewer than would swell every agent's snapshot.
pub(super) const MAX_ADDRESSES: usize = 16;
