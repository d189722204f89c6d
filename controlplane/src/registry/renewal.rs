//! A host renews its certificate, and shows by its join sequence that it is the only one of its name.
//!
//! Every renewal hands out a new number. Good is the newest one, or the one it replaced as long as
//! the newest was never presented: the answer that carried it may have been lost. A disk that was
//! cloned has an old number as soon as the other copy has renewed twice, or once after the clone did;
//! then the host is locked, because nobody can say which of the two is the right one. After an
//! operator has unlocked it, the first one to renew is taken for the right one.

use std::time::SystemTime;

use tracing::warn;

use super::hosts;
use crate::audit::{self, Event};
use crate::store::{HostRowState, Store, StoreError, Write, WriteError};

/// Why a host's certificate is not renewed.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    #[error("there is no host {host} here; join again with a new token")]
    UnknownHost { host: String },
    #[error("the host {host} is locked: {problem}; an operator can release it with `tombolo host unlock {host}`")]
    Locked { host: String, problem: String },
    #[error("the host {host} is revoked; delete it and join again with a new token")]
    Revoked { host: String },
    #[error(
        "two machines use the identity of host {host} (join sequence {presented}, newest is {newest}): a cloned \
         disk or a restored backup? The host is now locked; on the copy run `tombolo leave --purge --local` and join \
         with a new token, then release the right one with `tombolo host unlock {host}`"
    )]
    Cloned { host: String, presented: u64, newest: u64 },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl WriteError for RenewError {
    fn store_error(&self) -> Option<&StoreError> {
        match self {
            Self::Store(source) => Some(source),
            _ => None,
        }
    }
}

/// The host's next join sequence, if `presented` is one that it may have.
pub async fn renew(store: &Store, host: &str, presented: u64, now: SystemTime) -> Result<u64, RenewError> {
    let values = vec![host.into(), i64::try_from(presented).unwrap_or(0).into()];
    if let Some(row) = store.fetch_quietly(ADVANCE, values).await?.first() {
        return Ok(row.int(0).map_err(RenewError::from)?.cast_unsigned());
    }
    let input = (host.to_owned(), presented, now);
    let refusal = store.write(&input, |write, (host, presented, now)| Box::pin(judge(write, host, *presented, *now)));
    Err(refusal.await?)
}

/// Says why the sequence was not advanced; locks the host if that is because of a second one.
async fn judge(write: &mut Write, host: &str, presented: u64, now: SystemTime) -> Result<RenewError, RenewError> {
    let rows = write.fetch("SELECT state, problem, sequence FROM hosts WHERE name = $1", vec![host.into()]).await?;
    let Some(row) = rows.first() else { return Err(RenewError::UnknownHost { host: host.to_owned() }) };
    match HostRowState::from_column(&row.text(0)?) {
        HostRowState::Locked => {
            return Err(RenewError::Locked { host: host.to_owned(), problem: row.text(1)? });
        }
        HostRowState::Revoked => return Err(RenewError::Revoked { host: host.to_owned() }),
        HostRowState::Active | HostRowState::Pending => {}
    }
    let cloned = RenewError::Cloned { host: host.to_owned(), presented, newest: row.int(2)?.cast_unsigned() };
    warn!(host = %host, error = %cloned, "host {host} is locked");
    hosts::set_state(write, host, HostRowState::Locked, CLONED).await?;
    audit::record(
        write,
        now,
        Event::new(format!("host/{host}"), "host.cloned", format!("host/{host}"), cloned.to_string()),
    )
    .await?;
    Ok(cloned)
}

/// What operators read of a host that was locked for it.
const CLONED: &str = "two machines use its identity (a cloned disk?): on the copy run `tombolo leave --purge --local` \
    and join with a new token";

/// One statement, so that two renewals at once cannot both see the old number.
const ADVANCE: &str = "UPDATE hosts SET sequence = sequence + 1, previous_sequence = $2 \
    WHERE name = $1 AND $2 > 0 AND state IN ('active', 'pending') AND (sequence = $2 OR previous_sequence IN ($2, -1)) \
    RETURNING sequence";
