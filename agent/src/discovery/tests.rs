//! The stream against a real gRPC server over mTLS: subscriptions, ACK and NACK, reconnects, disk.
use super::holdings::tests::{host, policy, resource, response};
use super::*;
use crate::config::Config;
use crate::testing::{AN_HOUR, TestControlPlane, eventually};
use api::policy::Action;
use api::snapshot::{Change, TrustBundle};
use api::wire;
use tonic::Status;

struct Running {
    control_plane: TestControlPlane,
    view: View,
    credentials: Credentials,
    state: StateDir,
    trigger: proxy::drain::DrainTrigger,
    status: watch::Receiver<DiscoveryState>,
    link: Link,
    _folder: tempfile::TempDir,
}

impl Running {
    async fn start() -> Self {
        let control_plane = TestControlPlane::start().await;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let state = StateDir::open(folder.path()).expect("it can be made");
        let credentials = control_plane.credentials(AN_HOUR);
        let mut config = Config::defaults();
        config.control_plane.reconnect_max = Duration::from_millis(200);
        let link = control_plane.link(&config, &credentials);
        let holdings = cache::load(&state);
        let view = View::new(holdings.snapshot().clone());
        let discovery = Discovery::new(
            &config.control_plane,
            link.clone(),
            view.clone(),
            credentials.clone(),
            holdings,
            Overrides::default(),
        );
        let status = discovery.subscribe();
        let (trigger, drain) = proxy::drain::channel();
        tokio::spawn(cache::run(
            state.clone(),
            discovery.holdings(),
            credentials.clone(),
            view.subscribe(),
            watch::Sender::new(String::new()),
            drain.clone(),
        ));
        tokio::spawn(discovery.run(drain));
        Self { control_plane, view, credentials, state, trigger, status, link, _folder: folder }
    }

    /// The four subscriptions of a new stream.
    async fn subscribed(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let mut requests = Vec::new();
        for _ in holdings::TYPES {
            requests.push(self.control_plane.request().await);
        }
        requests
    }

    fn push(&self, response: DeltaDiscoveryResponse) {
        self.control_plane.push.send(Ok(response)).expect("the agent's stream is open");
    }

    async fn answer_to(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        let type_url = response.type_url.clone();
        self.push(response);
        let answer = self.control_plane.request().await;
        assert_eq!(answer.type_url, type_url);
        answer
    }

    async fn sync(&mut self, revision: u64) {
        let bundle =
            TrustBundle { trust_domain: crate::testing::trust_domain(), roots: vec![self.control_plane.ca.root_der()] };
        self.answer_to(response(wire::TRUST_BUNDLE, revision, vec![resource(&Change::Bundle(bundle), "b")], &[])).await;
        let policies = vec![resource(&policy("a", Action::Deny), "a1"), resource(&policy("b", Action::Allow), "b1")];
        self.answer_to(response(wire::AUTHORIZATION, revision, policies, &[])).await;
        self.answer_to(response(wire::ADDRESS, revision, vec![], &[])).await;
        assert!(self.view.load().host().is_none(), "nothing is obeyed before every type was heard of");
        self.answer_to(response(wire::HOST_CONFIG, revision, vec![resource(&host(), "h1")], &[])).await;
        let view = self.view.clone();
        eventually("the host's configuration is obeyed", || match view.load().revision() {
            seen if seen == revision => Ok(()),
            seen => Err(format!("revision {seen}")),
        })
        .await;
    }
}

#[tokio::test]
async fn a_bad_resource_is_nacked_by_name_and_comes_again_after_a_reconnect() {
    let mut running = Running::start().await;
    let first = running.subscribed().await;
    assert_eq!(first[0].node.as_ref().map(|node| node.id.as_str()), Some("tombolo~web1"));
    running.sync(7).await;
    assert!(running.link.state().connected);
    assert_eq!(running.status.borrow().source, "control plane");

    let mut broken = resource(&policy("b", Action::Allow), "b2");
    broken.resource.as_mut().expect("it has a body").value = vec![0xff, 0xff];
    let answer = running
        .answer_to(response(wire::AUTHORIZATION, 8, vec![broken, resource(&policy("a", Action::Allow), "a2")], &[]))
        .await;
    let text = answer.error_detail.expect("a NACK").message;
    assert!(text.contains("shop/b") && !text.contains("shop/a"), "{text}");
    let snapshot = running.view.load();
    assert_eq!(snapshot.policy("shop/a").map(|policy| policy.action), Some(Action::Allow));
    assert!(snapshot.policy("shop/b").is_some(), "the older one stays in force");
    assert_eq!(running.status.borrow().problem, text);

    running.control_plane.push.send(Err(Status::unavailable("restarting"))).expect("open");
    let again = running.subscribed().await;
    let held = |type_url: &str| {
        let request = again.iter().find(|request| request.type_url == type_url).expect("subscribed");
        request.initial_resource_versions.clone().into_iter().collect::<Vec<_>>()
    };
    assert_eq!(held(wire::AUTHORIZATION), [("shop/a".to_owned(), "a2".to_owned())]);
    assert_eq!(held(wire::HOST_CONFIG), [("web1".to_owned(), "h1".to_owned())]);
}

