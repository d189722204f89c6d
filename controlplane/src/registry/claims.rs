//! Which identities a host may have certificates for, and a record of those it got.

use std::collections::BTreeSet;
use std::time::SystemTime;

use api::SpiffeId;

use crate::store::{HostRowState, Store, StoreError, to_ms};

/// A certificate that was signed.
#[derive(Debug, Clone)]
pub struct CertificateRecord {
    /// Hexadecimal.
    pub serial: String,
    pub identity: String,
    pub host: String,
    pub not_after: SystemTime,
}

/// Why a host gets no certificate for an identity.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    #[error("there is no host {host} here; join again with a new token")]
    UnknownHost { host: String },
    #[error("the host {host} waits for approval: `tombolo host approve {host}`")]
    Pending { host: String },
    #[error("the host {host} is {state}; an operator decides what happens with it (`tombolo host list`)")]
    Barred { host: String, state: &'static str },
    #[error("the host {host} may not be {identity}: its WorkloadGroups allow {allowed}")]
    NotYours { host: String, identity: SpiffeId, allowed: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Whether a WorkloadGroup that the host is in has this identity's namespace and service account.
/// The trust domain is for the caller to compare.
pub async fn may_claim(store: &Store, host: &str, identity: &SpiffeId) -> Result<(), ClaimError> {
    let name = host.to_owned();
    let read = store.read(&name, |read, host| {
        Box::pin(async move {
            let hosts = read.fetch("SELECT state FROM hosts WHERE name = $1", vec![host.into()]).await?;
            let Some(row) = hosts.first() else { return Ok(None) };
            let state = HostRowState::from_column(&row.text(0)?);
            let mut accounts = BTreeSet::new();
            for row in read.fetch(GROUPS, vec![host.into()]).await? {
                accounts.insert((row.text(0)?, service_account(&row.json(1)?)));
            }
            Ok(Some((state, accounts)))
        })
    });
    let host = name.clone();
    let Some((state, accounts)) = read.await? else { return Err(ClaimError::UnknownHost { host }) };
    match state {
        HostRowState::Active => {}
        HostRowState::Pending => return Err(ClaimError::Pending { host }),
        HostRowState::Locked | HostRowState::Revoked => {
            return Err(ClaimError::Barred { host, state: state.as_column() });
        }
    }
    let claimed = identity.namespace().zip(identity.service_account());
    if accounts.iter().any(|(namespace, account)| claimed == Some((namespace, account))) {
        return Ok(());
    }
    let allowed: Vec<String> =
        accounts.iter().map(|(namespace, account)| format!("ns/{namespace}/sa/{account}")).collect();
    let allowed = if allowed.is_empty() { "none".to_owned() } else { allowed.join(", ") };
    Err(ClaimError::NotYours { host, identity: identity.clone(), allowed })
}

/// The service account of a WorkloadGroup's document; `default` when it names none, as in Istio.
pub(crate) fn service_account(document: &serde_json::Value) -> String {
    let named = document.pointer("/spec/template/serviceAccount").and_then(serde_json::Value::as_str);
    named.filter(|name| !name.is_empty()).unwrap_or("default").to_owned()
}

/// Keeps what was signed, so that it can be found out later; never the key.
pub async fn record_certificate(store: &Store, record: &CertificateRecord, now: SystemTime) -> Result<(), StoreError> {
    let values = vec![
        (&record.serial).into(),
        (&record.identity).into(),
        (&record.host).into(),
        to_ms(now).into(),
        to_ms(record.not_after).into(),
    ];
    store.execute_quietly(INSERT, values).await.map(|_| ())
}

const GROUPS: &str = "SELECT r.namespace, r.document FROM host_groups g \
    JOIN resources r ON r.kind = 'workloadgroup' AND r.namespace = g.namespace AND r.name = g.name WHERE g.host = $1";
const INSERT: &str = "INSERT INTO certificates (serial, identity, host, issued_ms, not_after_ms) \
    VALUES ($1, $2, $3, $4, $5) ON CONFLICT (serial) DO NOTHING";
