//! The snapshot file that an agent starts from: no bytes on the disk may end it.
#![no_main]

use agent::discovery::Holdings;
use agent::state::snapshot_file;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(content) = snapshot_file::decode(bytes.to_vec()) {
        let _ = Holdings::from_file(content);
    }
});
