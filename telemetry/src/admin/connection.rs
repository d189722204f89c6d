//! One client of the admin server: its requests within limits, and where they come from.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HOST, ORIGIN};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, StatusCode, Version};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::timeout;

use super::listener::Accepted;
use super::{BODY_LIMIT_BYTES, Handler, Origin, Response};

/// For a request's header, also the first and also on a kept-alive connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// For a request's body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
const HEADERS: usize = 64;
const HEADER_BYTES: usize = 16 * 1024;

/// Serves one connection until its client closes it, breaks a limit, or the server stops.
pub(super) async fn serve(accepted: Accepted, handler: Arc<dyn Handler>, stopped: watch::Receiver<()>) {
    match accepted {
        Accepted::Tcp(stream, peer) => run(stream, Some(peer), handler, stopped).await,
        Accepted::Unix(stream) => run(stream, None, handler, stopped).await,
    }
}

async fn run(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Option<SocketAddr>,
    handler: Arc<dyn Handler>,
    mut stopped: watch::Receiver<()>,
) {
    let service = service_fn(move |request| {
        let handler = handler.clone();
        async move { Ok::<_, Infallible>(respond(request, peer, handler).await) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    server.max_headers(HEADERS).max_buf_size(HEADER_BYTES).half_close(true);
    let mut connection = std::pin::pin!(server.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = &mut connection => ended,
        _ = stopped.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = %crate::Chain(&error), "an admin connection broke");
    }
}

async fn respond(
    request: Request<Incoming>,
    peer: Option<SocketAddr>,
    handler: Arc<dyn Handler>,
) -> http::Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    if head.version != Version::HTTP_11 && head.version != Version::HTTP_10 {
        return render(Response::text(StatusCode::HTTP_VERSION_NOT_SUPPORTED, "speak HTTP/1.1\n"));
    }
    let origin = origin(peer, &head.headers);
    let path = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let body = match timeout(BODY_TIMEOUT, Limited::new(body, BODY_LIMIT_BYTES).collect()).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            let text = format!("a request body has at most {BODY_LIMIT_BYTES} bytes\n");
            return render(Response::text(StatusCode::PAYLOAD_TOO_LARGE, text));
        }
        Ok(Err(_)) => return render(Response::text(StatusCode::BAD_REQUEST, "the request body broke off\n")),
        Err(_) => {
            return render(Response::text(StatusCode::REQUEST_TIMEOUT, "the request body took too long\n"));
        }
    };
    let method = head.method.clone();
    // A task of its own: a client that hangs up half way must not leave a half-made change, and a
    // handler that panics must not take the connection along.
    let answer = tokio::spawn(async move { handler.handle(method, path, body, origin).await }).await;
    render(answer.unwrap_or_else(|failed| {
        tracing::error!(error = %failed, "the handler of an admin request failed");
        Response::text(StatusCode::INTERNAL_SERVER_ERROR, "the request failed; the log says why\n")
    }))
}

fn render(answer: Response) -> http::Response<Full<Bytes>> {
    let mut response = http::Response::new(Full::new(answer.body));
    *response.status_mut() = answer.status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    if answer.status == StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST"));
    }
    response
}

/// A page in a browser of this host reaches loopback too: such a request names the page in `Origin`
/// or, after DNS rebinding, the page's host in `Host`. It is trusted no more than another host's.
fn origin(peer: Option<SocketAddr>, headers: &HeaderMap) -> Origin {
    let Some(peer) = peer else { return Origin::Unix };
    let from_here = peer.ip().to_canonical().is_loopback();
    let by_page = headers.contains_key(ORIGIN);
    let for_here = headers.get(HOST).is_none_or(|host| host.to_str().is_ok_and(names_this_host));
    if from_here && for_here && !by_page { Origin::Loopback } else { Origin::Any }
}

fn names_this_host(host: &str) -> bool {
    let Ok(authority) = host.parse::<http::uri::Authority>() else { return false };
    let name = authority.host();
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
