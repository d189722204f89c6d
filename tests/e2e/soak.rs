//! The byte-exact soak, short; `make soak` is the long one.

use std::time::Duration;

use anyhow::Result;

#[test]
fn every_byte_end_and_reset_arrives_as_it_was_made_for_twenty_seconds() -> Result<()> {
    for line in tests::soak::run(None, Duration::from_secs(20))? {
        println!("{line}");
    }
    Ok(())
}
