//! Discovery resources: the first byte picks the type, the rest is the body. What can be read is
//! written and read again as the same.
#![no_main]

use api::wire::{self, WireError};
use libfuzzer_sys::fuzz_target;

const TYPES: [&str; 4] = [wire::ADDRESS, wire::AUTHORIZATION, wire::HOST_CONFIG, wire::TRUST_BUNDLE];

fuzz_target!(|input: &[u8]| {
    let Some((kind, body)) = input.split_first() else { return };
    let type_url = TYPES[usize::from(*kind) % TYPES.len()];
    // Under a name that is not its own an object is refused, and the refusal tells its own.
    let change = match wire::decode(type_url, "", body) {
        Err(WireError::OtherName { says, .. }) => wire::decode(type_url, &says, body),
        other => other,
    };
    if let Ok(change) = change {
        let encoded = wire::encode(&change).expect("what was decoded is no removal");
        assert_eq!(wire::decode(encoded.type_url, &encoded.name, &encoded.body), Ok(change));
    }
});
