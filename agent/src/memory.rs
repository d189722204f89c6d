//! Gives memory back that the agent has used and does not need now, and takes code only where it is called.
//!
//! Starting, a handshake or a large snapshot touch much code and heap that then lies idle. Code comes
//! back from the page cache when it is called again; the heap is malloc's to return.

use std::fs;
use std::time::{Duration, Instant};

use proxy::drain::DrainWatch;

/// When the start is over, and between looks whether there is something to give back.
const PERIOD: Duration = Duration::from_secs(3);
/// An agent that works gives back seldom: what it uses would have to come back at once.
const BUSY_PERIOD: Duration = Duration::from_secs(60);
/// Of one core, since the last look: what is given back then costs nothing that shows when it comes back.
const IDLE_CPU: f64 = 0.05;
/// What an idle agent keeps without being asked, in KiB: it has as much after one round of its tasks (`make sizes`).
const KEPT_KIB: u64 = 7 << 10;

/// Runs until the drain.
pub async fn keep_small(drain: DrainWatch) {
    let (code, mut used, mut given_back) = (code(), Duration::ZERO, Instant::now());
    loop {
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = drain.signaled() => return,
        }
        let now_used = cpu_time();
        let is_idle = now_used.saturating_sub(used) < PERIOD.mul_f64(IDLE_CPU);
        used = now_used;
        if is_idle && resident_kib() > KEPT_KIB || given_back.elapsed() >= BUSY_PERIOD {
            give_back(&code);
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

/// Once, now: the heap's free ends and this code.
#[expect(unsafe_code, reason = "neither malloc_trim nor madvise has a safe interface")]
fn give_back(code: &[(usize, usize)]) {
    // SAFETY: malloc_trim(3) has no preconditions, and locks what it looks at.
    unsafe { libc::malloc_trim(0) };
    for (start, length) in code {
        // SAFETY: the range is this program's own code, mapped privately from its file and never
        // written: what is dropped is read again from the file when it is next touched (madvise(2)).
        let _ = unsafe { libc::madvise(*start as *mut libc::c_void, *length, libc::MADV_DONTNEED) };
    }
}

/// Makes the kernel map less code around what is called. It maps the 64 KiB around a fault, and not more than the
/// mapping has (`do_fault_around`, mm/memory.c): an idle agent that calls 1.8 MiB of code has 7 MiB of it mapped
/// (`Referenced` and `Rss` of smaps). So every second window gets a flag that means nothing here, not to be in
/// core files, and is a mapping of its own: some 800 of the 65,530 that a process may have (`vm.max_map_count`).
#[expect(unsafe_code, reason = "madvise has no safe interface")]
pub fn map_narrowly() {
    for (start, length) in code() {
        for window in (start..start + length).step_by(2 * WINDOW) {
            let length = WINDOW.min(start + length - window);
            // SAFETY: the range is mapped, and nothing of it changes but what a core file would have of it.
            let _ = unsafe { libc::madvise(window as *mut libc::c_void, length, libc::MADV_DONTDUMP) };
        }
    }
}

/// Where this program's code is mapped. Nothing is relocated there (`readelf -r`), which is what makes it safe to
/// drop.
fn code() -> Vec<(usize, usize)> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let own = fs::read_link("/proc/self/exe").unwrap_or_default();
    let own = own.to_string_lossy();
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for line in maps.lines().filter(|line| !own.is_empty() && line.ends_with(&*own)) {
        // START-END PERMISSIONS OFFSET DEVICE INODE PATH (proc_pid_maps(5))
        let mut fields = line.split(' ');
        let (Some((start, end)), Some("r-xp")) = (fields.next().and_then(|range| range.split_once('-')), fields.next())
        else {
            continue;
        };
        let (Ok(start), Ok(end)) = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16)) else { continue };
        match ranges.last_mut() {
            Some((before, length)) if *before + *length == start => *length += end - start,
            _ => ranges.push((start, end - start)),
        }
    }
    ranges
}

/// Four pages: half of what is mapped with it is called, too.
const WINDOW: usize = 16 << 10;

#[cfg(test)]
mod tests;
