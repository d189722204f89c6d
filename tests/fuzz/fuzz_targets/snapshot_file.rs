//! The snapshot file that an agent starts from: no bytes on the disk may end it.
#![no_main]

use agent::state::snapshot_file;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(content) = snapshot_file::decode(bytes) {
        let _ = snapshot_file::snapshot(&content);
    }
});
