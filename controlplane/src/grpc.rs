//! The agents' API on 15012: discovery, certificates, enrolment. gRPC over TLS.
//!
//! A client certificate is asked for and checked, but not demanded: `Join` is the call without one.
//! Every other call wants the certificate of a host (`grpc/peer.rs`). Handshakes run beside each
//! other, a limited number at once, so that slow or hostile ones delay nobody for long.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::wire::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use api::wire::tombolo::enrolment_server::EnrolmentServer;
use api::wire::xds::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use identity::{Bundles, Credentials};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Server;
use tracing::{debug, warn};

mod agents;
mod discovery;
mod enrolment;
mod issuance;
mod limit;
mod peer;

pub use agents::{Agent, Agents};

use crate::app::App;
use crate::store::StoreError;
use peer::Connection;

/// A handshake, with the client's first words, that takes longer is not an agent's.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes at once; more wait in the kernel's queue.
const MAX_HANDSHAKES: usize = 512;
/// A dead agent is noticed within the sum of both.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// An agent that comes back names the version of each resource it holds: some 100 bytes each.
const MAX_DISCOVERY_REQUEST: usize = 64 << 20;
/// A report names every workload of a host.
const MAX_ENROLMENT_REQUEST: usize = 2 << 20;
const MAX_CERTIFICATE_REQUEST: usize = 64 << 10;
/// Header lists (an attacker's memory of us).
const MAX_HEADERS: u32 = 16 << 10;
/// An agent has one stream and a few calls.
const MAX_STREAMS: u32 = 256;
/// How long calls under way may take to finish when the program stops.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// After a failure that is not one connection's, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The agents' API could not start or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the authority's roots cannot be used to check agents")]
    Roots(#[source] identity::BundleError),
    #[error("TLS for agents cannot be set up")]
    Tls(#[source] identity::tls::TlsError),
    #[error("the agents' API ended")]
    Transport(#[source] tonic::transport::Error),
}

/// Serves until `shutdown`; then streams end with UNAVAILABLE and calls under way finish.
pub async fn serve(listener: TcpListener, app: Arc<App>, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
    let acceptor = acceptor(&app)?;
    let stopping = CancellationToken::new();
    let (connections, accepted) = mpsc::channel(64);
    let accept = accept(listener, acceptor, connections, stopping.clone());
    let discovery = discovery::Discovery { app: app.clone(), stopping: stopping.clone() };
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(MAX_HEADERS)
        .max_concurrent_streams(MAX_STREAMS)
        .add_service(AggregatedDiscoveryServiceServer::new(discovery).max_decoding_message_size(MAX_DISCOVERY_REQUEST))
        .add_service(
            EnrolmentServer::new(enrolment::Enrolment::new(app.clone()))
                .max_decoding_message_size(MAX_ENROLMENT_REQUEST),
        )
        .add_service(
            IstioCertificateServiceServer::new(issuance::Issuance::new(app))
                .max_decoding_message_size(MAX_CERTIFICATE_REQUEST),
        )
        .serve_with_incoming_shutdown(ReceiverStream::new(accepted), stopping.clone().cancelled_owned());
    let stop = async {
        shutdown.await;
        stopping.cancel();
        // Whoever does not read the end of its stream cannot hold up ours.
        tokio::time::sleep(DRAIN_LIMIT).await;
    };
    tokio::select! {
        (served, ()) = async { tokio::join!(server, accept) } => served.map_err(ServeError::Transport),
        () = stop => Ok(()),
    }
}

fn acceptor(app: &App) -> Result<TlsAcceptor, ServeError> {
    let trust_domain = app.trust_domain.clone();
    let mut bundles = Bundles::default();
    bundles.insert(trust_domain.clone(), app.issuer.roots()).map_err(ServeError::Roots)?;
    let credentials = Credentials::new(trust_domain);
    credentials.set_bundles(bundles);
    let config = identity::tls::control_plane_server_config(app.server_certificate.clone(), &credentials);
    Ok(TlsAcceptor::from(config.map_err(ServeError::Tls)?))
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    connections: mpsc::Sender<io::Result<Connection>>,
    stopping: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let mut handshakes = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = next(&listener, &places) => accepted,
            Some(ended) = handshakes.join_next() => {
                if let Err(error) = ended {
                    warn!(error = %error, "a TLS handshake ended badly");
                }
                continue;
            }
            () = stopping.cancelled() => return,
        };
        match accepted {
            Ok((stream, address, place)) => {
                let (acceptor, connections) = (acceptor.clone(), connections.clone());
                handshakes.spawn(async move {
                    if let Some(connection) = handshake(acceptor, stream, address).await {
                        // Full or closed: the server is too busy, or has ended.
                        let _ = connections.send(Ok(connection)).await;
                    }
                    drop(place);
                });
            }
            Err(error) => {
                warn!(error = %error, "no connection can be accepted from agents");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn next(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, address) = listener.accept().await?;
    Ok((stream, address, place))
}

async fn handshake(acceptor: TlsAcceptor, stream: TcpStream, address: SocketAddr) -> Option<Connection> {
    let prepared = stream.set_nodelay(true);
    let greeted = async { Connection::greet(acceptor.accept(stream).await?, address).await };
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, greeted).await {
        Ok(Ok(connection)) => return prepared.is_ok().then_some(connection),
        // An agent of ours whose certificate is not good any more: somebody should know.
        Ok(Err(error)) if identity::tls::refusal(&error).is_some() => {
            let error = identity::tls::explain(&error).unwrap_or_default();
            warn!(src.addr = %address, error, "a client certificate was refused");
        }
        Ok(Err(error)) => {
            let error = identity::tls::explain(&error).unwrap_or_else(|| error.to_string());
            debug!(src.addr = %address, error, "a TLS handshake failed");
        }
        Err(_) => debug!(src.addr = %address, "no TLS handshake and first words within {HANDSHAKE_TIMEOUT:?}"),
    }
    None
}

/// A failure of ours: the log has the whole of it, the asker a sentence.
fn internal(what: &str, error: &dyn std::error::Error) -> Status {
    tracing::error!(error = %telemetry::Chain(error), "{what}");
    Status::internal(format!("{what}: see the control plane's log"))
}

fn store_failed(error: StoreError) -> Status {
    warn!(error = %telemetry::Chain(&error), "the database did not answer");
    Status::unavailable("the control plane's database does not answer: try again")
}

#[cfg(test)]
mod tests;
