//! The table of a run: beside direct, beside the last recorded run, beside the peers, and the goals.

use std::collections::BTreeMap;

use comfy_table::{Cell, CellAlignment, Table, TableStyle, presets};
use serde::Deserialize;

use crate::record::{DIRECT, RELAYS, Run, Spread};
use crate::work::{FIGURES, Figure, Goal};

/// Other proxies on the same work (peers.json).
#[derive(Debug, Deserialize)]
pub struct Peers {
    pub source: String,
    /// Peer → figure → median.
    pub figures: BTreeMap<String, BTreeMap<String, f64>>,
}

/// A change smaller than this is noise, whatever the samples say.
const SMALLEST_CHANGE: f64 = 0.03;

/// The peers that goals are measured against.
pub const PEERS: &[&str] = &["ztunnel", "linkerd2-proxy"];

impl Peers {
    pub fn get(&self, peer: &str, figure: &str) -> Option<f64> {
        self.figures.get(peer)?.get(figure).copied()
    }

    /// The number a figure must reach.
    pub fn goal(&self, figure: &Figure) -> Option<f64> {
        let better = if figure.more_is_better() { f64::max } else { f64::min };
        match figure.goal {
            Goal::None => None,
            Goal::AtMost(limit) => Some(limit),
            Goal::TimesPeers(factor) => {
                let best = PEERS.iter().filter_map(|peer| self.get(peer, figure.key)).reduce(better)?;
                Some(best * factor)
            }
        }
    }
}

/// The whole table; `recorded` is the run to compare with. × is the ratio to direct, and where direct has no such
/// figure to the relays.
pub fn table(run: &Run, recorded: Option<&Run>, peers: &Peers, style: TableStyle) -> String {
    let mut table = Table::new();
    table.load_style(style);
    let meshed = run.meshed();
    let mut header = ["figure", "unit", DIRECT, RELAYS].map(str::to_owned).to_vec();
    for path in &meshed {
        header.extend([path, "×", "since record"].map(str::to_owned));
    }
    header.extend(PEERS.iter().map(|peer| peer.to_string()));
    header.extend(["goal".to_owned(), "met".to_owned()]);
    table.set_header(header);
    for figure in FIGURES.iter().filter(|figure| run.samples.contains_key(figure.key)) {
        let (direct, relays) = (run.median(figure.key, DIRECT), run.median(figure.key, RELAYS));
        let mut cells = vec![figure.title.to_owned(), figure.unit.to_owned(), shown(direct), shown(relays)];
        for path in &meshed {
            let own = run.spread(figure.key, path);
            let ratio = own.zip(direct.or(relays)).map(|(own, base)| format!("{:.2}", own.median / base));
            let before = recorded.and_then(|recorded| recorded.spread(figure.key, path));
            cells.push(shown(own.map(|own| own.median)));
            cells.push(ratio.unwrap_or_default());
            cells.push(own.zip(before).map(|(own, before)| change(figure, own, before)).unwrap_or_default());
        }
        cells.extend(PEERS.iter().map(|peer| shown(peers.get(peer, figure.key))));
        cells.push(shown_goal(figure, peers));
        cells.push(meshed.iter().filter_map(|path| met(run, figure, path, peers)).collect::<Vec<_>>().join(" "));
        let right = |(column, text): (usize, String)| {
            let alignment = if column < 2 { CellAlignment::Left } else { CellAlignment::Right };
            Cell::new(text).set_alignment(alignment)
        };
        table.add_row(cells.into_iter().enumerate().map(right));
    }
    table.to_string()
}

/// As a terminal shows it, with what made it.
pub fn text(run: &Run, recorded: Option<&Run>, peers: &Peers) -> String {
    let since = recorded.map(|run| format!("recorded: {} of {}\n", run.commit, run.date)).unwrap_or_default();
    format!(
        "{}\n{}, {} worker(s) an agent, {} round(s) of {} s, medians; CPU is both sides together; × is to direct, for CPU to two relays that only pass bytes on\n{since}peers: {}\n",
        table(run, recorded, peers, presets::UTF8_FULL_CONDENSED),
        run.machine,
        run.workers,
        run.rounds,
        run.seconds,
        peers.source
    )
}

fn met(run: &Run, figure: &Figure, path: &str, peers: &Peers) -> Option<&'static str> {
    let (value, goal) = (run.median(figure.key, path)?, peers.goal(figure)?);
    let reached = if figure.more_is_better() { value >= goal } else { value <= goal };
    Some(if reached { "yes" } else { "no" })
}

fn shown_goal(figure: &Figure, peers: &Peers) -> String {
    let sign = if figure.more_is_better() { "≥" } else { "≤" };
    peers.goal(figure).map(|goal| format!("{sign} {}", shown(Some(goal)))).unwrap_or_default()
}

/// How a figure moved; beyond noise only when no sample of one run lies among those of the other.
fn change(figure: &Figure, own: Spread, before: Spread) -> String {
    let relative = own.median / before.median - 1.0;
    let overlap = own.least <= before.most && before.least <= own.most;
    if overlap || relative.abs() < SMALLEST_CHANGE {
        return format!("{:+.0} % noise", relative * 100.0);
    }
    let better = (relative > 0.0) == figure.more_is_better();
    format!("{:+.0} % {}", relative * 100.0, if better { "better" } else { "WORSE" })
}

/// Three digits are enough.
pub fn shown(value: Option<f64>) -> String {
    match value {
        None => String::new(),
        Some(value) if value.abs() >= 100.0 => thousands(value.round() as i64),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) if value.abs() >= 1.0 => format!("{value:.2}"),
        Some(value) => format!("{value:.3}"),
    }
}

fn thousands(value: i64) -> String {
    let digits = value.unsigned_abs().to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|group| str::from_utf8(group).ok()).collect();
    format!("{}{}", if value < 0 { "−" } else { "" }, groups.join(","))
}
