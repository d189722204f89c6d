//! What can go wrong with the database, and whether trying again helps.

use std::path::PathBuf;
use std::time::Duration;

use super::WriteError;
use super::postgres::jittered;

/// The database did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the database cannot be reached")]
    Unavailable {
        #[source]
        source: sqlx::Error,
    },
    #[error("the connection to the database was lost while a change was committed; it may or may not have been made")]
    CommitUnknown {
        #[source]
        source: sqlx::Error,
    },
    #[error("too many writers at once")]
    Contended {
        #[source]
        source: sqlx::Error,
    },
    #[error("the disk of the database is full")]
    Full {
        #[source]
        source: sqlx::Error,
    },
    #[error("the database refuses to let us in or to be written")]
    Refused {
        #[source]
        source: sqlx::Error,
    },
    #[error("cannot open the database file {path}", path = path.display())]
    OpenFile {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the database's schema cannot be brought up to date")]
    Migrate {
        #[source]
        source: sqlx::migrate::MigrateError,
    },
    #[error("the database holds no revision: it is not Tombolo's, or damaged")]
    NoRevision,
    #[error("the database holds {what} that cannot be read")]
    Corrupt {
        what: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("the database holds {object}, which this version cannot read: {mistakes}")]
    Unreadable { object: String, mistakes: String },
    #[error("a statement failed")]
    Statement {
        #[source]
        source: sqlx::Error,
    },
}

impl StoreError {
    /// What an operator can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Unavailable { .. } => {
                "agents keep what they have; check that the database runs and is reachable from here, then try again"
            }
            Self::CommitUnknown { .. } => "look whether the change was made, then try again if it was not",
            Self::Contended { .. } => "try again",
            Self::Full { .. } => "free space on the database's disk, then try again",
            Self::Refused { .. } => {
                "check user, password, database name and rights in --store (for a file: owner and mode)"
            }
            Self::OpenFile { .. } => "check that the directory exists, is writable by this user and has space",
            Self::Migrate { .. } => {
                "if the database was used by a newer tombolo-controlplane, run that version; else restore a backup"
            }
            Self::Unreadable { .. } => "run the version that wrote it, delete the object there, and upgrade again",
            Self::NoRevision | Self::Corrupt { .. } => "restore the database from a backup",
            Self::Statement { .. } => "this is a defect: report it with the control plane's log",
        }
    }

    /// Whether the database is away or busy, so that the same request can succeed later.
    pub fn is_temporary(&self) -> bool {
        matches!(
            self,
            Self::Unavailable { .. } | Self::CommitUnknown { .. } | Self::Contended { .. } | Self::Full { .. }
        )
    }

    /// Whether to run the same again after this many attempts.
    pub(super) fn retry(&self, attempt: u32) -> bool {
        match self {
            Self::Contended { .. } => attempt < MAX_ATTEMPTS,
            // A pooled connection may have died of a restart; a pool that timed out has waited enough.
            Self::Unavailable { source } => attempt < 2 && !matches!(source, sqlx::Error::PoolTimedOut),
            _ => false,
        }
    }

    /// A lost connection means something else once COMMIT was sent.
    pub(super) fn at_commit(self) -> Self {
        match self {
            Self::Unavailable { source } => Self::CommitUnknown { source },
            other => other,
        }
    }
}

/// Waits before the next attempt: 10, 20, 40 … ms at most, jittered.
pub(super) async fn back_off(attempt: u32) {
    tokio::time::sleep(jittered(Duration::from_millis(5 << attempt.min(6)))).await;
}

impl WriteError for StoreError {
    fn store_error(&self) -> Option<&StoreError> {
        Some(self)
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(source: sqlx::Error) -> Self {
        match &source {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::BeginFailed => Self::Unavailable { source },
            sqlx::Error::Database(answer) => {
                let code = answer.code().unwrap_or_default().into_owned();
                if answer.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().is_some() {
                    of_postgres(&code, source)
                } else {
                    of_sqlite(&code, source)
                }
            }
            _ => Self::Statement { source },
        }
    }
}

/// Classes and codes: PostgreSQL manual, appendix A.
fn of_postgres(code: &str, source: sqlx::Error) -> StoreError {
    match code {
        "40001" | "40P01" | "55P03" => StoreError::Contended { source },
        "53100" => StoreError::Full { source },
        "25006" | "42501" | "3D000" => StoreError::Refused { source },
        _ if code.starts_with("28") => StoreError::Refused { source },
        _ if ["08", "53", "57", "58"].iter().any(|class| code.starts_with(class)) => StoreError::Unavailable { source },
        _ => StoreError::Statement { source },
    }
}

/// The low byte of an extended result code is the primary one: sqlite.org/rescode.html.
fn of_sqlite(code: &str, source: sqlx::Error) -> StoreError {
    match code.parse::<i64>().unwrap_or(1) & 0xff {
        5 | 6 => StoreError::Contended { source },
        13 => StoreError::Full { source },
        3 | 8 | 11 | 14 | 26 => StoreError::Refused { source },
        10 => StoreError::Unavailable { source },
        _ => StoreError::Statement { source },
    }
}

impl From<sqlx::migrate::MigrateError> for StoreError {
    fn from(source: sqlx::migrate::MigrateError) -> Self {
        match source {
            sqlx::migrate::MigrateError::Execute(source) => source.into(),
            source => Self::Migrate { source },
        }
    }
}

const MAX_ATTEMPTS: u32 = 6;
