//! Reading a foreign certificate request. Pure.
//!
//! Only its public key is taken, and only after its own signature has proved that the sender holds
//! the private one. Every name and extension in it is ignored.

use rcgen::SubjectPublicKeyInfo;
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

/// A request of a P-256 key is under 1 KiB; one with many names is still far below this.
const MAX_BYTES: usize = 16 * 1024;

/// Why a certificate request is not one we sign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsrProblem {
    #[error("it has {bytes} bytes, more than the {MAX_BYTES} that are read")]
    TooLong { bytes: usize },
    #[error("it is not PEM with a CERTIFICATE REQUEST block")]
    NotPem,
    #[error("it is not a PKCS#10 request")]
    Malformed,
    #[error("it is not signed by the key it names")]
    Signature,
    #[error("its key is not an EC key on P-256")]
    NotP256,
}

/// The key that the sender has proved to hold.
pub fn public_key(csr: &str) -> Result<SubjectPublicKeyInfo, CsrProblem> {
    if csr.len() > MAX_BYTES {
        return Err(CsrProblem::TooLong { bytes: csr.len() });
    }
    let der = CertificateSigningRequestDer::from_pem_slice(csr.as_bytes()).map_err(|_| CsrProblem::NotPem)?;
    let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| CsrProblem::Malformed)?;
    if !rest.is_empty() {
        return Err(CsrProblem::Malformed);
    }
    let key = SubjectPublicKeyInfo::from_der(request.certification_request_info.subject_pki.raw)
        .map_err(|_| CsrProblem::NotP256)?;
    if rcgen::PublicKeyData::algorithm(&key) != &rcgen::PKCS_ECDSA_P256_SHA256 {
        return Err(CsrProblem::NotP256);
    }
    request.verify_signature().map_err(|_| CsrProblem::Signature)?;
    Ok(key)
}
