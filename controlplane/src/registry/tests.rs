//! Tests of `registry`, the file beside this folder.

use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use api::SpiffeId;
use api::rest::TokenRequest;

use super::leases::Pause;
use super::*;
use crate::resources::{self, Apply};
use crate::store::{HostRowState, Store, StoreError};
use crate::testing::{Database, on_each_store, postgres};

const LEASE: Duration = Duration::from_secs(15);
const HOUR: Duration = Duration::from_secs(3600);
const PIN: [u8; 32] = [7; 32];

fn at(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

async fn put_group(store: &Store, namespace: &str, name: &str, service_account: &str) {
    let document = serde_json::json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadGroup",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"template": {"serviceAccount": service_account}},
    });
    let apply = Apply {
        documents: vec![document],
        dry_run: false,
        actor: "admin".to_owned(),
        trust_domain: "td".parse().expect("a trust domain"),
        now: SystemTime::now(),
    };
    resources::apply(store, &apply).await.expect("the group is applied");
}

fn request(groups: &[&str]) -> TokenRequest {
    TokenRequest {
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        ttl_s: 3600,
        uses: 1,
        name_pattern: String::new(),
        cidrs: Vec::new(),
        approval: false,
    }
}

async fn token(store: &Store, request: &TokenRequest, now: SystemTime) -> String {
    create_token(store, request, &PIN, "admin", now).await.expect("the token is made").0.reveal()
}

fn attempt(token: &str, name: &str, now: SystemTime) -> JoinAttempt {
    JoinAttempt {
        token: token.to_owned(),
        name: name.to_owned(),
        groups: Vec::new(),
        addresses: vec![at("10.0.0.1")],
        version: "0.1.0".to_owned(),
        peer_ip: at("10.0.0.1"),
        key_hash: PIN,
        now,
    }
}

fn beat(epoch: u64, healthy: Option<bool>) -> Report {
    let workloads = healthy.map(|healthy| WorkloadReport {
        uid: workload_uid("shop", "orders", "web"),
        healthy,
        reason: String::new(),
    });
    Report {
        epoch,
        revision: 1,
        workloads: workloads.into_iter().collect(),
        addresses: vec![at("10.0.0.1")],
        version: "0.1.0".to_owned(),
        intercepting: true,
        problem: String::new(),
        peer_ip: at("10.0.0.1"),
    }
}

/// A store where host `web` of `shop/orders` has joined.
async fn joined(database: &Database, now: SystemTime) -> JoinGrant {
    put_group(&database.store, "shop", "orders", "orders").await;
    let token = token(&database.store, &request(&["shop/orders"]), now).await;
    join(&database.store, &attempt(&token, "web", now)).await.expect("web joins")
}

#[tokio::test]
async fn a_host_joins_with_a_token_once() {
    on_each_store(async |database| {
        let (store, now) = (&database.store, SystemTime::now());
        put_group(store, "shop", "orders", "orders").await;
        let before = store.revision();
        let text = token(store, &request(&["shop/orders"]), now).await;
        assert_eq!(store.revision(), before, "agents do not see tokens");

        let grant = join(store, &attempt(&text, "web", now)).await.expect("web joins");
        let expected = JoinGrant {
            host: "web".to_owned(),
            groups: vec!["shop/orders".to_owned()],
            join_sequence: 1,
            pending: false,
        };
        assert_eq!(grant, expected);
        let again =
            join(store, &attempt(&text, "web", now)).await.expect("the answer was lost, the same key asks again");
        assert_eq!(again, expected);
        let other = JoinAttempt { key_hash: [8; 32], ..attempt(&text, "other", now) };
        let spent = join(store, &other).await.expect_err("one use");
        assert!(matches!(spent, JoinError::Spent { .. }), "{spent}");

        let world = store.world().await.expect("a world");
        let host = world.host("web").expect("web is there");
        assert_eq!((host.state, host.alive), (HostRowState::Active, false));
        assert_eq!(host.groups, [("shop".to_owned(), "orders".to_owned())]);
        assert_eq!(host.addresses, [at("10.0.0.1")]);
        assert_eq!(list_tokens(store).await.expect("tokens")[0].uses_left, 0);
    })
    .await;
}

/// Another character in the middle of the secret.
fn tamper(attempt: &mut JoinAttempt) {
    let other = if attempt.token.as_bytes()[30] == b'a' { "b" } else { "a" };
    attempt.token.replace_range(30..31, other);
}

