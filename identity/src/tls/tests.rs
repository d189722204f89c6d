//! Real handshakes between rustls' client and server, byte for byte in memory.

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use rustls::{ClientConnection, ServerConnection};

use super::*;
use crate::certificate::fingerprint;
use crate::testing::{TestCa, id};
use crate::verifier::VerifyError;

const TD: &str = "mesh.example";
const WEB: &str = "spiffe://mesh.example/ns/shop/sa/web";
const ORDERS: &str = "spiffe://mesh.example/ns/shop/sa/orders";
const STOCK: &str = "spiffe://mesh.example/ns/shop/sa/stock";
const CONTROL_PLANE: &str = "spiffe://mesh.example/ns/tombolo-system/sa/controlplane";

/// What both sides saw: the identity each proved to the other, or each one's error.
#[derive(Debug)]
struct Outcome {
    client: Result<SpiffeId, rustls::Error>,
    server: Result<Option<SpiffeId>, rustls::Error>,
    alpn: Option<Vec<u8>>,
    group: Option<rustls::NamedGroup>,
}

fn handshake(client: Arc<ClientConfig>, name: ServerName<'static>, server: Arc<ServerConfig>) -> Outcome {
    let mut client = ClientConnection::new(client, name).expect("a client connection");
    let mut server = ServerConnection::new(server).expect("a server connection");
    let (mut client_error, mut server_error) = (None, None);
    // TLS 1.3 needs three flights; an alert needs one more.
    for _ in 0..6 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).expect("memory takes all");
        }
        let mut flight = wire.as_slice();
        while !flight.is_empty() && server_error.is_none() {
            server.read_tls(&mut flight).expect("memory gives all");
            server_error = server.process_new_packets().err();
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).expect("memory takes all");
        }
        let mut flight = wire.as_slice();
        while !flight.is_empty() && client_error.is_none() {
            client.read_tls(&mut flight).expect("memory gives all");
            client_error = client.process_new_packets().err();
        }
    }
    let proved = |chain: Option<&[CertificateDer<'static>]>| chain.map(|chain| peer_identity(chain).expect("verified"));
    Outcome {
        client: match client_error {
            Some(error) => Err(error),
            None => Ok(proved(client.peer_certificates()).expect("servers always prove themselves")),
        },
        server: match server_error {
            Some(error) => Err(error),
            None => Ok(proved(server.peer_certificates())),
        },
        alpn: client.alpn_protocol().map(<[u8]>::to_vec),
        group: client.negotiated_key_exchange_group().map(|group| group.name()),
    }
}

fn tunnel(from: &Credentials, own: &str, expected: &[&str], to: &Credentials, default: &str) -> Outcome {
    let expected: Vec<SpiffeId> = expected.iter().map(|text| id(text)).collect();
    let name = server_name(&expected);
    let client = client_config(from, &id(own), expected, &[HBONE_ALPN]).expect("a configuration");
    let server = server_config(to, &id(default), &[HBONE_ALPN]).expect("a configuration");
    handshake(client, name, server)
}

fn refused(error: &rustls::Error) -> VerifyError {
    refusal(error).unwrap_or_else(|| panic!("not a refusal of our verifier: {error}"))
}

#[test]
fn two_workloads_of_one_mesh_prove_themselves_to_each_other() {
    let ca = TestCa::new(TD);
    let seen = tunnel(&ca.credentials(&[WEB]), WEB, &[ORDERS], &ca.credentials(&[ORDERS]), ORDERS);
    assert_eq!(seen.client, Ok(id(ORDERS)));
    assert_eq!(seen.server, Ok(Some(id(WEB))));
    assert_eq!(seen.alpn.as_deref(), Some(HBONE_ALPN));
    assert_eq!(seen.group, Some(rustls::NamedGroup::X25519MLKEM768));
}

