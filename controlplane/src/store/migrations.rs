//! The schema's history, built into the program: one list for each kind of database, same numbers,
//! same meaning. A released migration is never edited (its checksum is in every database).

use std::borrow::Cow;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, SqlSafeStr as _};

struct Step {
    version: i64,
    description: &'static str,
    sqlite: &'static str,
    postgres: &'static str,
}

const STEPS: &[Step] = &[Step {
    version: 1,
    description: "init",
    sqlite: include_str!("../../migrations/sqlite/0001_init.sql"),
    postgres: include_str!("../../migrations/postgres/0001_init.sql"),
}];

pub(super) fn sqlite() -> Migrator {
    migrator(|step| step.sqlite)
}

pub(super) fn postgres() -> Migrator {
    migrator(|step| step.postgres)
}

fn migrator(text: fn(&Step) -> &'static str) -> Migrator {
    let migration = |step: &Step| {
        let sql = AssertSqlSafe(text(step)).into_sql_str();
        Migration::new(step.version, Cow::Borrowed(step.description), MigrationType::Simple, sql, false)
    };
    Migrator::with_migrations(STEPS.iter().map(migration).collect())
}
