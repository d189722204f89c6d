//! Join tokens as people paste them: what can be read is revealed as the same.
#![no_main]

use api::token::JoinToken;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(token) = JoinToken::parse(text) {
        assert_eq!(JoinToken::parse(&token.reveal()), Ok(token));
    }
});
