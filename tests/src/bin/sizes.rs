//! The promises about size, checked on the programs as they ship: `sizes FOLDER`.
//!
//! Static (no interpreter in the ELF headers, as ldd reads them), `tombolo` at most 25 MiB on disk,
//! an idle agent at most 8 MiB resident.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::netns::finish;
use tests::{Estate, HostSpec, wait_until, within};

const PROGRAM_LIMIT_BYTES: u64 = 25 << 20;
const IDLE_LIMIT_KIB: u64 = 8 << 10;
/// Long enough for two leases, two looks at the rules and what else an idle agent does.
const WATCHED: Duration = Duration::from_secs(30);

fn main() -> Result<()> {
    let folder = PathBuf::from(std::env::args().nth(1).context("usage: sizes FOLDER-OF-THE-PROGRAMS")?);
    for name in ["tombolo", "tombolo-controlplane"] {
        is_static(&folder.join(name))?;
    }
    let bytes = std::fs::metadata(folder.join("tombolo"))?.len();
    println!("tombolo: {:.1} MiB, static", bytes as f64 / (1 << 20) as f64);
    ensure!(bytes <= PROGRAM_LIMIT_BYTES, "tombolo is larger than {PROGRAM_LIMIT_BYTES} bytes");

    let kib = idle_agent(&folder)?;
    println!("idle agent: {:.1} MiB resident", kib as f64 / 1024.0);
    ensure!(kib <= IDLE_LIMIT_KIB, "an idle agent needs more than {IDLE_LIMIT_KIB} KiB");
    println!("4 passed, 0 failed");
    Ok(())
}

fn is_static(program: &Path) -> Result<()> {
    let mut command = Command::new("ldd");
    command.arg(program);
    let output = finish(command, Duration::from_secs(10))?;
    let said = format!("{}{}", output.stdout, output.stderr);
    let is = said.contains("statically linked") || said.contains("not a dynamic executable");
    ensure!(is, "{} is not static: {said}", program.display());
    Ok(())
}

/// Resident memory of a joined, intercepting agent that carries no traffic.
fn idle_agent(folder: &Path) -> Result<u64> {
    let mut estate = Estate::start()?;
    estate.use_programs_in(folder);
    estate.apply(include_str!("../../demo/shop.yaml"))?;
    let spec = HostSpec { groups: vec!["shop/orders".to_owned()], ..HostSpec::default() };
    let host = estate.add_meshed_host("idle", &spec)?;
    let status = host.status()?;
    ensure!(status["interception"]["state"] == "on", "not intercepting: {status}");
    let agent = host.agent().context("the host runs an agent")?;
    // The first report renews the lease; after it the agent has done everything it does when idle.
    wait_until("the control plane counts the agent as current", || {
        let said = estate.operate(&["host", "list", "-o", "json"]).map_err(|error| error.to_string())?;
        if said.contains("\"ready\"") { Ok(()) } else { Err(said) }
    });
    // What starting took is given back a few seconds after it, and again every minute.
    within(Duration::from_secs(90), "an idle agent gives back what it does not need", || {
        let kib = agent.rss_kib().map_err(|error| error.to_string())?;
        if kib <= IDLE_LIMIT_KIB { Ok(()) } else { Err(format!("{kib} KiB, more than {IDLE_LIMIT_KIB}")) }
    });
    // What it keeps then: the most that is seen for a while, its lease and its probes among it.
    let watched = Instant::now();
    let mut most = 0;
    within(WATCHED + Duration::from_secs(10), "the idle agent is watched", || {
        most = most.max(agent.rss_kib().map_err(|error| error.to_string())?);
        if watched.elapsed() >= WATCHED { Ok(()) } else { Err("not yet long enough".to_owned()) }
    });
    Ok(most)
}
