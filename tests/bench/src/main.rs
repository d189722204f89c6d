//! `make bench`: what the mesh costs on the standard work, in one run with direct TCP beside it.
//!
//! Paths (direct, over two relays, and one for each program and tunnel asked for) stand side by side and take turns, round by
//! round, so that a busy machine is busy for all of them. It prints a table, writes `target/bench/latest.json`
//! and `.svg`, and compares with the last run of `tests/bench/recorded.json`.

mod chart;
mod documents;
mod path;
mod record;
mod report;
mod scale;
mod work;

use std::collections::BTreeMap;
use std::path::{Path as FilePath, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tests::Estate;

use crate::path::{Between, Path};
use crate::record::{DIRECT, RELAYS, Run};
use crate::work::{FIGURES, HELD, WORK};

/// What the mesh costs on the standard work, beside direct TCP.
#[derive(Debug, Parser)]
struct Arguments {
    /// Folder of the `tombolo` to measure; several, as NAME=FOLDER, are measured side by side.
    #[arg(long, required_unless_present = "documents")]
    programs: Vec<String>,
    /// Which tunnels: `hbone`, `tombolo/1`, or `default` for what the programs choose themselves.
    #[arg(long, value_delimiter = ',', default_value = "hbone,tombolo/1")]
    tunnels: Vec<String>,
    /// Only this work: tput1 tput8 pull1 pull8 rr1 rr16 rate1k crr4 idle hold scale.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Of each piece of work.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// How often all of it is done; figures are medians.
    #[arg(long, default_value_t = 3)]
    rounds: u64,
    /// A setting of every agent, such as `log.filter="warn"`.
    #[arg(long)]
    set: Vec<String>,
    /// The most connections held open for the memory figures.
    #[arg(long, default_value_t = 10_000)]
    hold: u64,
    /// Appends the run to tests/bench/recorded.json and shows it in docs/performance.md.
    #[arg(long)]
    record: bool,
    /// Runs nothing: writes docs/performance.md and its chart from the last recorded run.
    #[arg(long)]
    documents: bool,
}

/// Until an agent with nothing to do has given back what it took last: it looks every three seconds.
const RELEASE_TIME: Duration = Duration::from_secs(7);
/// Descriptors that an agent has beside its connections, generously.
const OWN_FILES: u64 = 500;

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let names: Vec<&str> = WORK.iter().map(|work| work.name).chain(["idle", "hold", "scale"]).collect();
    for only in &arguments.only {
        ensure!(names.contains(&only.as_str()), "there is no work {only:?}; there is {}", names.join(" "));
    }
    let workspace = FilePath::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let peers = serde_json::from_str(include_str!("../peers.json")).context("peers.json")?;
    let recorded_file = workspace.join("tests/bench/recorded.json");
    let mut recorded = record::load(&recorded_file)?;
    if arguments.documents {
        return documents::write(&workspace, &recorded, &peers);
    }

    allow_files(arguments.hold);
    let run = measure(&arguments)?;
    print!("{}", report::text(&run, recorded.last(), &peers));
    let output = workspace.join("target/bench");
    std::fs::create_dir_all(&output)?;
    std::fs::write(output.join("latest.json"), serde_json::to_string_pretty(&run)?)?;
    std::fs::write(output.join("latest.svg"), chart::draw(&run, &peers))?;
    println!("written: {0}/latest.json, {0}/latest.svg", output.display());
    if arguments.record {
        recorded.push(run);
        record::save(&recorded_file, &recorded)?;
        documents::write(&workspace, &recorded, &peers)?;
        println!("recorded: {}", recorded_file.display());
    }
    Ok(())
}

fn measure(arguments: &Arguments) -> Result<Run> {
    let wanted = |name: &str| arguments.only.is_empty() || arguments.only.iter().any(|only| only == name);
    let mut estate = Estate::start()?;
    estate.apply(include_str!("../mesh.yaml"))?;
    let paths = start_paths(&mut estate, arguments)?;
    let mut run = Run {
        date: now(),
        commit: record::commit(),
        machine: record::machine(),
        command: command(arguments),
        seconds: arguments.seconds,
        rounds: arguments.rounds,
        workers: paths.iter().map(Path::workers).try_fold(0, |most, workers| workers.map(|n| n.max(most)))?,
        paths: paths.iter().map(|path| path.name.clone()).collect(),
        ..Run::default()
    };
    if wanted("idle") {
        std::thread::sleep(RELEASE_TIME);
        for path in &paths {
            remember(&mut run, path, "idle")?;
        }
    }
    for path in &paths {
        path.meshbench("rr", 9902, ["2", "1", "64"].map(str::to_owned).into_iter(), 1).context("the first second")?;
    }
    for round in 1..=arguments.rounds {
        for work in WORK.iter().filter(|work| wanted(work.name)) {
            eprintln!("round {round} of {}: {}", arguments.rounds, work.name);
            for path in &paths {
                for (figure, value) in work::run(work, path, arguments.seconds)? {
                    let key = format!("{}/{figure}", work.name);
                    if FIGURES.iter().any(|figure| figure.key == key) {
                        run.add(&key, &path.name, value);
                    }
                }
            }
        }
    }
    for path in paths.iter().filter(|path| wanted("hold") && path.has_agents()) {
        hold(&mut run, path, arguments.hold.min(most_held()))?;
    }
    if wanted("scale") {
        large(&mut estate, &mut run, arguments)?;
    }
    run.add_differences();
    Ok(run)
}

