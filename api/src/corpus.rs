//! The inputs that fuzzing found or started from, for tests that replay them. Only built for tests.

use std::path::Path;

/// Every file of `tests/fuzz/corpus/TARGET`, with its name.
pub(crate) fn files(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus").join(target);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.expect("a folder that was just opened").path();
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        (path.display().to_string(), bytes)
    };
    let found: Vec<(String, Vec<u8>)> = entries.map(read).collect();
    assert!(!found.is_empty(), "{} is empty", folder.display());
    found
}

/// The same for parsers of text; what is not UTF-8 never reaches them.
pub(crate) fn texts(target: &str) -> Vec<(String, String)> {
    let text = |(name, bytes)| Some((name, String::from_utf8(bytes).ok()?));
    files(target).into_iter().filter_map(text).collect()
}
