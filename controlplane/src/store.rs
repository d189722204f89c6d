//! The one place that knows SQL: configuration, registry and heartbeats in SQLite or Postgres.
//!
//! Every write that readers must see runs in [`Store::write`]: it takes the next revision first, so
//! that revisions commit in their order, and is retried when the database says that it may succeed.
//! Readers take a whole [`World`] of one moment; [`Store::changes`] says when there is a newer one.
//! The meaning of what is stored is in `registry` and `resources`, not here.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::Revision;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

pub(crate) mod backend;
mod error;
mod migrations;
mod postgres;
mod sqlite;
mod time;
mod url;
mod watcher;
mod world;

pub(crate) use backend::{Row, Transaction, Value};
pub use error::StoreError;
pub(crate) use time::{from_ms, rfc3339, to_ms};
pub use url::{StoreUrl, StoreUrlError};
pub use world::{HostRow, HostRowState, ResourceRow, WorkloadHealthRow, World};
pub(crate) use world::{Parsed, read_resources};

/// The database of one control plane. Cloning shares it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    watcher: tokio::task::JoinHandle<()>,
}

/// What the watcher needs too.
pub(crate) struct Shared {
    backend: Box<dyn backend::Backend>,
    changes: watch::Sender<Revision>,
    available: AtomicBool,
    n_errors: AtomicU64,
    parsed: Mutex<Arc<world::Parsed>>,
}

/// A transaction in which readers' data may change.
pub(crate) struct Write {
    inner: Box<dyn backend::Transaction>,
    revision: Revision,
    discarded: bool,
    quiet: bool,
}

/// An error of a write: the store's own, or a refusal by what was written.
pub(crate) trait WriteError: From<StoreError> + Send {
    /// The store's error, if it is one: it decides whether the write is tried again.
    fn store_error(&self) -> Option<&StoreError>;
}

impl Store {
    /// Connects and brings the schema up to date.
    pub async fn open(store_url: &StoreUrl) -> Result<Self, StoreError> {
        let backend: Box<dyn backend::Backend> = match &store_url.0 {
            url::Target::Sqlite(path) => Box::new(sqlite::SqliteBackend::open(path).await?),
            url::Target::Postgres(options) => Box::new(postgres::PostgresBackend::open((**options).clone()).await?),
        };
        backend.migrate().await?;
        let shared = Shared {
            backend,
            changes: watch::Sender::new(0),
            available: AtomicBool::new(true),
            n_errors: AtomicU64::new(0),
            parsed: Mutex::default(),
        };
        let shared = Arc::new(shared);
        let revision = shared.current_revision().await?;
        shared.publish(revision);
        let watcher = tokio::spawn(watcher::run(shared.clone()));
        Ok(Self { inner: Arc::new(Inner { shared, watcher }) })
    }

