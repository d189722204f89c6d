//! One certificate with its key, checked before anybody uses it. Pure.
//!
//! Made by the agent from what the control plane returned or from disk; published through
//! [`crate::Credentials`]. Whether its chain ends at a trusted root is [`Svid::verify`].

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use api::SpiffeId;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

use crate::bundle::Bundles;
use crate::certificate::{Facts, ReadError, show};
use crate::key::KeyPair;
use crate::pem;
use crate::verifier::{self, VerifyError};

/// An X.509-SVID: a chain of which the first certificate proves the identity, and its key.
pub struct Svid {
    identity: SpiffeId,
    facts: Facts,
    key: KeyPair,
    certified: Arc<CertifiedKey>,
}

/// Why a certificate chain and a key are not an SVID.
#[derive(Debug, thiserror::Error)]
pub enum SvidError {
    #[error("the certificate chain is not PEM: certificate {position} cannot be decoded")]
    NotPem { position: usize },
    #[error("the certificate chain is empty")]
    Empty,
    #[error("the certificate cannot serve as an identity")]
    Unreadable(#[source] ReadError),
    #[error("the certificate of {identity} belongs to another key")]
    OtherKey { identity: SpiffeId },
    #[error("the certificate of {identity} is a CA certificate; a workload's must not be one")]
    IsCa { identity: SpiffeId },
    #[error("the certificate of {identity} lacks {missing}")]
    Usage { identity: SpiffeId, missing: &'static str },
    #[error("the certificate of {identity} ends ({not_after}) before it begins ({not_before})")]
    TimeOrder { identity: SpiffeId, not_before: String, not_after: String },
    #[error("the private key cannot be used for TLS")]
    Key(#[source] rustls::Error),
}

impl Svid {
    /// `chain_pem`: the leaf, then its intermediates.
    pub fn from_pem(chain_pem: &str, key: &KeyPair) -> Result<Self, SvidError> {
        let mut chain = Vec::new();
        for (index, der) in CertificateDer::pem_slice_iter(chain_pem.as_bytes()).enumerate() {
            chain.push(der.map_err(|_| SvidError::NotPem { position: index + 1 })?);
        }
        let facts = Facts::read(chain.first().ok_or(SvidError::Empty)?).map_err(SvidError::Unreadable)?;
        let identity = facts.identity().map_err(SvidError::Unreadable)?;
        check(&facts, &identity, key)?;
        let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.pkcs8()));
        let signer = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&private).map_err(SvidError::Key)?;
        let certified = Arc::new(CertifiedKey::new(chain, signer));
        Ok(Self { identity, facts, key: key.clone(), certified })
    }

    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// The leaf, then its intermediates.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    pub fn chain_pem(&self) -> String {
        pem::certificates(self.chain().iter().map(AsRef::as_ref))
    }

    pub fn key(&self) -> &KeyPair {
        &self.key
    }

    /// PKCS#8. Whoever writes it to disk writes it 0600.
    pub fn key_pem(&self) -> Zeroizing<String> {
        self.key.to_pem()
    }

    pub fn not_before(&self) -> SystemTime {
        self.facts.not_before
    }

    pub fn not_after(&self) -> SystemTime {
        self.facts.not_after
    }

    /// Lower-case hexadecimal, as the control plane's audit log writes it.
    pub fn serial(&self) -> &str {
        &self.facts.serial
    }

    /// Whether peers with a right clock accept its dates.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        self.facts.not_before <= now && now <= self.facts.not_after
    }

    /// Whether the roots of its own trust domain vouch for it, for both directions of TLS.
    pub fn verify(&self, bundles: &Bundles, now: SystemTime) -> Result<(), VerifyError> {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let anchors = bundles.anchors(self.identity.trust_domain());
        if anchors.is_empty() {
            return Err(VerifyError::NoRoots { trust_domain: self.identity.trust_domain().clone() });
        }
        for usage in [webpki::KeyUsage::server_auth(), webpki::KeyUsage::client_auth()] {
            verifier::verify_chain(self.chain(), anchors, usage, UnixTime::since_unix_epoch(since))?;
        }
        Ok(())
    }

    /// Chain and key as rustls takes them.
    pub fn certified(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }
}

fn check(facts: &Facts, identity: &SpiffeId, key: &KeyPair) -> Result<(), SvidError> {
    let identity = || identity.clone();
    if facts.public_key != key.public_key() {
        return Err(SvidError::OtherKey { identity: identity() });
    }
    if facts.is_ca || facts.cert_sign {
        return Err(SvidError::IsCa { identity: identity() });
    }
    let usages = [
        (facts.digital_signature, "key usage digitalSignature"),
        (facts.server_auth, "extended key usage serverAuth"),
        (facts.client_auth, "extended key usage clientAuth"),
    ];
    if let Some((_, missing)) = usages.into_iter().find(|(present, _)| !present) {
        return Err(SvidError::Usage { identity: identity(), missing });
    }
    if facts.not_before >= facts.not_after {
        let (not_before, not_after) = (show(facts.not_before), show(facts.not_after));
        return Err(SvidError::TimeOrder { identity: identity(), not_before, not_after });
    }
    Ok(())
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Svid({}, serial {}, until {})", self.identity, self.facts.serial, show(self.facts.not_after))
    }
}

#[cfg(test)]
mod tests;
