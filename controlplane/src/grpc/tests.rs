//! The agents' API over real TLS sockets, on SQLite, with tonic's client.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use api::rest::TokenRequest;
use api::snapshot::Change;
use api::wire::ca::IstioCertificateRequest;
use api::wire::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use api::wire::tombolo::enrolment_client::EnrolmentClient;
use api::wire::tombolo::{JoinRequest, JoinResponse, LeaveRequest, RenewHostRequest, ReportRequest, WorkloadHealth};
use api::wire::xds::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use api::wire::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use api::{SpiffeId, TrustDomain, wire};
use identity::tls::{Pins, control_plane_client_config, join_client_config, server_name};
use identity::{KeyPair, Svid};
use rustls::ClientConfig;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Streaming};

use super::*;
use crate::app::Settings;
use crate::issuer::Issuer;
use crate::metrics::Metrics;
use crate::registry;
use crate::resources::{Apply, apply};
use crate::snapshot::{Mesh, Snapshots};
use crate::testing::{Database, sqlite, wait_until};

const LIMIT: Duration = Duration::from_secs(5);
const GROUPS: &str = "
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: orders, namespace: shop}
spec:
  metadata: {labels: {app: orders}}
  template: {serviceAccount: orders, ports: {http: 8080}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: web, namespace: shop}
spec:
  metadata: {labels: {app: web}}
  template: {serviceAccount: web}
---
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec: {selector: {app: orders}, ports: [{port: 80, targetPort: http}]}
";
const DENY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-web, namespace: shop}
spec: {action: DENY, rules: [{from: [{source: {principals: [mesh.example/ns/shop/sa/web]}}]}]}
";

/// One running control plane.
struct Plane {
    app: Arc<App>,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<Result<(), ServeError>>,
    _snapshots: Snapshots,
    _database: Database,
    _directory: TempDir,
}

/// A host that joined.
struct Host {
    answer: JoinResponse,
    key: KeyPair,
    channel: Channel,
}

fn trust_domain() -> TrustDomain {
    "mesh.example".parse().expect("well-formed")
}