#[test]
fn a_server_with_another_identity_is_refused_by_name() {
    let ca = TestCa::new(TD);
    let seen = tunnel(&ca.credentials(&[WEB]), WEB, &[ORDERS], &ca.credentials(&[STOCK]), STOCK);
    let error = seen.client.expect_err("must be refused");
    assert_eq!(refused(&error), VerifyError::WrongIdentity { expected: vec![id(ORDERS)], proved: id(STOCK) });
    assert_eq!(explain(&error).expect("explained"), format!("expected {ORDERS}, but the peer proved to be {STOCK}"));
    let alert = explain(&seen.server.expect_err("told by alert")).expect("explained");
    assert!(alert.contains("does not accept our identity"), "{alert}");
    let wrapped = std::io::Error::new(std::io::ErrorKind::InvalidData, error);
    assert!(refusal(&wrapped).is_some(), "found inside the io::Error of tokio-rustls too");
}

#[test]
fn one_host_proves_the_workload_that_is_asked_for() {
    let ca = TestCa::new(TD);
    let host = ca.credentials(&[ORDERS, STOCK]);
    let web = ca.credentials(&[WEB]);
    assert_eq!(tunnel(&web, WEB, &[STOCK], &host, ORDERS).client, Ok(id(STOCK)));
    assert_eq!(tunnel(&web, WEB, &[ORDERS], &host, ORDERS).client, Ok(id(ORDERS)));
    // Several are acceptable: no server name is sent, as by a ztunnel, and the default answers.
    assert_eq!(tunnel(&web, WEB, &[STOCK, ORDERS], &host, ORDERS).client, Ok(id(ORDERS)));
    host.withdraw(&id(STOCK));
    let gone = tunnel(&web, WEB, &[STOCK], &host, ORDERS).client.expect_err("no longer proved here");
    assert!(matches!(refused(&gone), VerifyError::WrongIdentity { .. }));
}

#[test]
fn another_trust_domain_is_refused_even_with_our_root() {
    let (ours, theirs) = (TestCa::new(TD), TestCa::new("other.example"));
    let foreign = "spiffe://other.example/ns/shop/sa/web";
    let orders = ours.credentials(&[ORDERS]);
    let stranger = theirs.credentials(&[foreign]);
    stranger.set_bundles({
        let mut bundles = theirs.bundles();
        bundles.insert(theirs.trust_domain.clone(), vec![theirs.root_der(), ours.root_der()]).expect("roots");
        bundles
    });
    let seen = tunnel(&stranger, foreign, &[ORDERS], &orders, ORDERS);
    assert!(seen.client.is_err(), "the server's identity is not of the client's trust domain");

    // Signed by our root, but for a foreign name: the name decides.
    let smuggled = ours.credentials(&[]);
    smuggled.publish(ours.svid(foreign));
    let seen = tunnel(&smuggled, foreign, &[ORDERS], &orders, ORDERS);
    let error = seen.server.expect_err("must be refused");
    assert_eq!(
        refused(&error),
        VerifyError::ForeignTrustDomain { own: ours.trust_domain.clone(), proved: id(foreign) }
    );

    // Signed by their root, for our name.
    let forged = ours.credentials(&[]);
    let their_web = TestCa::new(TD).svid(WEB);
    forged.publish(their_web);
    let seen = tunnel(&forged, WEB, &[ORDERS], &orders, ORDERS);
    assert_eq!(refused(&seen.server.expect_err("must be refused")), VerifyError::UnknownIssuer);
}

#[test]
fn expired_and_future_certificates_are_refused_with_both_times() {
    let ca = TestCa::new(TD);
    let now = SystemTime::now();
    let hours = |n: u64| Duration::from_secs(n * 3600);
    let stale = ca.credentials(&[]);
    stale.publish(ca.svid_with(WEB, |params| {
        params.not_before = (now - hours(3)).into();
        params.not_after = (now - hours(2)).into();
    }));
    let orders = ca.credentials(&[ORDERS]);
    let seen = tunnel(&stale, WEB, &[ORDERS], &orders, ORDERS);
    let error = seen.server.expect_err("must be refused");
    assert!(matches!(refused(&error), VerifyError::Expired { .. }));
    let text = explain(&error).expect("explained");
    assert_eq!(text.matches('Z').count(), 2, "both times are said: {text}");
    let alert = explain(&seen.client.expect_err("told by alert")).expect("explained");
    assert!(alert.contains("our certificate is expired"), "{alert}");

    let early = ca.credentials(&[]);
    early.publish(ca.svid_with(ORDERS, |params| {
        params.not_before = (now + hours(2)).into();
        params.not_after = (now + hours(3)).into();
    }));
    let seen = tunnel(&ca.credentials(&[WEB]), WEB, &[ORDERS], &early, ORDERS);
    assert!(matches!(refused(&seen.client.expect_err("must be refused")), VerifyError::NotYetValid { .. }));
}

