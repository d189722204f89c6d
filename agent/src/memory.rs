//! Gives memory back that the agent has used and does not need now.
//!
//! Starting, a handshake or a large snapshot touch much code and heap that then lies idle. Code comes
//! back from the page cache when it is called again, a page at a time; the heap is malloc's to return.

use std::fs;
use std::time::Duration;

use proxy::drain::DrainWatch;

/// When the start is over.
const FIRST: Duration = Duration::from_secs(3);
/// Seldom enough to cost nothing, often enough that a burst is not held for long.
const PERIOD: Duration = Duration::from_secs(60);

/// Runs until the drain.
pub async fn keep_small(drain: DrainWatch) {
    let mut wait = FIRST;
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => give_back(),
            () = drain.signaled() => return,
        }
        wait = PERIOD;
    }
}

/// Once, now.
#[expect(unsafe_code, reason = "neither malloc_trim nor madvise has a safe interface")]
fn give_back() {
    // SAFETY: malloc_trim(3) has no preconditions, and locks what it looks at.
    unsafe { libc::malloc_trim(0) };
    for (start, length) in code() {
        // SAFETY: the range is this program's own code, mapped privately from its file and never
        // written: what is dropped is read again from the file when it is next touched (madvise(2)).
        let _ = unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    }
}

/// Where this program's executable code is mapped. Nothing is relocated there (`readelf -r`), which is
/// what makes it safe to drop.
fn code() -> Vec<(usize, usize)> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let own = fs::read_link("/proc/self/exe").unwrap_or_default();
    let own = own.to_string_lossy();
    let ranges = maps.lines().filter_map(|line| {
        // START-END PERMISSIONS OFFSET DEVICE INODE PATH (proc_pid_maps(5))
        let (range, rest) = line.split_once(' ')?;
        if !rest.starts_with("r-xp ") || !rest.ends_with(&*own) || own.is_empty() {
            return None;
        }
        let (start, end) = range.split_once('-')?;
        let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        Some((start, end.checked_sub(start)?))
    });
    ranges.collect()
}

#[cfg(test)]
mod tests;
