//! Tests of `resources`, the file beside this folder.

use std::time::SystemTime;

use api::SpiffeId;
use api::rest::TokenRequest;

use super::*;
use crate::registry;
use crate::testing::{Database, on_each_store};

const GROUP: &str = "
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: orders, namespace: shop}
spec:
  metadata: {labels: {app: orders}}
  template: {serviceAccount: orders-sa, ports: {http: 8080}}
---
";
const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {selector: {app: orders}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
";

fn request(yaml: &str) -> Apply {
    Apply {
        documents: Resource::documents(yaml).expect("YAML"),
        dry_run: false,
        actor: "admin".to_owned(),
        trust_domain: "corp.example".parse().expect("a trust domain"),
        now: SystemTime::now(),
    }
}

async fn put(database: &Database, yaml: &str) -> Result<ApplyResponse, ApplyError> {
    apply(&database.store, &request(yaml)).await
}

async fn remove(database: &Database, kind: &str, namespace: &str, name: &str) -> Result<ApplyOutcome, DeleteError> {
    let input = Delete {
        kind: kind.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        actor: "admin".to_owned(),
        now: SystemTime::now(),
    };
    delete(&database.store, &input).await
}

fn mistakes(outcome: Result<ApplyResponse, ApplyError>) -> Vec<String> {
    match outcome {
        Err(ApplyError::Invalid { mistakes } | ApplyError::Conflict { mistakes }) => mistakes,
        other => panic!("{other:?}"),
    }
}

async fn vips(database: &Database, hostname: &str) -> Vec<String> {
    let world = database.store.world().await.expect("a world");
    let found = world.vips.iter().find(|((_, name), _)| name == hostname);
    found.map(|(_, addresses)| addresses.iter().map(ToString::to_string).collect()).unwrap_or_default()
}

fn service(name: &str, extra: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop}}, \
         spec: {{selector: {{app: orders}}, ports: [{{port: 80}}]{extra}}}}}\n---\n"
    )
}

#[tokio::test]
async fn an_apply_is_one_revision_and_the_same_again_is_none() {
    on_each_store(async |database| {
        let before = database.store.revision();
        let both = format!("{GROUP}{SERVICE}");
        let first = put(&database, &both).await.expect("applied");
        assert_eq!(first.revision, before + 1);
        assert!(first.outcomes.iter().all(|o| o.action == ApplyAction::Created && o.warnings.is_empty()), "{first:?}");
        let again = put(&database, &both).await.expect("applied");
        assert_eq!(again.revision, before + 1);
        assert!(again.outcomes.iter().all(|o| o.action == ApplyAction::Unchanged));

        let changed = both.replace("port: 80,", "port: 81,");
        let dry = apply(&database.store, &Apply { dry_run: true, ..request(&changed) }).await.expect("a dry run");
        assert_eq!(dry.revision, before + 1);
        assert_eq!(dry.outcomes[1].action, ApplyAction::Configured);
        let third = put(&database, &changed).await.expect("applied");
        assert_eq!(third.revision, before + 2);
        let outcome = &third.outcomes[1];
        assert_eq!(outcome.before.as_ref().expect("it was there")["spec"]["ports"][0]["port"], 80);
        assert_eq!(outcome.after.as_ref().expect("it is there")["spec"]["ports"][0]["port"], 81);

        let (revision, rows) = list(&database.store, "service", Some("shop")).await.expect("a list");
        assert_eq!((revision, rows.len()), (before + 2, 1));
        let (row, status) = &rows[0];
        assert_eq!((row.generation, row.revision, row.uid.len()), (2, before + 2, 36));
        assert_eq!(status["addresses"]["orders.shop.mesh"][0], "240.240.0.1");
        assert!(list(&database.store, "service", Some("other")).await.expect("a list").1.is_empty());
    })
    .await;
}

