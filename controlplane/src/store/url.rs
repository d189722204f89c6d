//! Where the store is: `sqlite:///PATH` or `postgres://USER@HOST/DATABASE`. Pure.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;

/// A checked `--store`. Its `Debug` and `Display` never show a password.
#[derive(Clone)]
pub struct StoreUrl(pub(super) Target);

#[derive(Clone)]
pub(super) enum Target {
    Sqlite(PathBuf),
    Postgres(Box<PgConnectOptions>),
}

/// Why a text does not say where the store is.
#[derive(Debug, thiserror::Error)]
pub enum StoreUrlError {
    #[error("{text:?} is not a store: write sqlite:///PATH or postgres://USER@HOST/DATABASE")]
    Scheme { text: String },
    #[error("the store sqlite: has no path: write sqlite:///var/lib/tombolo-controlplane/state.db")]
    NoPath,
    #[error("the Postgres URL is not valid: write postgres://USER@HOST[:PORT]/DATABASE[?sslmode=verify-full]")]
    Postgres {
        #[source]
        source: sqlx::Error,
    },
    #[error("the Postgres URL names no database: write postgres://USER@HOST/DATABASE")]
    NoDatabase,
}

impl StoreUrl {
    pub fn sqlite(path: impl Into<PathBuf>) -> Self {
        Self(Target::Sqlite(path.into()))
    }

    /// The same with this password, which then need not be in the URL.
    pub fn with_password(self, password: &str) -> Self {
        match self.0 {
            Target::Postgres(options) => Self(Target::Postgres(Box::new(options.password(password)))),
            other @ Target::Sqlite(_) => Self(other),
        }
    }
}

impl FromStr for StoreUrl {
    type Err = StoreUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(rest) = text.strip_prefix("sqlite:") {
            let path = rest.strip_prefix("//").unwrap_or(rest);
            return if path.is_empty() { Err(StoreUrlError::NoPath) } else { Ok(Self::sqlite(path)) };
        }
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            let options: PgConnectOptions = text.parse().map_err(|source| StoreUrlError::Postgres { source })?;
            if options.get_database().is_none_or(str::is_empty) {
                return Err(StoreUrlError::NoDatabase);
            }
            return Ok(Self(Target::Postgres(Box::new(options))));
        }
        // What follows the scheme may hold a password.
        let shown = text.split_once("://").map_or(text, |(scheme, _)| scheme);
        Err(StoreUrlError::Scheme { text: shown.to_owned() })
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Target::Sqlite(path) => write!(f, "sqlite://{}", path.display()),
            Target::Postgres(options) => {
                let (user, host, port) = (options.get_username(), options.get_host(), options.get_port());
                write!(f, "postgres://{user}@{host}:{port}/{}", options.get_database().unwrap_or_default())
            }
        }
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