/// How many connections an agent can hold here: two sockets each, and some for itself, of what this
/// process may open, which the agents inherit.
fn most_held() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX).saturating_sub(OWN_FILES) / 2
}

/// Has this process and its children open as many files as the work needs, if it may (getrlimit(2)).
fn allow_files(held: u64) {
    let limit = getrlimit(Resource::Nofile);
    let wanted = (2 * held + OWN_FILES).max(limit.current.unwrap_or(u64::MAX));
    let maximum = limit.maximum.map(|maximum| maximum.max(wanted));
    // Where it may not, fewer are held.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
}

/// Memory with connections held open, and half a minute after they closed.
fn hold(run: &mut Run, path: &Path, most: u64) -> Result<()> {
    let mut seen = Vec::new();
    // Where fewer than the last count can be open, as many as can are, for the slope.
    for connections in HELD.iter().map(|connections| most.min(*connections)) {
        eprintln!("{}: {connections} open connections", path.name);
        let mut holding = path.hold(connections)?;
        std::thread::sleep(RELEASE_TIME);
        let memory = if HELD.contains(&connections) {
            remember(run, path, &format!("hold{connections}"))?
        } else {
            path.memory()?
        };
        let Some(memory) = memory else { return Ok(()) };
        seen.push((connections as f64, memory));
        holding.stop()?;
        if connections == most {
            break;
        }
    }
    // A slope, since what earlier work left behind is there at every count.
    if let [(few, with_few), .., (many, with_many)] = seen[..] {
        for (side, number) in [("client", 0), ("server", 1)] {
            let added = with_many[number].rss_mib - with_few[number].rss_mib;
            run.add(&format!("hold/mib_per_1000_{side}"), &path.name, added / (many - few) * 1000.0);
        }
    }
    // Thousands that close at once keep an agent busy for the first seconds, and what carried them is closed
    // up to 15 s later.
    std::thread::sleep(4 * RELEASE_TIME);
    remember(run, path, "released")?;
    Ok(())
}

/// A large mesh, for the first program: it is the same whatever the tunnel, so it is shown for all its paths.
fn large(estate: &mut Estate, run: &mut Run, arguments: &Arguments) -> Result<()> {
    eprintln!("a large mesh");
    let programs = arguments.programs.first().context("clap asks for one")?;
    let folder = programs.split_once('=').map_or(programs.as_str(), |(_, folder)| folder);
    let figures = scale::run(estate, &FilePath::new(folder).canonicalize()?, &settings(arguments.set.iter())?)?;
    for path in run.meshed().into_iter().take(arguments.tunnels.len()) {
        for (figure, value) in &figures {
            run.add(&format!("scale/{figure}"), &path, *value);
        }
    }
    Ok(())
}

fn remember(run: &mut Run, path: &Path, when: &str) -> Result<Option<[path::Memory; 2]>> {
    let Some(memory) = path.memory()? else { return Ok(None) };
    for (side, memory) in ["client", "server"].into_iter().zip(memory) {
        run.add(&format!("{when}/rss_mib_{side}"), &path.name, memory.rss_mib);
        if when == "idle" {
            run.add(&format!("{when}/pss_mib_{side}"), &path.name, memory.pss_mib);
        }
    }
    Ok(Some(memory))
}

fn start_paths(estate: &mut Estate, arguments: &Arguments) -> Result<Vec<Path>> {
    let mut paths = vec![Path::start(estate, 0, DIRECT, Between::Nothing)?];
    paths.push(Path::start(estate, 1, RELAYS, Between::Relays)?);
    let mut number = 1;
    for programs in &arguments.programs {
        let (name, folder) = programs.split_once('=').map_or((None, programs.as_str()), |(n, f)| (Some(n), f));
        let folder = PathBuf::from(folder);
        if !folder.join("tombolo").exists() {
            bail!("there is no tombolo in {}: build it, or name another folder by --programs", folder.display());
        }
        let folder = folder.canonicalize()?;
        for tunnel in &arguments.tunnels {
            let chosen = (tunnel != "default").then(|| format!("outbound.tunnel=\"{tunnel}\""));
            let config = settings(arguments.set.iter().chain(&chosen))?;
            let name = name.map_or_else(|| tunnel.clone(), |name| format!("{name} {tunnel}"));
            number += 1;
            paths.push(Path::start(estate, number, &name, Between::Agents(&folder, &config))?);
        }
    }
    Ok(paths)
}

/// `SECTION.KEY=VALUE`s as the sections of an agent.toml.
fn settings<'a>(set: impl Iterator<Item = &'a String>) -> Result<String> {
    let mut sections: BTreeMap<&str, String> = BTreeMap::new();
    for setting in set {
        let (section, rest) = setting.split_once('.').with_context(|| format!("--set {setting}: SECTION.KEY=VALUE"))?;
        sections.entry(section).or_default().push_str(&format!("{rest}\n"));
    }
    Ok(sections.into_iter().map(|(section, lines)| format!("[{section}]\n{lines}")).collect())
}

/// The command that repeats the run, wherever its programs are.
fn command(arguments: &Arguments) -> String {
    let mut line = "bench".to_owned();
    for word in std::env::args().skip(1).filter(|word| word != "--record") {
        let folder = arguments.programs.contains(&word);
        let name = word.split_once('=').map(|(name, _)| format!("{name}=")).unwrap_or_default();
        line += &if folder { format!(" {name}FOLDER") } else { format!(" {word}") };
    }
    line
}

fn now() -> String {
    let now = time::OffsetDateTime::now_utc().replace_nanosecond(0).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    now.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}
