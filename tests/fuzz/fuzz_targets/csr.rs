//! Certificate requests that anybody with a network may send: refused, or a proved key on P-256.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = controlplane::issuer::public_key(text);
});
