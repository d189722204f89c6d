//! The certificate authority: signs hosts, workloads and the control plane's own server certificate.
//!
//! Called by `grpc/enrolment.rs` and `grpc/issuance.rs` after the registry has said who may have which
//! identity; made once by `run.rs`. A request gives its public key and nothing else: names, usages
//! and times are ours. Keys live in files (`issuer/files.rs`) or are given as systemd credentials
//! (`issuer/credentials.rs`); they are never in the database.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use api::{SpiffeId, TrustDomain};
use identity::KeyPair;
use identity::certificate::{Facts, fingerprint};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType, SubjectPublicKeyInfo};
use rustls::pki_types::CertificateDer;
use rustls::server::ResolvesServerCert;

mod credentials;
mod files;
mod request;
mod server;

pub use credentials::{CaCredentials, CredentialProblem};
pub use files::{CaError, IoProblem};
pub use request::{CsrProblem, public_key};

use files::{CaFiles, Issuing, Loaded};

/// How long a workload's certificate lives. An hour bounds what a stolen key is worth.
pub const WORKLOAD_LIFETIME: Duration = Duration::from_secs(3600);
/// How long a host's certificate lives: a day without a control plane is survived.
pub const HOST_LIFETIME: Duration = Duration::from_secs(86_400);
/// The shortest life that a request may ask for: below it renewal is all a peer does.
pub const LEAST_LIFETIME: Duration = Duration::from_secs(60);
/// How far a certificate begins in the past, for peers whose clock is behind. At most a quarter of
/// its life: more than its life would have ztunnel renew without end.
const BACKDATE: Duration = Duration::from_secs(120);
/// How often the log says that the issuing certificate ends and cannot be renewed here.
const WARN_EVERY: Duration = Duration::from_secs(86_400);

/// The authority of one trust domain. Clones share it.
#[derive(Clone)]
pub struct Issuer {
    inner: Arc<Inner>,
}

struct Inner {
    trust_domain: TrustDomain,
    /// Where the issuing certificate is renewed; `None` where it was given.
    files: Option<CaFiles>,
    root: CertificateDer<'static>,
    root_not_after: SystemTime,
    roots_pem: String,
    issuing: RwLock<Current>,
}

/// What signs now, and when its end was last complained of.
struct Current {
    issuing: Arc<Issuing>,
    warned: Option<SystemTime>,
}

/// A certificate, and what the caller hands back and records.
#[derive(Debug, Clone)]
pub struct Signed {
    pub identity: SpiffeId,
    /// PEM: leaf, then the issuing intermediate.
    pub chain_pem: Vec<String>,
    /// PEM: every root of the trust domain.
    pub roots_pem: String,
    /// Lower-case hexadecimal.
    pub serial: String,
    pub not_after: SystemTime,
}

