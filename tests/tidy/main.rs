//! The house rules as tests: what clippy cannot see. A new exception is argued in the table it is in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Production lines a file may have before it must be split.
const MAX_LINES: usize = 600;

/// Which room may depend on which (ARCHITECTURE.md). Rooms that are missing here may not depend on any.
const ARROWS: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("identity", &["api"]),
    ("telemetry", &[]),
    ("proxy", &["api", "identity", "telemetry"]),
    ("agent", &["api", "identity", "telemetry", "proxy"]),
    ("controlplane", &["api", "identity", "telemetry"]),
    ("cli", &["api", "identity", "telemetry", "agent"]),
];

/// What a file that calls itself pure must not touch.
const IMPURE: &[&str] = &["SystemTime::now(", "Instant::now(", "tokio::", "std::fs", "tracing::", "std::env"];

/// Names that become drawers.
const DRAWERS: &[&str] = &["util", "utils", "common", "shared", "helpers", "misc"];

/// The only test files that may sleep. A test waits for what it wants to see, with a deadline.
const SLEEPERS: &[(&str, &str)] = &[
    ("agent/src/testing.rs", "the pause in the agent's one wait for a condition"),
    ("controlplane/src/testing.rs", "the same of the control plane"),
    ("proxy/src/tests/mesh.rs", "the same of the proxy"),
    ("tests/src/wait.rs", "the same of the harness"),
    ("tests/src/soak/conversation.rs", "a reader that does not keep up"),
    ("tests/src/bin/testhost.rs", "the pace of a client that keeps a connection busy"),
];

#[test]
fn tests_do_not_sleep() {
    let mut sleepers = BTreeMap::new();
    for (path, text) in sources() {
        let path = path.strip_prefix(workspace()).expect("sources are of the workspace").to_owned();
        // A benchmark is no test: it measures for a time.
        let harness = path.starts_with("tests") && !path.starts_with("tests/bench");
        let testing = harness || path.ends_with("testing.rs") || is_test(&path);
        let sleeps = text.lines().filter(|line| line.split("//").next().unwrap_or_default().contains("sleep("));
        if testing && path != Path::new("tests/tidy/main.rs") && sleeps.clone().next().is_some() {
            sleepers.insert(path.display().to_string(), sleeps.count());
        }
    }
    let allowed = SLEEPERS.iter().map(|(path, _)| ((*path).to_owned(), 1)).collect();
    assert_eq!(sleepers, allowed, "test files that sleep, and how often; SLEEPERS says who may, once");
}

