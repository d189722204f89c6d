//! Tests of `issuer`, the file beside this folder.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use identity::{Bundles, Svid};
use tempfile::TempDir;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::*;

fn trust_domain() -> TrustDomain {
    "mesh.example".parse().expect("well-formed")
}

fn orders() -> SpiffeId {
    "spiffe://mesh.example/ns/shop/sa/orders".parse().expect("well-formed")
}

fn data_dir() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn load(dir: &TempDir) -> Result<Issuer, CaError> {
    Issuer::load_or_create(dir.path(), &trust_domain())
}

fn mode(dir: &TempDir, name: &str) -> u32 {
    fs::metadata(dir.path().join(name)).expect("exists").permissions().mode() & 0o777
}

#[test]
fn the_first_start_makes_an_authority_and_the_next_finds_it() {
    let dir = data_dir();
    let first = load(&dir).expect("made");
    for (name, wanted) in [
        ("ca", 0o700),
        ("ca/root.key", 0o600),
        ("ca/issuing.key", 0o600),
        ("ca/root.pem", 0o644),
        ("ca/issuing.pem", 0o644),
        ("ca.pem", 0o644),
    ] {
        assert_eq!(mode(&dir, name), wanted, "{name}");
    }
    let again = load(&dir).expect("found");
    assert_eq!(again.ca_pin(), first.ca_pin());
    assert_eq!(fs::read_to_string(dir.path().join("ca.pem")).expect("readable"), first.roots_pem());
    let years = first.ca_not_after().duration_since(SystemTime::now()).expect("in the future").as_secs() / 31_536_000;
    assert_eq!(years, 10);
}

#[test]
fn a_workload_gets_exactly_the_certificate_the_mesh_wants() {
    let dir = data_dir();
    let issuer = load(&dir).expect("made");
    let key = KeyPair::generate().expect("random");
    // The request names another identity: it is ignored.
    let csr = key.csr(Some(&"spiffe://mesh.example/ns/shop/sa/admin".parse().expect("valid"))).expect("signs");
    let now = SystemTime::now();
    let signed = issuer.sign_workload(&csr, &orders(), None).expect("signs");
    let svid = Svid::from_pem(&signed.chain_pem.concat(), &key).expect("usable");
    assert_eq!(svid.identity(), &orders());
    assert_eq!(svid.serial(), signed.serial);
    assert_eq!(signed.chain_pem.len(), 2);
    let bundles = Bundles::from_pem(&trust_domain(), &signed.roots_pem).expect("roots");
    assert_eq!(svid.verify(&bundles, now), Ok(()));
    let life = svid.not_after().duration_since(now).expect("later").as_secs();
    assert!((3590..=3600).contains(&life), "{life}");
    let backdate = now.duration_since(svid.not_before()).expect("earlier").as_secs();
    assert!((119..=121).contains(&backdate), "{backdate}");

    let leaf = svid.chain()[0].clone();
    let (_, leaf) = X509Certificate::from_der(&leaf).expect("DER");
    assert!(leaf.subject().iter().next().is_none(), "the subject is empty");
    let names = leaf.subject_alternative_name().expect("well-formed").expect("there");
    assert!(names.critical && names.value.general_names.len() == 1);
    assert!(!leaf.basic_constraints().expect("well-formed").expect("there").value.ca);
    assert_eq!(leaf.key_usage().expect("well-formed").expect("there").value.flags, 1, "digitalSignature alone");
    let serials: std::collections::BTreeSet<String> =
        (0..20).map(|_| issuer.sign_workload(&csr, &orders(), None).expect("signs").serial).collect();
    assert_eq!(serials.len(), 20);
    assert!(serials.iter().all(|serial| serial.len() > 24), "{serials:?}");
}

