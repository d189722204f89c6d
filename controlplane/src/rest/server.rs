//! HTTPS for the operators' API: TLS, limits against slow and greedy clients, and an end that lets
//! requests under way finish.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use tracing::{debug, warn};

use super::{AdminToken, router};
use crate::app::App;
use crate::greeting::greeting;

/// The operators' API could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("TLS for operators cannot be set up")]
    Tls(#[source] identity::tls::TlsError),
}

/// Serves until `shutdown`; then no connection is accepted and requests under way finish, for which
/// the caller sets a limit by dropping this future.
pub async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    admin_token: AdminToken,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let config = identity::tls::open_server_config(app.server_certificate.clone(), &[b"h2", b"http/1.1"]);
    let acceptor = TlsAcceptor::from(config.map_err(ServeError::Tls)?);
    let routes = router(app, admin_token);
    let (places, stopping) = (Arc::new(Semaphore::new(MAX_CONNECTIONS)), CancellationToken::new());
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = next(&listener, &places) => accepted,
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    warn!(error = %error, "a connection of the REST API ended badly");
                }
                continue;
            }
            () = &mut shutdown => break,
        };
        match accepted {
            Ok((stream, address, place)) => {
                let (acceptor, routes, stopping) = (acceptor.clone(), routes.clone(), stopping.clone());
                connections.spawn(async move {
                    if let Err(reason) = connection(stream, address, acceptor, routes, stopping).await {
                        debug!(src.addr = %address, error = reason, "a connection of the REST API ended early");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                warn!(error = %error, "no connection can be accepted from operators");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    stopping.cancel();
    while connections.join_next().await.is_some() {}
    Ok(())
}

async fn next(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, address) = listener.accept().await?;
    Ok((stream, address, place))
}

async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    routes: Router,
    stopping: CancellationToken,
) -> Result<(), String> {
    let greeted = async { greeting(acceptor.accept(stream).await?).await };
    let greeted = tokio::time::timeout(HANDSHAKE_TIMEOUT, greeted).await;
    let stream = greeted.map_err(|_| "no TLS handshake and first words in time")?.map_err(|error| error.to_string())?;
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(address);
        routes.clone().oneshot(request)
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .max_headers(MAX_HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_concurrent_streams(MAX_STREAMS);
    let mut served = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = served.as_mut() => ended,
        () = stopping.cancelled() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    ended.map_err(|error| error.to_string())
}

/// Operators, scripts and scrapers; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 1024;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take for a request's headers, and be quiet between requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const MAX_HEADER_BYTES: usize = 64 << 10;
const MAX_HEADER_LIST: u32 = 32 << 10;
const MAX_HEADERS: usize = 64;
const MAX_STREAMS: u32 = 100;
/// After a failure that is not one connection's, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
