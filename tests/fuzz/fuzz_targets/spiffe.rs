//! SPIFFE IDs of peers' certificates: what can be read must print and read as the same.
#![no_main]

use api::{NamespacedHostname, SpiffeId, TrustDomain};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(id) = text.parse::<SpiffeId>() {
        assert_eq!(id.to_string(), text);
        assert_eq!(id.to_string().parse(), Ok(id));
    }
    if let Ok(domain) = text.parse::<TrustDomain>() {
        assert!(SpiffeId::workload(&domain, "a", "b").is_ok());
    }
    if let Ok(key) = text.parse::<NamespacedHostname>() {
        assert_eq!(key.to_string(), text);
    }
});
