//! Splitting what was typed into documents: YAML, several in one text, JSON as a part of it, and
//! Kubernetes' `List`. Pure.
//!
//! The text may come from anyone with a token, so its size, depth and the growth by aliases ("YAML
//! bombs") are bounded. Words such as `yes` and `off` are texts, as YAML 1.2 says.

use serde_json::Value;

use super::mistake::{Mistake, Problem};

/// The longest text that is read.
const MAX_BYTES: usize = 4 * 1024 * 1024;

/// Every document of a text, those of lists one by one; empty ones are left out.
pub fn documents(yaml: &str) -> Result<Vec<Value>, Mistake> {
    let refuse = |why: String| Mistake { path: String::new(), problem: Problem::Yaml { why } };
    if yaml.len() > MAX_BYTES {
        let why = format!("{} bytes are more than the {MAX_BYTES} that are read at once", yaml.len());
        return Err(refuse(why));
    }
    let found = serde_saphyr::from_multiple_with_options::<Value>(yaml, options());
    let found = found.map_err(|error| refuse(error.without_snippet().to_string()))?;
    Ok(found.into_iter().flat_map(items).collect())
}

fn options() -> serde_saphyr::Options {
    let mut limits = serde_saphyr::options::AliasLimits::default();
    limits.max_total_replayed_events = 20_000;
    limits.max_replay_stack_depth = 16;
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 64,
            flow_nesting_limit: 64,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_recorded_anchor_events: 20_000,
            max_total_scalar_bytes: MAX_BYTES,
            max_merge_keys: 1_000,
        },
        alias_limits: limits,
        strict_booleans: true,
        with_snippet: false,
    }
}

fn items(document: Value) -> Vec<Value> {
    match document {
        Value::Null => Vec::new(),
        Value::Object(mut map) if map.get("kind").and_then(Value::as_str).is_some_and(|kind| kind == "List") => {
            match map.remove("items") {
                Some(Value::Array(items)) => items,
                _ => Vec::new(),
            }
        }
        other => vec![other],
    }
}