#[tokio::test]
async fn every_refusal_of_a_token_says_what_to_do() {
    on_each_store(async |database| {
        let (store, now) = (&database.store, SystemTime::now());
        put_group(store, "shop", "orders", "orders").await;
        put_group(store, "shop", "gone", "gone").await;
        let bound = TokenRequest {
            uses: 9,
            name_pattern: "web-*".to_owned(),
            cidrs: vec!["10.0.0.0/8".to_owned(), "fd00::/8".to_owned()],
            ..request(&["shop/orders", "shop/gone"])
        };
        let text = token(store, &bound, now).await;
        let gone: Result<u64, StoreError> =
            store.execute_quietly("DELETE FROM resources WHERE name = 'gone'", vec![]).await;
        gone.expect("deleted");
        let id = api::token::JoinToken::parse(&text).expect("a token").id();
        let good = attempt(&text, "web-1", now);
        let foreign = api::token::JoinToken::generate(&PIN);
        let with = |change: fn(&mut JoinAttempt)| {
            let mut attempt = good.clone();
            change(&mut attempt);
            attempt
        };
        let rows = [
            (with(|a| a.token = "hunter2".to_owned()), "not a join token: it must begin with tmb_".to_owned()),
            (with(|a| a.token.truncate(30)), "damaged: it has 30 characters".to_owned()),
            (with(tamper), "checksum does not fit; copy it again".to_owned()),
            (
                JoinAttempt { token: foreign.reveal(), ..good.clone() },
                format!("does not know the join token {}", foreign.id()),
            ),
            (with(|a| a.now += HOUR), format!("the join token {id} expired at ")),
            (with(|a| a.name = "Web_1".to_owned()), "\"Web_1\" cannot be a host's name".to_owned()),
            (with(|a| a.name = "db-1".to_owned()), "for hosts named web-*, not db-1".to_owned()),
            (with(|a| a.peer_ip = at("192.0.2.1")), "for hosts at 10.0.0.0/8, fd00::/8, not 192.0.2.1".to_owned()),
            (with(|a| a.addresses = vec![at("127.0.1.1")]), "cannot reach a host at 127.0.1.1".to_owned()),
            (
                with(|a| a.groups = vec!["shop/cart".to_owned()]),
                "the groups shop/orders, shop/gone, not for shop/cart".to_owned(),
            ),
            (good.clone(), "there is no WorkloadGroup shop/gone any more".to_owned()),
        ];
        for (attempt, expected) in rows {
            let error = join(store, &attempt).await.expect_err(&expected);
            assert!(error.to_string().contains(&expected), "{error} / {expected}");
        }
        let mapped = JoinAttempt { groups: vec!["shop/orders".to_owned()], peer_ip: at("::ffff:10.0.0.7"), ..good };
        join(store, &mapped).await.expect("a mapped IPv4 address is in 10.0.0.0/8");
        assert_eq!(list_tokens(store).await.expect("tokens")[0].uses_left, 8, "refusals cost nothing");
    })
    .await;
}

