//! The TLS configurations of the mesh: 1.3 only, AES-GCM, SPIFFE identities on both sides.
//!
//! Made once, used for every connection: they read [`Credentials`] at each handshake. No session is
//! resumed, because a resumed session skips the certificate checks; the one exception, with what makes
//! up for it, is `tls/flow.rs`.

use std::sync::{Arc, LazyLock};

use api::{SpiffeId, TrustDomain};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, kx_group};
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};

mod flow;
mod secrets;

pub use crate::certificate::{peer_identity, peer_not_after};
pub use crate::verifier::{Pins, explain, refusal};

use crate::bundle::Bundles;
use crate::control_plane_id;
use crate::credentials::Credentials;
use crate::svid::Svid;
use crate::verifier::{Clients, Server};

pub use flow::{FlowServers, flow_client_config};
pub use secrets::{TrafficKey, TrafficSecret, TrafficSecrets, key_log};

/// ALPN of HBONE, of gRPC and of REST over HTTP/2.
pub const HBONE_ALPN: &[u8] = b"h2";
/// ALPN of the tunnel that carries one flow on each connection (docs/tombolo-1.md).
pub const FLOW_ALPN: &[u8] = b"tombolo/1";

/// A TLS configuration could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("neither the join token nor --ca-pin names the control plane's root certificate")]
    NoPin,
    #[error("no identity is expected of the server")]
    NobodyExpected,
    #[error("the cryptographic library supports none of the wanted algorithms")]
    Provider(#[source] rustls::Error),
}

/// The algorithms of every connection: ztunnel's suites (its `src/tls/lib.rs`), post-quantum key
/// exchange first and the classical groups for peers without it.
pub fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![cipher_suite::TLS13_AES_256_GCM_SHA384, cipher_suite::TLS13_AES_128_GCM_SHA256],
            kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1],
            ..rustls::crypto::aws_lc_rs::default_provider()
        })
    });
    &PROVIDER
}

/// Tunnels from peers: the client must prove an identity of our own trust domain. The certificate is
/// that whose [`SpiffeId::server_name`] the client asked for, else `default`'s.
pub fn server_config(
    credentials: &Credentials,
    default: &SpiffeId,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, TlsError> {
    Ok(Arc::new(tunnel_server(credentials, default, alpn)?))
}

/// The control plane's gRPC: certificates of clients are checked when they present one; `Join` is
/// the call without. `credentials` holds the bundle, `certificate` the server's own.
pub fn control_plane_server_config(
    certificate: Arc<dyn ResolvesServerCert>,
    credentials: &Credentials,
) -> Result<Arc<ServerConfig>, TlsError> {
    let clients = Clients { credentials: credentials.clone(), mandatory: false };
    Ok(Arc::new(server(certificate, Some(clients), &[HBONE_ALPN])?))
}

/// A server that asks for no client certificate: the control plane's REST API.
pub fn open_server_config(
    certificate: Arc<dyn ResolvesServerCert>,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, TlsError> {
    Ok(Arc::new(server(certificate, None, alpn)?))
}

/// A tunnel to a peer that must prove one of `expected`; we prove `own`, if it is published.
/// Dial with [`server_name`] of the same identities.
pub fn client_config(
    credentials: &Credentials,
    own: &SpiffeId,
    expected: Vec<SpiffeId>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, TlsError> {
    Ok(Arc::new(tunnel_client(credentials, own, expected, alpn)?))
}

/// The first connection of a joining host: the control plane is known by its pin only.
pub fn join_client_config(pins: Pins) -> Result<Arc<ClientConfig>, TlsError> {
    if pins.is_empty() {
        return Err(TlsError::NoPin);
    }
    Ok(Arc::new(client(Server::Pinned(pins), None, &[HBONE_ALPN])?))
}

/// A joined host to its control plane, which must prove [`control_plane_id`].
pub fn control_plane_client_config(
    bundles: &Bundles,
    own: Option<Arc<Svid>>,
    trust_domain: &TrustDomain,
) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier = Server::ControlPlane {
        bundles: Arc::new(bundles.clone()),
        trust_domain: trust_domain.clone(),
        identity: control_plane_id(trust_domain),
    };
    let resolver = own.map(|own| Arc::new(FixedCertificate(own)) as Arc<dyn ResolvesClientCert>);
    Ok(Arc::new(client(verifier, resolver, &[HBONE_ALPN])?))
}

/// The name to dial with. When one identity is expected it asks for that workload's certificate;
/// else no server name is sent (an IP address never is, RFC 6066 §3), as ztunnel does.
pub fn server_name(expected: &[SpiffeId]) -> ServerName<'static> {
    let name = match expected {
        [one] => one.server_name().and_then(|name| ServerName::try_from(name).ok()),
        _ => None,
    };
    name.unwrap_or_else(|| ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into()))
}

fn tunnel_server(credentials: &Credentials, default: &SpiffeId, alpn: &[&[u8]]) -> Result<ServerConfig, TlsError> {
    let resolver = OwnCertificates { credentials: credentials.clone(), default: default.clone() };
    let clients = Clients { credentials: credentials.clone(), mandatory: true };
    let mut config = server(Arc::new(resolver), Some(clients), alpn)?;
    // The data plane seals and opens the records itself.
    config.enable_secret_extraction = true;
    config.key_log = key_log();
    Ok(config)
}

fn tunnel_client(
    credentials: &Credentials,
    own: &SpiffeId,
    expected: Vec<SpiffeId>,
    alpn: &[&[u8]],
) -> Result<ClientConfig, TlsError> {
    if expected.is_empty() {
        return Err(TlsError::NobodyExpected);
    }
    let resolver = OwnCertificate { credentials: credentials.clone(), own: own.clone() };
    let verifier = Server::Expected { credentials: credentials.clone(), identities: expected };
    let mut config = client(verifier, Some(Arc::new(resolver)), alpn)?;
    // The data plane seals and opens the records itself.
    config.enable_secret_extraction = true;
    config.key_log = key_log();
    Ok(config)
}

fn server(
    certificate: Arc<dyn ResolvesServerCert>,
    clients: Option<Clients>,
    alpn: &[&[u8]],
) -> Result<ServerConfig, TlsError> {
    let builder = ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Provider)?;
    let builder = match clients {
        Some(clients) => builder.with_client_cert_verifier(Arc::new(clients)),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(certificate);
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client(
    verifier: Server,
    certificate: Option<Arc<dyn ResolvesClientCert>>,
    alpn: &[&[u8]],
) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Provider)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match certificate {
        Some(certificate) => builder.with_client_cert_resolver(certificate),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// The certificate of the workload that the client asked for, else the default one's.
#[derive(Debug)]
struct OwnCertificates {
    credentials: Credentials,
    default: SpiffeId,
}

/// The certificate with which we present ourselves to a peer.
#[derive(Debug)]
struct OwnCertificate {
    credentials: Credentials,
    own: SpiffeId,
}

#[derive(Debug)]
struct FixedCertificate(Arc<Svid>);

impl ResolvesServerCert for OwnCertificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let wanted = hello.server_name().and_then(|name| self.credentials.svid_by_server_name(name));
        wanted.or_else(|| self.credentials.svid(&self.default)).map(|svid| svid.certified())
    }
}

impl ResolvesClientCert for OwnCertificate {
    fn resolve(&self, _roots: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.credentials.svid(&self.own).map(|svid| svid.certified())
    }

    fn has_certs(&self) -> bool {
        self.credentials.svid(&self.own).is_some()
    }
}

impl ResolvesClientCert for FixedCertificate {
    fn resolve(&self, _roots: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.certified())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests;