#[tokio::test]
async fn an_older_revision_is_not_obeyed_and_another_stream_is_tried() {
    let mut running = Running::start().await;
    running.subscribed().await;
    running.sync(7).await;
    let answer = running.answer_to(response(wire::AUTHORIZATION, 6, vec![], &["shop/a"])).await;
    assert!(answer.error_detail.expect("a NACK").message.contains("older than 7"));
    assert!(running.view.load().policy("shop/a").is_some());
    running.subscribed().await;
    let removed = running.answer_to(response(wire::AUTHORIZATION, 8, vec![], &["shop/a"])).await;
    assert!(removed.error_detail.is_none());
    assert!(running.view.load().policy("shop/a").is_none());
}

#[tokio::test]
async fn what_was_obeyed_is_on_disk_for_the_next_start() {
    let mut running = Running::start().await;
    running.subscribed().await;
    running.sync(7).await;
    running.trigger.drain(Duration::from_secs(5)).await;

    let holdings = cache::load(&running.state);
    assert_eq!(holdings.snapshot().revision(), 7);
    assert!(holdings.synced() && holdings.snapshot().policy("shop/a").is_some());
    assert!(running.state.roots().expect("readable").is_some_and(|pem| pem.contains("BEGIN CERTIFICATE")));
}

#[tokio::test]
async fn a_damaged_snapshot_is_moved_aside_and_is_never_fatal() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let state = StateDir::open(folder.path()).expect("it can be made");
    assert!(!cache::load(&state).synced());
    state.set_snapshot_bytes(b"TOMBOLO\0 and then nonsense").expect("writable");
    assert!(!cache::load(&state).synced());
    assert!(folder.path().join("snapshot.corrupt").exists() && !folder.path().join("snapshot").exists());
}

#[tokio::test]
async fn a_control_plane_that_is_away_leaves_the_snapshot_and_says_why() {
    let mut running = Running::start().await;
    running.subscribed().await;
    running.sync(7).await;
    let control_plane = std::mem::replace(&mut running.control_plane, TestControlPlane::start().await);
    let address = control_plane.address;
    drop(control_plane);
    let link = running.link.clone();
    let error = eventually("the link is down", || match link.state() {
        state if !state.connected && state.error.contains("cannot reach") => Ok(state.error),
        state => Err(format!("{state:?}")),
    })
    .await;
    assert!(error.contains(&address.to_string()), "{error}");
    assert_eq!(running.view.load().revision(), 7);
}

#[tokio::test]
async fn a_renewed_host_certificate_opens_a_new_stream() {
    let mut running = Running::start().await;
    running.subscribed().await;
    running.sync(7).await;
    running.credentials.publish(running.control_plane.ca.svid(&crate::testing::host_id(), AN_HOUR));
    let again = running.subscribed().await;
    assert!(again.iter().any(|request| !request.initial_resource_versions.is_empty()));
}

#[test]
fn roots_of_the_own_trust_domain_are_never_lost() {
    let ca = crate::testing::TestCa::new();
    let credentials = ca.credentials(vec![]);
    set_bundles(&credentials, &api::Snapshot::default());
    assert_eq!(credentials.bundles().roots(&crate::testing::trust_domain()).len(), 1);
}

#[test]
fn pauses_are_between_half_and_all() {
    let pause = Duration::from_secs(10);
    assert_eq!(jittered(pause, 0.0), Duration::from_secs(5));
    assert_eq!(jittered(pause, 1.0), pause);
}