#[test]
fn lifetimes_are_ours_to_bound() {
    let dir = data_dir();
    let issuer = load(&dir).expect("made");
    let key = KeyPair::generate().expect("random");
    let csr = key.csr(None).expect("signs");
    let life = |wanted| {
        let signed = issuer.sign_workload(&csr, &orders(), Some(Duration::from_secs(wanted))).expect("signs");
        signed.not_after.duration_since(SystemTime::now()).expect("later").as_secs()
    };
    assert!((3590..=3600).contains(&life(999_999)));
    assert!((590..=600).contains(&life(600)));
    assert!((50..=60).contains(&life(1)), "at least a minute");
    let short = issuer.sign_workload(&csr, &orders(), Some(Duration::from_secs(60))).expect("signs");
    let svid = Svid::from_pem(&short.chain_pem.concat(), &key).expect("usable");
    let backdate = SystemTime::now().duration_since(svid.not_before()).expect("earlier").as_secs();
    assert!(backdate <= 16, "a quarter of its life at most, or ztunnel would renew without end: {backdate}");
    let host = issuer.sign_host(&csr, "vm-1").expect("signs");
    assert_eq!(host.identity.to_string(), "spiffe://mesh.example/host/vm-1");
    let life = host.not_after.duration_since(SystemTime::now()).expect("later").as_secs();
    assert!((86_390..=86_400).contains(&life), "{life}");
}

#[test]
fn requests_that_prove_nothing_are_refused() {
    let dir = data_dir();
    let issuer = load(&dir).expect("made");
    let problem = |csr: &str| match issuer.sign_workload(csr, &orders(), None) {
        Err(SignError::Request(problem)) => problem,
        other => panic!("expected a refusal, got {other:?}"),
    };
    assert_eq!(problem(""), CsrProblem::NotPem);
    assert_eq!(problem(&"x".repeat(20_000)), CsrProblem::TooLong { bytes: 20_000 });
    let body = data_encoding::BASE64.encode(b"not a request");
    let framed =
        |body: &str| format!("-----BEGIN CERTIFICATE REQUEST-----\n{body}\n-----END CERTIFICATE REQUEST-----\n");
    assert_eq!(problem(&framed(&body)), CsrProblem::Malformed);
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("generates");
    let foreign = CertificateParams::default().serialize_request(&p384).expect("signs").pem().expect("PEM");
    assert_eq!(problem(&foreign), CsrProblem::NotP256);
    let good = CertificateParams::default().serialize_request(&KeyPair::generate().expect("random")).expect("signs");
    let mut bytes = good.der().to_vec();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let tampered = framed(&data_encoding::BASE64.encode(&bytes));
    assert_eq!(problem(&tampered), CsrProblem::Signature);
    let csr = good.pem().expect("PEM");
    let abroad = "spiffe://other.example/ns/shop/sa/orders".parse().expect("valid");
    assert!(matches!(issuer.sign_workload(&csr, &abroad, None), Err(SignError::ForeignTrustDomain { .. })));
    assert!(matches!(issuer.sign_host(&csr, "a/b"), Err(SignError::Name { .. })));
}

#[test]
fn a_start_that_died_anywhere_is_healed() {
    // Each prefix of the order of creation, as a crash leaves it.
    let whole = data_dir();
    let pin = load(&whole).expect("made").ca_pin();
    let order = ["root.key", "root.pem", "issuing.key", "issuing.pem"];
    for kept in 0..=order.len() {
        let dir = data_dir();
        fs::create_dir(dir.path().join("ca")).expect("made");
        for name in &order[..kept] {
            fs::copy(whole.path().join("ca").join(name), dir.path().join("ca").join(name)).expect("copied");
        }
        fs::write(dir.path().join("ca/.root.key.new"), "half of a k").expect("written");
        let issuer = load(&dir).unwrap_or_else(|error| panic!("after {kept} files: {error}"));
        if kept >= 2 {
            assert_eq!(issuer.ca_pin(), pin, "after {kept} files");
        }
        let csr = KeyPair::generate().expect("random").csr(None).expect("signs");
        issuer.sign_workload(&csr, &orders(), None).expect("signs");
    }
}

