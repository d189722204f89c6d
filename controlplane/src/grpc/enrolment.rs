//! `tombolo.v1.Enrolment`: hosts join, renew, report and leave.
//!
//! Join is the one call without a client certificate: it is judged by its token, and whoever fails
//! often from one address is made to wait. Everything else is decided in the registry; this file
//! checks shapes, signs what the registry granted, and words the refusals.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use api::wire::tombolo::enrolment_server::Enrolment as EnrolmentService;
use api::wire::tombolo::{
    JoinRequest, JoinResponse, LeaveRequest, LeaveResponse, RenewHostRequest, RenewHostResponse, ReportRequest,
    ReportResponse,
};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use super::issuance::not_signed;
use super::limit::Limit;
use super::{peer, store_failed};
use crate::app::App;
use crate::issuer::{self, Signed};
use crate::metrics::{CallLabels, CertificateLabels};
use crate::registry::{
    self, CertificateRecord, JoinAttempt, JoinError, LeaveError, RenewError, Report, ReportError, WorkloadReport,
};
use crate::store::HostRowState;

/// Certificates begin two minutes in the past at most; a joining host further off than this would
/// have trouble at once, and is told so.
const MAX_SKEW: Duration = Duration::from_secs(60);
/// Joins that may fail from one address at once.
const FAILURES: u32 = 10;
/// One more after this.
const FORGIVEN_AFTER: Duration = Duration::from_secs(30);
/// Addresses that one host may have.
const MAX_ADDRESSES: usize = 32;
/// Workloads that one host may report on.
const MAX_WORKLOADS: usize = 10_000;

pub(super) struct Enrolment {
    app: Arc<App>,
    /// Failed joins by source address; an IPv6 host has a /64 to choose from.
    failures: Limit<IpAddr>,
}

impl Enrolment {
    pub(super) fn new(app: Arc<App>) -> Self {
        Self { app, failures: Limit::new(FAILURES, FORGIVEN_AFTER) }
    }

