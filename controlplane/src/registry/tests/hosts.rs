//! What a host may claim, and how one waits and leaves.
use super::*;

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
