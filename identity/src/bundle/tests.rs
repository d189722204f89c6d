//! Tests of `bundle`, the file beside this folder.

use super::*;
use crate::testing::TestCa;

#[test]
fn bundles_keep_trust_domains_apart() {
    let (a, b) = (TestCa::new("a.example"), TestCa::new("b.example"));
    let mut bundles = a.bundles();
    bundles.merge(b.bundles());
    assert_eq!(bundles.roots(&a.trust_domain), [a.root_der()]);
    assert_eq!(bundles.roots(&b.trust_domain), [b.root_der()]);
    assert_eq!(bundles.trust_domains().count(), 2);
    let again = Bundles::from_pem(&a.trust_domain, &bundles.roots_pem(&a.trust_domain)).expect("our own PEM");
    assert_eq!(again.roots(&a.trust_domain), [a.root_der()]);
    bundles.remove(&a.trust_domain);
    assert!(bundles.roots(&a.trust_domain).is_empty());
}

#[test]
fn rubbish_is_refused_and_changes_nothing() {
    let a = TestCa::new("a.example");
    let td = &a.trust_domain;
    assert!(matches!(Bundles::from_pem(td, "hello"), Err(BundleError::Empty { .. })));
    let broken = a.root.pem() + "-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n";
    assert!(matches!(Bundles::from_pem(td, &broken), Err(BundleError::NotPem { position: 2, .. })));
    let mut bundles = a.bundles();
    let refused = bundles.insert(td.clone(), vec![a.root_der(), CertificateDer::from(vec![1, 2, 3])]);
    assert!(matches!(refused, Err(BundleError::NotARoot { position: 2, .. })));
    assert_eq!(bundles.roots(td), [a.root_der()]);
}

#[test]
fn a_root_that_is_listed_twice_counts_once() {
    let a = TestCa::new("a.example");
    let twice = Bundles::from_pem(&a.trust_domain, &(a.root.pem() + &a.root.pem())).expect("roots");
    assert_eq!(twice.roots(&a.trust_domain).len(), 1);
}