#[test]
fn a_replica_without_the_roots_key_signs_too() {
    let dir = data_dir();
    let pin = load(&dir).expect("made").ca_pin();
    fs::remove_file(dir.path().join("ca/root.key")).expect("there");
    let replica = load(&dir).expect("the root's key is only needed to renew");
    assert_eq!(replica.ca_pin(), pin);
    let csr = KeyPair::generate().expect("random").csr(None).expect("signs");
    replica.sign_workload(&csr, &orders(), None).expect("signs");
}

#[test]
fn broken_authorities_are_refused_and_the_file_is_named() {
    let refused = |spoil: &dyn Fn(&TempDir)| {
        let dir = data_dir();
        load(&dir).expect("made");
        spoil(&dir);
        load(&dir).expect_err("must be refused")
    };
    let other = data_dir();
    load(&other).expect("made");
    let swap = |name: &'static str| {
        let from = other.path().join("ca").join(name);
        move |dir: &TempDir| {
            fs::copy(&from, dir.path().join("ca").join(name)).expect("copied");
        }
    };
    let remove =
        |name: &'static str| move |dir: &TempDir| fs::remove_file(dir.path().join("ca").join(name)).expect("there");
    let fill = |name: &'static str, text: &'static str| {
        move |dir: &TempDir| fs::write(dir.path().join("ca").join(name), text).expect("written")
    };
    let loosen = |dir: &TempDir| {
        let path = dir.path().join("ca/issuing.key");
        fs::set_permissions(path, fs::Permissions::from_mode(0o640)).expect("allowed");
    };
    let loose = refused(&loosen);
    assert!(matches!(loose, CaError::LooseKey { mode: 0o640, .. }), "{loose}");
    assert!(loose.to_string().contains("issuing.key") && loose.to_string().contains("chmod 600"), "{loose}");
    assert!(matches!(refused(&swap("root.key")), CaError::Mismatch { .. }));
    assert!(matches!(refused(&swap("issuing.key")), CaError::Mismatch { .. }));
    assert!(matches!(refused(&swap("root.pem")), CaError::Mismatch { .. }));
    assert!(matches!(refused(&swap("issuing.pem")), CaError::Mismatch { .. }));
    assert!(matches!(
        refused(&|dir| {
            swap("issuing.pem")(dir);
            swap("issuing.key")(dir);
        }),
        CaError::NotSignedByRoot { .. }
    ));
    assert!(matches!(refused(&remove("root.pem")), CaError::Missing { .. }));
    assert!(matches!(refused(&remove("issuing.key")), CaError::Missing { .. }));
    assert!(matches!(refused(&fill("root.key", "rubbish")), CaError::Key { .. }));
    assert!(matches!(refused(&fill("root.pem", "rubbish")), CaError::NotPem { .. }));
    assert!(matches!(
        refused(&fill("issuing.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")),
        CaError::Certificate { .. }
    ));

    let dir = data_dir();
    load(&dir).expect("made");
    let elsewhere = Issuer::load_or_create(dir.path(), &"other.example".parse().expect("valid"));
    assert!(matches!(elsewhere, Err(CaError::OtherTrustDomain { .. })));
    let later = SystemTime::now() + Duration::from_secs(11 * 31_557_600);
    assert!(matches!(Issuer::load_or_create_at(dir.path(), &trust_domain(), later), Err(CaError::Expired { .. })));
    let earlier = SystemTime::now() - Duration::from_secs(2 * 86_400);
    assert!(matches!(
        Issuer::load_or_create_at(dir.path(), &trust_domain(), earlier),
        Err(CaError::NotYetValid { .. })
    ));
}

