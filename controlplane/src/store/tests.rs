//! Tests of `store`, the file beside this folder.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::*;
use crate::testing::{Relay, on_each_store, postgres, postgres_address, sqlite, wait_until};

const SECOND: Duration = Duration::from_secs(1);

/// A write that readers can see.
async fn put(store: &Store, key: &str) -> Result<Revision, StoreError> {
    let key = key.to_owned();
    store
        .write(&key, |write, key| {
            Box::pin(async move {
                write.execute("INSERT INTO meta (key, value) VALUES ($1, 'x')", vec![key.into()]).await?;
                Ok(write.revision())
            })
        })
        .await
}

async fn keys(store: &Store) -> Vec<String> {
    let read = store.read(&(), |read, ()| {
        Box::pin(async move {
            read.fetch("SELECT key FROM meta ORDER BY key", vec![]).await?.iter().map(|row| row.text(0)).collect()
        })
    });
    read.await.expect("keys are read")
}

#[tokio::test]
async fn revisions_are_given_in_the_order_of_commits() {
    on_each_store(async |database| {
        let before = database.store.revision();
        let mut changes = database.store.changes();
        let writers = (0..20).map(|n| {
            let store = database.store.clone();
            tokio::spawn(async move { put(&store, &format!("key-{n}")).await })
        });
        let writers: Vec<_> = writers.collect();
        let mut given = Vec::new();
        for writer in writers {
            given.push(writer.await.expect("no panic").expect("the write succeeds"));
        }
        given.sort_unstable();
        assert_eq!(given, (before + 1..=before + 20).collect::<Vec<_>>());
        let last = changes.wait_for(|revision| *revision >= before + 20);
        tokio::time::timeout(SECOND, last).await.expect("readers are told").expect("the store lives");
        assert_eq!(database.store.world().await.expect("a world").revision, before + 20);
    })
    .await;
}

#[tokio::test]
async fn a_reader_at_a_revision_sees_all_writes_up_to_it() {
    on_each_store(async |database| {
        let done = Arc::new(AtomicBool::new(false));
        let base = database.store.revision();
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let store = database.store.clone();
                tokio::spawn(async move {
                    for n in 0..10 {
                        put(&store, &format!("{writer}-{n}")).await.expect("the write succeeds");
                    }
                })
            })
            .collect();
        let (store, stop) = (database.store.clone(), done.clone());
        let reader = tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let read = store.read(&(), |read, ()| {
                    Box::pin(async move {
                        let revision = read.fetch("SELECT revision FROM revision", vec![]).await?[0].int(0)?;
                        Ok((revision, read.fetch("SELECT COUNT(*) FROM meta", vec![]).await?[0].int(0)?))
                    })
                });
                let (revision, n_keys) = read.await.expect("the read succeeds");
                assert_eq!(revision.cast_unsigned(), base + n_keys.cast_unsigned());
            }
        });
        for writer in writers {
            writer.await.expect("no panic");
        }
        done.store(true, Ordering::Relaxed);
        reader.await.expect("every read was of one moment");
    })
    .await;
}

#[tokio::test]
async fn a_write_that_changes_nothing_takes_no_revision() {
    on_each_store(async |database| {
        let store = &database.store;
        let before = store.revision();
        let discarded: Result<(), StoreError> = store
            .write(&(), |write, ()| {
                Box::pin(async move {
                    write.discard();
                    Ok(())
                })
            })
            .await;
        discarded.expect("a discarded write is no error");
        let quiet: Result<(), StoreError> = store
            .write(&(), |write, ()| {
                Box::pin(async move {
                    write.execute("INSERT INTO meta (key, value) VALUES ('quiet', 'x')", vec![]).await?;
                    write.give_back_revision().await
                })
            })
            .await;
        quiet.expect("a quiet write succeeds");
        assert_eq!(keys(store).await, ["quiet"]);
        assert_eq!(store.world().await.expect("a world").revision, before);
        assert_eq!(put(store, "next").await.expect("the write succeeds"), before + 1);
    })
    .await;
}

