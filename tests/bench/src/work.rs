//! The standard work and its figures: what is run, what each figure is called, which goal it has.

use anyhow::{Context, Result, ensure};

use crate::path::Path;

/// One piece of standard work: `meshbench COMMAND SERVER:PORT WORDS`, where `T` is the seconds.
pub struct Work {
    pub name: &'static str,
    command: &'static str,
    port: u16,
    words: &'static str,
}

/// In the order of the peers' measurement; downloads are ours.
pub const WORK: &[Work] = &[
    Work { name: "tput1", command: "tput", port: 9901, words: "1 T" },
    Work { name: "tput8", command: "tput", port: 9901, words: "8 T" },
    Work { name: "pull1", command: "pull", port: 9903, words: "1 T" },
    Work { name: "pull8", command: "pull", port: 9903, words: "8 T" },
    Work { name: "rr1", command: "rr", port: 9902, words: "1 T 64" },
    Work { name: "rr16", command: "rr", port: 9902, words: "16 T 1024" },
    Work { name: "rate1k", command: "rr", port: 9902, words: "16 T 1024 1000" },
    Work { name: "crr4", command: "crr", port: 9902, words: "4 T" },
];

/// What a figure must reach.
#[derive(Clone, Copy)]
pub enum Goal {
    None,
    /// So many times the better of the peers.
    TimesPeers(f64),
    AtMost(f64),
}

/// One line of the table.
pub struct Figure {
    /// `WORK/FIGURE`.
    pub key: &'static str,
    pub title: &'static str,
    pub unit: &'static str,
    pub goal: Goal,
}

impl Figure {
    /// Whether more is better.
    pub fn more_is_better(&self) -> bool {
        self.key.ends_with("gbit_s") || self.key.ends_with("per_s")
    }
}

const fn row(key: &'static str, title: &'static str, unit: &'static str, goal: Goal) -> Figure {
    Figure { key, title, unit, goal }
}

use Goal::{AtMost, None as NoGoal, TimesPeers};