async fn plane() -> Plane {
    let (database, directory) = (sqlite().await, tempfile::tempdir().expect("a directory"));
    let issuer = Issuer::load_or_create(directory.path(), &trust_domain()).expect("an authority");
    let lease = Duration::from_secs(15);
    let roots = issuer.roots().iter().map(|der| der.to_vec()).collect();
    let mesh = Mesh { trust_domain: trust_domain(), roots, lease };
    let snapshots = crate::snapshot::start(database.store.clone(), mesh).await.expect("a first snapshot");
    let agents = Agents::default();
    let app = Arc::new(App {
        metrics: Metrics::new(&database.store, &agents),
        draining: CancellationToken::new(),
        store: database.store.clone(),
        trust_domain: trust_domain(),
        server_certificate: issuer.server_tls(&["localhost".to_owned()]).expect("a server certificate"),
        issuer,
        published: snapshots.subscribe(),
        agents,
        settings: Settings { lease, join_url: String::new() },
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (stop, stopped) = oneshot::channel::<()>();
    let served = tokio::spawn(serve(listener, app.clone(), async move {
        let _ = stopped.await;
    }));
    let plane = Plane {
        app,
        address,
        stop: Some(stop),
        served,
        _snapshots: snapshots,
        _database: database,
        _directory: directory,
    };
    plane.apply(GROUPS).await;
    plane
}

impl Plane {
    async fn apply(&self, yaml: &str) -> api::Revision {
        let documents = api::resource::documents(yaml).expect("YAML");
        let request = Apply {
            documents,
            dry_run: false,
            actor: "test".to_owned(),
            trust_domain: trust_domain(),
            now: SystemTime::now(),
        };
        apply(&self.app.store, &request).await.expect("applied").revision
    }

    async fn token(&self, groups: &[&str]) -> String {
        let request = TokenRequest {
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            ttl_s: 3600,
            uses: 1,
            name_pattern: String::new(),
            cidrs: vec![],
            approval: false,
        };
        let pin = self.app.issuer.ca_pin();
        let made = registry::create_token(&self.app.store, &request, &pin, "test", SystemTime::now()).await;
        made.expect("a token").0.reveal()
    }

    async fn channel(&self, tls: Arc<ClientConfig>) -> Channel {
        let address = self.address;
        let connect = tower::service_fn(move |_: http::Uri| {
            let tls = TlsConnector::from(tls.clone());
            async move {
                let stream = TcpStream::connect(address).await?;
                let stream = tls.connect(server_name(&[]), stream).await?;
                Ok::<_, io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        });
        Endpoint::from_static("http://control-plane").connect_with_connector_lazy(connect)
    }

    async fn anonymous(&self) -> EnrolmentClient<Channel> {
        let pins = Pins { root_sha256: Some(self.app.issuer.ca_pin()), token: None };
        EnrolmentClient::new(self.channel(join_client_config(pins).expect("a pin")).await)
    }

    async fn join(&self, name: &str, group: &str) -> Host {
        let key = KeyPair::generate().expect("random");
        let request = join_request(self.token(&[group]).await, &key, name);
        let answer = self.anonymous().await.join(request).await.expect("joins").into_inner();
        let channel = self.mutual(&answer.cert_chain.concat(), &key).await;
        Host { answer, key, channel }
    }

    /// A channel that presents this certificate.
    async fn mutual(&self, chain_pem: &str, key: &KeyPair) -> Channel {
        let svid = Svid::from_pem(chain_pem, key).expect("usable");
        let bundles = Bundles::from_pem(&trust_domain(), self.app.issuer.roots_pem()).expect("roots");
        let tls = control_plane_client_config(&bundles, Some(Arc::new(svid)), &trust_domain()).expect("TLS");
        self.channel(tls).await
    }
}

fn join_request(token: String, key: &KeyPair, name: &str) -> JoinRequest {
    JoinRequest {
        token,
        csr: key.csr(None).expect("signs"),
        name: name.to_owned(),
        groups: vec![],
        addresses: vec!["10.0.0.7".to_owned()],
        version: "test".to_owned(),
        now_unix_s: now_s(),
    }
}

fn now_s() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()).expect("fits")
}

fn certificate_request(key: &KeyPair, identity: &str) -> IstioCertificateRequest {
    let value = prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(identity.to_owned())) };
    let metadata = prost_types::Struct { fields: [("ImpersonatedIdentity".to_owned(), value)].into() };
    IstioCertificateRequest { csr: key.csr(None).expect("signs"), validity_duration: 3600, metadata: Some(metadata) }
}

fn report(epoch: u64, healthy: bool) -> ReportRequest {
    let uid = "tombolo/shop/orders/vm-1".to_owned();
    ReportRequest {
        epoch,
        workloads: vec![WorkloadHealth { uid, healthy, reason: String::new() }],
        ..ReportRequest::default()
    }
}

/// One stream, which acknowledges what it receives and keeps a snapshot of it.
struct Feed {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    snapshot: api::Snapshot,
}

impl Feed {
    async fn open(channel: Channel) -> Result<Self, tonic::Status> {
        let (requests, outgoing) = mpsc::channel(16);
        for type_url in [wire::TRUST_BUNDLE, wire::AUTHORIZATION, wire::ADDRESS, wire::HOST_CONFIG] {
            let request = DeltaDiscoveryRequest { type_url: type_url.to_owned(), ..Default::default() };
            requests.send(request).await.expect("there is room");
        }
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = client.delta_aggregated_resources(ReceiverStream::new(outgoing)).await?.into_inner();
        Ok(Self { requests, responses, snapshot: api::Snapshot::default() })
    }

    async fn take(&mut self) -> Result<(), tonic::Status> {
        let response = self.responses.message().await?.ok_or_else(|| tonic::Status::cancelled("closed"))?;
        let revision = response.system_version_info.parse().unwrap_or_default();
        let mut changes: Vec<Change> = vec![];
        for resource in &response.resources {
            let body = &resource.resource.as_ref().expect("there is one").value;
            changes.push(wire::decode(&response.type_url, &resource.name, body).expect("our own resources decode"));
        }
        for name in &response.removed_resources {
            changes.push(wire::removal(&response.type_url, name).expect("our own names"));
        }
        self.snapshot = self.snapshot.apply(api::Delta { revision, changes });
        let ack =
            DeltaDiscoveryRequest { type_url: response.type_url, response_nonce: response.nonce, ..Default::default() };
        let _ = self.requests.send(ack).await;
        Ok(())
    }