#[test]
fn the_issuing_certificate_is_renewed_before_it_ends() {
    let dir = data_dir();
    let issuer = load(&dir).expect("made");
    let key = KeyPair::generate().expect("random");
    let csr = key.csr(None).expect("signs");
    let before = issuer.sign(&csr, &orders(), WORKLOAD_LIFETIME, SystemTime::now()).expect("signs").chain_pem;
    let late = SystemTime::now() + Duration::from_secs(300 * 86_400);
    let signed = issuer.sign(&csr, &orders(), WORKLOAD_LIFETIME, late).expect("signs");
    assert_ne!(signed.chain_pem[1], before[1], "another issuing certificate");
    let svid = Svid::from_pem(&signed.chain_pem.concat(), &key).expect("usable");
    let bundles = Bundles::from_pem(&trust_domain(), &signed.roots_pem).expect("roots");
    assert_eq!(svid.verify(&bundles, late), Ok(()), "the same root vouches for it");
    let restarted = Issuer::load_or_create_at(dir.path(), &trust_domain(), late).expect("found");
    assert_eq!(
        restarted.sign(&csr, &orders(), WORKLOAD_LIFETIME, late).expect("signs").chain_pem[1],
        signed.chain_pem[1]
    );

    // Without the root's key it is used to its end, and leaves never outlive it.
    fs::remove_file(dir.path().join("ca/root.key")).expect("there");
    let last_day = late + Duration::from_secs(364 * 86_400 + 86_400 - 600);
    let last = restarted.sign(&csr, &orders(), WORKLOAD_LIFETIME, last_day).expect("signs");
    assert!(last.not_after <= last_day + Duration::from_secs(601));
    let after = last_day + Duration::from_secs(3600);
    assert!(matches!(restarted.sign(&csr, &orders(), WORKLOAD_LIFETIME, after), Err(SignError::IssuingExpired { .. })));
}

/// An authority's files as the unit gives them, and what of them is in `data`.
struct Given {
    made: TempDir,
    folder: TempDir,
    data: TempDir,
}

impl Given {
    fn new() -> Self {
        let given = Self { made: data_dir(), folder: data_dir(), data: data_dir() };
        load(&given.made).expect("made");
        for (file, name) in CREDENTIALS {
            given.put(name, &given.made.path().join("ca").join(file));
        }
        given
    }

    fn put(&self, name: &str, from: &Path) {
        fs::copy(from, self.folder.path().join(name)).expect("copied");
        // What systemd's ACL looks like to stat.
        fs::set_permissions(self.folder.path().join(name), fs::Permissions::from_mode(0o440)).expect("allowed");
    }

    fn start(&self) -> Result<Issuer, CaError> {
        self.start_at(SystemTime::now())
    }

    fn start_at(&self, now: SystemTime) -> Result<Issuer, CaError> {
        let credentials = CaCredentials::find(self.folder.path())?.expect("they are there");
        Issuer::from_credentials_at(&credentials, self.data.path(), &trust_domain(), now)
    }
}

const CREDENTIALS: [(&str, &str); 3] =
    [("root.pem", "ca-root-cert"), ("issuing.pem", "ca-issuing-cert"), ("issuing.key", "ca-issuing-key")];

#[test]
fn an_authority_of_credentials_signs_and_no_key_is_in_the_data_directory() {
    let given = Given::new();
    let issuer = given.start().expect("whole");
    assert_eq!(issuer.ca_pin(), load(&given.made).expect("found").ca_pin());
    let key = KeyPair::generate().expect("random");
    let signed = issuer.sign_workload(&key.csr(None).expect("signs"), &orders(), None).expect("signs");
    let svid = Svid::from_pem(&signed.chain_pem.concat(), &key).expect("usable");
    let bundles = Bundles::from_pem(&trust_domain(), &signed.roots_pem).expect("roots");
    assert_eq!(svid.verify(&bundles, SystemTime::now()), Ok(()));
    let written: Vec<_> =
        fs::read_dir(given.data.path()).expect("there").flatten().map(|one| one.file_name()).collect();
    assert_eq!(written, ["ca.pem"]);

    // As the unit calls what it decrypts.
    let folder = given.folder.path();
    fs::rename(folder.join("ca-issuing-key"), folder.join("tombolo-controlplane.ca-issuing-key.cred")).expect("there");
    given.start().expect("whole");
    // None at all is for the files below the data directory.
    assert_eq!(CaCredentials::find(data_dir().path()).expect("readable"), None);
}

