//! Private keys of hosts and workloads, and the certificate requests they sign.
//!
//! P-256 only: the one curve every peer (ztunnel, istiod, Linkerd) takes. Used by the agent for its
//! host key and each workload's key, by the control plane for its CA. Writing the file, with mode
//! 0600, is the caller's work.

use std::fmt;
use std::sync::Arc;

use api::SpiffeId;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use zeroize::Zeroizing;

use crate::pem;

/// A P-256 private key. Clones share it; it is wiped from memory when the last one goes.
#[derive(Clone)]
pub struct KeyPair {
    key: Arc<EcdsaKeyPair>,
    pkcs8: Arc<Zeroizing<Vec<u8>>>,
}

/// A private key could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("the kernel gave no random bytes for a new key")]
    Random,
    #[error("this is not a private key in PEM (PKCS#8, BEGIN PRIVATE KEY)")]
    NotPem,
    #[error("this private key is not an EC key on P-256, the only kind used here")]
    NotP256,
}

/// A certificate request could not be signed.
#[derive(Debug, thiserror::Error)]
#[error("the certificate request could not be signed")]
pub struct CsrError(#[from] rcgen::Error);

impl KeyPair {
    pub fn generate() -> Result<Self, KeyError> {
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new())
            .map_err(|_| KeyError::Random)?;
        Self::from_pkcs8(document.as_ref())
    }

    /// Reads the first PKCS#8 key of a PEM text.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(text.as_bytes()).map_err(|_| KeyError::NotPem)?;
        Self::from_pkcs8(der.secret_pkcs8_der())
    }

    fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der).map_err(|_| KeyError::NotP256)?;
        Ok(Self { key: Arc::new(key), pkcs8: Arc::new(Zeroizing::new(der.to_vec())) })
    }

    /// PKCS#8 as PEM. Whoever writes it to disk writes it 0600.
    pub fn to_pem(&self) -> Zeroizing<String> {
        pem::encode("PRIVATE KEY", &self.pkcs8)
    }

    /// A PEM certificate request with an empty subject and, if asked for, the identity as critical
    /// URI SAN (the shape that ztunnel sends: its `src/tls/csr.rs`).
    pub fn csr(&self, identity: Option<&SpiffeId>) -> Result<String, CsrError> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(identity) = identity {
            params.subject_alt_names = vec![rcgen::SanType::URI(identity.to_string().as_str().try_into()?)];
        }
        Ok(params.serialize_request(self)?.pem()?)
    }

    /// The uncompressed point, as a certificate's SubjectPublicKeyInfo holds it.
    pub fn public_key(&self) -> &[u8] {
        self.key.public_key().as_ref()
    }

    pub(crate) fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }
}

impl rcgen::PublicKeyData for KeyPair {
    fn der_bytes(&self) -> &[u8] {
        self.public_key()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for KeyPair {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature = self.key.sign(&SystemRandom::new(), message).map_err(|_| rcgen::Error::RingUnspecified)?;
        Ok(signature.as_ref().to_vec())
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyPair(P-256)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_pem_and_never_shows_itself() {
        let key = KeyPair::generate().expect("random bytes are there");
        let again = KeyPair::from_pem(&key.to_pem()).expect("our own PEM is readable");
        assert_eq!(key.public_key(), again.public_key());
        assert_eq!(format!("{key:?}"), "KeyPair(P-256)");
    }

    #[test]
    fn other_keys_and_rubbish_are_refused_with_their_own_words() {
        let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("generates").serialize_pem();
        assert!(matches!(KeyPair::from_pem(&p384), Err(KeyError::NotP256)));
        for text in ["", "hello", "-----BEGIN PRIVATE KEY-----\n!!!\n-----END PRIVATE KEY-----\n"] {
            assert!(matches!(KeyPair::from_pem(text), Err(KeyError::NotPem)), "{text:?}");
        }
    }

    #[test]
    fn a_request_carries_the_identity_and_a_valid_signature() {
        let key = KeyPair::generate().expect("random bytes are there");
        let id: SpiffeId = "spiffe://mesh.example/ns/shop/sa/orders".parse().expect("valid");
        let csr = key.csr(Some(&id)).expect("signs");
        let read = rcgen::CertificateSigningRequestParams::from_pem(&csr).expect("readable, signature right");
        assert_eq!(
            read.params.subject_alt_names,
            vec![rcgen::SanType::URI(id.to_string().as_str().try_into().expect("ASCII"))]
        );
        assert_eq!(read.params.distinguished_name, rcgen::DistinguishedName::new());
        let bare = key.csr(None).expect("signs");
        let bare = rcgen::CertificateSigningRequestParams::from_pem(&bare).expect("readable");
        assert!(bare.params.subject_alt_names.is_empty());
    }
}
