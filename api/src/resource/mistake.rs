//! What is wrong with a resource somebody wrote: where, what, and what to write instead. Every kind's
//! reader reports these; the control plane shows them. Pure.

use std::fmt;

/// One mistake, with the path of its field such as `spec.rules[0].from[1].source.ipBlocks[0]`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Mistake {
    /// Empty when the document as a whole is at fault.
    pub path: String,
    pub problem: Problem,
}

/// What is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("is missing: {meant}")]
    Missing { meant: &'static str },
    #[error("unknown field{}", suggestion(*.meant))]
    Unknown { meant: Option<&'static str> },
    #[error("not supported by this version: {instead}")]
    Unsupported { instead: String },
    #[error("must be {expected}, not {found}")]
    Type { expected: &'static str, found: &'static str },
    #[error("{value:?} is not {expected}")]
    Invalid { value: String, expected: String },
    #[error("{value:?} occurs twice")]
    Duplicate { value: String },
    /// Fields that are right one by one and wrong together.
    #[error("{why}")]
    Conflict { why: String },
    #[error("not YAML: {why}")]
    Yaml { why: String },
}

fn suggestion(meant: Option<&str>) -> String {
    meant.map(|meant| format!(", did you mean {meant:?}?")).unwrap_or_default()
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => write!(f, "{}", self.problem),
            path => write!(f, "{path}: {}", self.problem),
        }
    }
}

/// The known name that was probably meant: same letters, or at most two typing errors away.
pub(super) fn closest(found: &str, known: impl IntoIterator<Item = &'static str>) -> Option<&'static str> {
    // Longer ones are no typing errors, and the distance costs the product of the lengths.
    if found.len() > 64 {
        return None;
    }
    let plain = |text: &str| text.replace(['_', '-'], "").to_ascii_lowercase();
    let found = plain(found);
    let scored = known.into_iter().map(|name| (distance(&found, &plain(name)), name));
    let allowed = if found.len() < 5 { 1 } else { 2 };
    scored.filter(|(distance, _)| *distance <= allowed).min_by_key(|(distance, _)| *distance).map(|(_, name)| name)
}

/// Levenshtein's edit distance, with two rows.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