#[test]
fn broken_authorities_of_credentials_are_refused_and_the_credential_is_named() {
    let other = data_dir();
    load(&other).expect("made");
    let refused = |spoil: &dyn Fn(&Given)| {
        let given = Given::new();
        spoil(&given);
        given.start().expect_err("must be refused")
    };
    for (_, name) in CREDENTIALS {
        let error = refused(&|given| fs::remove_file(given.folder.path().join(name)).expect("there"));
        assert!(
            matches!(&error, CaError::Credentials(CredentialProblem::Missing { missing, .. }) if *missing == name),
            "{name}: {error}"
        );
        assert!(error.to_string().contains(&format!("/etc/credstore/tombolo-controlplane.{name}")), "{error}");
    }
    let twice = refused(&|given| {
        given.put("tombolo-controlplane.ca-issuing-key.cred", &other.path().join("ca/issuing.key"));
    });
    assert!(matches!(twice, CaError::Credentials(CredentialProblem::Twice { .. })), "{twice}");
    let swap = |file: &'static str, name: &'static str| {
        let from = other.path().join("ca").join(file);
        move |given: &Given| given.put(name, &from)
    };
    let mismatch = refused(&swap("issuing.key", "ca-issuing-key"));
    assert!(matches!(mismatch, CaError::Mismatch { .. }) && mismatch.to_string().contains("ca-issuing-key"));
    assert!(matches!(refused(&swap("issuing.pem", "ca-issuing-cert")), CaError::Mismatch { .. }));
    assert!(matches!(refused(&swap("root.pem", "ca-root-cert")), CaError::NotSignedByRoot { .. }));
    assert!(matches!(refused(&swap("root.pem", "ca-issuing-key")), CaError::Key { .. }));
    assert!(matches!(refused(&swap("root.key", "ca-root-cert")), CaError::NotPem { .. }));
    let leaf = refused(&|given| {
        let key = KeyPair::generate().expect("random");
        let issuer = load(&given.made).expect("found");
        let signed = issuer.sign_workload(&key.csr(None).expect("signs"), &orders(), None).expect("signs");
        // Its issuer is the intermediate: in the place of both it is signed by the root that is named.
        let folder = given.made.path();
        fs::write(folder.join("leaf.pem"), &signed.chain_pem[0]).expect("written");
        fs::write(folder.join("leaf.key"), key.to_pem().as_bytes()).expect("written");
        given.put("ca-root-cert", &folder.join("ca/issuing.pem"));
        given.put("ca-issuing-cert", &folder.join("leaf.pem"));
        given.put("ca-issuing-key", &folder.join("leaf.key"));
    });
    assert!(matches!(leaf, CaError::NotACa { .. }) && leaf.to_string().contains("ca-issuing-cert"), "{leaf}");

    let given = Given::new();
    let credentials = CaCredentials::find(given.folder.path()).expect("readable").expect("there");
    let elsewhere = Issuer::from_credentials(&credentials, given.data.path(), &"other.example".parse().expect("valid"));
    assert!(matches!(elsewhere, Err(CaError::OtherTrustDomain { .. })));
    let error = given.start_at(SystemTime::now() + Duration::from_secs(366 * 86_400)).expect_err("it has ended");
    assert!(matches!(&error, CaError::Expired { path, .. } if path.ends_with("ca-issuing-cert")), "{error}");
    assert!(error.to_string().contains("tombolo-controlplane ca renew"), "{error}");
    let earlier = given.start_at(SystemTime::now() - Duration::from_secs(2 * 86_400)).expect_err("not yet");
    assert!(matches!(earlier, CaError::NotYetValid { .. }), "{earlier}");
    assert!(!given.data.path().join("ca").exists(), "a refused start made an authority of its own");
}

