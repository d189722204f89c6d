//! A control plane on a loopback port, hosts that join it, and streams that keep what they receive.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use api::rest::TokenRequest;
use api::snapshot::Change;
use api::wire::ca::IstioCertificateRequest;
use api::wire::tombolo::enrolment_client::EnrolmentClient;
use api::wire::tombolo::{JoinRequest, JoinResponse, ReportRequest, WorkloadHealth};
use api::wire::xds::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use api::wire::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use api::{TrustDomain, wire};
use identity::tls::{Pins, control_plane_client_config, join_client_config, server_name};
use identity::{KeyPair, Svid};
use rustls::ClientConfig;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use super::super::*;
use crate::app::Settings;
use crate::issuer::Issuer;
use crate::metrics::Metrics;
use crate::registry;
use crate::resources::{Apply, apply};
use crate::snapshot::{Mesh, Snapshots};
use crate::testing::{Database, sqlite};

pub(super) const LIMIT: Duration = Duration::from_secs(5);
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
pub(super) const DENY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny-web, namespace: shop}
spec: {action: DENY, rules: [{from: [{source: {principals: [mesh.example/ns/shop/sa/web]}}]}]}
";

/// One running control plane.
pub(super) struct Plane {
    pub(super) app: Arc<App>,
    pub(super) address: SocketAddr,
    pub(super) stop: Option<oneshot::Sender<()>>,
    pub(super) served: JoinHandle<Result<(), ServeError>>,
    _snapshots: Snapshots,
    _database: Database,
    _directory: TempDir,
}

/// A host that joined.
pub(super) struct Host {
    pub(super) answer: JoinResponse,
    pub(super) key: KeyPair,
    pub(super) channel: Channel,
}

pub(super) fn trust_domain() -> TrustDomain {
    "mesh.example".parse().expect("well-formed")
}

pub(super) async fn plane() -> Plane {
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
    pub(super) async fn apply(&self, yaml: &str) -> api::Revision {
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

    pub(super) async fn token(&self, groups: &[&str], uses: u32) -> String {
        let request = TokenRequest {
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            ttl_s: 3600,
            uses,
            name_pattern: String::new(),
            cidrs: vec![],
            approval: false,
        };
        let pin = self.app.issuer.ca_pin();
        let made = registry::create_token(&self.app.store, &request, &pin, "test", SystemTime::now()).await;
        made.expect("a token").0.reveal()
    }

    pub(super) async fn channel(&self, tls: Arc<ClientConfig>) -> Channel {
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

    pub(super) async fn anonymous(&self) -> EnrolmentClient<Channel> {
        let pins = Pins { root_sha256: Some(self.app.issuer.ca_pin()), token: None };
        EnrolmentClient::new(self.channel(join_client_config(pins).expect("a pin")).await)
    }

    pub(super) async fn join(&self, name: &str, group: &str) -> Host {
        self.join_with(self.token(&[group], 1).await, name).await
    }

    pub(super) async fn join_with(&self, token: String, name: &str) -> Host {
        let key = KeyPair::generate().expect("random");
        let request = join_request(token, &key, name);
        let answer = self.anonymous().await.join(request).await.expect("joins").into_inner();
        let channel = self.mutual(&answer.cert_chain.concat(), &key).await;
        Host { answer, key, channel }
    }

    /// A channel that presents this certificate.
    pub(super) async fn mutual(&self, chain_pem: &str, key: &KeyPair) -> Channel {
        let svid = Svid::from_pem(chain_pem, key).expect("usable");
        let bundles = Bundles::from_pem(&trust_domain(), self.app.issuer.roots_pem()).expect("roots");
        let tls = control_plane_client_config(&bundles, Some(Arc::new(svid)), &trust_domain()).expect("TLS");
        self.channel(tls).await
    }
}

pub(super) fn join_request(token: String, key: &KeyPair, name: &str) -> JoinRequest {
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

pub(super) fn now_s() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()).expect("fits")
}

pub(super) fn certificate_request(key: &KeyPair, identity: &str) -> IstioCertificateRequest {
    let value = prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(identity.to_owned())) };
    let metadata = prost_types::Struct { fields: [("ImpersonatedIdentity".to_owned(), value)].into() };
    IstioCertificateRequest { csr: key.csr(None).expect("signs"), validity_duration: 3600, metadata: Some(metadata) }
}

pub(super) fn report(epoch: u64, healthy: bool) -> ReportRequest {
    let uid = "tombolo/shop/orders/vm-1".to_owned();
    ReportRequest {
        epoch,
        workloads: vec![WorkloadHealth { uid, healthy, reason: String::new() }],
        ..ReportRequest::default()
    }
}

/// One stream, which acknowledges what it receives and keeps a snapshot of it.
pub(super) struct Feed {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    pub(super) snapshot: api::Snapshot,
}

impl Feed {
    pub(super) async fn open(channel: Channel) -> Result<Self, tonic::Status> {
        let (requests, outgoing) = mpsc::channel(16);
        for type_url in [wire::TRUST_BUNDLE, wire::AUTHORIZATION, wire::ADDRESS, wire::HOST_CONFIG] {
            let request = DeltaDiscoveryRequest { type_url: type_url.to_owned(), ..Default::default() };
            requests.send(request).await.expect("there is room");
        }
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = client.delta_aggregated_resources(ReceiverStream::new(outgoing)).await?.into_inner();
        Ok(Self { requests, responses, snapshot: api::Snapshot::default() })
    }

    pub(super) async fn take(&mut self) -> Result<(), tonic::Status> {
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
    pub(super) async fn until(&mut self, what: &str, is: impl Fn(&api::Snapshot) -> bool) -> Duration {
        let start = Instant::now();
        while !is(&self.snapshot) {
            let taken = tokio::time::timeout(LIMIT, self.take()).await;
            taken.unwrap_or_else(|_| panic!("not within {LIMIT:?}: {what}")).expect("the stream goes on");
        }
        start.elapsed()
    }

    pub(super) async fn end(&mut self) -> tonic::Status {
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

pub(super) fn workload<'a>(snapshot: &'a api::Snapshot, host: &str) -> Option<&'a api::Workload> {
    snapshot.workload(&format!("tombolo/shop/orders/{host}")).map(AsRef::as_ref)
}