    /// Receives until the snapshot is as wanted; how long that took.
    async fn until(&mut self, what: &str, is: impl Fn(&api::Snapshot) -> bool) -> Duration {
        let start = Instant::now();
        while !is(&self.snapshot) {
            let taken = tokio::time::timeout(LIMIT, self.take()).await;
            taken.unwrap_or_else(|_| panic!("not within {LIMIT:?}: {what}")).expect("the stream goes on");
        }
        start.elapsed()
    }

    async fn end(&mut self) -> tonic::Status {
        let ended = async {
            loop {
                if let Err(status) = self.take().await {
                    return status;
                }
            }
        };
        tokio::time::timeout(LIMIT, ended).await.expect("the stream ends")
    }
}

fn workload<'a>(snapshot: &'a api::Snapshot, host: &str) -> Option<&'a api::Workload> {
    snapshot.workload(&format!("tombolo/shop/orders/{host}")).map(AsRef::as_ref)
}

#[tokio::test]
async fn a_host_joins_and_gets_certificates_and_its_configuration() {
    let plane = plane().await;
    let host = plane.join("vm-1", "shop/orders").await;
    assert_eq!((host.answer.trust_domain.as_str(), host.answer.host.as_str()), ("mesh.example", "vm-1"));
    assert_eq!((host.answer.lease_s, host.answer.groups.as_slice()), (15, &["shop/orders".to_owned()][..]));

    let key = KeyPair::generate().expect("random");
    let identity = "spiffe://mesh.example/ns/shop/sa/orders";
    let mut ca = IstioCertificateServiceClient::new(host.channel.clone());
    let answer = ca.create_certificate(certificate_request(&key, identity)).await.expect("certified").into_inner();
    let (roots, chain) = answer.cert_chain.split_last().expect("leaf, intermediate, roots");
    assert_eq!(chain.len(), 2);
    let svid = Svid::from_pem(&chain.concat(), &key).expect("usable");
    assert_eq!(svid.identity().to_string(), identity);
    let bundles = Bundles::from_pem(&trust_domain(), roots).expect("roots");
    assert_eq!(svid.verify(&bundles, SystemTime::now()), Ok(()));

    let mut feed = Feed::open(host.channel.clone()).await.expect("a stream");
    feed.until("its configuration and all addresses", |snapshot| {
        snapshot.host().is_some_and(|host| host.workloads.len() == 1)
            && workload(snapshot, "vm-1").is_some()
            && snapshot.services().count() == 1
            && snapshot.bundles().count() == 1
    })
    .await;
    assert!(!workload(&feed.snapshot, "vm-1").expect("there").healthy, "it has not reported yet");
    let mut enrolment = EnrolmentClient::new(host.channel.clone());
    enrolment.report(report(1, true)).await.expect("counts");
    feed.until("healthy", |snapshot| workload(snapshot, "vm-1").is_some_and(|w| w.healthy)).await;
    enrolment.report(report(1, false)).await.expect("counts");
    feed.until("unhealthy", |snapshot| workload(snapshot, "vm-1").is_some_and(|w| !w.healthy)).await;
    wait_until("the agent is current", LIMIT, async || {
        // The ACK of the last response is on its way.
        let revision = plane.app.published.borrow().revision;
        plane.app.agents.n_current(revision) == 1
    })
    .await;
    assert_eq!(plane.app.agents.n_connected(), 1);
    let metrics = plane.app.metrics.encode();
    for line in [
        "tombolo_controlplane_certificates_total{kind=\"host\",outcome=\"signed\"} 1",
        "tombolo_controlplane_certificates_total{kind=\"workload\",outcome=\"signed\"} 1",
        "tombolo_controlplane_enrolment_calls_total{call=\"join\",outcome=\"granted\"} 1",
        "tombolo_controlplane_enrolment_calls_total{call=\"report\",outcome=\"granted\"} 2",
        "tombolo_controlplane_discovery_answers_total{outcome=\"acknowledged\"}",
    ] {
        assert!(metrics.contains(line), "{line} is not in:\n{metrics}");
    }
    drop(feed);
    wait_until("the stream is forgotten", LIMIT, async || plane.app.agents.n_connected() == 0).await;
}

