//! The layers of the configuration, read by the `config` crate, and which of them each value is from.
//!
//! Every leaf of every layer is tried alone against [`RawConfig`], so that one wrong line does not
//! hide the next, and so that each mistake names its file.

use std::path::{Path, PathBuf};

use config::{Environment, File, FileFormat, Map, Source, Value, ValueKind};
use serde_json::Value as Json;

use super::raw::RawConfig;
use super::{DEFAULT_FILE, Mistake};

/// Where the layers above the defaults come from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// `--config`: must exist. `None`: `/etc/tombolo/agent.toml`, which may be absent.
    pub file: Option<PathBuf>,
    /// `TOMBOLO__SECTION__KEY`; `None` reads the process's environment.
    pub environment: Option<Vec<(String, String)>>,
    /// `--set section.key=value`.
    pub flags: Vec<(String, String)>,
}

/// One key, the value that counts, and the layer it is from.
#[derive(Debug, Clone, PartialEq)]
pub struct Effective {
    pub key: String,
    pub value: Json,
    pub layer: String,
}

/// All layers, one over the other.
pub(super) struct Layered {
    pub(super) raw: RawConfig,
    pub(super) effective: Vec<Effective>,
    pub(super) mistakes: Vec<Mistake>,
}

/// One layer's leaves, `section.key` and value. Arrays are leaves.
struct Layer {
    name: String,
    leaves: Vec<(String, Json)>,
}

/// The name of the lowest layer.
pub const DEFAULT_LAYER: &str = "default";

pub(super) fn read(sources: &Sources) -> Layered {
    let mut mistakes = Vec::new();
    let mut layers = Vec::new();
    for path in files(sources, &mut mistakes) {
        let name = path.display().to_string();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) => {
                mistakes.push(unreadable(&path, &error.to_string()));
                continue;
            }
        };
        match File::from_str(&text, FileFormat::Toml).collect() {
            Ok(map) => layers.push(Layer { name, leaves: leaves(map) }),
            Err(error) => mistakes.push(Mistake { layer: name, key: String::new(), what: one_line(&error) }),
        }
    }
    layers.push(environment(sources, &mut mistakes));
    layers.push(Layer {
        name: "flags".into(),
        leaves: sources.flags.iter().map(|(key, value)| (key.clone(), Json::String(value.clone()))).collect(),
    });
    merge(layers, mistakes)
}

/// The file, then its drop-ins by name: `agent.toml` has `agent.d/*.toml`.
fn files(sources: &Sources, mistakes: &mut Vec<Mistake>) -> Vec<PathBuf> {
    let path = sources.file.clone().unwrap_or_else(|| DEFAULT_FILE.into());
    let mut found = Vec::new();
    match path.try_exists() {
        Ok(true) => found.push(path.clone()),
        Ok(false) if sources.file.is_none() => {}
        Ok(false) => mistakes.push(unreadable(&path, "there is no such file")),
        Err(error) => mistakes.push(unreadable(&path, &error.to_string())),
    }
    let folder = path.with_extension("d");
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return found,
        Err(error) => {
            mistakes.push(unreadable(&folder, &error.to_string()));
            return found;
        }
    };
    let mut drop_ins: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    drop_ins.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    drop_ins.sort();
    found.extend(drop_ins);
    found
}

fn unreadable(path: &Path, why: &str) -> Mistake {
    Mistake { layer: path.display().to_string(), key: String::new(), what: format!("cannot be read: {why}") }
}

fn environment(sources: &Sources, mistakes: &mut Vec<Mistake>) -> Layer {
    let given = sources.environment.clone().map(|pairs| pairs.into_iter().collect::<Map<String, String>>());
    let source = Environment::with_prefix("TOMBOLO").prefix_separator("__").separator("__").source(given);
    let name = "environment".to_owned();
    match source.collect() {
        Ok(map) => Layer { name, leaves: leaves(map) },
        Err(error) => {
            mistakes.push(Mistake { layer: name.clone(), key: String::new(), what: one_line(&error) });
            Layer { name, leaves: vec![] }
        }
    }
}

fn merge(layers: Vec<Layer>, mut mistakes: Vec<Mistake>) -> Layered {
    let defaults = serde_json::to_value(RawConfig::default()).unwrap_or_default();
    let mut effective = Vec::new();
    flatten("", defaults.clone(), &mut effective);
    let mut effective: Vec<Effective> =
        effective.into_iter().map(|(key, value)| Effective { key, value, layer: DEFAULT_LAYER.into() }).collect();
    let mut merged = defaults.clone();

    for Layer { name, leaves } in layers {
        for (key, value) in leaves {
            let Some(known) = effective.iter_mut().find(|known| known.key == key) else {
                let what = unknown(&key, &effective);
                mistakes.push(Mistake { layer: name.clone(), key, what });
                continue;
            };
            let value = coerce(value, &known.value);
            if let Err(error) = alone(&defaults, &key, value.clone()) {
                mistakes.push(Mistake { layer: name.clone(), key, what: error });
                continue;
            }
            // Workloads of all files count; any other list of a higher layer stands for the lower one's.
            let value = match (key.as_str(), &known.value, value) {
                ("workload", Json::Array(lower), Json::Array(higher)) => {
                    Json::Array(lower.iter().cloned().chain(higher).collect())
                }
                (_, _, value) => value,
            };
            place(&mut merged, &key, value.clone());
            known.value = value;
            known.layer.clone_from(&name);
        }
    }
    let raw = serde_json::from_value(merged).unwrap_or_default();
    Layered { raw, effective, mistakes }
}

