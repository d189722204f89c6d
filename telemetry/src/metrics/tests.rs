//! What `/metrics` shows of the process itself.

use super::process::{Stat, boot_time, parse_stat};
use super::{Registry, encode_text, register_process};

#[test]
fn the_process_shows_what_it_uses() {
    let mut registry = Registry::default();
    register_process(&mut registry);
    let text = encode_text(&registry);
    let value = |name: &str| -> f64 {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
    };
    assert!(value("tombolo_process_resident_memory_bytes") > 1e6, "{text}");
    assert!(value("tombolo_process_open_fds") >= 3.0, "{text}");
    assert!(value("tombolo_process_threads") >= 1.0, "{text}");
    assert!(value("tombolo_process_start_time_seconds") > 1.6e9, "{text}");
    assert!(value("tombolo_process_cpu_seconds_total") >= 0.0, "{text}");
    assert!(text.contains("tombolo_build_info{version=\"0."), "{text}");
    assert!(text.ends_with("# EOF\n"), "{text}");
}

#[test]
fn proc_stat_is_read_after_the_commands_name() {
    let line = |name: &str| format!("7 ({name}) S 1 7 7 0 -1 4194560 9 0 0 0 150 50 0 0 20 0 4 0 1234 1000 1 2");
    let expect = Some(Stat { cpu_seconds: 2.0, started_seconds: 12.34 });
    assert_eq!(parse_stat(&line("tombolo")), expect);
    assert_eq!(parse_stat(&line("a) S 9 (b")), expect);
    assert_eq!(parse_stat("7 (cut short) S 1"), None);
    assert_eq!(parse_stat(""), None);
    assert_eq!(boot_time("cpu 1 2\nbtime 1700000000\n"), Some(1.7e9));
    assert_eq!(boot_time("cpu 1 2\n"), None);
}
