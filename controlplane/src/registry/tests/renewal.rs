//! Renewals: a lost answer is forgiven, a second machine is not.
use super::*;

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
