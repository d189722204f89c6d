//! The layers of the configuration and which of them each value is from. All values are texts, or
//! lists of texts; what they mean is checked in `check.rs`.

use std::path::{Path, PathBuf};

use config::{Environment, File, FileFormat, Map, Source as _, Value, ValueKind};

use super::Mistake;

/// Where the layers above the defaults come from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// `--config`: must exist. `None`: `/etc/tombolo/controlplane.toml`, which may be absent.
    pub file: Option<PathBuf>,
    /// `TOMBOLO__SECTION__KEY`; `None` reads the process's environment.
    pub environment: Option<Vec<(String, String)>>,
    /// systemd's `$CREDENTIALS_DIRECTORY`.
    pub credentials: Option<PathBuf>,
    /// `section.key` and value; several of a list's key add up.
    pub flags: Vec<(&'static str, String)>,
}

/// One key, the value that counts, and the layer it is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    pub key: &'static str,
    pub value: Setting,
    pub layer: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Setting {
    Text(String),
    List(Vec<String>),
}

pub(super) struct Layered {
    pub(super) effective: Vec<Effective>,
    pub(super) mistakes: Vec<Mistake>,
}

/// Every key and its built-in value, in the order of the shipped file.
pub(super) fn defaults() -> Vec<Effective> {
    let text = |key, value: &str| (key, Setting::Text(value.to_owned()));
    let values = [
        text("paths.data_dir", "/var/lib/tombolo-controlplane"),
        text("mesh.trust_domain", ""),
        ("mesh.advertise", Setting::List(Vec::new())),
        text("store.url", ""),
        text("store.password_file", ""),
        text("grpc.listen", "[::]:15012"),
        text("api.listen", "[::]:15014"),
        text("registry.lease", "15s"),
        text("registry.grace", "60s"),
        text("log.format", "auto"),
        text("log.filter", "info"),
    ];
    values.into_iter().map(|(key, value)| Effective { key, value, layer: DEFAULT_LAYER.to_owned() }).collect()
}

pub(super) fn read(sources: &Sources) -> Layered {
    let mut layered = Layered { effective: defaults(), mistakes: Vec::new() };
    for path in files(sources, &mut layered.mistakes) {
        let layer = path.display().to_string();
        match std::fs::read_to_string(&path) {
            Ok(text) => match File::from_str(&text, FileFormat::Toml).collect() {
                Ok(map) => layered.add(&layer, leaves("", map)),
                Err(error) => layered.mistakes.push(whole(&layer, one_line(&error.to_string()))),
            },
            Err(error) => layered.mistakes.push(whole(&layer, format!("cannot be read: {error}"))),
        }
    }
    let given = sources.environment.clone().map(|pairs| pairs.into_iter().collect::<Map<String, String>>());
    match Environment::with_prefix("TOMBOLO").prefix_separator("__").separator("__").source(given).collect() {
        Ok(map) => layered.add("environment", leaves("", map)),
        Err(error) => layered.mistakes.push(whole("environment", one_line(&error.to_string()))),
    }
    let mut flags: Vec<(String, Setting)> = Vec::new();
    for (key, value) in &sources.flags {
        match flags.iter_mut().find(|(known, _)| known == key) {
            Some((_, Setting::List(items))) => items.push(value.clone()),
            _ if LISTS.contains(key) => flags.push(((*key).to_owned(), Setting::List(vec![value.clone()]))),
            _ => flags.push(((*key).to_owned(), Setting::Text(value.clone()))),
        }
    }
    layered.add("flags", flags);
    layered
}

impl Layered {
    fn add(&mut self, layer: &str, leaves: Vec<(String, Setting)>) {
        for (key, value) in leaves {
            let Some(known) = self.effective.iter_mut().find(|known| known.key == key) else {
                let what = unknown(&key);
                self.mistakes.push(Mistake { layer: layer.to_owned(), key, what });
                continue;
            };
            known.value = match (&known.value, value) {
                // The environment has no lists: commas separate.
                (Setting::List(_), Setting::Text(text)) => Setting::List(
                    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect(),
                ),
                (Setting::Text(_), Setting::List(_)) => {
                    let what = "one value is meant, not a list".to_owned();
                    self.mistakes.push(Mistake { layer: layer.to_owned(), key, what });
                    continue;
                }
                (_, value) => value,
            };
            layer.clone_into(&mut known.layer);
        }
    }
}

fn unknown(key: &str) -> String {
    let known: Vec<&str> = defaults().iter().map(|known| known.key).collect();
    let section = key.rsplit_once('.').map_or("", |(section, _)| section);
    let inside: Vec<&str> = known.iter().filter_map(|known| known.strip_prefix(section)?.strip_prefix('.')).collect();
    if known.iter().any(|known| known.starts_with(&format!("{key}."))) {
        return "this is a section, not a value".to_owned();
    }
    match inside.as_slice() {
        [] => "there is no such section".to_owned(),
        inside => format!("there is no such key; [{section}] has {}", inside.join(", ")),
    }
}

/// The file, then its drop-ins by name: `controlplane.toml` has `controlplane.d/*.toml`.
fn files(sources: &Sources, mistakes: &mut Vec<Mistake>) -> Vec<PathBuf> {
    let path = sources.file.clone().unwrap_or_else(|| DEFAULT_FILE.into());
    let mut found = Vec::new();
    if sources.file.is_some() || path.exists() {
        found.push(path.clone());
    }
    let folder = path.with_extension("d");
    match std::fs::read_dir(&folder) {
        Ok(entries) => {
            let mut drop_ins: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            drop_ins.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
            drop_ins.sort();
            found.extend(drop_ins);
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => mistakes.push(unreadable(&folder, &error)),
    }
    found
}

fn unreadable(path: &Path, error: &std::io::Error) -> Mistake {
    whole(&path.display().to_string(), format!("cannot be read: {error}"))
}

fn whole(layer: &str, what: String) -> Mistake {
    Mistake { layer: layer.to_owned(), key: String::new(), what }
}

fn leaves(prefix: &str, map: Map<String, Value>) -> Vec<(String, Setting)> {
    let mut found = Vec::new();
    for (name, value) in map {
        let key = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
        match value.kind {
            ValueKind::Table(members) => found.extend(leaves(&key, members)),
            ValueKind::Array(items) => {
                found.push((key, Setting::List(items.iter().map(ToString::to_string).collect())))
            }
            _ => found.push((key, Setting::Text(value.to_string()))),
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

/// TOML by section, each line with its layer. Passwords do not get here: see `check.rs`.
pub(super) fn print(effective: &[Effective]) -> String {
    let mut lines = Vec::new();
    let mut section = "";
    for Effective { key, value, layer } in effective {
        let (in_section, name) = key.rsplit_once('.').unwrap_or(("", key));
        if section != in_section {
            if !section.is_empty() {
                lines.push(String::new());
            }
            lines.push(format!("[{in_section}]"));
            section = in_section;
        }
        let value = match value {
            Setting::Text(text) => format!("{text:?}"),
            Setting::List(items) => format!("{items:?}"),
        };
        lines.push(format!("{name} = {value} # {layer}"));
    }
    lines.push(String::new());
    lines.join("\n")
}

const DEFAULT_LAYER: &str = "default";
const DEFAULT_FILE: &str = "/etc/tombolo/controlplane.toml";
const LISTS: [&str; 1] = ["mesh.advertise"];
