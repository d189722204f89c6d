//! Leases: reports, epochs, and nobody withdrawn while nobody could report.
use super::*;

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
        let said = "the host web is locked: locked by admin; an operator can release it with `tombolo host unlock web`";
        assert_eq!(barred.to_string(), said);
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