    async fn try_join(&self, request: Request<JoinRequest>) -> Result<JoinResponse, Status> {
        let source = peer::peer(request.extensions())?.address.ip().to_canonical();
        let counted = network(source);
        if let Some(wait) = self.failures.wait(&counted, Instant::now()) {
            let text = format!("too many joins failed from {source}: try again in {} s", wait.as_secs() + 1);
            return Err(Status::resource_exhausted(text));
        }
        let outcome = self.join_from(source, request.into_inner()).await;
        if let Err(status) = &outcome {
            // A fault of ours is not held against them.
            if !matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Internal) {
                self.failures.take(counted, Instant::now());
            }
        }
        outcome
    }

    async fn try_renew(&self, request: Request<RenewHostRequest>) -> Result<RenewHostResponse, Status> {
        let host = peer::host(request.extensions())?.name;
        let request = request.into_inner();
        // Before the sequence moves on: a request that cannot be signed must not use it up.
        issuer::public_key(&request.csr).map_err(|problem| not_signed(problem.into()))?;
        let renewed = registry::renew(&self.app.store, &host, request.join_sequence, SystemTime::now()).await;
        let join_sequence = renewed.map_err(|error| renew_refused(&host, error))?;
        let signed = self.sign(&request.csr, &host).await?;
        Ok(RenewHostResponse { cert_chain: signed.chain_pem, roots: signed.roots_pem, join_sequence })
    }

    async fn try_report(&self, request: Request<ReportRequest>) -> Result<ReportResponse, Status> {
        let host = peer::host(request.extensions())?;
        let request = request.into_inner();
        if request.workloads.len() > MAX_WORKLOADS {
            return Err(Status::invalid_argument(format!("a host reports on {MAX_WORKLOADS} workloads at most")));
        }
        let workload = |health: api::wire::tombolo::WorkloadHealth| WorkloadReport {
            uid: health.uid,
            healthy: health.healthy,
            reason: health.reason,
        };
        let report = Report {
            epoch: request.epoch,
            revision: request.revision,
            workloads: request.workloads.into_iter().map(workload).collect(),
            addresses: addresses(&request.addresses)?,
            version: request.version,
            intercepting: request.intercepting,
            problem: request.problem,
            peer_ip: host.address.ip().to_canonical(),
        };
        let lease = self.app.settings.lease;
        let kept = registry::report(&self.app.store, &host.name, &report, lease, SystemTime::now()).await;
        kept.map_err(|error| report_refused(&host.name, error))?;
        Ok(ReportResponse { lease_s: self.lease_s() })
    }

    async fn try_leave(&self, request: Request<LeaveRequest>) -> Result<LeaveResponse, Status> {
        let host = peer::host(request.extensions())?.name;
        let forget = request.into_inner().forget;
        // A host that was locked must not take the lock away with itself.
        let state = self.app.published.borrow().host_state(&host);
        if let Some(HostRowState::Locked | HostRowState::Revoked) = state {
            return Err(Status::permission_denied(format!("the host {host} is locked: an operator deletes it")));
        }
        match registry::leave(&self.app.store, &host, forget, SystemTime::now()).await {
            Ok(()) => info!(host, forget, "host {host} left"),
            // It is gone, which is what was asked for.
            Err(LeaveError::UnknownHost { .. }) => {}
            Err(LeaveError::Store(source)) => return Err(store_failed(source)),
        }
        Ok(LeaveResponse {})
    }

    async fn join_from(&self, source: IpAddr, request: JoinRequest) -> Result<JoinResponse, Status> {
        let now = SystemTime::now();
        check_clock(request.now_unix_s, now)?;
        let key = issuer::public_key(&request.csr).map_err(|problem| not_signed(problem.into()))?;
        let attempt = JoinAttempt {
            addresses: addresses(&request.addresses)?,
            token: request.token,
            name: request.name,
            groups: request.groups,
            version: request.version,
            peer_ip: source,
            key_hash: Sha256::digest(rcgen::PublicKeyData::der_bytes(&key)).into(),
            now,
        };
        let grant = registry::join(&self.app.store, &attempt).await.map_err(join_refused)?;
        let signed = self.sign(&request.csr, &grant.host).await?;
        Ok(JoinResponse {
            trust_domain: self.app.trust_domain.to_string(),
            host: grant.host,
            cert_chain: signed.chain_pem,
            roots: signed.roots_pem,
            join_sequence: grant.join_sequence,
            lease_s: self.lease_s(),
            groups: grant.groups,
        })
    }

    async fn sign(&self, csr: &str, host: &str) -> Result<Signed, Status> {
        let outcome = self.app.issuer.sign_host(csr, host);
        let labels = CertificateLabels { kind: "host", outcome: if outcome.is_ok() { "signed" } else { "refused" } };
        self.app.metrics.certificates.get_or_create(&labels).inc();
        let signed = outcome.map_err(not_signed)?;
        let record = CertificateRecord {
            serial: signed.serial.clone(),
            identity: signed.identity.to_string(),
            host: host.to_owned(),
            not_after: signed.not_after,
        };
        registry::record_certificate(&self.app.store, &record, SystemTime::now()).await.map_err(store_failed)?;
        info!(host, serial = %signed.serial, "host {host} has a new certificate");
        Ok(signed)
    }

    /// Counts a call and hands its outcome on.
    fn counted<T>(&self, call: &'static str, outcome: Result<T, Status>) -> Result<Response<T>, Status> {
        let labels = CallLabels { call, outcome: if outcome.is_ok() { "granted" } else { "refused" } };
        self.app.metrics.enrolment.get_or_create(&labels).inc();
        outcome.map(Response::new)
    }

    /// At least one second: 0 would mean that no report ever counts.
    fn lease_s(&self) -> u32 {
        u32::try_from(self.app.settings.lease.as_secs()).unwrap_or(u32::MAX).max(1)
    }
}

