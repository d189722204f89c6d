//! The chart of a run: for each goal's work, a bar for each path and each peer. SVG by hand: rectangles
//! and text, one column, readable on light and dark pages.

use std::fmt::Write;

use crate::record::{DIRECT, RELAYS, Run};
use crate::report::{PEERS, Peers, shown};
use crate::work::FIGURES;

/// What is drawn: figure, and its title where the table's would not stand alone.
const PANELS: &[(&str, &str)] = &[
    ("tput1/gbit_s", "1 connection, upload"),
    ("tput1/cpu_ms_per_gb", "1 connection, CPU per GB"),
    ("tput8/cpu_ms_per_gb", "8 connections, CPU per GB"),
    ("rr16/cpu_us", "1 KiB request/response, CPU per request"),
    ("rate1k/p50_added_us", "1,000 requests/s, added to direct, p50"),
    ("crr4/per_s", "new connections a second"),
    ("crr4/cpu_us", "new connection, CPU"),
    ("hold1000/rss_mib_client", "RSS with 1,000 open connections, client"),
];

const WIDTH: f64 = 760.0;
const LABEL_WIDTH: f64 = 150.0;
const BAR_WIDTH: f64 = 480.0;
const BAR_HEIGHT: f64 = 16.0;

/// The whole picture.
pub fn draw(run: &Run, peers: &Peers) -> String {
    let (mut body, mut y) = (String::new(), 10.0);
    for (key, title) in PANELS {
        let Some(figure) = FIGURES.iter().find(|figure| figure.key == *key) else { continue };
        let paths = run.paths.iter().filter_map(|path| Some((path.as_str(), run.median(key, path)?, colour(path))));
        let others = PEERS.iter().filter_map(|peer| Some((*peer, peers.get(peer, key)?, "#9aa5b1")));
        let bars: Vec<_> = paths.chain(others).collect();
        let most = bars.iter().map(|bar| bar.1).fold(0.0, f64::max);
        let wish = if figure.more_is_better() { "more" } else { "less" };
        text(&mut body, 0.0, y + 13.0, "start", &format!("{title} ({}, {wish} is better)", figure.unit), true);
        y += 22.0;
        for (name, value, colour) in bars {
            let width = (value / most * BAR_WIDTH).max(1.0);
            text(&mut body, LABEL_WIDTH - 8.0, y + 12.0, "end", name, false);
            // Writing to a String cannot fail.
            let _ = writeln!(
                body,
                r#"<rect x="{LABEL_WIDTH}" y="{y}" width="{width:.1}" height="{BAR_HEIGHT}" rx="2" fill="{colour}"/>"#
            );
            text(&mut body, LABEL_WIDTH + width + 6.0, y + 12.0, "start", &shown(Some(value)), false);
            y += BAR_HEIGHT + 4.0;
        }
        y += 14.0;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y}\" font-family=\"sans-serif\" \
         font-size=\"13\" fill=\"#6b7785\">\n{body}</svg>\n"
    )
}

fn colour(path: &str) -> &'static str {
    if [DIRECT, RELAYS].contains(&path) { "#c9d1d9" } else { "#2f81f7" }
}

fn text(body: &mut String, x: f64, y: f64, anchor: &str, words: &str, bold: bool) {
    let weight = if bold { r#" font-weight="bold""# } else { "" };
    let _ = writeln!(body, r#"<text x="{x:.1}" y="{y}" text-anchor="{anchor}"{weight}>{words}</text>"#);
}
