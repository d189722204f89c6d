//! The authority of a CONNECT from a peer: what can be read must print and read as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proxy::hbone::Authority;

fuzz_target!(|text: &str| {
    if let Ok(authority) = text.parse::<Authority>() {
        assert_eq!(authority.to_string().parse(), Ok(authority));
    }
});
