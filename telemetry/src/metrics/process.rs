//! What this process uses, read from `/proc/self` at each scrape.
//!
//! Called by [`super::register_process`]. A number that cannot be read is left out of the scrape.

use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::log::lines_dropped;

/// Clock ticks per second in `/proc/PID/stat` and `/proc/stat`: USER_HZ, 100 on every architecture
/// that we build for (include/uapi/asm-generic/param.h).
const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let stat = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(parse_stat);
        let boot = fs::read_to_string("/proc/stat").ok().as_deref().and_then(boot_time);
        let mut gauge = |name, help, value: Option<f64>| match value {
            Some(value) => write(&mut encoder, name, help, &ConstGauge::new(value)),
            None => Ok(()),
        };
        let resident = status_number(&status, "VmRSS").map(|kilobytes| kilobytes * 1024.0);
        gauge("tombolo_process_resident_memory_bytes", "Memory in RAM", resident)?;
        gauge("tombolo_process_open_fds", "Open file descriptors", open_descriptors())?;
        gauge("tombolo_process_max_fds", "Most file descriptors that may be open", descriptor_limit())?;
        gauge("tombolo_process_threads", "Threads", status_number(&status, "Threads"))?;
        let started = stat.zip(boot).map(|(stat, boot)| boot + stat.started_seconds);
        gauge("tombolo_process_start_time_seconds", "When it started, Unix time", started)?;
        if let Some(stat) = stat {
            let cpu = ConstCounter::new(stat.cpu_seconds);
            write(&mut encoder, "tombolo_process_cpu_seconds", "CPU time used, user and system", &cpu)?;
        }
        let dropped = ConstCounter::new(lines_dropped());
        write(&mut encoder, "tombolo_log_lines_dropped", "Log lines lost because their reader was slow", &dropped)
    }
}

fn write(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    metric: &impl EncodeMetric,
) -> Result<(), std::fmt::Error> {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

/// `/proc/PID/stat`, proc_pid_stat(5): the command's name may hold anything, so fields count from
/// its closing bracket.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Stat {
    pub(super) cpu_seconds: f64,
    pub(super) started_seconds: f64,
}

pub(super) fn parse_stat(text: &str) -> Option<Stat> {
    let (_, fields) = text.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field - 3)?.parse::<f64>().ok(); // field 3 is the first after the bracket
    let (user, system, started) = (ticks(14)?, ticks(15)?, ticks(22)?);
    Some(Stat { cpu_seconds: (user + system) / TICKS_PER_SECOND, started_seconds: started / TICKS_PER_SECOND })
}

pub(super) fn boot_time(stat: &str) -> Option<f64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn status_number(status: &str, name: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

fn open_descriptors() -> Option<f64> {
    let entries = fs::read_dir("/proc/self/fd").ok()?.count();
    Some(entries.saturating_sub(1) as f64) // one of them is the directory being read
}

fn descriptor_limit() -> Option<f64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}