#[tokio::test]
async fn two_joins_race_for_the_last_use_and_one_wins() {
    on_each_store(async |database| {
        let now = SystemTime::now();
        put_group(&database.store, "shop", "orders", "orders").await;
        // On Postgres the two go through different replicas.
        let other = Store::open(&database.store_url).await.expect("a second replica opens");
        for round in 0..10_u8 {
            let text = token(&database.store, &request(&["shop/orders"]), now).await;
            let racers = [(&database.store, "a", 1), (&other, "b", 2)].map(|(store, name, key)| {
                let (store, text) = (store.clone(), text.clone());
                tokio::spawn(async move {
                    let attempt = attempt(&text, &format!("{name}-{round}"), now);
                    join(&store, &JoinAttempt { key_hash: [key; 32], ..attempt }).await
                })
            });
            let mut outcomes = Vec::new();
            for racer in racers {
                outcomes.push(racer.await.expect("no panic"));
            }
            assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
            assert!(outcomes.iter().any(|outcome| matches!(outcome, Err(JoinError::Spent { .. }))), "{outcomes:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_name_is_taken_while_its_host_lives() {
    on_each_store(async |database| {
        let (store, now) = (&database.store, SystemTime::now());
        joined(&database, now).await;
        let text = token(store, &TokenRequest { uses: 9, ..request(&["shop/orders"]) }, now).await;
        let other = JoinAttempt { key_hash: [8; 32], ..attempt(&text, "web", now) };
        report(store, "web", &beat(1, Some(true)), LEASE, now).await.expect("it reports");
        let alive = join(store, &other).await.expect_err("web is alive");
        assert!(alive.to_string().contains("there is already a host web: it is alive"), "{alive}");

        assert_eq!(expire(store, now + LEASE).await.expect("expired"), 1);
        lock(store, "web", "admin", now).await.expect("locked");
        let locked = join(store, &other).await.expect_err("web is locked");
        assert!(locked.to_string().contains("it is locked; `tombolo host unlock` it"), "{locked}");
        unlock(store, "web", "admin", now).await.expect("unlocked");
        let grant = join(store, &other).await.expect("a host that is away may be replaced");
        assert_eq!(grant.join_sequence, 2, "the old copy's number is not good any more");
        assert!(store.world().await.expect("a world").health.is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_token_request_is_told_all_its_mistakes() {
    on_each_store(async |database| {
        let bad = TokenRequest {
            groups: vec!["shop".to_owned()],
            ttl_s: 0,
            uses: 0,
            name_pattern: "We b".to_owned(),
            cidrs: vec!["10.0.0.0/33".to_owned()],
            approval: false,
        };
        let now = SystemTime::now();
        let error = create_token(&database.store, &bad, &PIN, "admin", now).await.expect_err("all of it is wrong");
        let TokenCreateError::Invalid { mistakes } = error else { panic!("{error}") };
        assert_eq!(mistakes.len(), 5, "{mistakes:?}");
        let unknown = create_token(&database.store, &request(&["shop/none"]), &PIN, "admin", now).await;
        let text = unknown.expect_err("no such group").to_string();
        assert!(text.contains("there is no WorkloadGroup shop/none; apply it first"), "{text}");
    })
    .await;
}

#[tokio::test]
async fn a_renewal_is_forgiven_a_lost_answer_but_not_a_second_machine() {
    on_each_store(async |database| {
        let (store, now) = (&database.store, SystemTime::now());
        joined(&database, now).await;
        let before = store.revision();
        assert_eq!(renew(store, "web", 1, now).await.expect("the first"), 2);
        assert_eq!(renew(store, "web", 1, now).await.expect("the answer was lost"), 3);
        assert_eq!(renew(store, "web", 1, now).await.expect("again"), 4);
        assert_eq!(renew(store, "web", 4, now).await.expect("the newest"), 5);
        assert_eq!(store.revision(), before, "agents do not see renewals");

        // 2 was handed to somebody who is not the one that presented 4.
        let cloned = renew(store, "web", 2, now).await.expect_err("a clone");
        assert!(matches!(cloned, RenewError::Cloned { presented: 2, newest: 5, .. }), "{cloned}");
        let locked = renew(store, "web", 5, now).await.expect_err("both are locked");
        assert!(matches!(locked, RenewError::Locked { .. }), "{locked}");
        assert_eq!(store.world().await.expect("a world").host("web").expect("web").state, HostRowState::Locked);

        unlock(store, "web", "admin", now).await.expect("unlocked");
        assert_eq!(renew(store, "web", 5, now).await.expect("the right one renews"), 6);
        assert!(
            matches!(renew(store, "web", 2, now).await, Err(RenewError::Cloned { .. })),
            "the clone is still found"
        );
        unlock(store, "web", "admin", now).await.expect("unlocked");
        for never_given in [0, u64::MAX] {
            assert!(renew(store, "web", never_given, now).await.is_err());
            unlock(store, "web", "admin", now).await.expect("unlocked");
        }
        revoke(store, "web", "admin", now).await.expect("revoked");
        assert!(matches!(renew(store, "web", 6, now).await, Err(RenewError::Revoked { .. })));
        assert!(matches!(renew(store, "nobody", 1, now).await, Err(RenewError::UnknownHost { .. })));
    })
    .await;
}

/// Two machines with the same disk take turns; whoever begins, it is found at the next turn.
#[tokio::test]
async fn a_cloned_disk_is_found_at_its_second_renewal() {
    on_each_store(async |database| {
        let (store, now) = (&database.store, SystemTime::now());
        joined(&database, now).await;
        let first = renew(store, "web", 1, now).await.expect("the original renews");
        let clone = renew(store, "web", 1, now).await.expect("the clone looks like a lost answer");
        let outcome = match renew(store, "web", first, now).await {
            Ok(_) => renew(store, "web", clone, now).await,
            refused => refused,
        };
        assert!(matches!(outcome, Err(RenewError::Cloned { .. })), "{outcome:?}");
    })
    .await;
}

#[tokio::test]
async fn a_lease_lives_by_reports_and_is_fenced_by_the_epoch() {
    on_each_store(async |database| {
        let (store, now) = (&database.store, SystemTime::now());
        joined(&database, now).await;
        let mut revision = store.revision();
        let mut took = |expected: u64, what: &str| {
            assert_eq!(store.revision() - revision, expected, "{what}");
            revision = store.revision();
        };
        report(store, "web", &beat(1, Some(true)), LEASE, now).await.expect("the first report");
        took(1, "it is alive");
        report(store, "web", &beat(1, Some(true)), LEASE, now + LEASE / 3).await.expect("the same again");
        took(0, "nothing is new");
        report(store, "web", &beat(1, Some(false)), LEASE, now + LEASE / 3).await.expect("ill");
        took(1, "health changed");
        let problem = Report { problem: "disk full".to_owned(), ..beat(1, Some(false)) };
        report(store, "web", &problem, LEASE, now + LEASE / 3).await.expect("a text");
        took(0, "a text for people");
        let moved = Report { addresses: vec![at("10.0.0.2")], ..beat(1, Some(false)) };
        report(store, "web", &moved, LEASE, now + LEASE / 3).await.expect("moved");
        took(1, "other addresses");
        assert_eq!(expire(store, now + LEASE).await.expect("nothing is due"), 0);

        report(store, "web", &beat(2, Some(true)), LEASE, now + LEASE).await.expect("the agent was restarted");
        let stale = report(store, "web", &beat(1, Some(true)), LEASE, now + LEASE).await.expect_err("the old agent");
        assert!(matches!(stale, ReportError::StaleEpoch { .. }), "{stale}");
        took(1, "health changed");
        assert_eq!(expire(store, now + 2 * LEASE).await.expect("due"), 1);
        took(1, "it is away");
        assert!(!store.world().await.expect("a world").hosts[0].alive);
        report(store, "web", &beat(2, Some(true)), LEASE, now + 3 * LEASE).await.expect("back");
        took(1, "it is back");

        lock(store, "web", "admin", now).await.expect("locked");
        took(1, "locked");
        let barred = report(store, "web", &beat(2, Some(true)), LEASE, now + 3 * LEASE).await.expect_err("locked");
        assert_eq!(barred.to_string(), "the host web is locked: locked by admin");
        took(0, "a refused report changes nothing");
    })
    .await;
}

#[tokio::test]
async fn a_host_reports_on_its_own_workloads_only() {
    on_each_store(async |database| {
        let (store, now) = (&database.store, SystemTime::now());
        joined(&database, now).await;
        let mut other = beat(1, Some(false));
        other.workloads.push(WorkloadReport {
            uid: workload_uid("shop", "orders", "db"),
            healthy: false,
            reason: String::new(),
        });
        report(store, "web", &other, LEASE, now).await.expect("the rest counts");
        let health = store.world().await.expect("a world").health;
        assert_eq!(health.keys().collect::<Vec<_>>(), ["tombolo/shop/orders/web"]);
        report(store, "web", &beat(1, None), LEASE, now).await.expect("the workload is gone");
        assert!(store.world().await.expect("a world").health.is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_host_leaves_at_once_or_for_good() {
    on_each_store(async |database| {
        let (store, now) = (&database.store, SystemTime::now());
        joined(&database, now).await;
        report(store, "web", &beat(1, Some(true)), LEASE, now).await.expect("it reports");
        leave(store, "web", false, now).await.expect("it leaves");
        let world = store.world().await.expect("a world");
        assert!(!world.hosts[0].alive && world.health.is_empty());
        leave(store, "web", true, now).await.expect("it is forgotten");
        assert!(store.world().await.expect("a world").hosts.is_empty());
        assert!(matches!(leave(store, "web", true, now).await, Err(LeaveError::UnknownHost { .. })));
        assert!(matches!(report(store, "web", &beat(1, None), LEASE, now).await, Err(ReportError::UnknownHost { .. })));
    })
    .await;
}

#[tokio::test]
async fn a_host_claims_the_identities_of_its_groups_only() {
    on_each_store(async |database| {
        let (store, now) = (&database.store, SystemTime::now());
        joined(&database, now).await;
        put_group(store, "shop", "cart", "cart").await;
        let id = |text: &str| text.parse::<SpiffeId>().expect("an identity");
        may_claim(store, "web", &id("spiffe://td/ns/shop/sa/orders")).await.expect("its own");
        for foreign in ["spiffe://td/ns/shop/sa/cart", "spiffe://td/ns/other/sa/orders", "spiffe://td/host/web"] {
            let error = may_claim(store, "web", &id(foreign)).await.expect_err("not its own");
            assert!(error.to_string().ends_with("its WorkloadGroups allow ns/shop/sa/orders"), "{error}");
        }
        lock(store, "web", "admin", now).await.expect("locked");
        let error = may_claim(store, "web", &id("spiffe://td/ns/shop/sa/orders")).await.expect_err("locked");
        assert!(matches!(error, ClaimError::Barred { state: "locked", .. }), "{error}");
        let error = may_claim(store, "db", &id("spiffe://td/ns/shop/sa/orders")).await.expect_err("unknown");
        assert!(matches!(error, ClaimError::UnknownHost { .. }), "{error}");
    })
    .await;
}

#[tokio::test]
async fn a_host_that_needs_approval_waits_for_it() {
    on_each_store(async |database| {
        let (store, now) = (&database.store, SystemTime::now());
        put_group(store, "shop", "orders", "orders").await;
        let text = token(store, &TokenRequest { approval: true, ..request(&["shop/orders"]) }, now).await;
        assert!(join(store, &attempt(&text, "web", now)).await.expect("it joins").pending);
        report(store, "web", &beat(1, Some(true)), LEASE, now).await.expect("it may report");
        assert_eq!(renew(store, "web", 1, now).await.expect("and renew"), 2);
        let own: SpiffeId = "spiffe://td/ns/shop/sa/orders".parse().expect("an identity");
        assert!(matches!(may_claim(store, "web", &own).await, Err(ClaimError::Pending { .. })));
        approve(store, "web", "admin", now).await.expect("approved");
        approve(store, "web", "admin", now).await.expect("twice is harmless");
        may_claim(store, "web", &own).await.expect("its own");
        lock(store, "web", "admin", now).await.expect("locked");
        let wrong = approve(store, "web", "admin", now).await.expect_err("locked");
        assert_eq!(wrong.to_string(), "the host web is locked, so it cannot be active");
        let record = &list(store).await.expect("hosts")[0];
        assert_eq!((record.problem.as_str(), record.revision, record.intercepting), ("locked by admin", 1, true));
        delete(store, "web", "admin", now).await.expect("deleted");
        assert!(matches!(lock(store, "web", "admin", now).await, Err(HostActionError::NotFound { .. })));
    })
    .await;
}

#[tokio::test]
async fn heartbeats_of_many_hosts_take_no_revision() {
    let Some(database) = postgres().await else { return };
    let (store, now) = (&database.store, SystemTime::now());
    put_group(store, "shop", "orders", "orders").await;
    let text = token(store, &TokenRequest { uses: 50, ..request(&["shop/orders"]) }, now).await;
    let hosts: Vec<String> = (0..50).map(|n| format!("web-{n}")).collect();
    for (n, host) in (0_u8..).zip(&hosts) {
        let attempt = JoinAttempt { key_hash: [n; 32], ..attempt(&text, host, now) };
        join(store, &attempt).await.expect("it joins");
        report(store, host, &beat(1, None), LEASE, now).await.expect("it reports");
    }
    let before = store.revision();
    let beats: Vec<_> = hosts
        .iter()
        .map(|host| {
            let (store, host) = (store.clone(), host.clone());
            tokio::spawn(async move {
                for n in 1..10 {
                    report(&store, &host, &beat(1, None), LEASE, now + Duration::from_secs(n)).await?;
                }
                Ok::<_, ReportError>(())
            })
        })
        .collect();
    for beat in beats {
        beat.await.expect("no panic").expect("every report counts");
    }
    assert_eq!(store.world().await.expect("a world").revision, before);
}

#[test]
fn leases_do_not_run_out_while_nobody_could_report() {
    let (start, now) = (Instant::now(), SystemTime::now());
    let second = |n: u64| (start + Duration::from_secs(n), now + Duration::from_secs(n));
    let mut pause = Pause::new(Duration::from_secs(30), start, now);
    let mut step = |n: u64, available: bool| {
        let (at, now) = second(n);
        pause.may_expire(available, at, now)
    };
    for n in 1..30 {
        assert!(!step(n, true), "{n} s after the start");
    }
    assert!(step(30, true));
    assert!(!step(31, false), "the database is away");
    for n in 32..61 {
        assert!(!step(n, true), "it is back since {n}");
    }
    assert!(step(61, true));
    assert!(!step(100, true), "the process stood still");
    assert!(!step(101, true));
}
