//! Gives memory back that the agent has used and does not need now.
//!
//! Starting, a handshake or a large snapshot touch much code and heap that then lies idle. Code comes
//! back from the page cache when it is called again, a page at a time; the heap is malloc's to return.

use std::fs;
use std::time::{Duration, Instant};

use proxy::drain::DrainWatch;

/// When the start is over, and between looks whether there is something to give back.
const PERIOD: Duration = Duration::from_secs(3);
/// An agent that works gives back seldom: what it uses would have to come back at once.
const BUSY_PERIOD: Duration = Duration::from_secs(60);
/// Of one core, since the last look; an idle agent needs a tenth of it (docs/performance.md).
const IDLE_CPU: f64 = 0.01;
/// What an idle agent keeps without being asked, in KiB: half of what the code of one round of its tasks takes.
const KEPT_KIB: u64 = 7 << 10;

/// Runs until the drain.
pub async fn keep_small(drain: DrainWatch) {
    let (mut used, mut given_back) = (Duration::ZERO, Instant::now());
    loop {
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = drain.signaled() => return,
        }
        let now_used = cpu_time();
        let is_idle = now_used.saturating_sub(used) < PERIOD.mul_f64(IDLE_CPU);
        used = now_used;
        if is_idle && resident_kib() > KEPT_KIB || given_back.elapsed() >= BUSY_PERIOD {
            give_back();
            given_back = Instant::now();
        }
    }
}

/// Of all threads so far.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// The second number of `/proc/self/statm`, in pages (proc_pid_statm(5)).
fn resident_kib() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    pages * rustix::param::page_size() as u64 / 1024
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
