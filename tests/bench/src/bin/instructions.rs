//! `instructions [--record]`: how many instructions each step takes, counted by valgrind's callgrind, so that
//! a slower step is seen on a busy machine too. Compares with `tests/bench/instructions.json`.
//!
//! `instructions step NAME TIMES` is what runs under callgrind. Steps with cryptography are not among them:
//! valgrind has no VAES, so they would be counted on a path that no real machine takes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use bench::steps::STEPS;
use serde::{Deserialize, Serialize};

/// Hash seeds differ from run to run, and with them the shape of the snapshot's maps.
const TOLERANCE: f64 = 0.08;
const TIMES: u32 = 200;

/// Counts and the compiler they are of.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Recorded {
    rustc: String,
    instructions: BTreeMap<String, u64>,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["step", name, times] => take(name, times.parse()?),
        [] => compare(false),
        ["--record"] => compare(true),
        _ => bail!("usage: instructions [--record]"),
    }
}

fn take(name: &str, times: u32) -> Result<()> {
    let (_, make) = STEPS.iter().find(|step| step.0 == name).with_context(|| format!("there is no step {name:?}"))?;
    let mut step = make();
    // The first time may fill something that stays.
    step();
    counted(&mut *step, times);
    Ok(())
}

/// Only what runs in here is counted.
#[inline(never)]
fn counted(step: &mut dyn FnMut(), times: u32) {
    for _ in 0..times {
        step();
    }
}

fn compare(record: bool) -> Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.json");
    let text = std::fs::read_to_string(&file).unwrap_or_else(|_| "{\"rustc\":\"\",\"instructions\":{}}".to_owned());
    let recorded: Recorded = serde_json::from_str(&text).with_context(|| file.display().to_string())?;
    let mut seen = Recorded { rustc: rustc()?, instructions: BTreeMap::new() };
    let same_compiler = seen.rustc == recorded.rustc;
    let mut grown = Vec::new();
    for (name, _) in STEPS {
        let instructions = count(name)?;
        let before = recorded.instructions.get(*name).copied();
        let change = before.map(|before| instructions as f64 / before as f64 - 1.0);
        println!(
            "{instructions:>9}  {:>7}  {name}",
            change.map(|change| format!("{:+.1} %", change * 100.0)).unwrap_or_default()
        );
        if change.is_some_and(|change| change > TOLERANCE) {
            grown.push(*name);
        }
        seen.instructions.insert((*name).to_owned(), instructions);
    }
    if record {
        std::fs::write(&file, format!("{}\n", serde_json::to_string_pretty(&seen)?))?;
        println!("recorded: {}", file.display());
        return Ok(());
    }
    if !same_compiler {
        println!("recorded with {:?}, counted with {:?}: not compared", recorded.rustc, seen.rustc);
        return Ok(());
    }
    ensure!(grown.is_empty(), "more instructions than recorded: {}; if they are worth it: --record", grown.join(", "));
    println!("{} steps within {} % of the record", STEPS.len(), TOLERANCE * 100.0);
    Ok(())
}

/// Instructions of one step, on average.
fn count(name: &str) -> Result<u64> {
    let own: PathBuf = std::env::current_exe()?;
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=instructions::counted*"]);
    command.arg(own).args(["step", name, &TIMES.to_string()]);
    let output = command.output().context("cannot run valgrind: apt-get install valgrind")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said.lines().find_map(|line| line.split_once("Collected : "));
    let collected: u64 = collected.with_context(|| format!("{name}: {said}"))?.1.trim().parse()?;
    ensure!(collected > 0, "{name}: nothing was counted: {said}");
    Ok(collected / u64::from(TIMES))
}

fn rustc() -> Result<String> {
    let output = Command::new("rustc").arg("--version").output().context("cannot run rustc")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
