//! Code that was given back runs on.
use super::*;

fn resident_kib(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("proc is mounted");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the field is there");
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn the_code_is_found_and_less_of_it_is_resident_afterwards() {
    let exe = fs::read_link("/proc/self/exe").expect("a program");
    assert!(!code().is_empty(), "no code of {}", exe.display());
    let before = resident_kib("RssFile");
    give_back(&code());
    let after = resident_kib("RssFile");
    assert!(after < before, "{before} KiB of files were resident, and {after} are");
}

#[test]
fn code_that_is_mapped_narrowly_is_found_whole_and_runs_on() {
    let before = code();
    map_narrowly();
    assert_eq!(code(), before);
    let maps = fs::read_to_string("/proc/self/maps").expect("proc is mounted");
    let pieces = maps.lines().filter(|line| line.contains(" r-xp ")).count();
    assert!(pieces > before[0].1 / WINDOW / 2, "{pieces} mappings of {} bytes", before[0].1);
}

#[test]
fn what_is_used_and_resident_is_known() {
    assert!(cpu_time() > Duration::ZERO);
    let (own, from_status) = (super::resident_kib(), resident_kib("VmRSS"));
    assert!(own.abs_diff(from_status) < from_status / 4, "{own} KiB here, {from_status} there");
}