#[tonic::async_trait]
impl EnrolmentService for Enrolment {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        self.counted("join", self.try_join(request).await)
    }

    async fn renew_host(&self, request: Request<RenewHostRequest>) -> Result<Response<RenewHostResponse>, Status> {
        self.counted("renew", self.try_renew(request).await)
    }

    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportResponse>, Status> {
        self.counted("report", self.try_report(request).await)
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveResponse>, Status> {
        self.counted("leave", self.try_leave(request).await)
    }
}

fn check_clock(theirs: i64, now: SystemTime) -> Result<(), Status> {
    let ours = i64::try_from(now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()).unwrap_or(i64::MAX);
    let skew = ours.abs_diff(theirs);
    if skew <= MAX_SKEW.as_secs() {
        return Ok(());
    }
    Err(Status::failed_precondition(format!(
        "the clock of the joining host says {}, that of the control plane {}: {skew} s apart, {} s are allowed",
        show(theirs),
        show(ours),
        MAX_SKEW.as_secs()
    )))
}

fn show(unix_s: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(unix_s).ok().and_then(|time| time.format(&Rfc3339).ok());
    time.unwrap_or_else(|| format!("{unix_s} s since 1970"))
}

fn addresses(texts: &[String]) -> Result<Vec<IpAddr>, Status> {
    if texts.len() > MAX_ADDRESSES {
        return Err(Status::invalid_argument(format!("a host has {MAX_ADDRESSES} addresses at most")));
    }
    let address = |text: &String| {
        let parsed = text.parse::<IpAddr>().map(|address| address.to_canonical());
        let shown = || text.chars().take(80).collect::<String>();
        parsed.map_err(|_| Status::invalid_argument(format!("{:?} is not an IP address", shown())))
    };
    texts.iter().map(address).collect()
}

/// What failures are counted by.
fn network(source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V4(_) => source,
        IpAddr::V6(v6) => IpAddr::from((u128::from(v6) >> 64 << 64).to_be_bytes()),
    }
}

fn join_refused(error: JoinError) -> Status {
    let text = error.to_string();
    match error {
        JoinError::Damaged { .. } | JoinError::NameInvalid { .. } | JoinError::AddressUnusable { .. } => {
            Status::invalid_argument(text)
        }
        JoinError::UnknownToken { .. } | JoinError::Expired { .. } | JoinError::Spent { .. } => {
            Status::unauthenticated(text)
        }
        JoinError::NameNotAllowed { .. } | JoinError::AddressNotAllowed { .. } | JoinError::GroupNotAllowed { .. } => {
            Status::permission_denied(text)
        }
        JoinError::GroupUnknown { .. } => Status::failed_precondition(text),
        JoinError::NameTaken { .. } => Status::already_exists(text),
        JoinError::Store(source) => store_failed(source),
    }
}

fn renew_refused(host: &str, error: RenewError) -> Status {
    warn!(host, error = %telemetry::Chain(&error), "the certificate of host {host} is not renewed");
    let text = error.to_string();
    match error {
        RenewError::UnknownHost { .. } => Status::not_found(text),
        RenewError::Locked { .. } | RenewError::Revoked { .. } | RenewError::Cloned { .. } => {
            Status::permission_denied(text)
        }
        RenewError::Store(source) => store_failed(source),
    }
}

fn report_refused(host: &str, error: ReportError) -> Status {
    warn!(host, error = %telemetry::Chain(&error), "the report of host {host} does not count");
    let text = error.to_string();
    match error {
        ReportError::UnknownHost { .. } => Status::not_found(text),
        ReportError::Barred { .. } => Status::permission_denied(text),
        ReportError::StaleEpoch { .. } => Status::aborted(text),
        ReportError::Store(source) => store_failed(source),
    }
}
