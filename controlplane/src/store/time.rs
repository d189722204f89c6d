//! Times as the database keeps them (Unix milliseconds) and as people read them (RFC 3339). Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

pub(crate) fn to_ms(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    i64::try_from(since).unwrap_or(i64::MAX)
}

pub(crate) fn from_ms(ms: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(ms.max(0).cast_unsigned())
}

/// Whole seconds; empty for 0, which is how the database says "never".
pub(crate) fn rfc3339(ms: i64) -> String {
    let text = OffsetDateTime::from_unix_timestamp(ms / 1000).ok().filter(|_| ms > 0);
    text.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default()
}
