//! One connection to a peer's tunnel port, and CONNECT over it. Used by the pool only.
//!
//! TCP, TLS 1.3 with the workload's own certificate, HTTP/2 with ztunnel's settings
//! (`src/proxy/h2/client.rs`). It keeps nothing: which connection a stream goes over is the pool's business.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use api::SpiffeId;
use bytes::Bytes;
use h2::client::{Builder, Connection, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri};
use identity::{Bundles, Credentials, Svid, tls};
use rustls::pki_types::CertificateDer;

use crate::config::{HboneConfig, SocketConfig};
use crate::flow::Answer;
use crate::hbone::{BAGGAGE, FORWARDED, TRACEPARENT};
use crate::net::tls::TlsStream;
use crate::net::{self, socket};
use crate::report::{Flag, Flagged};

/// Whom a connection is from and to. Connections are never shared between two sources or two sets of
/// expected identities.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) source: SpiffeId,
    /// What the peer must prove one of; the workload's own identity first.
    pub(crate) expected: Vec<SpiffeId>,
    pub(crate) to: SocketAddr,
}

/// With what a connection was made: when either has changed, new flows want a new connection.
#[derive(Clone)]
pub(crate) struct Proof {
    svid: Option<Arc<Svid>>,
    bundles: Arc<Bundles>,
}

/// What a CONNECT says.
#[derive(Debug, Clone)]
pub(crate) struct Connect {
    pub(crate) authority: String,
    pub(crate) baggage: String,
    pub(crate) forwarded: String,
    pub(crate) traceparent: String,
}

/// An established connection: the handle for requests, and what has to be polled.
pub(crate) type Established = (SendRequest<Bytes>, Connection<TlsStream, Bytes>);

/// When the certificates end that the peer has shown.
pub(crate) fn not_after(shown: &[CertificateDer<'_>], to: SocketAddr) -> Result<SystemTime, TunnelError> {
    tls::peer_not_after(shown).map_err(|error| TunnelError::Tls { to, reason: error.to_string() })
}

/// A peer that said 200: both directions of the stream and its response.
pub(crate) type Opened = (SendStream<Bytes>, RecvStream, Response<()>);

/// Why there is no tunnel to a peer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TunnelError {
    #[error("no answer from {to} within {limit:?}")]
    TimedOut { to: SocketAddr, limit: Duration },
    #[error("cannot reach {to}")]
    Tcp {
        to: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("no TLS with {to}: {reason}")]
    Tls { to: SocketAddr, reason: String },
    #[error("the certificate of {identity} expired on this host; the agent has not been able to renew it")]
    OwnCertificateExpired { identity: SpiffeId },
    #[error("no TLS configuration for {to}")]
    Configuration {
        to: SocketAddr,
        #[source]
        source: tls::TlsError,
    },
    #[error("HTTP/2 with {to} failed")]
    Http2 {
        to: SocketAddr,
        #[source]
        source: h2::Error,
    },
    #[error("a header of the CONNECT to {to} cannot be sent")]
    Header {
        to: SocketAddr,
        #[source]
        source: http::Error,
    },
    #[error("{to} refused: HTTP status {status}{}", meaning(*.status))]
    Refused { to: SocketAddr, status: StatusCode },
    #[error("{to} refused{}", flow_meaning(*.answer))]
    Declined { to: SocketAddr, answer: Answer },
    #[error("the agent is shutting down")]
    Draining,
}

impl TunnelError {
    /// Whether another endpoint of the service may do better. A peer's policy is that of its service.
    pub(crate) fn elsewhere(&self) -> bool {
        match self {
            Self::Refused { status, .. } => *status != StatusCode::UNAUTHORIZED,
            Self::Declined { answer, .. } => *answer != Answer::Denied,
            Self::TimedOut { .. } | Self::Tcp { .. } | Self::Tls { .. } | Self::Http2 { .. } => true,
            Self::OwnCertificateExpired { .. } | Self::Configuration { .. } | Self::Header { .. } | Self::Draining => {
                false
            }
        }
    }
}

impl Flagged for TunnelError {
    fn flag(&self) -> Flag {
        match self {
            Self::Refused { status, .. } if *status == StatusCode::UNAUTHORIZED => Flag::Denied,
            Self::Declined { answer: Answer::Denied, .. } => Flag::Denied,
            Self::TimedOut { .. } | Self::Tcp { .. } | Self::Refused { .. } | Self::Declined { .. } => Flag::Connect,
            Self::Tls { .. } => Flag::Tls,
            Self::OwnCertificateExpired { .. } | Self::Configuration { .. } => Flag::IdentityRequired,
            Self::Http2 { .. } | Self::Header { .. } => Flag::Http2,
            Self::Draining => Flag::Aborted,
        }
    }
}

impl Proof {
    pub(crate) fn of(credentials: &Credentials, source: &SpiffeId) -> Self {
        Self { svid: credentials.svid(source), bundles: credentials.bundles() }
    }