#[tokio::test]
async fn a_policy_reaches_every_agent_and_a_configuration_only_its_host() {
    let plane = plane().await;
    let (one, two) = (plane.join("vm-1", "shop/orders").await, plane.join("vm-2", "shop/web").await);
    let (mut one, mut two) =
        (Feed::open(one.channel).await.expect("a stream"), Feed::open(two.channel).await.expect("a stream"));
    for feed in [&mut one, &mut two] {
        feed.until("both workloads", |snapshot| snapshot.len_workloads() == 2 && snapshot.host().is_some()).await;
    }
    assert_eq!(one.snapshot.host().map(|host| host.host.as_str()), Some("vm-1"));
    assert_eq!(two.snapshot.host().map(|host| host.host.as_str()), Some("vm-2"));
    assert_eq!(two.snapshot.host().expect("there").workloads[0].group, "web");

    let revision = plane.apply(DENY).await;
    for feed in [&mut one, &mut two] {
        let took = feed.until("the policy", |snapshot| snapshot.policy("shop/deny-web").is_some()).await;
        assert!(took < Duration::from_secs(1), "{took:?}");
        assert_eq!(feed.snapshot.revision(), revision, "with the revision that the apply took");
    }
}

#[tokio::test]
async fn a_host_gets_no_identity_but_its_own() {
    let plane = plane().await;
    let host = plane.join("vm-1", "shop/orders").await;
    let key = KeyPair::generate().expect("random");
    let mut ca = IstioCertificateServiceClient::new(host.channel.clone());
    for (identity, code, says) in [
        ("spiffe://mesh.example/ns/shop/sa/web", Code::PermissionDenied, "ns/shop/sa/orders"),
        ("spiffe://mesh.example/ns/tombolo-system/sa/controlplane", Code::PermissionDenied, "may not be"),
        ("spiffe://mesh.example/host/vm-2", Code::PermissionDenied, "may not be"),
        ("spiffe://other.example/ns/shop/sa/orders", Code::PermissionDenied, "trust domain"),
        ("orders", Code::InvalidArgument, "spiffe://"),
    ] {
        let refused = ca.create_certificate(certificate_request(&key, identity)).await.expect_err("must be refused");
        assert_eq!(refused.code(), code, "{identity}: {refused}");
        assert!(refused.message().contains(says), "{identity}: {refused}");
    }
    let nobody = IstioCertificateRequest {
        metadata: None,
        ..certificate_request(&key, "spiffe://mesh.example/ns/shop/sa/orders")
    };
    assert_eq!(ca.create_certificate(nobody).await.expect_err("must be refused").code(), Code::InvalidArgument);
    let rubbish = IstioCertificateRequest {
        csr: "rubbish".to_owned(),
        ..certificate_request(&key, "spiffe://mesh.example/ns/shop/sa/orders")
    };
    assert_eq!(ca.create_certificate(rubbish).await.expect_err("must be refused").code(), Code::InvalidArgument);
}

