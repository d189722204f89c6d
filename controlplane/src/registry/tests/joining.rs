//! Who gets in with a token, and who does not.
use super::*;

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
