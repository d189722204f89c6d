//! Tests of `rest`, the file beside this folder.

use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use crate::registry;
use crate::testing::{Plane, Relay, on_each_store, postgres, postgres_address, wait_until};

const SECOND: Duration = Duration::from_secs(1);

fn group() -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "WorkloadGroup",
        "metadata": {"name": "orders", "namespace": "shop"},
        "spec": {"metadata": {"labels": {"app": "orders"}}, "template": {"serviceAccount": "orders"}},
    })
}

fn service(port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "orders", "namespace": "shop"},
        "spec": {"selector": {"app": "orders"}, "ports": [{"port": port}]},
    })
}

async fn apply(plane: &Plane, resources: &[Value]) -> Value {
    let (status, answer) = plane.send("POST", "/v1/apply", &json!({ "resources": resources })).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

#[tokio::test]
async fn resources_are_applied_read_and_deleted() {
    on_each_store(async |database| {
        let plane = Plane::start(&database.store_url, database.directory.path()).await;
        let applied = apply(&plane, &[group(), service(80)]).await;
        assert_eq!(applied["outcomes"][1]["action"], "created");
        assert_eq!(applied["outcomes"][1]["after"]["spec"]["ports"][0]["port"], 80);

        let (status, one) = plane.send("GET", "/v1/resources/service/shop/orders", &Value::Null).await;
        assert_eq!((status, &one["metadata"]["generation"]), (200, &json!(1)), "{one}");
        assert_eq!(one["metadata"]["resourceVersion"], applied["revision"].to_string());
        assert_eq!(one["status"]["addresses"]["orders.shop.mesh"][0], "240.240.0.1");
        let again = apply(&plane, &[one]).await;
        assert_eq!(again["outcomes"][0]["action"], "unchanged", "what was read can be applied");

        let dry = json!({ "resources": [service(81)] });
        let (_, dry) = plane.send("POST", "/v1/apply?dry_run=true", &dry).await;
        assert_eq!((&dry["outcomes"][0]["action"], &dry["revision"]), (&json!("configured"), &applied["revision"]));
        assert_eq!(dry["outcomes"][0]["before"]["spec"]["ports"][0]["port"], 80);

        let (_, list) = plane.send("GET", "/v1/resources/services", &Value::Null).await;
        assert_eq!(list["items"].as_array().map(Vec::len), Some(1));
        let (_, list) = plane.send("GET", "/v1/resources/service?namespace=other", &Value::Null).await;
        assert_eq!(list["items"], json!([]));
        let (status, gone) = plane.send("DELETE", "/v1/resources/service/shop/orders", &Value::Null).await;
        assert_eq!((status, &gone["action"]), (200, &json!("deleted")));
        let (status, missing) = plane.send("DELETE", "/v1/resources/service/shop/orders", &Value::Null).await;
        assert_eq!((status, &missing["code"]), (404, &json!("not_found")));
        plane.stop().await;
    })
    .await;
}

#[tokio::test]
async fn every_refusal_is_an_error_body_with_a_hint() {
    let database = crate::testing::sqlite().await;
    let plane = Plane::start(&database.store_url, database.directory.path()).await;
    let nothing = Value::Null;
    let rows = [
        ("GET", "/nowhere", &nothing, 404, "not_found", "there is nothing at /nowhere"),
        ("PUT", "/v1/hosts", &nothing, 405, "invalid", "PUT cannot be done at /v1/hosts"),
        ("GET", "/v1/resources/pod", &nothing, 404, "not_found", "\"pod\" is not a kind of this version"),
        ("GET", "/v1/resources/service/a/b", &nothing, 404, "not_found", "there is no service a/b"),
        ("GET", "/v1/resources/service?namespce=a", &nothing, 400, "invalid", "unknown field `namespce`"),
        ("GET", "/v1/watch?since=-1", &nothing, 400, "invalid", "since: invalid digit"),
        ("POST", "/v1/apply", &json!({"items": []}), 400, "invalid", "unknown field `items`, expected `resources`"),
        ("POST", "/v1/apply", &json!("x"), 400, "invalid", "the body is not what this path takes"),
        ("POST", "/v1/tokens", &json!({"groups": []}), 400, "invalid", "name at least one NAMESPACE/WORKLOADGROUP"),
        ("POST", "/v1/hosts/web/lock", &nothing, 404, "not_found", "there is no host web"),
        ("POST", "/v1/hosts/web/dance", &nothing, 404, "not_found", "\"dance\" cannot be done to a host"),
        ("DELETE", "/v1/tokens/0123", &nothing, 404, "not_found", "there is no join token 0123"),
    ];
    for (method, path, body, status, code, message) in rows {
        let (found, answer) = plane.send(method, path, body).await;
        assert_eq!((found, &answer["code"]), (status, &json!(code)), "{method} {path}: {answer}");
        assert!(answer["message"].as_str().is_some_and(|text| text.contains(message)), "{method} {path}: {answer}");
        assert!(answer["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{answer}");
    }
    let bad = json!({"resources": [{"kind": "Service"}, {"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "a"}, "spec": {"selector": {"a": "b"}, "ports": [{"port": 0, "nodePort": 1}]}}]});
    let (status, answer) = plane.send("POST", "/v1/apply", &bad).await;
    let mistakes = answer["mistakes"].as_array().map(Vec::len).unwrap_or_default();
    assert!(status == 400 && mistakes >= 4, "{answer}");
    assert_eq!(answer["message"], format!("nothing was applied: there are {mistakes} mistakes"));

    for request in [
        plane.request("GET", "/v1/hosts"),
        plane.request("GET", "/v1/hosts").bearer_auth("tmbadm_guess"),
        plane.request("POST", "/v1/apply").header("authorization", "Basic eDp5"),
    ] {
        let (status, answer) = Plane::answer(request).await;
        assert_eq!((status, &answer["code"]), (401, &json!("unauthenticated")));
    }
    let large = json!({ "resources": ["x".repeat(11 << 20)] });
    let (status, answer) = plane.send("POST", "/v1/apply", &large).await;
    assert_eq!((status, &answer["message"]), (413, &json!("the body is larger than 10 MiB")));
    plane.stop().await;
}

#[tokio::test]
async fn what_is_open_is_open_and_described() {
    let database = crate::testing::sqlite().await;
    let plane = Plane::start(&database.store_url, database.directory.path()).await;
    let (status, health) = Plane::answer(plane.request("GET", "/healthz")).await;
    assert_eq!((status, &health["database"]), (200, &json!("ok")));
    let (_, description) = Plane::answer(plane.request("GET", "/openapi.json")).await;
    assert_eq!(description["info"]["title"], "Tombolo control plane");
    let paths: Vec<&str> = description["paths"].as_object().expect("paths").keys().map(String::as_str).collect();
    for path in [
        "/healthz",
        "/metrics",
        "/v1/apply",
        "/v1/resources/{kind}",
        "/v1/resources/{kind}/{namespace}/{name}",
        "/v1/watch",
        "/v1/workloads",
        "/v1/hosts",
        "/v1/hosts/{name}",
        "/v1/hosts/{name}/{action}",
        "/v1/tokens",
        "/v1/tokens/{id}",
        "/v1/status",
    ] {
        assert!(paths.contains(&path), "{path} is not in {paths:?}");
    }
    assert!(description["components"]["schemas"]["ErrorBody"].is_object());
    let (_, metrics) = Plane::answer(plane.request("GET", "/metrics")).await;
    let metrics = metrics.as_str().expect("text").to_owned();
    for line in [
        "tombolo_build_info{",
        "tombolo_controlplane_revision 1\n",
        "tombolo_controlplane_store_available 1\n",
        "tombolo_controlplane_store_errors_total 0\n",
        "tombolo_controlplane_requests_total{method=\"GET\",route=\"/healthz\",status=\"200\"} 1\n",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    plane.stop().await;
}

#[tokio::test]
async fn tokens_and_hosts_are_handled() {
    on_each_store(async |database| {
        let plane = Plane::start(&database.store_url, database.directory.path()).await;
        apply(&plane, &[group(), service(80)]).await;
        let (status, made) = plane.send("POST", "/v1/tokens", &json!({"groups": ["shop/orders"]})).await;
        assert_eq!(status, 201, "{made}");
        let token = made["token"].as_str().expect("a token").to_owned();
        let line = made["join_command"].as_str().expect("a line");
        assert!(
            line.starts_with("tombolo join https://127.0.0.1:") && line.ends_with(&format!(" --token {token}")),
            "{line}"
        );
        let (_, list) = plane.send("GET", "/v1/tokens", &Value::Null).await;
        assert!(!list.to_string().contains(&token[12..]), "{list}");
        assert_eq!(list["items"][0]["created_by"], "admin@127.0.0.1");

        let attempt = registry::JoinAttempt {
            token,
            name: "web".to_owned(),
            groups: Vec::new(),
            addresses: vec!["10.0.0.1".parse().expect("an address")],
            version: "0.1.0".to_owned(),
            peer_ip: "10.0.0.1".parse().expect("an address"),
            key_hash: [1; 32],
            now: SystemTime::now(),
        };
        registry::join(&plane.app.store, &attempt).await.expect("it joins");
        let (_, hosts) = plane.send("GET", "/v1/hosts", &Value::Null).await;
        let host = &hosts["items"][0];
        assert_eq!((&host["state"], &host["identity"]), (&json!("away"), &json!("spiffe://corp.example/host/web")));
        let report = registry::Report {
            epoch: 1,
            revision: 1,
            workloads: vec![registry::WorkloadReport {
                uid: registry::workload_uid("shop", "orders", "web"),
                healthy: false,
                reason: "connection refused".to_owned(),
            }],
            addresses: Vec::new(),
            version: "0.1.0".to_owned(),
            intercepting: true,
            problem: String::new(),
            peer_ip: "10.0.0.1".parse().expect("an address"),
        };
        registry::report(&plane.app.store, "web", &report, 15 * SECOND, SystemTime::now()).await.expect("it reports");
        wait_until("the workload is published", 2 * SECOND, async || {
            let (_, list) = plane.send("GET", "/v1/workloads?namespace=shop", &Value::Null).await;
            let one = &list["items"][0];
            one["identity"] == "spiffe://corp.example/ns/shop/sa/orders"
                && one["reason"] == "connection refused"
                && one["services"] == json!(["orders.shop.mesh"])
        })
        .await;
        for (action, state) in [("lock", "locked"), ("unlock", "away"), ("revoke", "revoked")] {
            let (status, view) = plane.send("POST", &format!("/v1/hosts/web/{action}"), &json!({})).await;
            assert_eq!((status, &view["state"]), (200, &json!(state)), "{view}");
        }
        let (status, refused) = plane.send("POST", "/v1/hosts/web/approve", &Value::Null).await;
        assert_eq!((status, &refused["code"]), (409, &json!("conflict")));
        let (status, refused) = plane.send("DELETE", "/v1/resources/workloadgroup/shop/orders", &Value::Null).await;
        assert_eq!((status, &refused["code"]), (409, &json!("conflict")));
        assert_eq!(plane.send("DELETE", "/v1/hosts/web", &Value::Null).await.0, 200);
        let id = made["view"]["id"].as_str().expect("an id").to_owned();
        assert_eq!(plane.send("DELETE", &format!("/v1/tokens/{id}"), &Value::Null).await.0, 200);
        plane.stop().await;
    })
    .await;
}

#[tokio::test]
async fn two_replicas_answer_alike_within_a_second() {
    let Some(database) = postgres().await else { return };
    let (first, second) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
    let one = Plane::start(&database.store_url, first.path()).await;
    std::fs::create_dir(second.path().join("ca")).expect("created");
    for file in ["ca.pem", "admin.token", "ca/root.key", "ca/root.pem", "ca/issuing.key", "ca/issuing.pem"] {
        std::fs::copy(first.path().join(file), second.path().join(file)).expect("copied");
    }
    let two = Plane::start(&database.store_url, second.path()).await;
    for round in 0..5 {
        for (writer, reader) in [(&one, &two), (&two, &one)] {
            let since = reader.app.store.revision();
            let watch = format!("/v1/watch?since={since}&timeout_s=10");
            let (began, port) = (Instant::now(), 1000 + 2 * round + u16::from(std::ptr::eq(writer, &one)));
            let resources = [service(port)];
            let (watched, applied) = tokio::join!(reader.send("GET", &watch, &Value::Null), apply(writer, &resources));
            assert_eq!(watched.1["revision"], applied["revision"]);
            assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
            let (_, read) = reader.send("GET", "/v1/resources/service/shop/orders", &Value::Null).await;
            assert_eq!(read["spec"]["ports"][0]["port"], port);
        }
    }
    let (_, late) =
        one.send("GET", &format!("/v1/watch?since={}&timeout_s=0", one.app.store.revision()), &Value::Null).await;
    assert_eq!(late["revision"], one.app.store.revision());
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn a_database_that_is_away_is_said_so_until_it_is_back() {
    let (Some(database), Some(address)) = (postgres().await, postgres_address()) else { return };
    let relay = Relay::start(0, address).await;
    let through = database.store_url.to_string().replace(&address.port().to_string(), &relay.port.to_string());
    let plane = Plane::start(&through.parse().expect("a valid URL"), database.directory.path()).await;
    apply(&plane, &[group()]).await;
    wait_until("agents have it", 8 * SECOND, async || plane.app.published.borrow().revision == 2).await;
    let port = relay.cut().await;
    let (status, answer) = plane.send("POST", "/v1/apply", &json!({ "resources": [service(80)] })).await;
    assert_eq!((status, &answer["code"]), (503, &json!("unavailable")), "{answer}");
    assert!(answer["hint"].as_str().is_some_and(|hint| hint.contains("check that the database runs")), "{answer}");
    wait_until("healthz says so", 8 * SECOND, async || {
        Plane::answer(plane.request("GET", "/healthz")).await
            == (503, json!({"status": "degraded", "database": "unavailable", "revision": 2}))
    })
    .await;
    assert_eq!(plane.app.published.borrow().revision, 2, "agents keep what they have");
    let relay = Relay::start(port, address).await;
    wait_until("it is back", 10 * SECOND, async || Plane::answer(plane.request("GET", "/healthz")).await.0 == 200)
        .await;
    assert_eq!(apply(&plane, &[service(80)]).await["revision"], 3);
    plane.stop().await;
    relay.cut().await;
}

#[tokio::test]
async fn an_end_answers_who_waits_and_closes_the_rest() {
    let database = crate::testing::sqlite().await;
    let plane = Plane::start(&database.store_url, database.directory.path()).await;
    let waiting = plane.request("GET", "/v1/watch?since=1&timeout_s=60").bearer_auth(
        std::fs::read_to_string(database.directory.path().join("admin.token")).expect("it is there").trim(),
    );
    // A client that never speaks is open, too.
    let quiet = tokio::net::TcpStream::connect(plane.url.replace("https://", "")).await.expect("it listens");
    let waiting = tokio::spawn(Plane::answer(waiting));
    let arrived = async || plane.app.metrics.requests_in_flight.get() == 1;
    wait_until("the watch has arrived", 5 * SECOND, arrived).await;
    let (address, began) = (plane.url.replace("https://", ""), Instant::now());
    plane.stop().await;
    assert!(began.elapsed() < 7 * SECOND, "{:?}", began.elapsed());
    drop(quiet);
    let (status, answer) = waiting.await.expect("it was answered");
    assert_eq!((status, &answer["revision"]), (200, &json!(1)));
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nobody listens any more");
}
