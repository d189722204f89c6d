//! `IstioCertificateService/CreateCertificate`: a host gets certificates for its workloads.
//!
//! The host says in `metadata.ImpersonatedIdentity` which of its workloads it asks for (as a shared
//! ztunnel does); the registry says whether it may. Names in the request itself count for nothing.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use api::SpiffeId;
use api::wire::ca::istio_certificate_service_server::IstioCertificateService;
use api::wire::ca::{IstioCertificateRequest, IstioCertificateResponse};
use prost_types::value::Kind;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use super::limit::Limit;
use super::{internal, peer, store_failed};
use crate::app::App;
use crate::issuer::SignError;
use crate::metrics::CertificateLabels;
use crate::registry::{self, CertificateRecord, ClaimError};

const IDENTITY: &str = "ImpersonatedIdentity";
/// A host with many workloads starts them all at once.
const BURST: u32 = 300;
/// One more certificate per host after this: an agent that asks without end harms itself only.
const REFILL: Duration = Duration::from_millis(500);

pub(super) struct Issuance {
    app: Arc<App>,
    by_host: Limit<String>,
}

impl Issuance {
    pub(super) fn new(app: Arc<App>) -> Self {
        Self { app, by_host: Limit::new(BURST, REFILL) }
    }

    fn admit(&self, host: &str) -> Result<(), Status> {
        let now = Instant::now();
        if let Some(wait) = self.by_host.wait(&host.to_owned(), now) {
            let wait = wait.as_secs() + 1;
            let text = format!("the host {host} asks for too many certificates: ask again in {wait} s");
            return Err(Status::resource_exhausted(text));
        }
        self.by_host.take(host.to_owned(), now);
        Ok(())
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Issuance {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let outcome = self.certify(request).await;
        let labels =
            CertificateLabels { kind: "workload", outcome: if outcome.is_ok() { "signed" } else { "refused" } };
        self.app.metrics.certificates.get_or_create(&labels).inc();
        outcome.map(|cert_chain| Response::new(IstioCertificateResponse { cert_chain }))
    }
}

impl Issuance {
    /// Leaf, intermediate, and last the roots.
    async fn certify(&self, request: Request<IstioCertificateRequest>) -> Result<Vec<String>, Status> {
        let host = peer::host(request.extensions())?.name;
        self.admit(&host)?;
        let request = request.into_inner();
        let identity = wanted(&request)?;
        registry::may_claim(&self.app.store, &host, &identity)
            .await
            .map_err(|error| refused(&host, &identity, error))?;
        let lifetime = u64::try_from(request.validity_duration).ok().filter(|s| *s > 0).map(Duration::from_secs);
        let signed = self.app.issuer.sign_workload(&request.csr, &identity, lifetime).map_err(not_signed)?;
        let record = CertificateRecord {
            serial: signed.serial.clone(),
            identity: identity.to_string(),
            host: host.clone(),
            not_after: signed.not_after,
        };
        registry::record_certificate(&self.app.store, &record, SystemTime::now()).await.map_err(store_failed)?;
        info!(host = %host, identity = %identity, serial = %signed.serial, "{identity} is certified on host {host}");
        let mut cert_chain = signed.chain_pem;
        cert_chain.push(signed.roots_pem);
        Ok(cert_chain)
    }
}

fn wanted(request: &IstioCertificateRequest) -> Result<SpiffeId, Status> {
    let value = request.metadata.as_ref().and_then(|metadata| metadata.fields.get(IDENTITY)?.kind.as_ref());
    let Some(Kind::StringValue(text)) = value else {
        return Err(Status::invalid_argument(format!(
            "metadata.{IDENTITY} is missing: a host says there which workload's identity it asks for"
        )));
    };
    text.parse().map_err(|error| Status::invalid_argument(format!("metadata.{IDENTITY}: {error}")))
}

fn refused(host: &str, identity: &SpiffeId, error: ClaimError) -> Status {
    warn!(host, identity = %identity, error = %telemetry::Chain(&error), "host {host} gets no certificate");
    match error {
        ClaimError::UnknownHost { .. } => Status::not_found(error.to_string()),
        ClaimError::Pending { .. } => Status::failed_precondition(error.to_string()),
        ClaimError::Barred { .. } | ClaimError::NotYours { .. } => Status::permission_denied(error.to_string()),
        ClaimError::Store(source) => store_failed(source),
    }
}

/// The asker's fault is told to the asker, ours to our log.
pub(super) fn not_signed(error: SignError) -> Status {
    match error {
        SignError::Request(_) | SignError::Name { .. } => Status::invalid_argument(error.to_string()),
        SignError::ForeignTrustDomain { .. } => Status::permission_denied(error.to_string()),
        SignError::IssuingExpired { .. }
        | SignError::ServerName { .. }
        | SignError::Random
        | SignError::Sign(_)
        | SignError::Unusable(_) => internal("a certificate could not be signed", &error),
    }
}
