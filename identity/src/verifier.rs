//! Whom to believe in a TLS handshake: SPIFFE identities, not host names.
//!
//! The functions at the top decide; the structs below lend them to rustls. Used through
//! [`crate::tls`]. Rules: ztunnel's `src/tls/workload.rs`. No revocation lists: certificates live an hour, and
//! a locked host loses its stream and gets no new ones.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use api::token::JoinToken;
use api::{SpiffeId, TrustDomain};
use data_encoding::HEXLOWER;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme};

use crate::bundle::Bundles;
use crate::certificate::{Facts, ReadError, fingerprint, show};
use crate::credentials::Credentials;
use crate::tls::provider;
use crate::{CONTROL_PLANE_ACCOUNT, SYSTEM_NAMESPACE};

mod explain;

pub use explain::{explain, refusal};

/// Why a peer's certificate was not believed. Its `Debug` is its sentence too, because rustls
/// prints foreign errors that way.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    #[error("the peer's certificate is not usable: {0}")]
    Unreadable(ReadError),
    #[error(
        "the peer's certificate expired at {}, and it is {} on this host's clock: \
         the peer must renew it, unless this clock is wrong", show(*.not_after), show(*.now)
    )]
    Expired { not_after: SystemTime, now: SystemTime },
    #[error(
        "the peer's certificate is valid from {}, and it is only {} on this host's clock: \
         set the clock of the host that is wrong", show(*.not_before), show(*.now)
    )]
    NotYetValid { not_before: SystemTime, now: SystemTime },
    #[error("the peer's certificate is not signed by a root that is trusted here")]
    UnknownIssuer,
    #[error("no roots are known for {trust_domain}, so none of its certificates can be checked")]
    NoRoots { trust_domain: TrustDomain },
    #[error("expected {}, but the peer proved to be {proved}", list(.expected))]
    WrongIdentity { expected: Vec<SpiffeId>, proved: SpiffeId },
    #[error("the peer proved to be {proved}, which is not of this trust domain, {own}")]
    ForeignTrustDomain { own: TrustDomain, proved: SpiffeId },
    #[error("this is not the pinned control plane: {pin} was expected, it presented {presented}")]
    WrongPin { pin: String, presented: String },
    #[error("the server proved to be {proved}, which is not a control plane")]
    NotAControlPlane { proved: SpiffeId },
    #[error("the peer's certificate chain is not valid: {0}")]
    Chain(webpki::Error),
}

/// How a joining host knows its control plane: by the SHA-256 of the root certificate. What is set
/// must all fit.
#[derive(Clone, Default)]
pub struct Pins {
    /// `--ca-pin sha256:HEX`.
    pub root_sha256: Option<[u8; 32]>,
    /// The join token holds the first half of the hash.
    pub token: Option<JoinToken>,
}