fn unknown(key: &str, known: &[Effective]) -> String {
    let inside = known.iter().any(|known| known.key.starts_with(&format!("{key}.")));
    if inside {
        return "this is a section, not a value".to_owned();
    }
    let (section, _) = key.rsplit_once('.').unwrap_or(("", key));
    let prefix = if section.is_empty() { String::new() } else { format!("{section}.") };
    let names: Vec<&str> = known
        .iter()
        .filter_map(|known| known.key.strip_prefix(&prefix).filter(|name| !section.is_empty() && !name.contains('.')))
        .collect();
    match names.as_slice() {
        [] => "there is no such section".to_owned(),
        names => format!("there is no such key; [{section}] has {}", names.join(", ")),
    }
}

/// Whether the defaults with this one leaf make a configuration; else why not.
fn alone(defaults: &Json, key: &str, value: Json) -> Result<(), String> {
    let mut document = defaults.clone();
    place(&mut document, key, value);
    serde_json::from_value::<RawConfig>(document).map(drop).map_err(|error| error.to_string())
}

fn place(document: &mut Json, key: &str, value: Json) {
    let mut at = document;
    for part in key.split('.') {
        at = &mut at[part];
    }
    *at = value;
}

/// Environment and flags are text: numbers, booleans and lists (by comma) are read from it when the
/// key's default is one.
fn coerce(value: Json, like: &Json) -> Json {
    let Json::String(text) = &value else { return value };
    match like {
        Json::Bool(_) => text.parse().map_or(value, Json::Bool),
        Json::Number(_) => text.parse::<u64>().map_or(value, Json::from),
        Json::Array(_) => {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            Json::Array(parts.map(|part| part.parse::<u32>().map_or_else(|_| part.into(), Json::from)).collect())
        }
        Json::Null | Json::String(_) | Json::Object(_) => value,
    }
}

fn leaves(map: Map<String, Value>) -> Vec<(String, Json)> {
    let mut found = Vec::new();
    for (key, value) in map {
        flatten(&key, json(value), &mut found);
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

fn flatten(key: &str, value: Json, into: &mut Vec<(String, Json)>) {
    match value {
        Json::Object(members) => {
            for (name, member) in members {
                let path = if key.is_empty() { name } else { format!("{key}.{name}") };
                flatten(&path, member, into);
            }
        }
        leaf => into.push((key.to_owned(), leaf)),
    }
}

fn json(value: Value) -> Json {
    match value.kind {
        ValueKind::Nil => Json::Null,
        ValueKind::Boolean(value) => value.into(),
        ValueKind::I64(value) => value.into(),
        ValueKind::U64(value) => value.into(),
        ValueKind::I128(value) => value.to_string().into(),
        ValueKind::U128(value) => value.to_string().into(),
        ValueKind::Float(value) => value.into(),
        ValueKind::String(value) => value.into(),
        ValueKind::Table(members) => {
            Json::Object(members.into_iter().map(|(key, member)| (key, json(member))).collect())
        }
        ValueKind::Array(items) => Json::Array(items.into_iter().map(json).collect()),
    }
}

fn one_line(error: &config::ConfigError) -> String {
    let text = error.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join(" ")
}

/// TOML by section, each line with its layer.
pub(super) fn print(effective: &[Effective]) -> String {
    let mut lines = Vec::new();
    let mut section = None;
    for Effective { key, value, layer } in effective {
        let (in_section, name) = key.rsplit_once('.').unwrap_or(("", key));
        if key != "workload" && section != Some(in_section) {
            if section.is_some() {
                lines.push(String::new());
            }
            lines.push(format!("[{in_section}]"));
            section = Some(in_section);
        }
        match (key.as_str(), value) {
            ("workload", Json::Array(workloads)) => {
                for workload in workloads {
                    lines.push(format!("\n[[workload]] # {layer}"));
                    let members = workload.as_object().into_iter().flatten();
                    lines.extend(members.map(|(name, value)| format!("{name} = {value}")));
                }
            }
            _ => lines.push(format!("{name} = {value} # {layer}")),
        }
    }
    lines.push(String::new());
    lines.join("\n")
}
