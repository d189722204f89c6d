//! Probes by HTTP/1.1: a status from 200 to 399 is health, as Kubernetes and Istio have it.
//!
//! Redirects are not followed. With scheme HTTPS the certificate is not checked, as theirs is not:
//! the question is whether this host's own server answers, not who it is.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use telemetry::Chain;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::tcp;

/// What is asked.
pub(super) struct Target<'a> {
    pub(super) tls: bool,
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) path: &'a str,
}

pub(super) async fn get(target: &Target<'_>, headers: &BTreeMap<String, String>) -> Result<(), String> {
    let stream = tcp::connect(target.host, target.port).await?;
    if !target.tls {
        return ask(stream, target, headers).await;
    }
    let name = ServerName::try_from(target.host.to_owned());
    let name = name.unwrap_or(ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()));
    let connected = TlsConnector::from(config()?).connect(name, stream).await;
    ask(connected.map_err(|error| format!("no TLS: {error}"))?, target, headers).await
}

async fn ask<S>(stream: S, target: &Target<'_>, headers: &BTreeMap<String, String>) -> Result<(), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let request = request(target, headers)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| format!("no HTTP: {}", Chain(&error)))?;
    let answered = sender.send_request(request);
    tokio::pin!(answered);
    // A server that answers and closes may end the connection first: its answer is there all the same.
    let response = tokio::select! {
        response = &mut answered => response,
        _ = connection => answered.await,
    };
    let status = response.map_err(|error| format!("no answer: {}", Chain(&error)))?.status();
    match status.as_u16() {
        200..400 => Ok(()),
        _ => Err(format!("GET {} answered {status}", target.path)),
    }
}

fn request(target: &Target<'_>, headers: &BTreeMap<String, String>) -> Result<Request<Empty<Bytes>>, String> {
    let host = if target.host.is_empty() { "localhost" } else { target.host };
    let path = if target.path.starts_with('/') { target.path.to_owned() } else { format!("/{}", target.path) };
    let mut builder = Request::get(path);
    if !headers.keys().any(|name| name.eq_ignore_ascii_case("host")) {
        builder = builder.header(http::header::HOST, format!("{host}:{}", target.port));
    }
    builder = builder.header(http::header::USER_AGENT, concat!("tombolo-probe/", env!("CARGO_PKG_VERSION")));
    for (name, value) in headers {
        builder = builder.header(name, value);
    }
    builder.body(Empty::new()).map_err(|error| format!("the probe's request cannot be made: {error}"))
}

fn config() -> Result<Arc<ClientConfig>, String> {
    let builder = ClientConfig::builder_with_provider(identity::tls::provider().clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("no TLS: {error}"))?;
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody));
    Ok(Arc::new(builder.with_no_client_auth()))
}

/// Believes every certificate; only for probes, which carry no secret.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        identity::tls::provider().signature_verification_algorithms.supported_schemes()
    }
}
