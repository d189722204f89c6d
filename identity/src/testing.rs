//! A certificate authority for this crate's tests: makes good certificates and every kind of bad.

use std::time::{Duration, SystemTime};

use api::{SpiffeId, TrustDomain};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose};
use rustls::pki_types::CertificateDer;

use crate::{Bundles, Credentials, KeyPair, Svid};

pub(crate) struct TestCa {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) root: rcgen::Certificate,
    pub(crate) intermediate: rcgen::Certificate,
    issuer: Issuer<'static, rcgen::KeyPair>,
}

pub(crate) fn id(text: &str) -> SpiffeId {
    text.parse().expect("a test's identity is well-formed")
}

fn ca_params(name: &str, depth: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(depth));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params
}

impl TestCa {
    pub(crate) fn new(trust_domain: &str) -> Self {
        let root_key = rcgen::KeyPair::generate().expect("generates");
        let root_params = ca_params(&format!("{trust_domain} root"), 1);
        let root = root_params.self_signed(&root_key).expect("signs");
        let root_issuer = Issuer::new(root_params, root_key);
        let key = rcgen::KeyPair::generate().expect("generates");
        let params = ca_params(&format!("{trust_domain} issuing"), 0);
        let intermediate = params.signed_by(&key, &root_issuer).expect("signs");
        let trust_domain = trust_domain.parse().expect("well-formed");
        Self { trust_domain, root, intermediate, issuer: Issuer::new(params, key) }
    }

    /// A leaf as the control plane would sign it, valid from a minute ago for an hour.
    pub(crate) fn leaf_params(uris: &[&str]) -> CertificateParams {
        let now = SystemTime::now();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.not_before = (now - Duration::from_secs(60)).into();
        params.not_after = (now + Duration::from_secs(3600)).into();
        params.subject_alt_names =
            uris.iter().map(|uri| rcgen::SanType::URI((*uri).try_into().expect("ASCII"))).collect();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params
    }

    /// Signs whatever is asked: PEM of leaf and intermediate.
    pub(crate) fn sign(&self, key: &KeyPair, params: &CertificateParams) -> String {
        let leaf = params.signed_by(key, &self.issuer).expect("signs");
        format!("{}{}", leaf.pem(), self.intermediate.pem())
    }

    pub(crate) fn svid(&self, identity: &str) -> Svid {
        self.svid_with(identity, |_| {})
    }

    pub(crate) fn svid_with(&self, identity: &str, edit: impl FnOnce(&mut CertificateParams)) -> Svid {
        let key = KeyPair::generate().expect("generates");
        let mut params = Self::leaf_params(&[identity]);
        edit(&mut params);
        Svid::from_pem(&self.sign(&key, &params), &key).expect("the test CA makes usable certificates")
    }

    /// As the control plane presents itself: leaf, intermediate, root.
    pub(crate) fn svid_with_root(&self, identity: &str) -> Svid {
        let key = KeyPair::generate().expect("generates");
        let chain = self.sign(&key, &Self::leaf_params(&[identity])) + &self.root.pem();
        Svid::from_pem(&chain, &key).expect("the test CA makes usable certificates")
    }

    pub(crate) fn bundles(&self) -> Bundles {
        Bundles::from_pem(&self.trust_domain, &self.root.pem()).expect("a root")
    }

    pub(crate) fn root_der(&self) -> CertificateDer<'static> {
        self.root.der().clone()
    }

    pub(crate) fn credentials(&self, identities: &[&str]) -> Credentials {
        let credentials = Credentials::new(self.trust_domain.clone());
        credentials.set_bundles(self.bundles());
        for identity in identities {
            credentials.publish(self.svid(identity));
        }
        credentials
    }
}
