//! The store in Postgres: for real installations, several replicas at once on one database.
//!
//! Writers queue on the one row of `revision`. Readers see one moment (repeatable read). `LISTEN` only
//! wakes; the revision that is read afterwards is the truth, so a lost notification costs a poll.

use std::time::Duration;

use sqlx::postgres::{PgArguments, PgConnectOptions, PgListener, PgPool, PgPoolOptions, Postgres};
use tokio::sync::Notify;

use super::backend::{Access, Backend, Row, Transaction, Value};
use super::{StoreError, migrations};

pub(super) struct PostgresBackend {
    pool: PgPool,
    woken: std::sync::Arc<Notify>,
    listener: tokio::task::JoinHandle<()>,
}

impl PostgresBackend {
    pub(super) async fn open(options: PgConnectOptions) -> Result<Self, StoreError> {
        let options = options.application_name("tombolo-controlplane");
        let options = options.options([("statement_timeout", "30s"), ("idle_in_transaction_session_timeout", "30s")]);
        // The first connection is made outside of the pool: the pool would hide a wrong password
        // behind its time-out.
        sqlx::Connection::close(sqlx::ConnectOptions::connect(&options).await?).await?;
        let pool = PgPoolOptions::new()
            .max_connections(MAX_CONNECTIONS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_lazy_with(options);
        let woken = std::sync::Arc::new(Notify::new());
        let listener = tokio::spawn(listen(pool.clone(), woken.clone()));
        Ok(Self { pool, woken, listener })
    }
}

impl Drop for PostgresBackend {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

/// Turns notifications into wake-ups until the backend is dropped.
async fn listen(pool: PgPool, woken: std::sync::Arc<Notify>) {
    loop {
        if let Err(error) = listen_once(&pool, &woken).await {
            tracing::debug!(%error, "LISTEN was interrupted, changes are polled until it is back");
        }
        tokio::time::sleep(jittered(RELISTEN)).await;
    }
}

async fn listen_once(pool: &PgPool, woken: &Notify) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(CHANNEL).await?;
    loop {
        // `None`: the connection was lost and made again, so something may have been missed.
        listener.try_recv().await?;
        woken.notify_one();
    }
}

#[tonic::async_trait]
impl Backend for PostgresBackend {
    fn name(&self) -> &'static str {
        "postgres"
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        migrations::postgres().run(&self.pool).await.map_err(StoreError::from)
    }

    async fn begin(&self, access: Access) -> Result<Box<dyn Transaction>, StoreError> {
        let statement = match access {
            Access::Read => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            Access::Write => "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
        };
        Ok(Box::new(PostgresTransaction(self.pool.begin_with(statement).await?)))
    }

    async fn woken(&self) {
        self.woken.notified().await;
    }

    async fn close(&self) {
        self.listener.abort();
        self.pool.close().await;
    }
}

struct PostgresTransaction(sqlx::Transaction<'static, Postgres>);

#[tonic::async_trait]
impl Transaction for PostgresTransaction {
    async fn execute(&mut self, sql: &'static str, values: Vec<Value>) -> Result<u64, StoreError> {
        Ok(bind(sql, values).execute(&mut *self.0).await?.rows_affected())
    }

    async fn fetch(&mut self, sql: &'static str, values: Vec<Value>) -> Result<Vec<Row>, StoreError> {
        let rows = bind(sql, values).fetch_all(&mut *self.0).await?;
        Ok(rows.into_iter().map(Row::Postgres).collect())
    }

    async fn announce(&mut self, revision: i64) -> Result<(), StoreError> {
        let values = vec![CHANNEL.into(), revision.to_string().into()];
        self.execute("SELECT pg_notify($1, $2)", values).await.map(|_| ())
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

fn bind(sql: &'static str, values: Vec<Value>) -> sqlx::query::Query<'static, Postgres, PgArguments> {
    values.into_iter().fold(sqlx::query(sql), |query, value| match value {
        Value::Int(value) => query.bind(value),
        Value::Text(value) => query.bind(value),
        Value::Blob(value) => query.bind(value),
    })
}

/// Between half and all of it, so that replicas do not return in step.
pub(super) fn jittered(most: Duration) -> Duration {
    most.mul_f64(rand::RngExt::random_range(&mut rand::rng(), 0.5..1.0))
}

const CHANNEL: &str = "tombolo_revision";
/// The listener keeps one; the rest are for requests. Several replicas share Postgres' 100.
const MAX_CONNECTIONS: u32 = 10;
/// How long a request waits before it is told that the database is not available.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// How soon a lost LISTEN connection is made again; meanwhile the poll finds changes.
const RELISTEN: Duration = Duration::from_secs(1);