#[test]
fn a_client_without_a_certificate_is_refused_and_told() {
    let ca = TestCa::new(TD);
    let seen = tunnel(&ca.credentials(&[]), WEB, &[ORDERS], &ca.credentials(&[ORDERS]), ORDERS);
    assert!(matches!(seen.server, Err(rustls::Error::NoCertificatesPresented)), "{:?}", seen.server);
    let alert = explain(&seen.client.expect_err("told by alert")).expect("explained");
    assert!(alert.contains("we presented none"), "{alert}");
}

#[test]
fn a_client_certificate_for_servers_only_is_refused() {
    let ca = TestCa::new(TD);
    let key = crate::KeyPair::generate().expect("generates");
    let mut params = TestCa::leaf_params(&[WEB]);
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let chain: Vec<CertificateDer<'static>> = {
        use rustls::pki_types::pem::PemObject;
        CertificateDer::pem_slice_iter(ca.sign(&key, &params).as_bytes()).map(|der| der.expect("PEM")).collect()
    };
    let now = rustls::pki_types::UnixTime::now();
    let verdict = crate::verifier::verify_client(&chain, &ca.bundles(), &ca.trust_domain, now);
    assert!(matches!(verdict, Err(VerifyError::Chain(_))), "{verdict:?}");
}

#[test]
fn a_client_like_ztunnel_is_a_peer() {
    // What ztunnel was seen to send: X25519 only, no server name, ALPN h2.
    let ca = TestCa::new(TD);
    let web = ca.credentials(&[WEB]);
    let mut client =
        ClientConfig::clone(&client_config(&web, &id(WEB), vec![id(ORDERS)], &[HBONE_ALPN]).expect("a configuration"));
    client.enable_sni = false;
    let server = server_config(&ca.credentials(&[ORDERS, STOCK]), &id(ORDERS), &[HBONE_ALPN]).expect("configuration");
    let seen = handshake(Arc::new(client.clone()), server_name(&[id(ORDERS)]), server.clone());
    assert_eq!((seen.client, seen.server), (Ok(id(ORDERS)), Ok(Some(id(WEB)))));

    client.alpn_protocols = vec![];
    let seen = handshake(Arc::new(client.clone()), server_name(&[]), server.clone());
    assert_eq!(seen.client, Ok(id(ORDERS)), "no ALPN is taken for h2");
    client.alpn_protocols = vec![b"istio".to_vec()];
    let seen = handshake(Arc::new(client), server_name(&[]), server);
    assert!(matches!(seen.client, Err(rustls::Error::AlertReceived(rustls::AlertDescription::NoApplicationProtocol))));
}

#[test]
fn new_handshakes_use_the_certificate_published_last() {
    let ca = TestCa::new(TD);
    let (web, orders) = (ca.credentials(&[WEB]), ca.credentials(&[ORDERS]));
    let before = orders.generation();
    let first = orders.svid(&id(ORDERS)).expect("published").serial().to_owned();
    orders.publish(ca.svid(ORDERS));
    assert!(orders.generation() > before);
    assert_ne!(orders.svid(&id(ORDERS)).expect("published").serial(), first);
    assert_eq!(tunnel(&web, WEB, &[ORDERS], &orders, ORDERS).client, Ok(id(ORDERS)));
    assert_eq!(orders.identities(), [id(ORDERS)]);
}

fn control_plane(ca: &TestCa, certificate: Svid) -> Arc<ServerConfig> {
    let credentials = ca.credentials(&[]);
    let own = certificate.identity().clone();
    credentials.publish(certificate);
    let resolver = OwnCertificates { credentials: credentials.clone(), default: own };
    control_plane_server_config(Arc::new(resolver), &credentials).expect("a configuration")
}

