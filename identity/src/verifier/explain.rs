//! Failed handshakes in words: what this side refused, and what an alert of the other side means.
//! Pure. Called by whoever logs a failed connection.

use std::error::Error;
use std::io;

use rustls::CertificateError;

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
    match find(error) {
        Some(rustls::Error::AlertReceived(alert)) => Some(told(&format!("{alert:?}"))),
        Some(other) => Some(format!("TLS failed: {other}")),
        None => retold(error),
    }
}

/// What an alert means. In TLS 1.3 a client hears only after its handshake that its certificate was
/// refused.
fn told(alert: &str) -> String {
    let meaning = match alert {
        "CertificateExpired" => "our certificate is expired or not valid yet by its clock",
        "UnknownCA" => "it does not trust the root that signed our certificate",
        "CertificateRequired" => "it wants a certificate and we presented none",
        "CertificateUnknown" | "AccessDenied" => "it does not accept our identity; its log says why",
        "BadCertificate" | "UnsupportedCertificate" => "it cannot use our certificate; its log says why",
        "NoApplicationProtocol" => "it does not speak HBONE on this port",
        "ProtocolVersion" | "HandshakeFailure" => "it supports no TLS version or cipher that we do (TLS 1.3, AES-GCM)",
        other => return format!("the peer ended the TLS handshake: {other}"),
    };
    format!("the peer refused the TLS handshake: {meaning}")
}

/// h2 keeps of an I/O error its text only.
fn retold(error: &(dyn Error + 'static)) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if let Some((_, alert)) = text.split_once(ALERT) {
            let name = alert.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
            return Some(told(name));
        }
        next = error.source();
    }
    None
}

/// How rustls prints [`rustls::Error::AlertReceived`]; a test keeps it true.
const ALERT: &str = "received fatal alert: ";

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

#[cfg(test)]
mod tests {
    use rustls::AlertDescription;

    use super::*;

    #[test]
    fn an_alert_is_understood_as_a_value_and_as_text() {
        let alert = rustls::Error::AlertReceived(AlertDescription::UnknownCA);
        let as_text = io::Error::new(io::ErrorKind::InvalidData, alert.to_string());
        let expected = "the peer refused the TLS handshake: it does not trust the root that signed our certificate";
        assert_eq!(explain(&alert).as_deref(), Some(expected));
        assert_eq!(explain(&as_text).as_deref(), Some(expected));
        assert_eq!(explain(&io::Error::other("no route to host")), None);
    }
}