#[tokio::test]
async fn all_or_nothing_and_all_mistakes_together() {
    on_each_store(async |database| {
        let before = database.store.revision();
        let bad = format!(
            "{GROUP}{{apiVersion: v1, kind: Service, metadata: {{name: a, namespace: shop}}, \
             spec: {{selector: {{a: b}}, ports: [{{port: 0}}], nodePort: 1}}}}\n---\n{{kind: Servise}}\n---\n{GROUP}"
        );
        let found = mistakes(put(&database, &bad).await);
        let text = found.join("\n");
        for expected in [
            "Service shop/a: spec.ports[0].port: ",
            "Service shop/a: spec.nodePort: unknown field",
            "Servise (document 3): kind: \"Servise\" is not a kind of this version, did you mean Service?",
            "WorkloadGroup shop/orders: occurs twice in what was sent",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
        assert_eq!(database.store.world().await.expect("a world").revision, before);
        assert!(database.store.world().await.expect("a world").resources.is_empty());
    })
    .await;
}

#[tokio::test]
async fn virtual_addresses_are_stable_and_rest_before_another_name_gets_them() {
    on_each_store(async |database| {
        put(&database, &(service("a", "") + &service("b", ""))).await.expect("applied");
        assert_eq!(vips(&database, "a.shop.mesh").await, ["240.240.0.1", "fd74:6d62:6f6c::1"]);
        assert_eq!(vips(&database, "b.shop.mesh").await, ["240.240.0.2", "fd74:6d62:6f6c::2"]);
        remove(&database, "service", "shop", "a").await.expect("deleted");
        assert!(vips(&database, "a.shop.mesh").await.is_empty());
        put(&database, &service("c", "")).await.expect("applied");
        assert_eq!(vips(&database, "c.shop.mesh").await[0], "240.240.0.3", "1 was somebody's today");
        put(&database, &service("a", "")).await.expect("applied");
        assert_eq!(vips(&database, "a.shop.mesh").await[0], "240.240.0.1", "its own");

        remove(&database, "service", "shop", "a").await.expect("deleted");
        let tomorrow = SystemTime::now() + std::time::Duration::from_secs(25 * 3600);
        let later = Apply { now: tomorrow, ..request(&service("d", "")) };
        apply(&database.store, &later).await.expect("applied");
        assert_eq!(vips(&database, "d.shop.mesh").await[0], "240.240.0.1", "a day later it is anybody's");
    })
    .await;
}

#[tokio::test]
async fn declared_addresses_may_not_overlap() {
    on_each_store(async |database| {
        put(&database, &service("a", ", clusterIP: 10.96.0.1")).await.expect("applied");
        assert_eq!(vips(&database, "a.shop.mesh").await, ["10.96.0.1"]);
        let found = mistakes(put(&database, &service("b", ", clusterIP: 10.96.0.1")).await);
        assert_eq!(found, ["Service shop/b: the address 10.96.0.1 belongs to Service shop/a; choose another"]);
        let both = service("c", ", clusterIP: 10.96.0.3") + &service("d", ", clusterIP: 10.96.0.3");
        let found = mistakes(put(&database, &both).await);
        assert_eq!(found, ["Service shop/d: the address 10.96.0.3 belongs to Service shop/c; choose another"]);
        let found = mistakes(put(&database, &service("b", ", clusterIP: 127.0.0.1")).await);
        assert_eq!(found, ["Service shop/b: 127.0.0.1 cannot be a service's address"]);

        // The pool goes around an address that was declared in its range.
        put(&database, &service("b", ", clusterIP: 240.240.0.1")).await.expect("applied");
        put(&database, &service("c", "")).await.expect("applied");
        assert_eq!(vips(&database, "c.shop.mesh").await[0], "240.240.0.2");
        // From declared to chosen and back.
        put(&database, &service("a", "")).await.expect("applied");
        assert_eq!(vips(&database, "a.shop.mesh").await[0], "240.240.0.3");
        put(&database, &service("a", ", clusterIP: 10.96.0.9")).await.expect("applied");
        assert_eq!(vips(&database, "a.shop.mesh").await, ["10.96.0.9"]);
        put(&database, &service("d", ", clusterIP: 10.96.0.1")).await.expect("10.96.0.1 is free again");
    })
    .await;
}

#[tokio::test]
async fn one_namespace_has_one_service_of_a_name() {
    on_each_store(async |database| {
        let entry = |name: &str, host: &str, address: &str| {
            format!(
                "{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{name: {name}, namespace: shop}}, \
                 spec: {{hosts: [{host}], ports: [{{number: 80, name: http}}], resolution: STATIC, \
                 endpoints: [{{address: {address}}}]}}}}\n---\n"
            )
        };
        put(&database, &entry("one", "db.example", "192.0.2.1")).await.expect("applied");
        assert_eq!(vips(&database, "db.example").await[0], "240.240.0.1");
        let found = mistakes(put(&database, &entry("two", "db.example", "192.0.2.2")).await);
        assert_eq!(found, ["ServiceEntry shop/two: the name db.example belongs to ServiceEntry shop/one; choose another"]);
        let found = mistakes(put(&database, &(entry("two", "a.shop.mesh", "192.0.2.2") + &service("a", ""))).await);
        assert_eq!(found.len(), 1, "{found:?}");
        let found = mistakes(put(&database, &service("a", ", clusterIP: 192.0.2.1")).await);
        let expected = "Service shop/a: the address 192.0.2.1 belongs to an endpoint of ServiceEntry shop/one; choose another";
        assert_eq!(found, [expected]);
        put(&database, &entry("one", "cache.example", "192.0.2.1")).await.expect("renamed");
        assert!(vips(&database, "db.example").await.is_empty());
        put(&database, &entry("two", "db.example", "192.0.2.2")).await.expect("the name is free");
    })
    .await;
}

#[tokio::test]
async fn what_is_probably_not_meant_is_a_warning() {
    on_each_store(async |database| {
        let policy = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec:
  selector: {matchLabels: {app: nobody}}
  action: DENY
  rules:
  - from:
    - source: {principals: [corp.example/ns/shop/sa/web, other.example/ns/shop/sa/orders-sa, corp.example/ns/shop/sa/orders-sa, 'corp.example/*']}
    - source: {namespaces: [nowhere, shop, 'sho*'], notNamespaces: [nowhere]}
";
        let yaml = format!("{SERVICE}{policy}");
        let outcomes = put(&database, &yaml).await.expect("warnings are no mistakes").outcomes;
        let unmatched = "matches no WorkloadGroup and no WorkloadEntry in namespace shop";
        assert_eq!(outcomes[0].warnings, [format!("the selector app=orders {unmatched}")]);
        let expected = [
            format!("the selector app=nobody {unmatched}"),
            "it names the service account shop/web, which no workload has".to_owned(),
            "other.example/ns/shop/sa/orders-sa is of the trust domain other.example; this mesh's is corp.example".to_owned(),
            "it names the service account shop/orders-sa, which no workload has".to_owned(),
            "it names the namespace nowhere, in which there is nothing".to_owned(),
        ];
        assert_eq!(outcomes[1].warnings, expected);

        let together = format!("{GROUP}{}", SERVICE.replace("targetPort: 8080", "targetPort: web"));
        let outcomes = put(&database, &together).await.expect("applied").outcomes;
        assert_eq!(outcomes[1].warnings, ["port 80: no selected workload has a port named web"]);
    })
    .await;
}

#[tokio::test]
async fn a_group_in_use_is_not_deleted() {
    on_each_store(async |database| {
        let (store, now) = (&database.store, SystemTime::now());
        put(&database, GROUP).await.expect("applied");
        let wanted = TokenRequest {
            groups: vec!["shop/orders".to_owned()],
            ttl_s: 3600,
            uses: 1,
            name_pattern: String::new(),
            cidrs: Vec::new(),
            approval: false,
        };
        let (token, _) = registry::create_token(store, &wanted, &[1; 32], "admin", now).await.expect("a token");
        let attempt = registry::JoinAttempt {
            token: token.reveal(),
            name: "web".to_owned(),
            groups: Vec::new(),
            addresses: Vec::new(),
            version: String::new(),
            peer_ip: "10.0.0.1".parse().expect("an address"),
            key_hash: [1; 32],
            now,
        };
        registry::join(store, &attempt).await.expect("it joins");
        let own: SpiffeId = "spiffe://td/ns/shop/sa/orders-sa".parse().expect("an identity");
        registry::may_claim(store, "web", &own).await.expect("the group's service account");

        let error = remove(&database, "workloadgroup", "shop", "orders").await.expect_err("web is in it");
        assert!(error.to_string().contains("WorkloadGroup shop/orders is in use by web; let them leave"), "{error}");
        registry::delete(store, "web", "admin", now).await.expect("deleted");
        let outcome = remove(&database, "workloadgroup", "shop", "orders").await.expect("nobody is in it");
        assert_eq!((outcome.action, outcome.after), (ApplyAction::Deleted, None));
        let error = remove(&database, "workloadgroup", "shop", "orders").await.expect_err("gone");
        assert_eq!(error.to_string(), "there is no workloadgroup shop/orders");
    })
    .await;
}
