//! What a leaf certificate says, read strictly. Pure.
//!
//! Shared by [`crate::svid`] (our own certificates) and [`crate::verifier`] (peers'). Knows nothing
//! of chains: whether somebody trustworthy signed it is the verifier's question.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::SpiffeId;
use api::spiffe::SpiffeError;
use data_encoding::HEXLOWER;
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

/// The facts of one certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Every URI SAN, as it stands there.
    pub uris: Vec<String>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    /// Lower-case hexadecimal, without leading zeros' sign byte.
    pub serial: String,
    pub is_ca: bool,
    pub digital_signature: bool,
    pub cert_sign: bool,
    pub server_auth: bool,
    pub client_auth: bool,
    /// Contents of the SubjectPublicKeyInfo's bit string.
    pub public_key: Vec<u8>,
    /// Subject and issuer are the same.
    pub self_issued: bool,
}

/// A certificate that cannot be used as proof of an identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("the certificate is not valid DER of X.509 v3 ({problem})")]
    Malformed { problem: String },
    #[error("the certificate names {found} URIs; a SPIFFE certificate names exactly one")]
    UriCount { found: usize },
    #[error("the certificate's URI is not an identity of a mesh")]
    NotSpiffe(#[source] SpiffeError),
}

impl Facts {
    pub fn read(der: &CertificateDer<'_>) -> Result<Self, ReadError> {
        let malformed = |problem: &dyn std::fmt::Display| ReadError::Malformed { problem: problem.to_string() };
        let (rest, cert) = X509Certificate::from_der(der).map_err(|e| malformed(&e))?;
        if !rest.is_empty() {
            return Err(malformed(&"bytes after its end"));
        }
        let basic = cert.basic_constraints().map_err(|e| malformed(&e))?;
        let usage = cert.key_usage().map_err(|e| malformed(&e))?;
        let extended = cert.extended_key_usage().map_err(|e| malformed(&e))?;
        let names = cert.subject_alternative_name().map_err(|e| malformed(&e))?;
        let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
        let uris = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) => Some((*uri).to_owned()),
            _ => None,
        });
        let validity = cert.validity();
        Ok(Self {
            uris: uris.collect(),
            not_before: system_time(validity.not_before.timestamp()),
            not_after: system_time(validity.not_after.timestamp()),
            serial: serial_hex(cert.raw_serial()),
            is_ca: basic.is_some_and(|basic| basic.value.ca),
            digital_signature: usage.as_ref().is_some_and(|usage| usage.value.digital_signature()),
            cert_sign: usage.as_ref().is_some_and(|usage| usage.value.key_cert_sign()),
            server_auth: extended.as_ref().is_some_and(|usage| usage.value.server_auth),
            client_auth: extended.as_ref().is_some_and(|usage| usage.value.client_auth),
            public_key: cert.public_key().subject_public_key.data.to_vec(),
            self_issued: cert.subject() == cert.issuer(),
        })
    }

    /// The one identity it proves (SPIFFE X509-SVID §2: exactly one URI SAN).
    pub fn identity(&self) -> Result<SpiffeId, ReadError> {
        match self.uris.as_slice() {
            [uri] => uri.parse().map_err(ReadError::NotSpiffe),
            uris => Err(ReadError::UriCount { found: uris.len() }),
        }
    }
}

/// Whom a presented chain proves: the leaf's one identity.
pub fn peer_identity(chain: &[CertificateDer<'_>]) -> Result<SpiffeId, ReadError> {
    let leaf = chain.first().ok_or_else(|| ReadError::Malformed { problem: "no certificate".to_owned() })?;
    Facts::read(leaf)?.identity()
}

/// Until when what a peer presented is valid: the earliest end in its chain.
pub fn peer_not_after(chain: &[CertificateDer<'_>]) -> Result<SystemTime, ReadError> {
    let leaf = chain.first().ok_or_else(|| ReadError::Malformed { problem: "no certificate".to_owned() })?;
    let mut not_after = Facts::read(leaf)?.not_after;
    for issuer in &chain[1..] {
        not_after = not_after.min(Facts::read(issuer)?.not_after);
    }
    Ok(not_after)
}

/// SHA-256 of a certificate's DER: what a pin names.
pub fn fingerprint(der: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(der.as_ref()).into()
}

fn serial_hex(raw: &[u8]) -> String {
    let digits = HEXLOWER.encode(raw);
    let trimmed = digits.trim_start_matches('0');
    if trimmed.is_empty() { "0".to_owned() } else { trimmed.to_owned() }
}

/// Times before 1970 count as 1970: nothing here was valid then.
fn system_time(unix_s: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(unix_s).unwrap_or(0))
}

/// A time for people: RFC 3339 in UTC, whole seconds.
pub(crate) fn show(at: SystemTime) -> String {
    let seconds = at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{seconds} s after 1970"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The corpus of the fuzz target `certificate`, and each of its inputs with each byte changed.
    #[test]
    fn fuzzed_certificates_name_the_identity_that_is_read() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus/certificate");
        let mut proving = Vec::new();
        for entry in std::fs::read_dir(folder).expect("the corpus is there") {
            let path = entry.expect("just listed").path();
            let bytes = std::fs::read(&path).expect("readable");
            if proves(&bytes) {
                proving.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
            }
            for at in 0..bytes.len() {
                for flip in [0x01, 0x80, 0xff] {
                    let mut changed = bytes.clone();
                    changed[at] ^= flip;
                    proves(&changed);
                }
            }
        }
        assert_eq!(proving, ["leaf"]);
    }

    fn proves(bytes: &[u8]) -> bool {
        let Ok(facts) = Facts::read(&bytes.to_vec().into()) else { return false };
        let Ok(identity) = facts.identity() else { return false };
        assert_eq!(facts.uris, [identity.to_string()]);
        true
    }
}