/// A request was not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    #[error("the certificate request is refused: {0}")]
    Request(#[from] CsrProblem),
    #[error("{name:?} cannot be part of an identity")]
    Name { name: String, source: api::spiffe::SpiffeError },
    #[error("{identity} is not of this trust domain, {own}")]
    ForeignTrustDomain { identity: SpiffeId, own: TrustDomain },
    #[error(
        "the issuing certificate ended at {ended}: renew it where the root's key is (tombolo-controlplane ca renew), \
         then restart the control plane with it"
    )]
    IssuingExpired { ended: String },
    #[error("{name:?} is neither a DNS name nor an IP address")]
    ServerName { name: String },
    #[error("no random serial number could be made")]
    Random,
    #[error("the certificate could not be signed")]
    Sign(#[source] rcgen::Error),
    #[error("what was signed cannot be used")]
    Unusable(#[source] identity::SvidError),
}

impl Issuer {
    /// Reads the authority from `data_dir`/ca, making what is missing. Writes `data_dir`/ca.pem.
    ///
    /// Two replicas share one authority when the operator copies `data_dir`/ca (`root.key` may stay
    /// away from all but one of them: it is only needed to renew the issuing certificate, once a year).
    pub fn load_or_create(data_dir: &Path, trust_domain: &TrustDomain) -> Result<Self, CaError> {
        Self::load_or_create_at(data_dir, trust_domain, SystemTime::now())
    }

    fn load_or_create_at(data_dir: &Path, trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, CaError> {
        let files = CaFiles::new(data_dir);
        let loaded = files.load_or_create(trust_domain, now)?;
        Ok(Self::of(loaded, Some(files), trust_domain))
    }

    /// The authority that the service manager gave. Writes `data_dir`/ca.pem, and nothing of a key.
    pub fn from_credentials(
        credentials: &CaCredentials,
        data_dir: &Path,
        trust_domain: &TrustDomain,
    ) -> Result<Self, CaError> {
        Self::from_credentials_at(credentials, data_dir, trust_domain, SystemTime::now())
    }

    fn from_credentials_at(
        credentials: &CaCredentials,
        data_dir: &Path,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        let loaded = credentials.load(trust_domain, now)?;
        let files = CaFiles::new(data_dir);
        files.write_bundle(&loaded)?;
        for path in files.left_keys() {
            tracing::warn!(
                "{} is not used, as the authority is given as credentials: take it away from here",
                path.display()
            );
        }
        Ok(Self::of(loaded, None, trust_domain))
    }

    fn of(loaded: Loaded, files: Option<CaFiles>, trust_domain: &TrustDomain) -> Self {
        let inner = Inner {
            trust_domain: trust_domain.clone(),
            files,
            root: loaded.root,
            root_not_after: loaded.root_not_after,
            roots_pem: loaded.roots_pem,
            issuing: RwLock::new(Current { issuing: Arc::new(loaded.issuing), warned: None }),
        };
        Self { inner: Arc::new(inner) }
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.inner.trust_domain
    }

    /// SHA-256 of the root certificate's DER: what tokens and `--ca-pin` name.
    pub fn ca_pin(&self) -> [u8; 32] {
        fingerprint(&self.inner.root)
    }

    /// End of the root certificate.
    pub fn ca_not_after(&self) -> SystemTime {
        self.inner.root_not_after
    }

    pub fn roots_pem(&self) -> &str {
        &self.inner.roots_pem
    }

    /// DER of every root of the trust domain.
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        vec![self.inner.root.clone()]
    }

    /// A certificate for the agent of host `name`, 24 hours.
    pub fn sign_host(&self, csr: &str, name: &str) -> Result<Signed, SignError> {
        let identity = SpiffeId::host(&self.inner.trust_domain, name)
            .map_err(|source| SignError::Name { name: name.to_owned(), source })?;
        self.sign(csr, &identity, HOST_LIFETIME, SystemTime::now())
    }

    /// A certificate for a workload, one hour or, if asked for, less.
    pub fn sign_workload(&self, csr: &str, identity: &SpiffeId, wanted: Option<Duration>) -> Result<Signed, SignError> {
        let lifetime = wanted.unwrap_or(WORKLOAD_LIFETIME).clamp(LEAST_LIFETIME, WORKLOAD_LIFETIME);
        self.sign(csr, identity, lifetime, SystemTime::now())
    }

    /// The certificate of the control plane's own listeners, for these DNS names and IP addresses
    /// (what curl checks) and for its SPIFFE identity (what agents check). It renews itself.
    pub fn server_tls(&self, names: &[String]) -> Result<Arc<dyn ResolvesServerCert>, SignError> {
        Ok(Arc::new(server::ServerCertificate::new(self.clone(), names)?))
    }

    fn sign(&self, csr: &str, identity: &SpiffeId, lifetime: Duration, now: SystemTime) -> Result<Signed, SignError> {
        let key = public_key(csr)?;
        self.sign_key(&key, identity, &[], lifetime, now)
    }

    /// `other_names` come after the identity among the certificate's names.
    fn sign_key(
        &self,
        key: &SubjectPublicKeyInfo,
        identity: &SpiffeId,
        other_names: &[SanType],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Signed, SignError> {
        let own = &self.inner.trust_domain;
        if identity.trust_domain() != own {
            return Err(SignError::ForeignTrustDomain { identity: identity.clone(), own: own.clone() });
        }
        let issuing = self.issuing(now)?;
        let not_before = (now - BACKDATE.min(lifetime / 4)).max(issuing.not_before);
        let not_after = (now + lifetime).min(issuing.not_after);
        let params = leaf(identity, other_names, not_before, not_after)?;
        let certificate = params.signed_by(key, &issuing.issuer).map_err(SignError::Sign)?;
        let facts =
            Facts::read(certificate.der()).map_err(identity::SvidError::Unreadable).map_err(SignError::Unusable)?;
        Ok(Signed {
            identity: identity.clone(),
            chain_pem: vec![certificate.pem(), issuing.pem.clone()],
            roots_pem: self.inner.roots_pem.clone(),
            serial: facts.serial,
            not_after,
        })
    }

    /// The issuing certificate, renewed when a third of its life is left and the root's key is here.
    fn issuing(&self, now: SystemTime) -> Result<Arc<Issuing>, SignError> {
        let current = self.inner.issuing.read().unwrap_or_else(PoisonError::into_inner).issuing.clone();
        if !current.is_due(now) {
            return Ok(current);
        }
        let mut slot = self.inner.issuing.write().unwrap_or_else(PoisonError::into_inner);
        if slot.issuing.is_due(now) {
            match self.inner.files.as_ref().map(|files| files.renew_issuing(&self.inner.trust_domain, now)) {
                Some(Ok(Some(renewed))) => slot.issuing = Arc::new(renewed),
                Some(Ok(None)) | None => slot.warn(now),
                Some(Err(error)) => tracing::error!(
                    error = %telemetry::Chain(&error),
                    "the issuing certificate could not be renewed"
                ),
            }
        }
        if slot.issuing.not_after <= now {
            return Err(SignError::IssuingExpired { ended: files::show(slot.issuing.not_after) });
        }
        Ok(slot.issuing.clone())
    }
}

/// A new issuing certificate in `folder`, which has `root.key` and `root.pem`: for an authority whose root is
/// kept away from its control plane. A key that is there stays, one that is missing is made. Answers its end.
pub fn renew_issuing(folder: &Path) -> Result<String, CaError> {
    CaFiles::of_folder(folder).renew(SystemTime::now()).map(files::show)
}

impl Current {
    /// Once a day: signing goes on, and somebody has to act within months.
    fn warn(&mut self, now: SystemTime) {
        if self.warned.is_some_and(|last| now < last + WARN_EVERY) {
            return;
        }
        self.warned = Some(now);
        tracing::warn!(
            "the issuing certificate ends at {} and the root's key is not here to renew it: where that is, run \
             `tombolo-controlplane ca renew`",
            files::show(self.issuing.not_after)
        );
    }
}

fn leaf(
    identity: &SpiffeId,
    other_names: &[SanType],
    not_before: SystemTime,
    not_after: SystemTime,
) -> Result<CertificateParams, SignError> {
    let mut params = CertificateParams::default();
    // Empty, which makes the names critical (RFC 5280 §4.2.1.6), as ztunnel's own CSRs have it.
    params.distinguished_name = rcgen::DistinguishedName::new();
    let uri = identity.to_string().as_str().try_into().map_err(SignError::Sign)?;
    params.subject_alt_names = std::iter::once(SanType::URI(uri)).chain(other_names.iter().cloned()).collect();
    params.serial_number = Some(random_serial()?);
    params.not_before = not_before.into();
    params.not_after = not_after.into();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// 128 random bits, positive (RFC 5280 §4.1.2.2 allows 20 bytes).
fn random_serial() -> Result<rcgen::SerialNumber, SignError> {
    use rand::TryRng;
    let mut bytes = [0u8; 16];
    rand::rngs::SysRng.try_fill_bytes(&mut bytes).map_err(|_| SignError::Random)?;
    Ok(rcgen::SerialNumber::from_slice(&bytes))
}

fn spki(key: &KeyPair) -> Result<SubjectPublicKeyInfo, SignError> {
    use rcgen::PublicKeyData;
    SubjectPublicKeyInfo::from_der(&key.subject_public_key_info()).map_err(SignError::Sign)
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Issuer({})", self.inner.trust_domain)
    }
}

#[cfg(test)]
mod tests;
