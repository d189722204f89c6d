//! What operators apply: a resource that is taken is given back the same, and a policy that is taken
//! can be sent to agents and is understood there.
#![no_main]

use api::resource::{Resource, Spec, documents};
use api::snapshot::Change;
use api::wire;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|yaml: &str| {
    for document in documents(yaml).unwrap_or_default() {
        let Ok(resource) = Resource::from_value(document) else { continue };
        assert_eq!(Resource::from_value(resource.to_value()).as_ref(), Ok(&resource));
        if let Spec::AuthorizationPolicy(policy) = &resource.spec {
            let change = Change::Policy(policy.translate(&resource.meta));
            let encoded = wire::encode(&change).expect("no removal");
            assert!(wire::decode(encoded.type_url, &encoded.name, &encoded.body).is_ok());
        }
    }
});
