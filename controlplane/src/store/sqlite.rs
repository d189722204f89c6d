//! The store in one SQLite file: for one control plane, needs nothing else.
//!
//! Write-ahead log, so that readers never wait for the writer; exactly one writing connection, so that
//! writers queue in the program instead of failing with SQLITE_BUSY.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{Sqlite, SqliteSynchronous};
use sqlx::sqlite::{SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions};

use super::backend::{Access, Backend, Row, Transaction, Value};
use super::{StoreError, migrations};

pub(super) struct SqliteBackend {
    writer: SqlitePool,
    readers: SqlitePool,
}

impl SqliteBackend {
    pub(super) async fn open(path: &Path) -> Result<Self, StoreError> {
        create_private(path).map_err(|source| StoreError::OpenFile { path: path.to_owned(), source })?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        let pool = || SqlitePoolOptions::new().acquire_timeout(ACQUIRE_TIMEOUT).idle_timeout(None).max_lifetime(None);
        let writer = pool().max_connections(1).connect_with(options.clone()).await?;
        let readers = pool().max_connections(MAX_READERS).connect_lazy_with(options.pragma("query_only", "on"));
        Ok(Self { writer, readers })
    }
}

/// The file holds token hashes and addresses: only its owner may read it.
fn create_private(path: &Path) -> std::io::Result<()> {
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path).map(|_| ())
}

#[tonic::async_trait]
impl Backend for SqliteBackend {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        migrations::sqlite().run(&self.writer).await.map_err(StoreError::from)
    }

    async fn begin(&self, access: Access) -> Result<Box<dyn Transaction>, StoreError> {
        let (pool, statement) = match access {
            Access::Read => (&self.readers, "BEGIN DEFERRED"),
            Access::Write => (&self.writer, "BEGIN IMMEDIATE"),
        };
        let transaction = match pool.begin_with(statement).await {
            // A full disk makes SQLite roll back by itself; sqlx's own ROLLBACK then fails and leaves the
            // connection counting a transaction that is not there, for ever.
            Err(sqlx::Error::InvalidSavePointStatement) => {
                pool.acquire().await?.close().await?;
                pool.begin_with(statement).await?
            }
            begun => begun?,
        };
        Ok(Box::new(SqliteTransaction(transaction)))
    }

    async fn woken(&self) {
        std::future::pending().await
    }

    async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

struct SqliteTransaction(sqlx::Transaction<'static, Sqlite>);

#[tonic::async_trait]
impl Transaction for SqliteTransaction {
    async fn execute(&mut self, sql: &'static str, values: Vec<Value>) -> Result<u64, StoreError> {
        Ok(bind(sql, values).execute(&mut *self.0).await?.rows_affected())
    }

    async fn fetch(&mut self, sql: &'static str, values: Vec<Value>) -> Result<Vec<Row>, StoreError> {
        let rows = bind(sql, values).fetch_all(&mut *self.0).await?;
        Ok(rows.into_iter().map(Row::Sqlite).collect())
    }

    async fn announce(&mut self, _revision: i64) -> Result<(), StoreError> {
        Ok(())
    }

    async fn commit(self: Box<Self>) -> Result<(), StoreError> {
        self.0.commit().await.map_err(StoreError::from)
    }

    async fn rollback(self: Box<Self>) {
        if let Err(error) = self.0.rollback().await {
            tracing::debug!(%error, "a transaction could not be rolled back, the database does it");
        }
    }
}

fn bind(sql: &'static str, values: Vec<Value>) -> sqlx::query::Query<'static, Sqlite, SqliteArguments> {
    values.into_iter().fold(sqlx::query(sql), |query, value| match value {
        Value::Int(value) => query.bind(value),
        Value::Text(value) => query.bind(value),
        Value::Blob(value) => query.bind(value),
    })
}

/// How long SQLite itself waits for another process (`tombolo-controlplane migrate`, a backup).
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a request waits for its turn before it is told that the database is not available.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
/// Enough for the watcher, a snapshot and a few operators at once.
const MAX_READERS: u32 = 4;
