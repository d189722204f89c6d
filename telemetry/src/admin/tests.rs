//! The admin server over real sockets.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{BODY_LIMIT_BYTES, BindError, BoxFuture, Handler, Listener, Origin, Response, serve};

/// Says back what it was asked; `/panic` panics.
struct Echo;

impl Handler for Echo {
    fn handle(&self, method: Method, path: PathAndQuery, body: Bytes, origin: Origin) -> BoxFuture<'_, Response> {
        Box::pin(async move {
            assert_ne!(path.path(), "/panic", "asked for");
            Response::text(StatusCode::OK, format!("{method} {path} {} {origin:?}", body.len()))
        })
    }
}

struct Server {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Server {
    fn start(listener: Listener) -> Self {
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(serve(listener, Arc::new(Echo), async {
            let _ = stopped.await;
        }));
        Self { stop, task }
    }

    async fn stop(self) {
        let _ = self.stop.send(());
        timeout(Duration::from_secs(10), self.task).await.expect("stops in time").expect("no panic");
    }
}

async fn say(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin, request: &[u8]) -> String {
    // The server may refuse a long request before it has read all of it.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let read = timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.expect("an answer in time");
    assert!(read.is_ok() || !answer.is_empty(), "{read:?}");
    String::from_utf8_lossy(&answer).into_owned()
}

fn request(head: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("{head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}").into_bytes()
}

#[tokio::test]
async fn tcp_requests_carry_where_they_come_from() {
    let listener = Listener::bind_tcp("127.0.0.1:0".parse().expect("an address")).await.expect("binds");
    let address = listener.local_addr().expect("a TCP address");
    let server = Server::start(listener);
    let table = [
        ("POST /a?b=c HTTP/1.1\r\nHost: 127.0.0.1:1", "xyz", "200 OK", "POST /a?b=c 3 Loopback"),
        ("GET / HTTP/1.1\r\nHost: localhost:15000", "", "200 OK", "GET / 0 Loopback"),
        ("GET / HTTP/1.1\r\nHost: [::1]:15000", "", "200 OK", "GET / 0 Loopback"),
        ("GET / HTTP/1.1\r\nHost: evil.example", "", "200 OK", "GET / 0 Any"),
        ("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: https://evil.example", "", "200 OK", "GET / 0 Any"),
        ("GET /panic HTTP/1.1\r\nHost: localhost", "", "500 Internal Server Error", "the log says why"),
        ("GET / HTTP/1.1\r\nHost: localhost", "", "200 OK", "GET / 0 Loopback"),
        ("not http", "", "400 Bad Request", ""),
    ];
    for (head, body, status, text) in table {
        let stream = TcpStream::connect(address).await.expect("connects");
        let answer = say(stream, &request(head, body)).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{head}: {answer}");
        assert!(answer.contains(text), "{head}: {answer}");
    }
    server.stop().await;
    assert!(TcpStream::connect(address).await.is_err(), "a stopped server does not listen");
}

#[tokio::test]
async fn too_much_is_refused() {
    let listener = Listener::bind_tcp("127.0.0.1:0".parse().expect("an address")).await.expect("binds");
    let address = listener.local_addr().expect("a TCP address");
    let server = Server::start(listener);
    let long_body = "x".repeat(BODY_LIMIT_BYTES + 1);
    let long_header = format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {}", "y".repeat(64 * 1024));
    let many_headers = format!("GET / HTTP/1.1\r\nHost: localhost{}", "\r\nX: y".repeat(100));
    let table = [
        ("PUT / HTTP/1.1\r\nHost: localhost", long_body.as_str(), "413"),
        (&long_header, "", "431"),
        (&many_headers, "", "431"),
    ];
    for (head, body, status) in table {
        let stream = TcpStream::connect(address).await.expect("connects");
        let answer = say(stream, &request(head, body)).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {answer}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_unix_socket_has_its_mode_and_leaves_no_file() {
    let folder = std::env::temp_dir().join(format!("tombolo-admin-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let path = folder.join("admin.sock");
    let bind = || Listener::bind_unix(&path, 0o600);

    let server = Server::start(bind().expect("binds"));
    let mode = std::fs::metadata(&path).expect("the socket file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let stream = UnixStream::connect(&path).await.expect("connects");
    let answer = say(stream, &request("GET /x HTTP/1.1\r\nHost: whatever", "")).await;
    assert!(answer.contains("GET /x 0 Unix"), "{answer}");
    assert!(matches!(bind(), Err(BindError::InUse { .. })), "a live socket is not taken over");
    server.stop().await;
    assert!(!path.exists(), "the file goes with the server");

    drop(std::os::unix::net::UnixListener::bind(&path).expect("a socket that nobody serves"));
    drop(bind().expect("a stale socket is replaced"));
    std::fs::write(&path, "precious").expect("a file");
    assert!(matches!(bind(), Err(BindError::NotASocket { .. })));
    assert_eq!(std::fs::read_to_string(&path).expect("still there"), "precious");
    std::fs::remove_dir_all(&folder).expect("removed");
}
