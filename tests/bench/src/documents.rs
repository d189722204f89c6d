//! The recorded figures as a reader of docs/performance.md finds them: written here, never by hand, so that
//! there is no figure without the command that made it. A test holds document and record together.

use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::presets;

use crate::chart;
use crate::record::Run;
use crate::report::{Peers, table};

const DOCUMENT: &str = "docs/performance.md";
const CHART: &str = "docs/performance.svg";
const BEGIN: &str = "<!-- written by `bench --documents`: begin -->\n";
const END: &str = "<!-- written by `bench --documents`: end -->\n";

/// Writes the document's table and its chart from the last recorded run.
pub fn write(workspace: &Path, recorded: &[Run], peers: &Peers) -> Result<()> {
    let file = workspace.join(DOCUMENT);
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    std::fs::write(&file, with_figures(&text, recorded, peers)?)?;
    let run = recorded.last().context("no run is recorded: `make bench RECORD=1`")?;
    std::fs::write(workspace.join(CHART), chart::draw(run, peers))?;
    Ok(())
}

/// The document with its figures replaced.
fn with_figures(text: &str, recorded: &[Run], peers: &Peers) -> Result<String> {
    let marks = || format!("{DOCUMENT} has lost its marks {BEGIN:?} and {END:?}");
    let (before, rest) = text.split_once(BEGIN).with_context(marks)?;
    let (_, after) = rest.split_once(END).with_context(marks)?;
    Ok(format!("{before}{BEGIN}{}{END}{after}", figures(recorded, peers)?))
}

fn figures(recorded: &[Run], peers: &Peers) -> Result<String> {
    let (run, earlier) = recorded.split_last().context("no run is recorded: `make bench RECORD=1`")?;
    Ok(format!(
        "Recorded {} at commit {} by `{}`: {}; {} worker(s) an agent, medians of {} rounds of {} s. CPU is both \
         sides together. × is the ratio to direct, for CPU that to two relays that only pass bytes on. \"since record\" compares with the recorded run before. Peers: {}.\n\n{}\n\n",
        run.date,
        run.commit,
        run.command,
        run.machine,
        run.workers,
        run.rounds,
        run.seconds,
        peers.source,
        table(run, earlier.last(), peers, presets::ASCII_MARKDOWN)
    ))
}

#[cfg(test)]
mod tests;