#[tokio::test]
async fn a_write_that_fails_leaves_nothing() {
    on_each_store(async |database| {
        let store = &database.store;
        let failed: Result<(), StoreError> = store
            .write(&(), |write, ()| {
                Box::pin(async move {
                    write.execute("INSERT INTO meta (key, value) VALUES ('half', 'x')", vec![]).await?;
                    write.execute("INSERT INTO meta (key, value) VALUES ('half', 'x')", vec![]).await?;
                    Ok(())
                })
            })
            .await;
        assert!(matches!(failed, Err(StoreError::Statement { .. })), "{failed:?}");
        assert!(keys(store).await.is_empty());
        assert_eq!(store.n_errors(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_second_start_finds_what_the_first_wrote() {
    on_each_store(async |database| {
        let revision = put(&database.store, "kept").await.expect("the write succeeds");
        database.store.close().await;
        let again = Store::open(&database.store_url).await.expect("it opens again");
        assert_eq!(again.revision(), revision);
        assert_eq!(keys(&again).await, ["kept"]);
    })
    .await;
}

#[tokio::test]
async fn two_replicas_see_each_others_writes_within_a_second() {
    let Some(database) = postgres().await else { return };
    let (one, two) = (&database.store, Store::open(&database.store_url).await.expect("a second replica opens"));
    for n in 0..10 {
        for (writer, reader) in [(one, &two), (&two, one)] {
            let mut changes = reader.changes();
            let revision = put(writer, &format!("{n}-{}", writer.revision())).await.expect("the write succeeds");
            let seen = changes.wait_for(|known| *known >= revision);
            tokio::time::timeout(SECOND, seen).await.expect("within a second").expect("the store lives");
            assert_eq!(reader.world().await.expect("a world").revision, revision);
        }
    }
}

#[tokio::test]
async fn many_writers_of_two_replicas_lose_nothing() {
    let Some(database) = postgres().await else { return };
    let two = Store::open(&database.store_url).await.expect("a second replica opens");
    let before = database.store.revision();
    let writers: Vec<_> = (0..40)
        .map(|n| {
            let store = if n % 2 == 0 { database.store.clone() } else { two.clone() };
            tokio::spawn(async move { put(&store, &format!("key-{n}")).await })
        })
        .collect();
    for writer in writers {
        writer.await.expect("no panic").expect("the write succeeds");
    }
    assert_eq!(two.world().await.expect("a world").revision, before + 40);
    assert_eq!(keys(&database.store).await.len(), 40);
}

#[tokio::test]
async fn a_postgres_that_goes_away_and_comes_back_is_said_so_and_used_again() {
    let (Some(database), Some(address)) = (postgres().await, postgres_address()) else { return };
    let relay = Relay::start(0, address).await;
    let through = database.store_url.to_string().replace(&address.port().to_string(), &relay.port.to_string());
    let store = Store::open(&through.parse().expect("a valid URL")).await.expect("it opens through the relay");
    put(&store, "before").await.expect("the write succeeds");

    let port = relay.cut().await;
    let began = Instant::now();
    let lost = put(&store, "lost").await.expect_err("nobody is there");
    assert!(matches!(lost, StoreError::Unavailable { .. }), "{lost:?}");
    assert!(lost.is_temporary() && began.elapsed() < 8 * SECOND, "{:?}", began.elapsed());
    wait_until("the store notices", 8 * SECOND, async || !store.available()).await;

    let relay = Relay::start(port, address).await;
    wait_until("the store recovers alone", 10 * SECOND, async || store.available()).await;
    put(&store, "after").await.expect("the write succeeds again");
    assert_eq!(keys(&store).await, ["after", "before"]);
    store.close().await;
    relay.cut().await;
}

/// Fills the file up to a limit of pages, as a full disk does, and gives room again.
#[tokio::test]
async fn a_full_disk_is_said_so_and_loses_nothing() {
    async fn limit_pages(store: &Store, sql: &'static str) {
        let limited: Result<(), StoreError> = store
            .write(&sql, |write, sql| {
                Box::pin(async move {
                    write.fetch(sql, vec![]).await?;
                    write.discard();
                    Ok(())
                })
            })
            .await;
        limited.expect("the limit is set");
    }
    let database = sqlite().await;
    let store = &database.store;
    put(store, "before").await.expect("the write succeeds");
    // Never less than what is used.
    limit_pages(store, "PRAGMA max_page_count = 1").await;
    let full = put(store, &"x".repeat(1 << 20)).await.expect_err("there is no room for 1 MiB");
    assert!(matches!(full, StoreError::Full { .. }) && full.is_temporary(), "{full:?}");
    assert!(full.hint().starts_with("free space"), "{}", full.hint());
    assert_eq!(keys(store).await, ["before"], "reading goes on");
    limit_pages(store, "PRAGMA max_page_count = 1000000").await;
    put(store, &"x".repeat(1 << 20)).await.expect("there is room again");
}

#[tokio::test]
async fn a_store_that_cannot_be_opened_says_why() {
    let database = sqlite().await;
    let missing = Store::open(&StoreUrl::sqlite("/nonexistent/state.db")).await.err().expect("no such directory");
    assert_eq!(missing.to_string(), "cannot open the database file /nonexistent/state.db");
    let path = database.store_url.to_string().replace("sqlite://", "").replace("state.db", "other.db");
    std::fs::write(&path, "this is a letter, not a database, and it is long enough to be read as one")
        .expect("written");
    let other = Store::open(&StoreUrl::sqlite(path)).await.err().expect("not a database");
    assert!(matches!(other, StoreError::Refused { .. }), "{other:?}");
    if let Some(address) = postgres_address() {
        let url: StoreUrl = format!("postgres://tombolo@{address}/nobodys").parse().expect("a valid URL");
        let unknown = Store::open(&url).await.err().expect("no such database");
        assert!(matches!(unknown, StoreError::Refused { .. }), "{unknown:?}");
    }
    let refused: StoreUrl = "postgres://tombolo@127.0.0.1:1/x".parse().expect("a valid URL");
    let refused = Store::open(&refused).await.err().expect("nobody listens");
    assert!(matches!(refused, StoreError::Unavailable { .. }), "{refused:?}");
}

#[test]
fn a_store_url_says_what_is_wrong_and_never_a_password() {
    let rows = [
        (
            "mysql://root:hunter2@db/x",
            "\"mysql\" is not a store: write sqlite:///PATH or postgres://USER@HOST/DATABASE",
        ),
        ("sqlite://", "the store sqlite: has no path: write sqlite:///var/lib/tombolo-controlplane/state.db"),
        ("postgres://u:hunter2@db", "the Postgres URL names no database: write postgres://USER@HOST/DATABASE"),
    ];
    for (text, expected) in rows {
        let error = text.parse::<StoreUrl>().expect_err("not a store");
        assert_eq!(error.to_string(), expected);
        assert!(!format!("{error:?}").contains("hunter2"));
    }
    let url: StoreUrl = "postgres://u:hunter2@db:5433/mesh?sslmode=require".parse().expect("valid");
    assert_eq!(format!("{url} {url:?}"), "postgres://u@db:5433/mesh postgres://u@db:5433/mesh");
}
