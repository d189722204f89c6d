//! The client against real TLS servers on loopback: each failure is told apart.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::*;
use crate::config::Trust;

/// A root in a file, and its issuer.
struct Root {
    issuer: Issuer<'static, KeyPair>,
    der: Vec<u8>,
    file: std::path::PathBuf,
}

fn root(name: &str) -> Root {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).expect("signed");
    let file = std::env::temp_dir().join(format!("tombolo-cli-{}-{name}.pem", std::process::id()));
    std::fs::write(&file, certificate.pem()).expect("written");
    Root { der: certificate.der().to_vec(), issuer: Issuer::new(params, key), file }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

/// A server that answers as a control plane would, with a certificate of these names.
async fn serve(root: &Root, names: Vec<SanType>) -> SocketAddr {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.subject_alt_names = names;
    let leaf = params.signed_by(&key, &root.issuer).expect("signed");
    let chain = vec![leaf.der().clone(), root.der.clone().into()];
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config = rustls::ServerConfig::builder_with_provider(identity::tls::provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a matching key");
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let served = hyper::server::conn::http1::Builder::new();
            let _ = served.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
        }
    });
    address
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let token = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    let refusal = |code: &str| json!({"code": code, "message": format!("{code}!"), "hint": "", "mistakes": ["a", "b"]});
    let (status, body) = match (token, request.uri().path()) {
        (Some("Bearer good"), "/v1/watch") => (200, json!({"query": request.uri().query()})),
        // As a gRPC port answers a path it does not know.
        (Some("Bearer good"), "/v1/grpc") => return Ok(Response::new(Full::default())),
        (Some("Bearer good"), "/v1/html") => return Ok(Response::new(Full::from("<html>hello</html>"))),
        (Some("Bearer good"), "/v1/resources/service/a%2Fb/c%20d") => (404, refusal("not_found")),
        (Some("Bearer reader"), _) => (403, refusal("forbidden")),
        (Some("Bearer good"), _) => (422, refusal("invalid")),
        _ => (401, refusal("unauthenticated")),
    };
    let response = Response::builder()
        .status(status)
        .header("content-type", "application/json")
        .body(Full::from(body.to_string()));
    Ok(response.expect("a status and a body"))
}

fn client(address: SocketAddr, trust: Trust, token: &str) -> Client {
    let server = format!("https://{address}").parse().expect("a URL");
    let connection = Connection { server, token: token.into(), trust, namespace: "default".into() };
    Client::new(&connection).expect("settings")
}

fn control_plane() -> Vec<SanType> {
    let id = "spiffe://corp.example/ns/tombolo-system/sa/controlplane";
    vec![SanType::URI(id.try_into().expect("ASCII"))]
}

fn workload() -> Vec<SanType> {
    vec![SanType::URI("spiffe://corp.example/ns/shop/sa/web".try_into().expect("ASCII"))]
}

#[tokio::test]
async fn a_control_plane_is_known_by_name_identity_or_pin() {
    let (ours, other) = (root("ours"), root("other"));
    let loopback = vec![SanType::IpAddress([127, 0, 0, 1].into())];
    let pin = identity::certificate::fingerprint(&ours.der.clone().into());
    let by_file = |root: &Root| Trust::Roots(root.file.clone());
    let cases = [
        (loopback.clone(), by_file(&ours), true),
        (control_plane(), by_file(&ours), true),
        (workload(), by_file(&ours), false),
        (vec![SanType::IpAddress([10, 0, 0, 1].into())], by_file(&ours), false),
        (loopback, by_file(&other), false),
        (control_plane(), by_file(&other), false),
        (control_plane(), Trust::Pin(pin), true),
        (control_plane(), Trust::Pin([0; 32]), false),
        (workload(), Trust::Pin(pin), false),
    ];
    for (names, trust, trusted) in cases {
        let address = serve(&ours, names.clone()).await;
        let answer = client(address, trust.clone(), "good").get::<Value>(&["watch"]).await;
        match answer {
            Ok(_) => assert!(trusted, "{names:?} was trusted by {trust:?}"),
            Err(error) => {
                assert!(matches!(error, ClientError::NotTrusted { .. }), "{error:?}");
                assert!(!trusted, "{names:?} was not trusted by {trust:?}: {error}");
                assert!(error.to_string().contains(&address.to_string()), "{error}");
            }
        }
    }
}

#[tokio::test]
async fn every_refusal_says_what_to_do() {
    let root = root("refusals");
    let address = serve(&root, control_plane()).await;
    let ask = async |token: &str, path: &[&str]| {
        let client = client(address, Trust::Roots(root.file.clone()), token);
        client.get::<Value>(path).await.expect_err("refused")
    };
    let unknown = ask("wrong", &["hosts"]).await;
    assert!(unknown.hint().contains("TOMBOLO_TOKEN") && unknown.exit() == Exit::Failed, "{unknown:?}");
    let forbidden = ask("reader", &["hosts"]).await;
    assert!(forbidden.hint().contains("role") && forbidden.exit() == Exit::Refused, "{forbidden:?}");
    let invalid = ask("good", &["apply"]).await;
    assert_eq!((invalid.to_string().as_str(), invalid.mistakes()), ("invalid!", &["a".to_owned(), "b".to_owned()][..]));
    let missing = ask("good", &["resources", "service", "a/b", "c d"]).await;
    assert!(missing.is_not_found(), "names are encoded into the path: {missing:?}");
    let grpc = ask("good", &["grpc"]).await;
    assert!(matches!(grpc, ClientError::NotOurs { .. }) && grpc.hint().contains("15014"), "{grpc:?}");
    let foreign = ask("good", &["html"]).await;
    assert!(matches!(&foreign, ClientError::NotOurs { start, .. } if start.contains("<html>")), "{foreign:?}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let root = root("gone");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    drop(listener);
    let client = client(address, Trust::Roots(root.file.clone()), "good");
    let error = client.get::<Value>(&["status"]).await.expect_err("nobody listens");
    assert!(matches!(&error, ClientError::Unreachable { why, .. } if why.contains("refused")), "{error:?}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

#[tokio::test]
async fn a_query_is_sent_as_it_is_meant() {
    let root = root("query");
    let address = serve(&root, control_plane()).await;
    let client = client(address, Trust::Roots(root.file.clone()), "good");
    let answer: Value = client.find(&["watch"], &[("namespace", "a&b=c")]).await.expect("answered");
    assert_eq!(answer["query"], "namespace=a%26b%3Dc");
}

#[test]
fn a_ca_file_without_certificates_is_refused() {
    let file = std::env::temp_dir().join(format!("tombolo-cli-{}-empty.pem", std::process::id()));
    std::fs::write(&file, "not a certificate").expect("written");
    let refused = trust::client_config(&Trust::Roots(file.clone())).expect_err("refused");
    std::fs::remove_file(&file).expect("removed");
    assert!(refused.to_string().contains(&file.display().to_string()), "{refused}");
    assert!(trust::client_config(&Trust::Roots("/nonexistent/ca.pem".into())).is_err());
}