    /// `sqlite` or `postgres`.
    pub fn kind(&self) -> &'static str {
        self.inner.shared.backend.name()
    }

    /// The newest revision this process knows of; no I/O.
    pub fn revision(&self) -> Revision {
        *self.inner.shared.changes.borrow()
    }

    /// Changes when there is a newer revision, from whichever replica.
    pub fn changes(&self) -> watch::Receiver<Revision> {
        self.inner.shared.changes.subscribe()
    }

    /// Whether the database answered when it was last asked, at most three seconds ago.
    pub fn available(&self) -> bool {
        self.inner.shared.available.load(Ordering::Relaxed)
    }

    /// How many times the database failed since the start.
    pub fn n_errors(&self) -> u64 {
        self.inner.shared.n_errors.load(Ordering::Relaxed)
    }

    /// Everything that agents are told about, of one moment.
    pub async fn world(&self) -> Result<World, StoreError> {
        let known = lock(&self.inner.shared.parsed).clone();
        let (world, parsed) = self.read(&known, |read, known| Box::pin(World::load(read, known))).await?;
        *lock(&self.inner.shared.parsed) = Arc::new(parsed);
        Ok(world)
    }

    /// Keeps a fact of the installation unless it is known; what is kept now.
    pub async fn remember(&self, key: &str, value: &str) -> Result<String, StoreError> {
        let values = vec![key.into(), value.into()];
        self.execute_quietly("INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING", values)
            .await?;
        Ok(self.remembered(key).await?.unwrap_or_else(|| value.to_owned()))
    }

    /// A fact of the installation.
    pub async fn remembered(&self, key: &str) -> Result<Option<String>, StoreError> {
        let rows = self.fetch_quietly("SELECT value FROM meta WHERE key = $1", vec![key.into()]).await?;
        rows.first().map(|row| row.text(0)).transpose()
    }

    /// Ends the watcher and closes the database. Other clones fail from here on.
    pub async fn close(&self) {
        self.inner.watcher.abort();
        self.inner.shared.backend.close().await;
    }

    /// Runs `body` on one moment of the database.
    pub(crate) async fn read<I: Sync, T>(&self, input: &I, body: ReadBody<I, T>) -> Result<T, StoreError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.read_once(input, body).await {
                Err(error) if error.retry(attempt) => error::back_off(attempt).await,
                outcome => return self.counted(outcome),
            }
        }
    }

    async fn read_once<I: Sync, T>(&self, input: &I, body: ReadBody<I, T>) -> Result<T, StoreError> {
        let mut transaction = self.inner.shared.backend.begin(backend::Access::Read).await?;
        let value = body(transaction.as_mut(), input).await?;
        transaction.commit().await?;
        Ok(value)
    }

    /// Runs `body` under the next revision; commits when it returns `Ok` and did not
    /// [`Write::discard`]. The body may run several times.
    pub(crate) async fn write<I, T, E>(&self, input: &I, body: WriteBody<I, T, E>) -> Result<T, E>
    where
        I: Sync,
        T: Send,
        E: WriteError,
    {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.write_once(input, body).await {
                Err(error) if error.store_error().is_some_and(|error| error.retry(attempt)) => {
                    error::back_off(attempt).await;
                }
                outcome => return self.counted(outcome),
            }
        }
    }

    async fn write_once<I, T, E>(&self, input: &I, body: WriteBody<I, T, E>) -> Result<T, E>
    where
        I: Sync,
        T: Send,
        E: WriteError,
    {
        let mut inner = self.inner.shared.backend.begin(backend::Access::Write).await?;
        let rows = inner.fetch("UPDATE revision SET revision = revision + 1 WHERE id = 1 RETURNING revision", vec![]);
        let next = rows.await?.first().ok_or(StoreError::NoRevision)?.int(0)?;
        let mut write = Write { inner, revision: next.cast_unsigned(), discarded: false, quiet: false };
        match body(&mut write, input).await {
            Ok(value) if write.discarded => {
                write.inner.rollback().await;
                Ok(value)
            }
            Ok(value) => {
                if !write.quiet {
                    write.inner.announce(next).await?;
                }
                write.inner.commit().await.map_err(StoreError::at_commit)?;
                if !write.quiet {
                    self.inner.shared.publish(write.revision);
                }
                Ok(value)
            }
            Err(error) => {
                write.inner.rollback().await;
                Err(error)
            }
        }
    }

    /// One statement of its own that readers need not hear of, and how many rows it changed.
    pub(crate) async fn execute_quietly(&self, sql: &'static str, values: Vec<Value>) -> Result<u64, StoreError> {
        let input = (sql, values);
        self.quietly(&input, |transaction, (sql, values)| Box::pin(transaction.execute(sql, values.clone()))).await
    }

    /// The same for a statement that ends in `RETURNING`.
    pub(crate) async fn fetch_quietly(&self, sql: &'static str, values: Vec<Value>) -> Result<Vec<Row>, StoreError> {
        let input = (sql, values);
        self.quietly(&input, |transaction, (sql, values)| Box::pin(transaction.fetch(sql, values.clone()))).await
    }

    async fn quietly<I: Sync, T>(&self, input: &I, body: ReadBody<I, T>) -> Result<T, StoreError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.quietly_once(input, body).await {
                Err(error) if error.retry(attempt) => error::back_off(attempt).await,
                outcome => return self.counted(outcome),
            }
        }
    }

    async fn quietly_once<I: Sync, T>(&self, input: &I, body: ReadBody<I, T>) -> Result<T, StoreError> {
        let mut transaction = self.inner.shared.backend.begin(backend::Access::Write).await?;
        let value = body(transaction.as_mut(), input).await?;
        transaction.commit().await.map_err(StoreError::at_commit)?;
        Ok(value)
    }

    fn counted<T, E: WriteError>(&self, outcome: Result<T, E>) -> Result<T, E> {
        if outcome.as_ref().err().and_then(WriteError::store_error).is_some() {
            self.inner.shared.n_errors.fetch_add(1, Ordering::Relaxed);
        }
        outcome
    }
}

/// What to do in a read: a function, so that it can run again.
pub(crate) type ReadBody<I, T> =
    for<'a> fn(&'a mut dyn backend::Transaction, &'a I) -> BoxFuture<'a, Result<T, StoreError>>;
/// What to do in a write: a function, so that it can run again.
pub(crate) type WriteBody<I, T, E> = for<'a> fn(&'a mut Write, &'a I) -> BoxFuture<'a, Result<T, E>>;

impl Write {
    /// The revision that this write takes when it commits.
    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    /// Nothing changed that readers must see: commit without a new revision. The counter's row stays
    /// locked until the commit, so nobody has seen the number that is given back.
    pub(crate) async fn give_back_revision(&mut self) -> Result<(), StoreError> {
        self.execute("UPDATE revision SET revision = revision - 1 WHERE id = 1", vec![]).await?;
        self.quiet = true;
        Ok(())
    }

    /// Nothing changed: roll back, so that no revision is taken.
    pub(crate) fn discard(&mut self) {
        self.discarded = true;
    }

    pub(crate) async fn execute(&mut self, sql: &'static str, values: Vec<Value>) -> Result<u64, StoreError> {
        self.inner.execute(sql, values).await
    }

    pub(crate) async fn fetch(&mut self, sql: &'static str, values: Vec<Value>) -> Result<Vec<Row>, StoreError> {
        self.inner.fetch(sql, values).await
    }

    /// For what both reads and writes ask.
    pub(crate) fn as_read(&mut self) -> &mut dyn backend::Transaction {
        self.inner.as_mut()
    }
}

impl Shared {
    async fn current_revision(&self) -> Result<Revision, StoreError> {
        let mut transaction = self.backend.begin(backend::Access::Read).await?;
        let rows = transaction.fetch("SELECT revision FROM revision WHERE id = 1", vec![]).await?;
        transaction.commit().await?;
        Ok(rows.first().ok_or(StoreError::NoRevision)?.int(0)?.cast_unsigned())
    }

    /// Revisions only rise: of two writers that report late, the newer one stays.
    fn publish(&self, revision: Revision) {
        self.changes.send_if_modified(|known| {
            let newer = revision > *known;
            *known = revision.max(*known);
            newer
        });
    }
}

/// The values are whole at every moment, also when a holder panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

#[cfg(test)]
mod tests;
