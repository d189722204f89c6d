//! The document and its chart show the last recorded run.

use std::path::Path;

use super::{CHART, DOCUMENT, with_figures};
use crate::{chart, record};

#[test]
fn the_document_shows_the_last_recorded_run() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let peers = serde_json::from_str(include_str!("../../peers.json")).expect("peers.json is one");
    let recorded = record::load(&workspace.join("tests/bench/recorded.json")).expect("the record is one");
    let read = |file: &str| std::fs::read_to_string(workspace.join(file)).expect("it is in the workspace");
    let text = read(DOCUMENT);
    let fresh = with_figures(&text, &recorded, &peers).expect("it has its marks");
    assert!(fresh == text, "{DOCUMENT} is stale: `target/…/debug/bench --documents` writes it");
    let run = recorded.last().expect("a run is recorded");
    assert!(chart::draw(run, &peers) == read(CHART), "{CHART} is stale: `target/…/debug/bench --documents` draws it");
}