#[tokio::test]
async fn who_is_not_a_host_may_only_join() {
    let plane = plane().await;
    let host = plane.join("vm-1", "shop/orders").await;
    let key = KeyPair::generate().expect("random");
    let identity = "spiffe://mesh.example/ns/shop/sa/orders";
    let signed: SpiffeId = identity.parse().expect("valid");
    let signed = plane.app.issuer.sign_workload(&key.csr(None).expect("signs"), &signed, None).expect("signs");
    let workload = plane.mutual(&signed.chain_pem.concat(), &key).await;
    let pins = Pins { root_sha256: Some(plane.app.issuer.ca_pin()), token: None };
    let anonymous = plane.channel(join_client_config(pins).expect("a pin")).await;
    for (channel, code) in [(anonymous, Code::Unauthenticated), (workload, Code::PermissionDenied)] {
        let mut enrolment = EnrolmentClient::new(channel.clone());
        assert_eq!(enrolment.report(report(1, true)).await.expect_err("refused").code(), code);
        assert_eq!(enrolment.leave(LeaveRequest { forget: true }).await.expect_err("refused").code(), code);
        let renewal = RenewHostRequest { csr: key.csr(None).expect("signs"), join_sequence: 1 };
        assert_eq!(enrolment.renew_host(renewal).await.expect_err("refused").code(), code);
        let mut ca = IstioCertificateServiceClient::new(channel.clone());
        let refused = ca.create_certificate(certificate_request(&key, identity)).await.expect_err("refused");
        assert_eq!(refused.code(), code);
        assert_eq!(Feed::open(channel).await.err().map(|status| status.code()), Some(code));
    }

    // A certificate of another authority does not even finish its handshake.
    let elsewhere = tempfile::tempdir().expect("a directory");
    let foreign = Issuer::load_or_create(elsewhere.path(), &trust_domain()).expect("another authority");
    let signed = foreign.sign_host(&host.key.csr(None).expect("signs"), "vm-1").expect("signs");
    let mut stranger = EnrolmentClient::new(plane.mutual(&signed.chain_pem.concat(), &host.key).await);
    let refused = stranger.report(report(1, true)).await.expect_err("refused");
    let told = identity::tls::explain(&refused).unwrap_or_default();
    assert!(told.contains("does not trust the root that signed our certificate"), "{told}: {refused:?}");
}

