//! A run as data: every sample of every figure, and what made them. Written as JSON, read back to compare.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The path with nothing between its hosts.
pub const DIRECT: &str = "direct";
/// The path with a relay on each host.
pub const RELAYS: &str = "relays";

/// One run of the bench.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Run {
    /// UTC, RFC 3339.
    pub date: String,
    pub commit: String,
    pub machine: String,
    /// The command that repeats it.
    pub command: String,
    pub seconds: u64,
    pub rounds: u64,
    /// Worker threads of each agent.
    pub workers: usize,
    /// In the order they were run: `direct` first.
    pub paths: Vec<String>,
    /// Figure → path → one value a round.
    pub samples: BTreeMap<String, BTreeMap<String, Vec<f64>>>,
}

/// The middle and the ends of some samples.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    pub least: f64,
    pub median: f64,
    pub most: f64,
}

impl Run {
    pub fn add(&mut self, figure: &str, path: &str, value: f64) {
        // Four digits are more than any of them is worth.
        let rounded = format!("{value:.4e}").parse().unwrap_or(value);
        self.samples.entry(figure.to_owned()).or_default().entry(path.to_owned()).or_default().push(rounded);
    }

    pub fn spread(&self, figure: &str, path: &str) -> Option<Spread> {
        let mut values = self.samples.get(figure)?.get(path)?.clone();
        values.sort_by(f64::total_cmp);
        let median = *values.get(values.len() / 2)?;
        Some(Spread { least: *values.first()?, median, most: *values.last()? })
    }

    pub fn median(&self, figure: &str, path: &str) -> Option<f64> {
        self.spread(figure, path).map(|spread| spread.median)
    }

    /// The paths with agents.
    pub fn meshed(&self) -> Vec<String> {
        self.paths.iter().filter(|path| ![DIRECT, RELAYS].contains(&path.as_str())).cloned().collect()
    }

    /// What every path adds to the direct one at the fixed rate, round by round.
    pub fn add_differences(&mut self) {
        for percentile in ["p50", "p90", "p99"] {
            let Some(paths) = self.samples.get(&format!("rate1k/{percentile}_us")).cloned() else { continue };
            let Some(direct) = paths.get(DIRECT) else { continue };
            for (path, values) in paths.iter().filter(|(path, _)| *path != DIRECT) {
                for (value, direct) in values.iter().zip(direct) {
                    self.add(&format!("rate1k/{percentile}_added_us"), path, value - direct);
                }
            }
        }
    }
}

/// The recorded runs, oldest first; none when there is no such file.
pub fn load(file: &Path) -> Result<Vec<Run>> {
    let Ok(text) = std::fs::read_to_string(file) else { return Ok(Vec::new()) };
    serde_json::from_str(&text).with_context(|| format!("{} is not a list of runs", file.display()))
}

/// One run a line, so that a new one is one line of difference.
pub fn save(file: &Path, runs: &[Run]) -> Result<()> {
    let lines = runs.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
    std::fs::write(file, format!("[\n{}\n]\n", lines.join(",\n")))
        .with_context(|| format!("cannot write {}", file.display()))
}

/// The processor, its cores and the kernel.
pub fn machine() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{}, {} cores, Linux {}", model.trim_start_matches(['\t', ' ', ':']), cores(), kernel.trim())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The commit that the programs come from, as far as git knows.
pub fn commit() -> String {
    let output = Command::new("git").args(["describe", "--always", "--dirty"]).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}
