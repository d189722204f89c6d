//! What the store asks of a database: the border between `store.rs` and the two implementations.
//!
//! SQL is written once, in the dialect both understand: `$N` placeholders, TEXT, BIGINT and bytes,
//! `ON CONFLICT` and `RETURNING`, never NULL. Nothing outside `store/` sees this.

use sqlx::Row as _;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;

use super::StoreError;

/// One value bound to a placeholder.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    Int(i64),
    Text(String),
    Blob(Vec<u8>),
}

/// What a transaction may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Sees one moment of the database and cannot write.
    Read,
    Write,
}

/// One database.
#[tonic::async_trait]
pub(crate) trait Backend: Send + Sync {
    /// `sqlite` or `postgres`.
    fn name(&self) -> &'static str;
    /// Brings the schema up to date; harmless when it is.
    async fn migrate(&self) -> Result<(), StoreError>;
    async fn begin(&self, access: Access) -> Result<Box<dyn Transaction>, StoreError>;
    /// Returns when another process may have written; forever pending where there is none.
    async fn woken(&self);
    /// Waits for what runs, then closes every connection.
    async fn close(&self);
}

/// One transaction; dropping it rolls it back.
#[tonic::async_trait]
pub(crate) trait Transaction: Send {
    /// How many rows it changed.
    async fn execute(&mut self, sql: &'static str, values: Vec<Value>) -> Result<u64, StoreError>;
    async fn fetch(&mut self, sql: &'static str, values: Vec<Value>) -> Result<Vec<Row>, StoreError>;
    /// Wakes the other replicas when this commits.
    async fn announce(&mut self, revision: i64) -> Result<(), StoreError>;
    async fn commit(self: Box<Self>) -> Result<(), StoreError>;
    async fn rollback(self: Box<Self>);
}

/// One row of an answer, read by column position.
pub(crate) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl Row {
    pub(crate) fn int(&self, column: usize) -> Result<i64, StoreError> {
        match self {
            Self::Sqlite(row) => row.try_get(column),
            Self::Postgres(row) => row.try_get(column),
        }
        .map_err(StoreError::from)
    }

    pub(crate) fn text(&self, column: usize) -> Result<String, StoreError> {
        match self {
            Self::Sqlite(row) => row.try_get(column),
            Self::Postgres(row) => row.try_get(column),
        }
        .map_err(StoreError::from)
    }

    pub(crate) fn blob(&self, column: usize) -> Result<Vec<u8>, StoreError> {
        match self {
            Self::Sqlite(row) => row.try_get(column),
            Self::Postgres(row) => row.try_get(column),
        }
        .map_err(StoreError::from)
    }

    pub(crate) fn flag(&self, column: usize) -> Result<bool, StoreError> {
        Ok(self.int(column)? != 0)
    }

    /// A column that holds JSON.
    pub(crate) fn json<T: serde::de::DeserializeOwned>(&self, column: usize) -> Result<T, StoreError> {
        let text = self.text(column)?;
        serde_json::from_str(&text).map_err(|source| StoreError::Corrupt { what: "a JSON column", source })
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Int(value.into())
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl From<&String> for Value {
    fn from(value: &String) -> Self {
        Self::Text(value.clone())
    }
}

impl From<Vec<u8>> for Value {
    fn from(value: Vec<u8>) -> Self {
        Self::Blob(value)
    }
}