#[tokio::test]
async fn a_revoked_host_loses_its_stream_within_a_second() {
    let plane = plane().await;
    let (one, two) = (plane.join("vm-1", "shop/orders").await, plane.join("vm-2", "shop/web").await);
    let mut feed = Feed::open(one.channel.clone()).await.expect("a stream");
    let mut other = Feed::open(two.channel).await.expect("a stream");
    for feed in [&mut feed, &mut other] {
        feed.until("its configuration", |snapshot| snapshot.host().is_some()).await;
    }
    let start = Instant::now();
    registry::revoke(&plane.app.store, "vm-1", "test", SystemTime::now()).await.expect("revoked");
    let status = feed.end().await;
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("vm-1 is revoked"), "{status}");
    other.until("its workload is gone", |snapshot| workload(snapshot, "vm-1").is_none()).await;

    assert_eq!(Feed::open(one.channel.clone()).await.err().map(|s| s.code()), Some(Code::PermissionDenied));
    let mut enrolment = EnrolmentClient::new(one.channel.clone());
    let refused = enrolment.report(report(1, true)).await.expect_err("refused");
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = enrolment.leave(LeaveRequest { forget: true }).await.expect_err("refused");
    assert_eq!(refused.code(), Code::PermissionDenied, "or it would take the revocation with it");
    let renewal = RenewHostRequest { csr: one.key.csr(None).expect("signs"), join_sequence: one.answer.join_sequence };
    assert_eq!(enrolment.renew_host(renewal).await.expect_err("refused").code(), Code::PermissionDenied);
    let mut ca = IstioCertificateServiceClient::new(one.channel);
    let request = certificate_request(&one.key, "spiffe://mesh.example/ns/shop/sa/orders");
    assert_eq!(ca.create_certificate(request).await.expect_err("refused").code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_host_renews_and_leaves() {
    let plane = plane().await;
    let host = plane.join("vm-1", "shop/orders").await;
    let mut feed = Feed::open(host.channel.clone()).await.expect("a stream");
    let mut enrolment = EnrolmentClient::new(host.channel.clone());
    let next_key = KeyPair::generate().expect("random");
    let renewal =
        RenewHostRequest { csr: next_key.csr(None).expect("signs"), join_sequence: host.answer.join_sequence };
    let renewed = enrolment.renew_host(renewal).await.expect("renewed").into_inner();
    assert!(renewed.join_sequence > host.answer.join_sequence);
    let svid = Svid::from_pem(&renewed.cert_chain.concat(), &next_key).expect("usable");
    assert_eq!(svid.identity().host_name(), Some("vm-1"));
    let rubbish = RenewHostRequest { csr: "rubbish".to_owned(), join_sequence: renewed.join_sequence };
    assert_eq!(enrolment.renew_host(rubbish).await.expect_err("refused").code(), Code::InvalidArgument);
    let channel = plane.mutual(&renewed.cert_chain.concat(), &next_key).await;
    let again = RenewHostRequest { csr: next_key.csr(None).expect("signs"), join_sequence: renewed.join_sequence };
    EnrolmentClient::new(channel.clone()).renew_host(again).await.expect("what failed used nothing up");

    EnrolmentClient::new(channel.clone()).leave(LeaveRequest { forget: true }).await.expect("left");
    let status = feed.end().await;
    assert_eq!(status.code(), Code::NotFound, "{status}");
    EnrolmentClient::new(channel).leave(LeaveRequest { forget: true }).await.expect("leaving twice is no mistake");
}

#[tokio::test]
async fn joins_that_cannot_work_are_refused_with_their_reason() {
    let plane = plane().await;
    let key = KeyPair::generate().expect("random");
    let mut enrolment = plane.anonymous().await;
    let token = plane.token(&["shop/orders"]).await;

    let skewed = JoinRequest { now_unix_s: now_s() - 3600, ..join_request(token.clone(), &key, "vm-1") };
    let refused = enrolment.join(skewed).await.expect_err("refused");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("clock") && refused.message().matches('Z').count() == 2, "{refused}");

    let foreign = api::token::JoinToken::generate(&[3; 32]).reveal();
    let cases = [
        (JoinRequest { csr: "rubbish".to_owned(), ..join_request(token.clone(), &key, "vm-1") }, Code::InvalidArgument),
        (join_request("tmb_rubbish".to_owned(), &key, "vm-1"), Code::InvalidArgument),
        (join_request(foreign, &key, "vm-1"), Code::Unauthenticated),
        (join_request(token.clone(), &key, "Not A Name"), Code::InvalidArgument),
        (
            JoinRequest { groups: vec!["shop/web".to_owned()], ..join_request(token.clone(), &key, "vm-1") },
            Code::PermissionDenied,
        ),
        (
            JoinRequest { addresses: vec!["here".to_owned()], ..join_request(token.clone(), &key, "vm-1") },
            Code::InvalidArgument,
        ),
    ];
    for (request, code) in cases {
        let refused = enrolment.join(request).await.expect_err("refused");
        assert_eq!(refused.code(), code, "{refused}");
    }
    enrolment.join(join_request(token.clone(), &key, "vm-1")).await.expect("no failure used up the token");
    let other = KeyPair::generate().expect("random");
    let spent = enrolment.join(join_request(token, &other, "vm-2")).await.expect_err("refused");
    assert_eq!(spent.code(), Code::Unauthenticated, "{spent}");

    // Eight have failed; the address may fail ten times at once.
    for _ in 0..2 {
        enrolment.join(join_request("x".to_owned(), &key, "vm-3")).await.expect_err("refused");
    }
    let waits = enrolment.join(join_request("x".to_owned(), &key, "vm-3")).await.expect_err("refused");
    assert_eq!(waits.code(), Code::ResourceExhausted);
    assert!(waits.message().contains("too many joins failed from 127.0.0.1"), "{waits}");
}

#[tokio::test]
async fn a_stopping_control_plane_says_so_and_ends() {
    let mut plane = plane().await;
    let host = plane.join("vm-1", "shop/orders").await;
    let mut feed = Feed::open(host.channel).await.expect("a stream");
    feed.until("its configuration", |snapshot| snapshot.host().is_some()).await;
    // Half a handshake must not hold it up either.
    let _silent = TcpStream::connect(plane.address).await.expect("accepted");
    plane.stop.take().expect("running").send(()).expect("it listens");
    let status = feed.end().await;
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    drop(feed);
    let served = tokio::time::timeout(LIMIT, &mut plane.served).await;
    served.expect("it ends in time").expect("no panic").expect("no error");
}