/// Checks a server's chain and that it proves one of the expected identities.
pub fn verify_server(
    chain: &[CertificateDer<'_>],
    bundles: &Bundles,
    trust_domain: &TrustDomain,
    expected: &[SpiffeId],
    now: UnixTime,
) -> Result<SpiffeId, VerifyError> {
    let proved = verify_peer(chain, bundles, trust_domain, webpki::KeyUsage::server_auth(), now)?;
    if !expected.contains(&proved) {
        return Err(VerifyError::WrongIdentity { expected: expected.to_vec(), proved });
    }
    Ok(proved)
}

/// Checks a client's chain and that it proves an identity of our own trust domain.
pub fn verify_client(
    chain: &[CertificateDer<'_>],
    bundles: &Bundles,
    trust_domain: &TrustDomain,
    now: UnixTime,
) -> Result<SpiffeId, VerifyError> {
    verify_peer(chain, bundles, trust_domain, webpki::KeyUsage::client_auth(), now)
}

/// Checks a control plane that the host knows by pin only: the pinned root must be in what it
/// presents, must have signed the rest, and the leaf must be a control plane's, not any workload's.
pub fn verify_pinned(chain: &[CertificateDer<'_>], pins: &Pins, now: UnixTime) -> Result<SpiffeId, VerifyError> {
    let pinned = chain.iter().find(|der| pins.fit(&fingerprint(der))).ok_or_else(|| wrong_pin(chain, pins))?;
    let anchor = webpki::anchor_from_trusted_cert(pinned).map_err(VerifyError::Chain)?;
    verify_chain(chain, &[anchor], webpki::KeyUsage::server_auth(), now)?;
    let proved = identity(chain)?;
    if proved.namespace() != Some(SYSTEM_NAMESPACE) || proved.service_account() != Some(CONTROL_PLANE_ACCOUNT) {
        return Err(VerifyError::NotAControlPlane { proved });
    }
    Ok(proved)
}

fn verify_peer(
    chain: &[CertificateDer<'_>],
    bundles: &Bundles,
    trust_domain: &TrustDomain,
    usage: webpki::KeyUsage,
    now: UnixTime,
) -> Result<SpiffeId, VerifyError> {
    let anchors = bundles.anchors(trust_domain);
    if anchors.is_empty() {
        return Err(VerifyError::NoRoots { trust_domain: trust_domain.clone() });
    }
    verify_chain(chain, anchors, usage, now)?;
    let proved = identity(chain)?;
    if proved.trust_domain() != trust_domain {
        return Err(VerifyError::ForeignTrustDomain { own: trust_domain.clone(), proved });
    }
    Ok(proved)
}

pub(crate) fn verify_chain(
    chain: &[CertificateDer<'_>],
    anchors: &[TrustAnchor<'_>],
    usage: webpki::KeyUsage,
    now: UnixTime,
) -> Result<(), VerifyError> {
    let (leaf, intermediates) = chain.split_first().ok_or(VerifyError::UnknownIssuer)?;
    let leaf = webpki::EndEntityCert::try_from(leaf).map_err(VerifyError::Chain)?;
    let algorithms = provider().signature_verification_algorithms.all;
    match leaf.verify_for_usage(algorithms, anchors, intermediates, now, usage, None, None) {
        Ok(_) => Ok(()),
        Err(webpki::Error::CertExpired { time, not_after }) => {
            Err(VerifyError::Expired { not_after: system_time(not_after), now: system_time(time) })
        }
        Err(webpki::Error::CertNotValidYet { time, not_before }) => {
            Err(VerifyError::NotYetValid { not_before: system_time(not_before), now: system_time(time) })
        }
        // The second: a root of the same name but another key, as of a mesh that was set up anew.
        Err(webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey) => {
            Err(VerifyError::UnknownIssuer)
        }
        Err(other) => Err(VerifyError::Chain(other)),
    }
}

fn identity(chain: &[CertificateDer<'_>]) -> Result<SpiffeId, VerifyError> {
    crate::certificate::peer_identity(chain).map_err(VerifyError::Unreadable)
}

fn wrong_pin(chain: &[CertificateDer<'_>], pins: &Pins) -> VerifyError {
    let root = chain.iter().find(|der| Facts::read(der).is_ok_and(|facts| facts.self_issued));
    let presented = root.map_or_else(
        || "no root certificate".to_owned(),
        |root| format!("sha256:{}", HEXLOWER.encode(&fingerprint(root))),
    );
    let pin = match &pins.root_sha256 {
        Some(pin) => format!("sha256:{}", HEXLOWER.encode(pin)),
        None => "the root that the join token was made for".to_owned(),
    };
    VerifyError::WrongPin { pin, presented }
}

impl Pins {
    /// Reads `sha256:HEX` as `--ca-pin` and `tombolo-controlplane` write it.
    pub fn parse(text: &str) -> Option<[u8; 32]> {
        let digits = text.trim().strip_prefix("sha256:")?.to_ascii_lowercase();
        HEXLOWER.decode(digits.as_bytes()).ok()?.try_into().ok()
    }

    pub fn is_empty(&self) -> bool {
        self.root_sha256.is_none() && self.token.is_none()
    }

    fn fit(&self, root_sha256: &[u8; 32]) -> bool {
        !self.is_empty()
            && self.root_sha256.as_ref().is_none_or(|pin| pin == root_sha256)
            && self.token.as_ref().is_none_or(|token| token.pins(root_sha256))
    }
}

impl fmt::Debug for Pins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pins({:?}, {:?})", self.root_sha256.map(|pin| HEXLOWER.encode(&pin)), self.token)
    }
}

/// Which question a [`PeerVerifier`] asks of a server's certificate.
#[derive(Debug)]
pub(crate) enum Server {
    /// One of these identities, by the bundles as they are at the handshake.
    Expected {
        credentials: Credentials,
        identities: Vec<SpiffeId>,
    },
    /// The same, by bundles that do not change.
    ControlPlane {
        bundles: Arc<Bundles>,
        trust_domain: TrustDomain,
        identity: SpiffeId,
    },
    Pinned(Pins),
}

/// Which clients may connect.
#[derive(Debug)]
pub(crate) struct Clients {
    pub(crate) credentials: Credentials,
    /// Whether one without a certificate is refused.
    pub(crate) mandatory: bool,
}

impl ServerCertVerifier for Server {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let chain = whole(leaf, intermediates);
        match self {
            Self::Expected { credentials, identities } => {
                let bundles = credentials.bundles();
                verify_server(&chain, &bundles, credentials.trust_domain(), identities, now)?
            }
            Self::ControlPlane { bundles, trust_domain, identity } => {
                verify_server(&chain, bundles, trust_domain, std::slice::from_ref(identity), now)?
            }
            Self::Pinned(pins) => verify_pinned(&chain, pins, now)?,
        };
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, leaf, signed, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, leaf, signed, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Clients {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    /// Empty: a client then sends the one certificate it has.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let chain = whole(leaf, intermediates);
        verify_client(&chain, &self.credentials.bundles(), self.credentials.trust_domain(), now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, leaf, signed, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, leaf, signed, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// The kinds of which TLS has an alert of its own go as that, so that the peer's log says it too.
impl From<VerifyError> for rustls::Error {
    fn from(error: VerifyError) -> Self {
        let kind = match error {
            VerifyError::Expired { not_after, now } => {
                CertificateError::ExpiredContext { time: unix_time(now), not_after: unix_time(not_after) }
            }
            VerifyError::NotYetValid { not_before, now } => {
                CertificateError::NotValidYetContext { time: unix_time(now), not_before: unix_time(not_before) }
            }
            VerifyError::UnknownIssuer => CertificateError::UnknownIssuer,
            other => CertificateError::Other(OtherError(Arc::new(other))),
        };
        Self::InvalidCertificate(kind)
    }
}

impl fmt::Debug for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn whole<'a>(leaf: &CertificateDer<'a>, intermediates: &[CertificateDer<'a>]) -> Vec<CertificateDer<'a>> {
    std::iter::once(leaf).chain(intermediates).cloned().collect()
}

fn list(identities: &[SpiffeId]) -> String {
    let texts: Vec<String> = identities.iter().map(ToString::to_string).collect();
    if texts.is_empty() { "nobody".to_owned() } else { texts.join(" or ") }
}

fn system_time(at: UnixTime) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(at.as_secs())
}

fn unix_time(at: SystemTime) -> UnixTime {
    UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}
