//! Certificates that peers present (DER) and bundles from files (PEM): an identity that is read is
//! the only one that is named.
#![no_main]

use identity::Bundles;
use identity::certificate::{Facts, fingerprint};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let der = bytes.to_vec().into();
    fingerprint(&der);
    if let Ok(facts) = Facts::read(&der)
        && let Ok(identity) = facts.identity()
    {
        assert_eq!(facts.uris, [identity.to_string()]);
    }
    if let (Ok(text), Ok(trust_domain)) = (std::str::from_utf8(bytes), "mesh.example".parse()) {
        let _ = Bundles::from_pem(&trust_domain, text);
    }
});
