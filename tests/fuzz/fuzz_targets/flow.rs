//! The header of a flow of `tombolo/1` from a peer: what can be read must write and read as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proxy::flow::{Header, START_BYTES};

fuzz_target!(|body: &[u8]| {
    if body.len() <= 8192
        && let Ok(header) = Header::decode(body)
    {
        assert_eq!(Header::decode(&header.encode()[START_BYTES..]), Ok(header));
    }
});