#[test]
fn every_file_says_what_it_is_for_and_stays_readable() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        if !text.starts_with("//!") {
            wrong.push(format!("{}: does not begin with //!", path.display()));
        }
        let production = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().lines().count();
        if production > MAX_LINES && !is_test(&path) {
            wrong.push(format!("{}: {production} lines, more than {MAX_LINES}", path.display()));
        }
        if text.lines().any(|line| line.starts_with("#![allow(")) {
            wrong.push(format!("{}: a lint is switched off for the whole file", path.display()));
        }
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        if DRAWERS.contains(&stem.as_str()) {
            wrong.push(format!("{}: a drawer, not a name", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_is_compiled() {
    let all: BTreeMap<PathBuf, String> = sources().collect();
    let mut wrong = Vec::new();
    for path in all.keys() {
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let roots = ["main", "lib", "build"];
        let folder = path.parent().unwrap_or(Path::new(""));
        let is_target =
            ["bin", "tests", "examples", "benches", "fuzz_targets"].iter().any(|kind| folder.ends_with(kind));
        if roots.contains(&stem.as_str()) || (is_target && !folder.ends_with("src")) {
            continue;
        }
        let mut parents = vec![folder.with_extension("rs")];
        parents.extend(["main.rs", "lib.rs", "mod.rs"].map(|name| folder.join(name)));
        let named = |text: &String| {
            text.contains(&format!("mod {stem};"))
                || text.contains(&format!("/{stem}.rs\""))
                || text.contains(&format!("\"{stem}.rs\""))
        };
        if !parents.iter().filter_map(|parent| all.get(parent)).any(named) {
            wrong.push(format!("{}: no `mod` names it, so it never runs", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn rooms_depend_only_on_the_rooms_they_may() {
    let rooms: BTreeSet<&str> = ARROWS.iter().map(|(room, _)| *room).collect();
    for (room, allowed) in ARROWS {
        let manifest = std::fs::read_to_string(workspace().join(room).join("Cargo.toml")).expect("every room has one");
        let dependencies = manifest.split("[dependencies]").nth(1).unwrap_or_default();
        let dependencies = dependencies.split("\n[").next().unwrap_or_default();
        for line in dependencies.lines() {
            let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
            assert!(!rooms.contains(name) || allowed.contains(&name), "{room} must not depend on {name}");
        }
    }
}

#[test]
fn pure_files_are_pure() {
    let mut wrong = Vec::new();
    for (path, text) in sources().filter(|(path, text)| !is_test(path) && says_pure(text)) {
        let production = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (number, line) in production.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if let Some(word) = IMPURE.iter().find(|word| code.contains(**word)) {
                wrong.push(format!("{}:{}: pure files do not use {word}", path.display(), number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn links_in_the_documents_lead_somewhere() {
    let mut wrong = Vec::new();
    for path in files(&workspace(), "md") {
        let text = std::fs::read_to_string(&path).expect("a file that was just listed");
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            let local = !file.is_empty() && !file.contains("://") && !file.starts_with("mailto:");
            if local && !path.parent().unwrap_or(Path::new(".")).join(file).exists() {
                wrong.push(format!("{}: {target} leads nowhere", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_that_documents_name_exist() {
    let rooms: Vec<PathBuf> = std::fs::read_dir(workspace()).expect("readable").flatten().map(|e| e.path()).collect();
    let sources: Vec<PathBuf> = files(&workspace(), "rs");
    let mut wrong = Vec::new();
    for document in files(&workspace(), "md") {
        let text = std::fs::read_to_string(&document).expect("a file that was just listed");
        // Every second piece between the fences is a block; every second one between backticks is code.
        let prose = text.split("```").step_by(2);
        for name in prose.flat_map(|prose| prose.split('`').skip(1).step_by(2)) {
            let whole = workspace().join(name);
            // What make targets put into target/ is not there before they ran.
            let in_room = rooms.iter().any(|room| whole.starts_with(room) && name.contains('/'));
            let in_room = in_room && !name.starts_with("target/");
            // `inbound.rs` and `hbone/pool.rs` are the short names of files of a room that was just named.
            let short = |path: &PathBuf| rooms.iter().any(|room| *path == room.join("src").join(name));
            let exists = match name.ends_with(".rs") {
                true => whole.exists() || sources.iter().any(short),
                false => !in_room || whole.exists() || name.contains(['*', '…', ' ']),
            };
            if !exists {
                wrong.push(format!("{}: there is no `{name}`", document.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn blocks_of_commands_say_where_they_run() {
    let documents = tests::document::documents().expect("the workspace is readable");
    let wrong: Vec<String> = documents
        .iter()
        .filter_map(|path| tests::document::blocks(path).err())
        .map(|error| format!("{error:#}"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn says_pure(text: &str) -> bool {
    let header = text.lines().take_while(|line| line.starts_with("//!"));
    header.into_iter().any(|line| line.contains("Pure:") || line.ends_with("Pure."))
}

fn is_test(path: &Path) -> bool {
    let text = path.to_string_lossy();
    text.contains("/tests/") || text.ends_with("/tests.rs") || text.contains("/examples/")
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the workspace").to_owned()
}

/// Every Rust file that people write.
fn sources() -> impl Iterator<Item = (PathBuf, String)> {
    let all = files(&workspace(), "rs").into_iter().filter(|path| !path.to_string_lossy().contains("/wire/gen/"));
    all.map(|path| {
        let text = std::fs::read_to_string(&path).expect("a file that was just listed");
        (path, text)
    })
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the workspace is readable").flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let skipped = name == "target" || name.to_string_lossy().starts_with('.');
        if path.is_dir() && !skipped {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|is| is == extension) {
            found.push(path);
        }
    }
    found
}
