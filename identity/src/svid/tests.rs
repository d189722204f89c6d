//! Tests of `svid`, the file beside this folder.

use std::time::Duration;

use rcgen::{ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};

use super::*;
use crate::testing::{TestCa, id};

const ORDERS: &str = "spiffe://mesh.example/ns/shop/sa/orders";

#[test]
fn a_good_certificate_tells_its_facts() {
    let ca = TestCa::new("mesh.example");
    let svid = ca.svid_with(ORDERS, |params| params.serial_number = Some(rcgen::SerialNumber::from(0x1234_u64)));
    assert_eq!(svid.identity(), &id(ORDERS));
    assert_eq!(svid.serial(), "1234");
    assert_eq!(svid.chain().len(), 2);
    assert!(svid.is_valid_at(SystemTime::now()));
    assert!(!svid.is_valid_at(SystemTime::now() + Duration::from_secs(7200)));
    let again = Svid::from_pem(&svid.chain_pem(), &KeyPair::from_pem(&svid.key_pem()).expect("ours")).expect("ours");
    assert_eq!(again.chain(), svid.chain());
    assert_eq!(svid.verify(&ca.bundles(), SystemTime::now()), Ok(()));
}

#[test]
fn verification_names_what_is_wrong() {
    let (ca, other) = (TestCa::new("mesh.example"), TestCa::new("mesh.example"));
    let svid = ca.svid(ORDERS);
    assert_eq!(svid.verify(&other.bundles(), SystemTime::now()), Err(VerifyError::UnknownIssuer));
    let later = SystemTime::now() + Duration::from_secs(86_400);
    assert!(matches!(svid.verify(&ca.bundles(), later), Err(VerifyError::Expired { .. })));
    let earlier = SystemTime::now() - Duration::from_secs(86_400);
    assert!(matches!(svid.verify(&ca.bundles(), earlier), Err(VerifyError::NotYetValid { .. })));
    assert!(matches!(svid.verify(&Bundles::default(), later), Err(VerifyError::NoRoots { .. })));
}

#[test]
fn each_unusable_certificate_is_refused_with_its_reason() {
    let ca = TestCa::new("mesh.example");
    let key = KeyPair::generate().expect("generates");
    let refused = |uris: &[&str], edit: &dyn Fn(&mut rcgen::CertificateParams)| {
        let mut params = TestCa::leaf_params(uris);
        edit(&mut params);
        Svid::from_pem(&ca.sign(&key, &params), &key).expect_err("must be refused")
    };
    let unedited: &dyn Fn(&mut rcgen::CertificateParams) = &|_| {};
    let found = |error: SvidError| match error {
        SvidError::Unreadable(ReadError::UriCount { found }) => found,
        other => panic!("expected UriCount, got {other:?}"),
    };
    assert_eq!(found(refused(&[], unedited)), 0);
    assert_eq!(found(refused(&[ORDERS, "spiffe://mesh.example/ns/shop/sa/web"], unedited)), 2);
    assert!(matches!(refused(&["https://mesh.example/"], unedited), SvidError::Unreadable(ReadError::NotSpiffe(_))));
    assert!(matches!(
        refused(&[ORDERS], &|p| p.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(0))),
        SvidError::IsCa { .. }
    ));
    assert!(matches!(
        refused(&[ORDERS], &|p| p.key_usages = vec![KeyUsagePurpose::KeyEncipherment]),
        SvidError::Usage { missing: "key usage digitalSignature", .. }
    ));
    assert!(matches!(
        refused(&[ORDERS], &|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
        SvidError::Usage { missing: "extended key usage clientAuth", .. }
    ));
    assert!(matches!(
        refused(&[ORDERS], &|p| std::mem::swap(&mut p.not_before, &mut p.not_after)),
        SvidError::TimeOrder { .. }
    ));
}

#[test]
fn a_chain_for_another_key_and_rubbish_are_refused() {
    let ca = TestCa::new("mesh.example");
    let (key, other) = (KeyPair::generate().expect("generates"), KeyPair::generate().expect("generates"));
    let chain = ca.sign(&key, &TestCa::leaf_params(&[ORDERS]));
    assert!(matches!(Svid::from_pem(&chain, &other), Err(SvidError::OtherKey { .. })));
    assert!(matches!(Svid::from_pem("", &key), Err(SvidError::Empty)));
    let broken = "-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n";
    assert!(matches!(Svid::from_pem(broken, &key), Err(SvidError::NotPem { position: 1 })));
    let cut = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
    assert!(matches!(Svid::from_pem(cut, &key), Err(SvidError::Unreadable(ReadError::Malformed { .. }))));
}