#[test]
fn a_given_issuing_certificate_is_used_to_its_end_and_renewed_where_the_root_is() {
    let given = Given::new();
    let issuer = given.start().expect("whole");
    let csr = KeyPair::generate().expect("random").csr(None).expect("signs");
    let sign = |issuer: &Issuer, at| issuer.sign(&csr, &orders(), WORKLOAD_LIFETIME, at);
    let last_day = SystemTime::now() + Duration::from_secs(365 * 86_400 - 600);
    sign(&issuer, last_day).expect("it still signs");
    let warned = issuer.inner.issuing.read().expect("whole").warned;
    assert_eq!(warned, Some(last_day), "nobody was told");
    sign(&issuer, last_day + Duration::from_secs(60)).expect("it still signs");
    assert_eq!(issuer.inner.issuing.read().expect("whole").warned, warned, "told at every signature");
    let after = last_day + Duration::from_secs(3600);
    assert!(matches!(sign(&issuer, after), Err(SignError::IssuingExpired { .. })));

    let ca = given.made.path().join("ca");
    let before = fs::read_to_string(ca.join("issuing.pem")).expect("there");
    renew_issuing(&ca).expect("the root's key is there");
    assert_ne!(fs::read_to_string(ca.join("issuing.pem")).expect("there"), before);
    given.put("ca-issuing-cert", &ca.join("issuing.pem"));
    given.start().expect("the same key, a new certificate");
    // With a key of its own, which is how one is replaced.
    fs::remove_file(ca.join("issuing.key")).expect("there");
    renew_issuing(&ca).expect("the root's key is there");
    given.start().expect("what was given is still whole");
    given.put("ca-issuing-cert", &ca.join("issuing.pem"));
    assert!(matches!(given.start(), Err(CaError::Mismatch { .. })));
    given.put("ca-issuing-key", &ca.join("issuing.key"));
    given.start().expect("both are new");

    fs::remove_file(ca.join("root.key")).expect("there");
    let error = renew_issuing(&ca).expect_err("no root");
    assert!(matches!(&error, CaError::Missing { .. }) && error.to_string().contains("root.key"), "{error}");
}

#[test]
fn the_server_certificate_serves_agents_and_curl() {
    let dir = data_dir();
    let issuer = load(&dir).expect("made");
    let names = ["cp.example".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    let server = server::ServerCertificate::new(issuer.clone(), &names).expect("signs");
    let now = SystemTime::now();
    let first = server.certified(now);
    assert_eq!(first.cert.len(), 3, "leaf, intermediate and the root that pins name");
    assert_eq!(fingerprint(&first.cert[2]), issuer.ca_pin());
    let (_, leaf) = X509Certificate::from_der(&first.cert[0]).expect("DER");
    let sans = leaf.subject_alternative_name().expect("well-formed").expect("there");
    assert_eq!(sans.value.general_names.len(), 4);
    assert_eq!(server.certified(now + HOST_LIFETIME / 3).cert, first.cert);
    assert_ne!(server.certified(now + HOST_LIFETIME / 2).cert, first.cert, "renewed at half life");
    for bad in ["", "two words", "*.example", "-x-"] {
        assert!(matches!(issuer.server_tls(&[bad.to_owned()]), Err(SignError::ServerName { .. })), "{bad:?}");
    }
}

/// The corpus of the fuzz target `csr`, and each of its inputs with each byte changed.
#[test]
fn fuzzed_requests_are_refused_or_give_a_key_on_p256() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus/csr");
    let mut keys = Vec::new();
    for entry in fs::read_dir(folder).expect("the corpus is there") {
        let path = entry.expect("just listed").path();
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if public_key(&text).is_ok() {
            keys.push(name);
        }
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'/' } else { b'A' };
            if let Ok(key) = String::from_utf8(bytes).map_err(|_| CsrProblem::NotPem).and_then(|text| public_key(&text))
            {
                assert_eq!(rcgen::PublicKeyData::der_bytes(&key).len(), 65);
            }
        }
    }
    keys.sort();
    // The odd one asks to be a CA with other names: its key is taken, nothing else of it.
    assert_eq!(keys, ["good", "names", "text-before", "twice"]);
}