#[test]
fn a_joining_host_believes_the_pinned_control_plane_only() {
    let ca = TestCa::new(TD);
    let server = control_plane(&ca, ca.svid_with_root(CONTROL_PLANE));
    let root = fingerprint(&ca.root_der());
    let join = |pins: Pins| {
        let client = join_client_config(pins).expect("pins are set");
        handshake(client, ServerName::try_from("cp.example").expect("a name"), server.clone())
    };
    let token = api::token::JoinToken::generate(&root);
    let good = [
        Pins { root_sha256: Some(root), token: None },
        Pins { root_sha256: None, token: Some(token.clone()) },
        Pins { root_sha256: Some(root), token: Some(token.clone()) },
    ];
    for pins in good {
        let seen = join(pins);
        assert_eq!(seen.client, Ok(id(CONTROL_PLANE)));
        assert_eq!(seen.server, Ok(None), "a joining host has no certificate, and needs none");
    }
    let wrong = join(Pins { root_sha256: Some([9; 32]), token: Some(token) });
    let text = explain(&wrong.client.expect_err("must be refused")).expect("explained");
    assert!(text.contains("not the pinned control plane"), "{text}");
    assert!(text.contains(&data_encoding::HEXLOWER.encode(&root)), "says what was presented: {text}");
    assert!(matches!(join_client_config(Pins::default()), Err(TlsError::NoPin)));
}

#[test]
fn a_workload_of_the_mesh_cannot_play_the_control_plane() {
    let ca = TestCa::new(TD);
    let server = control_plane(&ca, ca.svid_with_root(WEB));
    let pins = Pins { root_sha256: Some(fingerprint(&ca.root_der())), token: None };
    let seen = handshake(join_client_config(pins).expect("pins"), server_name(&[]), server.clone());
    assert_eq!(refused(&seen.client.expect_err("must be refused")), VerifyError::NotAControlPlane { proved: id(WEB) });
    let joined = control_plane_client_config(&ca.bundles(), None, &ca.trust_domain).expect("a configuration");
    let seen = handshake(joined, server_name(&[]), server);
    assert!(matches!(refused(&seen.client.expect_err("must be refused")), VerifyError::WrongIdentity { .. }));
}

#[test]
fn a_pinned_root_that_did_not_sign_the_rest_is_worth_nothing() {
    let (ca, attacker) = (TestCa::new(TD), TestCa::new(TD));
    let key = crate::KeyPair::generate().expect("generates");
    let chain = attacker.sign(&key, &TestCa::leaf_params(&[CONTROL_PLANE])) + &ca.root.pem();
    let server = control_plane(&attacker, Svid::from_pem(&chain, &key).expect("usable"));
    let pins = Pins { root_sha256: Some(fingerprint(&ca.root_der())), token: None };
    let seen = handshake(join_client_config(pins).expect("pins"), server_name(&[]), server);
    assert_eq!(refused(&seen.client.expect_err("must be refused")), VerifyError::UnknownIssuer);
}

#[test]
fn a_joined_host_proves_itself_to_its_control_plane() {
    let ca = TestCa::new(TD);
    let server = control_plane(&ca, ca.svid_with_root(CONTROL_PLANE));
    let host = "spiffe://mesh.example/host/vm-1";
    let own = Some(Arc::new(ca.svid(host)));
    let client = control_plane_client_config(&ca.bundles(), own, &ca.trust_domain).expect("a configuration");
    let seen = handshake(client, server_name(&[]), server);
    assert_eq!((seen.client, seen.server), (Ok(id(CONTROL_PLANE)), Ok(Some(id(host)))));
}

#[test]
fn pins_are_read_as_they_are_printed() {
    let text = format!("sha256:{}", "ab".repeat(32));
    assert_eq!(Pins::parse(&text), Some([0xab; 32]));
    assert_eq!(Pins::parse(&text.to_uppercase().replace("SHA256", "sha256")), Some([0xab; 32]));
    for bad in ["", "sha256:", "ab", "sha256:zz", &format!("sha512:{}", "ab".repeat(32)), &"a".repeat(64)] {
        assert_eq!(Pins::parse(bad), None, "{bad:?}");
    }
}