pub const FIGURES: &[Figure] = &[
    row("tput1/gbit_s", "1 connection, upload", "Gbit/s", TimesPeers(1.5)),
    row("tput1/cpu_ms_per_gb", "… CPU per GB", "ms", TimesPeers(0.6)),
    row("tput8/gbit_s", "8 connections, upload", "Gbit/s", NoGoal),
    row("tput8/cpu_ms_per_gb", "… CPU per GB", "ms", TimesPeers(0.6)),
    row("pull1/gbit_s", "1 connection, download", "Gbit/s", NoGoal),
    row("pull1/cpu_ms_per_gb", "… CPU per GB", "ms", NoGoal),
    row("pull8/gbit_s", "8 connections, download", "Gbit/s", NoGoal),
    row("pull8/cpu_ms_per_gb", "… CPU per GB", "ms", NoGoal),
    row("rr1/per_s", "1 connection, 64 B request/response", "1/s", NoGoal),
    row("rr1/cpu_us", "… CPU per request", "µs", NoGoal),
    row("rr1/p50_us", "… p50", "µs", NoGoal),
    row("rr1/p99_us", "… p99", "µs", NoGoal),
    row("rr16/per_s", "16 connections, 1 KiB request/response", "1/s", NoGoal),
    row("rr16/cpu_us", "… CPU per request", "µs", TimesPeers(0.6)),
    row("rr16/p50_us", "… p50", "µs", NoGoal),
    row("rr16/p99_us", "… p99", "µs", NoGoal),
    row("rate1k/p50_us", "1,000 requests/s of 1 KiB on 16 connections, p50", "µs", NoGoal),
    row("rate1k/p50_added_us", "… added over direct, p50", "µs", TimesPeers(0.6)),
    row("rate1k/p90_us", "… p90", "µs", NoGoal),
    row("rate1k/p90_added_us", "… added over direct, p90", "µs", TimesPeers(0.6)),
    row("rate1k/p99_us", "… p99", "µs", NoGoal),
    row("rate1k/p99_added_us", "… added over direct, p99", "µs", NoGoal),
    row("rate1k/cpu_cores", "… CPU", "cores", NoGoal),
    row("crr4/per_s", "new connections, 4 at a time", "1/s", TimesPeers(1.5)),
    row("crr4/cpu_us", "… CPU per connection", "µs", NoGoal),
    row("crr4/p50_us", "… p50", "µs", NoGoal),
    row("crr4/p99_us", "… p99", "µs", NoGoal),
    row("idle/rss_mib_client", "idle, RSS of the client's agent", "MiB", AtMost(8.0)),
    row("idle/rss_mib_server", "… of the server's", "MiB", AtMost(8.0)),
    row("idle/pss_mib_client", "… PSS of the client's", "MiB", NoGoal),
    row("idle/pss_mib_server", "… PSS of the server's", "MiB", NoGoal),
    row("hold100/rss_mib_client", "100 open connections, RSS of the client's agent", "MiB", NoGoal),
    row("hold100/rss_mib_server", "… of the server's", "MiB", NoGoal),
    row("hold1000/rss_mib_client", "1,000 open connections, RSS of the client's agent", "MiB", NoGoal),
    row("hold1000/rss_mib_server", "… of the server's", "MiB", NoGoal),
    row("hold10000/rss_mib_client", "10,000 open connections, RSS of the client's agent", "MiB", NoGoal),
    row("hold10000/rss_mib_server", "… of the server's", "MiB", NoGoal),
    row("hold/mib_per_1000_client", "each 1,000 of them, client's (from first to last count)", "MiB", AtMost(4.0)),
    row("hold/mib_per_1000_server", "… server's", "MiB", AtMost(4.0)),
    row("released/rss_mib_client", "half a minute after they closed, client's", "MiB", NoGoal),
    row("released/rss_mib_server", "… server's", "MiB", NoGoal),
    row("scale/rss_mib", "50,000 workloads, 5,000 services: RSS of an agent", "MiB", AtMost(60.0)),
    row("scale/apply_ms", "… read from disk, checked, applied", "ms", AtMost(1000.0)),
    row("scale/rules_ms", "… until the kernel's rules have them", "ms", NoGoal),
];

/// How many connections are held open for the memory figures.
pub const HELD: &[u64] = &[100, 1000, 10_000];

/// Runs one piece of work on one path: its figures, by the part of the key after the slash.
pub fn run(work: &Work, path: &Path, seconds: u64) -> Result<Vec<(String, f64)>> {
    let words = work.words.split(' ').map(|word| if word == "T" { seconds.to_string() } else { word.to_owned() });
    let before = path.cpu_ms()?;
    let said = path.meshbench(work.command, work.port, words, seconds)?;
    let cpu_ms = path.cpu_ms()?.zip(before).map(|(after, before)| after - before);
    let number = |name: &str| number(&said, name).with_context(|| format!("no {name} in {said:?}"));
    let mut figures = Vec::new();
    let mut add = |name: &str, value: f64| figures.push((name.to_owned(), value));
    if matches!(work.command, "tput" | "pull") {
        add("gbit_s", number("gbit_s")?);
        if let Some(cpu_ms) = cpu_ms {
            add("cpu_ms_per_gb", cpu_ms / (number("bytes")? / 1e9));
        }
        return Ok(figures);
    }
    ensure!(number("errors")? == 0.0, "{} on {}: {said}", work.name, path.name);
    let requests = number("requests")?;
    add("per_s", requests / seconds as f64);
    for name in ["p50_us", "p90_us", "p99_us"] {
        add(name, number(name)?);
    }
    if let Some(cpu_ms) = cpu_ms {
        add("cpu_us", cpu_ms * 1000.0 / requests);
        add("cpu_cores", cpu_ms / 1000.0 / seconds as f64);
    }
    Ok(figures)
}

/// `NAME=NUMBER` in meshbench's line.
fn number(line: &str, name: &str) -> Option<f64> {
    line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
}
