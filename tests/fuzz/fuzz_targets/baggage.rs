//! The headers of a CONNECT that are only for logs: whatever they hold, reading them is harmless.
#![no_main]

use libfuzzer_sys::fuzz_target;
use proxy::hbone::{Baggage, Forwarded, TraceParent};

fuzz_target!(|text: &str| {
    let baggage = Baggage::parse(text);
    let printed = baggage.to_string();
    // Percent-encoding can make a value longer than a reader takes.
    if printed.len() <= text.len() {
        assert_eq!(Baggage::parse(&printed), baggage);
    }
    if let Some(forwarded) = Forwarded::parse(text) {
        assert_eq!(Forwarded::parse(&forwarded.to_string()).map(|again| again.client), Some(forwarded.client));
    }
    if let Some(parent) = TraceParent::parse(text) {
        assert_eq!(TraceParent::parse(&parent.to_string()), Some(parent));
    }
});
