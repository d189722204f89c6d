//! Knowing the control plane: a chain to the given roots, and either the server's name or the SPIFFE
//! identity of a control plane; or the hash of its root.
//!
//! The identity is enough without the name, because the control plane is reached by whatever address
//! an operator's network gives it. Workloads' certificates of the same roots hold neither.

use std::path::Path;
use std::sync::Arc;

use api::policy::ROOT_NAMESPACE;
use identity::CONTROL_PLANE_ACCOUNT;
use identity::tls::{Pins, join_client_config, peer_identity, provider};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::ClientError;
use crate::config::Trust;

pub(super) fn client_config(trust: &Trust) -> Result<ClientConfig, ClientError> {
    let mut config = match trust {
        Trust::Roots(file) => by_roots(file)?,
        Trust::Pin(pin) => {
            let pins = Pins { root_sha256: Some(*pin), token: None };
            let config = join_client_config(pins).map_err(|source| setting("the CA pin", source))?;
            ClientConfig::clone(&config)
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn setting(what: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
    ClientError::Setting { what: what.into(), source: source.into() }
}

fn by_roots(file: &Path) -> Result<ClientConfig, ClientError> {
    let what = || format!("the CA file {}", file.display());
    let text = std::fs::read(file).map_err(|source| setting(what(), source))?;
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(&text) {
        let root = root.map_err(|source| setting(what(), source))?;
        roots.add(root).map_err(|source| setting(what(), source))?;
    }
    if roots.is_empty() {
        return Err(setting(what(), "it holds no certificate in PEM form"));
    }
    let named = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider().clone()).build();
    let named = named.map_err(|source| setting(what(), source))?;
    let config = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|source| setting("TLS 1.3", source))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ControlPlane { named }))
        .with_no_client_auth();
    Ok(config)
}

/// Believes in a server of this name, and in a control plane by any name.
#[derive(Debug)]
struct ControlPlane {
    named: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for ControlPlane {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.named.verify_server_cert(leaf, intermediates, name, ocsp, now);
        // rustls looks at the name last, so this refusal means that the chain is good.
        let only_the_name = matches!(
            verified,
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
            ))
        );
        if only_the_name && is_control_plane(leaf) { Ok(ServerCertVerified::assertion()) } else { verified }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.named.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.named.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.named.supported_verify_schemes()
    }
}

fn is_control_plane(leaf: &CertificateDer<'_>) -> bool {
    let proved = peer_identity(std::slice::from_ref(leaf));
    proved.is_ok_and(|id| id.namespace() == Some(ROOT_NAMESPACE) && id.service_account() == Some(CONTROL_PLANE_ACCOUNT))
}
