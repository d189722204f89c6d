//! A large mesh: what 50,000 workloads in 5,000 services cost an agent that starts from its snapshot on
//! disk, with the control plane away. Times are those of the agent's own log lines.

use std::path::Path;

use agent::state::snapshot_file;
use anyhow::{Context, Result};
use api::wire::{self, tombolo::NamedResource};
use bench::world;
use prost::Message;
use tests::{Estate, Host, HostSpec, wait_until};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const WORKLOADS: u32 = 50_000;

/// Figures by the part of their key after the slash. Ends the estate's control plane.
pub fn run(estate: &mut Estate, programs: &Path, config: &str) -> Result<Vec<(&'static str, f64)>> {
    estate.use_programs_in(programs);
    let spec = HostSpec { groups: vec!["bench/client".to_owned()], config: config.to_owned() };
    let mut host = estate.add_meshed_host("large", &spec)?;
    host.stop_agent()?;
    let small = host.agent_log().lines().count();
    grow(&host)?;
    estate.stop_control_plane()?;
    host.start_agent()?;
    let log: Vec<serde_json::Value> = wait_until("the rules for the large mesh are in force", || {
        let text = host.agent_log();
        let lines: Vec<_> = text.lines().skip(small).filter_map(|line| serde_json::from_str(line).ok()).collect();
        at(&lines, RULES).map(|_| lines).map_err(|error| format!("{error:#}"))
    });
    std::thread::sleep(4 * crate::RELEASE_TIME);
    let agent = host.agent().context("the agent was started")?;
    Ok(vec![
        ("rss_mib", agent.rss_kib()? as f64 / 1024.0),
        ("apply_ms", (at(&log, LOADED)? - at(&log, STARTS)?).as_seconds_f64() * 1000.0),
        ("rules_ms", (at(&log, RULES)? - at(&log, LOADED)?).as_seconds_f64() * 1000.0),
    ])
}

/// Adds the mesh to what the agent has on disk.
fn grow(host: &Host) -> Result<()> {
    let file = host.folder().join("state/snapshot");
    let bytes = std::fs::read(&file).with_context(|| format!("no snapshot in {}", file.display()))?;
    let content = snapshot_file::decode(bytes)?;
    let had = content.resources.into_iter().map(NamedResource::decode).collect::<Result<Vec<_>, _>>()?;
    let changes = world::changes(WORKLOADS);
    let added = changes.iter().filter_map(wire::encode).map(|encoded| NamedResource {
        type_url: encoded.type_url.to_owned(),
        name: encoded.name,
        version: "1".to_owned(),
        body: encoded.body,
    });
    let grown = snapshot_file::encode(content.revision, had.into_iter().chain(added));
    std::fs::write(&file, grown).with_context(|| format!("cannot write {}", file.display()))
}

/// When the agent said so.
fn at(log: &[serde_json::Value], message: &str) -> Result<OffsetDateTime> {
    let line = log.iter().find(|line| line["message"] == message);
    let line = line.with_context(|| format!("the agent never said {message:?}: {:?}", log.last()))?;
    Ok(OffsetDateTime::parse(line["timestamp"].as_str().unwrap_or_default(), &Rfc3339)?)
}

const STARTS: &str = "the agent starts";
const LOADED: &str = "starting from the snapshot on disk";
const RULES: &str = "the rules are in force";
