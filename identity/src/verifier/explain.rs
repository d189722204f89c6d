//! Failed handshakes in words: what this side refused, and what an alert of the other side means.
//! Pure. Called by whoever logs a failed connection.

use std::error::Error;
use std::io;

use rustls::{AlertDescription, CertificateError};

use super::{VerifyError, system_time};

/// The refusal inside an error of rustls, tokio-rustls, hyper or tonic, if our verifier made it.
pub fn refusal(error: &(dyn Error + 'static)) -> Option<VerifyError> {
    let rustls::Error::InvalidCertificate(kind) = find(error)? else { return None };
    match kind {
        CertificateError::ExpiredContext { time, not_after } => {
            Some(VerifyError::Expired { not_after: system_time(*not_after), now: system_time(*time) })
        }
        CertificateError::NotValidYetContext { time, not_before } => {
            Some(VerifyError::NotYetValid { not_before: system_time(*not_before), now: system_time(*time) })
        }
        CertificateError::UnknownIssuer => Some(VerifyError::UnknownIssuer),
        CertificateError::Other(other) => other.0.downcast_ref::<VerifyError>().cloned(),
        _ => None,
    }
}

/// One sentence for a failed handshake; `None` when the error is not of TLS.
pub fn explain(error: &(dyn Error + 'static)) -> Option<String> {
    if let Some(refusal) = refusal(error) {
        return Some(refusal.to_string());
    }
    let error = find(error)?;
    let rustls::Error::AlertReceived(alert) = error else { return Some(format!("TLS failed: {error}")) };
    let meaning = match alert {
        AlertDescription::CertificateExpired => "our certificate is expired or not valid yet by its clock",
        AlertDescription::UnknownCA => "it does not trust the root that signed our certificate",
        AlertDescription::CertificateRequired => "it wants a certificate and we presented none",
        AlertDescription::CertificateUnknown | AlertDescription::AccessDenied => {
            "it does not accept our identity; its log says why"
        }
        AlertDescription::BadCertificate | AlertDescription::UnsupportedCertificate => {
            "it cannot use our certificate; its log says why"
        }
        AlertDescription::NoApplicationProtocol => "it does not speak HBONE on this port",
        AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure => {
            "it supports no TLS version or cipher that we do (TLS 1.3, AES-GCM)"
        }
        other => return Some(format!("the peer ended the TLS handshake: {other:?}")),
    };
    Some(format!("the peer refused the TLS handshake: {meaning}"))
}

/// Looks for rustls' error in an error and its sources; `io::Error` hides its content from `source`.
fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}