    /// When our own certificate ends.
    pub(crate) fn not_after(&self) -> Option<SystemTime> {
        self.svid.as_ref().map(|svid| svid.not_after())
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        let same_svid = match (&self.svid, &other.svid) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        same_svid && Arc::ptr_eq(&self.bundles, &other.bundles)
    }
}

/// What the peer means by a status: those of ztunnel's `src/proxy/inbound.rs`.
fn meaning(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 => NOT_ITS_OWN,
        401 => DENIED,
        503 => " (it cannot reach the application, or the port is not in the mesh)",
        _ => "",
    }
}

/// The same for `tombolo/1`.
fn flow_meaning(answer: Answer) -> &'static str {
    match answer {
        Answer::NotOurs => NOT_ITS_OWN,
        Answer::Denied => DENIED,
        Answer::NotListening => " (the port is not in the mesh)",
        Answer::Unreachable => " (it cannot reach the application)",
        Answer::Closing => " (it takes no flow on this connection)",
        Answer::Malformed => " (it cannot read the header)",
        Answer::Accepted => "",
    }
}

/// A certificate of ours that has expired would only be refused at the other end.
pub(crate) fn still_valid(credentials: &Credentials, source: &SpiffeId) -> Result<(), TunnelError> {
    match credentials.svid(source) {
        Some(svid) if svid.not_after() < SystemTime::now() => {
            Err(TunnelError::OwnCertificateExpired { identity: source.clone() })
        }
        Some(_) | None => Ok(()),
    }
}

/// Connects and proves who both sides are; also when the peer's certificates end. Dropping the future
/// abandons the connection.
pub(crate) async fn establish(
    key: &Key,
    credentials: &Credentials,
    hbone: &HboneConfig,
    sockets: &SocketConfig,
) -> Result<(Established, SystemTime), TunnelError> {
    let to = key.to;
    let config = tls::client_config(credentials, &key.source, key.expected.clone(), &[tls::HBONE_ALPN])
        .map_err(|source| TunnelError::Configuration { to, source })?;
    let tcp = socket::connect_tunnel(to, sockets).await.map_err(|source| TunnelError::Tcp { to, source })?;
    // A host with several workloads shows the certificate that is asked for by name.
    let name = tls::server_name(key.expected.get(..1).unwrap_or_default());
    let (stream, proof) = net::tls::connect(config, name, tcp).await.map_err(|error| broken_tls(to, error))?;
    let not_after = not_after(&proof.certificates, to)?;
    Ok((start(key, stream, hbone).await?, not_after))
}

/// Begins HTTP/2 on a connection whose TLS stands.
pub(crate) async fn start(key: &Key, stream: TlsStream, hbone: &HboneConfig) -> Result<Established, TunnelError> {
    builder(hbone).handshake(stream).await.map_err(|error| broken(key.to, error))
}

fn builder(config: &HboneConfig) -> Builder {
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(config.stream_window_bytes)
        .initial_connection_window_size(config.connection_window_bytes)
        .max_frame_size(config.max_frame_bytes)
        .max_header_list_size(config.client_max_header_bytes)
        .max_send_buffer_size(config.max_send_buffer_bytes);
    builder
}

/// Asks for a stream and waits for the answer. Dropping the future resets the stream.
pub(crate) async fn open(to: SocketAddr, send: SendRequest<Bytes>, connect: &Connect) -> Result<Opened, TunnelError> {
    let request = connect.request().map_err(|source| TunnelError::Header { to, source })?;
    let mut ready = send.ready().await.map_err(|error| broken(to, error))?;
    let (response, send) = ready.send_request(request, false).map_err(|error| broken(to, error))?;
    let response = response.await.map_err(|error| broken(to, error))?;
    let (head, recv) = response.into_parts();
    if head.status != StatusCode::OK {
        return Err(TunnelError::Refused { to, status: head.status });
    }
    Ok((send, recv, Response::from_parts(head, ())))
}

impl Connect {
    fn request(&self) -> Result<Request<()>, http::Error> {
        let uri = Uri::builder().authority(self.authority.as_str()).build()?;
        let value = |text: &str| HeaderValue::try_from(text).map_err(http::Error::from);
        Request::builder()
            .method(Method::CONNECT)
            .uri(uri)
            .header(BAGGAGE, value(&self.baggage)?)
            .header(FORWARDED, value(&self.forwarded)?)
            .header(TRACEPARENT, value(&self.traceparent)?)
            .body(())
    }
}

/// An error of HTTP/2, told as what it is: a peer that does not accept our certificate says so only
/// after the handshake (RFC 8446 §4.4.2.4), in an alert where the first frame was expected.
fn broken(to: SocketAddr, error: h2::Error) -> TunnelError {
    if !error.is_io() {
        return TunnelError::Http2 { to, source: error };
    }
    broken_tls(to, error.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()))
}

pub(crate) fn broken_tls(to: SocketAddr, source: io::Error) -> TunnelError {
    match tls::explain(&source) {
        Some(reason) => TunnelError::Tls { to, reason },
        None => TunnelError::Tcp { to, source },
    }
}

const NOT_ITS_OWN: &str = " (it says that the address is not its own)";
const DENIED: &str = " (its policy denies this identity; its access log names the policy)";
