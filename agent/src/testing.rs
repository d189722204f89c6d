//! A control plane for this crate's tests: real mTLS, real gRPC on port 0, answers that the test says.
//!
//! It is the far end of the wire, not a stand-in for code of ours: what it is sent is handed to the
//! test, what the test says it sends. Certificates are signed by a CA of the test.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use api::wire::ca::istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer};
use api::wire::ca::{IstioCertificateRequest, IstioCertificateResponse};
use api::wire::tombolo::enrolment_server::{Enrolment, EnrolmentServer};
use api::wire::tombolo::{
    JoinRequest, JoinResponse, LeaveRequest, LeaveResponse, RenewHostRequest, RenewHostResponse, ReportRequest,
    ReportResponse,
};
use api::wire::xds::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use api::wire::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use api::{SpiffeId, TrustDomain};
use identity::{Bundles, Credentials, KeyPair, Svid};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose,
};
use tokio::net::TcpListener;
use tokio::sync::{broadcast, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{BroadcastStream, ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use crate::config::Config;
use crate::connect::{Dial, Link};

pub(crate) fn trust_domain() -> TrustDomain {
    "corp.example".parse().expect("valid")
}

pub(crate) fn host_id() -> SpiffeId {
    SpiffeId::host(&trust_domain(), "web1").expect("valid")
}

/// Waits until `done` answers something, at most ten seconds; says what it saw last.
pub(crate) async fn eventually<T>(what: &str, mut done: impl FnMut() -> Result<T, String>) -> T {
    let end = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        match done() {
            Ok(value) => return value,
            Err(seen) => assert!(tokio::time::Instant::now() < end, "{what}: last seen: {seen}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// One root, which signs leaves.
pub(crate) struct TestCa {
    root: rcgen::Certificate,
    issuer: Issuer<'static, rcgen::KeyPair>,
}

impl TestCa {
    pub(crate) fn new() -> Self {
        let key = rcgen::KeyPair::generate().expect("generates");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&key).expect("signs");
        Self { root, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn roots_pem(&self) -> String {
        self.root.pem()
    }

    pub(crate) fn root_der(&self) -> Vec<u8> {
        self.root.der().to_vec()
    }

    fn params(identity: &SpiffeId, begins: SystemTime, length: Duration) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.not_before = begins.into();
        params.not_after = (begins + length).into();
        params.serial_number = Some(rand::random::<u64>().into());
        params.subject_alt_names = vec![rcgen::SanType::URI(identity.to_string().as_str().try_into().expect("ASCII"))];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params
    }

    pub(crate) fn svid(&self, identity: &SpiffeId, life: Life) -> Svid {
        let key = KeyPair::generate().expect("generates");
        let csr = key.csr(None).expect("signs");
        Svid::from_pem(&self.sign(&csr, identity, life), &key).expect("the test's CA makes usable certificates")
    }

    /// Whatever the request says: the key alone counts, as with a real issuer.
    pub(crate) fn sign(&self, csr: &str, identity: &SpiffeId, life: Life) -> String {
        let request = CertificateSigningRequestParams::from_pem(csr).expect("a request of ours");
        let params = Self::params(identity, SystemTime::now() - life.before, life.length);
        let leaf = CertificateSigningRequestParams { params, ..request };
        leaf.signed_by(&self.issuer).expect("signs").pem()
    }

    /// As the control plane presents itself, with the root: valid for an hour from `begins`.
    pub(crate) fn server(&self, begins: SystemTime) -> Svid {
        let key = KeyPair::generate().expect("generates");
        let own = identity::control_plane_id(&trust_domain());
        let leaf = Self::params(&own, begins, AN_HOUR.length).signed_by(&key, &self.issuer).expect("signs");
        Svid::from_pem(&(leaf.pem() + &self.roots_pem()), &key).expect("the test's CA makes usable certificates")
    }

    pub(crate) fn credentials(&self, svids: Vec<Svid>) -> Credentials {
        let credentials = Credentials::new(trust_domain());
        credentials.set_bundles(Bundles::from_pem(&trust_domain(), &self.roots_pem()).expect("a root"));
        svids.into_iter().for_each(|svid| credentials.publish(svid));
        credentials
    }
}

/// How long before now a certificate's life began, and how long it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Life {
    pub(crate) before: Duration,
    pub(crate) length: Duration,
}

pub(crate) const AN_HOUR: Life = Life { before: Duration::from_secs(60), length: Duration::from_secs(3600) };

/// What the issuer does with requests.
#[derive(Debug, Clone)]
pub(crate) enum Issuing {
    Good(Life),
    Refuse(&'static str),
    OtherIdentity(SpiffeId),
}

/// A running control plane.
pub(crate) struct TestControlPlane {
    pub(crate) ca: Arc<TestCa>,
    pub(crate) requests: mpsc::Receiver<DeltaDiscoveryRequest>,
    pub(crate) reports: mpsc::Receiver<ReportRequest>,
    /// What every open stream is sent; an error ends it.
    pub(crate) push: broadcast::Sender<Result<DeltaDiscoveryResponse, Status>>,
    pub(crate) issuing: Arc<Mutex<Issuing>>,
    /// Each certificate request: whom it asked for.
    pub(crate) asked: Arc<Mutex<Vec<String>>>,
    pub(crate) address: SocketAddr,
    server: tokio::task::JoinHandle<()>,
    sockets: Arc<Mutex<Vec<OwnedFd>>>,
}

impl TestControlPlane {
    pub(crate) async fn start() -> Self {
        Self::start_with_certificate_from(SystemTime::now() - AN_HOUR.before).await
    }

    /// One whose certificate begins then.
    pub(crate) async fn start_with_certificate_from(begins: SystemTime) -> Self {
        let ca = Arc::new(TestCa::new());
        let own = identity::control_plane_id(&trust_domain());
        let credentials = ca.credentials(vec![ca.server(begins)]);
        let tls = identity::tls::server_config(&credentials, &own, &[b"h2"]).expect("a TLS configuration");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");

        let (requests_in, requests) = mpsc::channel(100);
        let (reports_in, reports) = mpsc::channel(100);
        let push = broadcast::Sender::new(100);
        let issuing = Arc::new(Mutex::new(Issuing::Good(AN_HOUR)));
        let asked = Arc::new(Mutex::new(vec![]));
        let services = Services {
            ca: ca.clone(),
            requests: requests_in,
            reports: reports_in,
            push: push.clone(),
            issuing: issuing.clone(),
            asked: asked.clone(),
        };
        let (accepted_in, accepted) = mpsc::channel(10);
        let acceptor = TlsAcceptor::from(tls);
        let sockets = Arc::new(Mutex::new(vec![]));
        let kept = sockets.clone();
        let server = tokio::spawn(async move {
            let serve = tonic::transport::Server::builder()
                .add_service(AggregatedDiscoveryServiceServer::new(services.clone()))
                .add_service(IstioCertificateServiceServer::new(services.clone()))
                .add_service(EnrolmentServer::new(services))
                .serve_with_incoming(ReceiverStream::new(accepted));
            let accept = async {
                while let Ok((stream, _)) = listener.accept().await {
                    let socket = stream.as_fd().try_clone_to_owned().expect("a descriptor");
                    kept.lock().unwrap_or_else(PoisonError::into_inner).push(socket);
                    let stream = acceptor.accept(stream).await;
                    if stream.is_ok() && accepted_in.send(stream).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                _ = serve => {}
                () = accept => {}
            }
        });
        Self { ca, requests, reports, push, issuing, asked, address, server, sockets }
    }

    pub(crate) fn credentials(&self, host: Life) -> Credentials {
        self.ca.credentials(vec![self.ca.svid(&host_id(), host)])
    }

    pub(crate) fn link(&self, config: &Config, credentials: &Credentials) -> Link {
        let dial = Dial::new(config, &format!("https://{}", self.address)).expect("a URL");
        Link::new(config, dial, host_id(), credentials.clone())
    }

    /// The next request of any type, within ten seconds.
    pub(crate) async fn request(&mut self) -> DeltaDiscoveryRequest {
        let next = tokio::time::timeout(Duration::from_secs(10), self.requests.recv()).await;
        next.expect("a request within ten seconds").expect("the server runs")
    }

    pub(crate) async fn report(&mut self) -> ReportRequest {
        let next = tokio::time::timeout(Duration::from_secs(10), self.reports.recv()).await;
        next.expect("a report within ten seconds").expect("the server runs")
    }

    pub(crate) fn set_issuing(&self, issuing: Issuing) {
        *self.issuing.lock().unwrap_or_else(PoisonError::into_inner) = issuing;
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for TestControlPlane {
    fn drop(&mut self) {
        self.server.abort();
        for socket in self.sockets.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Both);
        }
    }
}

#[derive(Clone)]
struct Services {
    ca: Arc<TestCa>,
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    reports: mpsc::Sender<ReportRequest>,
    push: broadcast::Sender<Result<DeltaDiscoveryResponse, Status>>,
    issuing: Arc<Mutex<Issuing>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Services {
    fn issue(&self, csr: &str, identity: SpiffeId) -> Result<Vec<String>, Status> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(identity.to_string());
        let issuing = self.issuing.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let leaf = match issuing {
            Issuing::Good(life) => self.ca.sign(csr, &identity, life),
            Issuing::OtherIdentity(other) => self.ca.sign(csr, &other, AN_HOUR),
            Issuing::Refuse(why) => return Err(Status::permission_denied(why)),
        };
        Ok(vec![leaf, self.ca.roots_pem()])
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Services {
    type DeltaAggregatedResourcesStream =
        std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (mut incoming, requests) = (request.into_inner(), self.requests.clone());
        tokio::spawn(async move {
            while let Ok(Some(request)) = incoming.message().await {
                if requests.send(request).await.is_err() {
                    return;
                }
            }
        });
        let pushed = BroadcastStream::new(self.push.subscribe()).filter_map(Result::ok);
        Ok(Response::new(Box::pin(pushed)))
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Services {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let request = request.into_inner();
        let wanted = request.metadata.as_ref().and_then(|metadata| metadata.fields.get("ImpersonatedIdentity"));
        let Some(prost_types::value::Kind::StringValue(text)) = wanted.and_then(|value| value.kind.clone()) else {
            return Err(Status::invalid_argument("no ImpersonatedIdentity"));
        };
        let identity = text.parse().map_err(|_| Status::invalid_argument("not an identity"))?;
        Ok(Response::new(IstioCertificateResponse { cert_chain: self.issue(&request.csr, identity)? }))
    }
}

#[tonic::async_trait]
impl Enrolment for Services {
    async fn join(&self, _: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        Err(Status::unimplemented("a joined host's control plane"))
    }

    async fn renew_host(&self, request: Request<RenewHostRequest>) -> Result<Response<RenewHostResponse>, Status> {
        let request = request.into_inner();
        let mut cert_chain = self.issue(&request.csr, host_id())?;
        let roots = cert_chain.pop().unwrap_or_default();
        Ok(Response::new(RenewHostResponse { cert_chain, roots, join_sequence: request.join_sequence + 1 }))
    }

    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportResponse>, Status> {
        let _ = self.reports.send(request.into_inner()).await;
        Ok(Response::new(ReportResponse { lease_s: 30 }))
    }

    async fn leave(&self, _: Request<LeaveRequest>) -> Result<Response<LeaveResponse>, Status> {
        Ok(Response::new(LeaveResponse {}))
    }
}
