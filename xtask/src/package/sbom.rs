//! What a program is made of: CycloneDX 1.5 from cargo's own resolution, and the licences of it all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::json;

use super::output;

/// `cargo metadata` (its documented format, version 1), as far as it is needed here.
#[derive(Deserialize)]
pub(super) struct Metadata {
    packages: Vec<Crate>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Crate {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    manifest_path: String,
    /// `None` for the rooms of this workspace.
    source: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Edge>,
}

#[derive(Deserialize)]
struct Edge {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

/// `None`: what is linked; else `dev` or `build`.
#[derive(Deserialize)]
struct Kind {
    kind: Option<String>,
}

impl Metadata {
    pub(super) fn read(sources: &Path, target: &str) -> Result<Self> {
        let mut command = Command::new(env!("CARGO"));
        command.args(["metadata", "--format-version", "1", "--locked", "--filter-platform", target]);
        let text = output(command.current_dir(sources))?;
        serde_json::from_str(&text).context("cargo metadata has another format")
    }

    /// The crates that are linked into a room's program, itself included, by name and version.
    fn linked(&self, room: &str) -> Result<Vec<&Crate>> {
        let root = self.packages.iter().find(|one| one.source.is_none() && one.name == room);
        let mut open = vec![root.with_context(|| format!("there is no room {room}"))?.id.as_str()];
        let mut seen = BTreeSet::new();
        while let Some(id) = open.pop() {
            if !seen.insert(id) {
                continue;
            }
            open.extend(self.edges(id));
        }
        let mut linked: Vec<&Crate> = self.packages.iter().filter(|one| seen.contains(one.id.as_str())).collect();
        linked.sort_by_key(|one| (&one.name, &one.version));
        Ok(linked)
    }

    fn edges(&self, id: &str) -> impl Iterator<Item = &str> {
        let node = self.resolve.nodes.iter().find(|node| node.id == id);
        let edges = node.into_iter().flat_map(|node| &node.deps);
        edges.filter(|edge| edge.dep_kinds.iter().any(|kind| kind.kind.is_none())).map(|edge| edge.pkg.as_str())
    }

    /// CycloneDX 1.5, JSON.
    pub(super) fn bill(&self, program: &str, room: &str, version: &str) -> Result<String> {
        let linked = self.linked(room)?;
        let names: BTreeMap<&str, String> = linked.iter().map(|one| (one.id.as_str(), one.purl())).collect();
        let components: Vec<_> = linked.iter().filter(|one| one.name != room).map(|one| one.component()).collect();
        let dependencies: Vec<_> = linked
            .iter()
            .map(|one| {
                let on: BTreeSet<&String> = self.edges(&one.id).filter_map(|id| names.get(id)).collect();
                json!({ "ref": one.purl(), "dependsOn": on })
            })
            .collect();
        let root = linked.iter().find(|one| one.source.is_none() && one.name == room).context("it is linked")?;
        let itself = json!({ "type": "application", "bom-ref": root.purl(), "name": program, "version": version });
        let bill = json!({
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "version": 1,
            "metadata": { "component": itself },
            "components": components,
            "dependencies": dependencies,
        });
        Ok(serde_json::to_string_pretty(&bill)? + "\n")
    }

    /// Every licence text that the linked crates bring, each once, with the crates it is from.
    pub(super) fn licences(&self, room: &str) -> Result<String> {
        let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for one in self.linked(room)?.into_iter().filter(|one| one.source.is_some()) {
            let folder = Path::new(&one.manifest_path).parent().context("a manifest is in a folder")?;
            for entry in fs::read_dir(folder)? {
                let path = entry?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
                if path.is_file()
                    && ["LICENSE", "LICENCE", "COPYING", "NOTICE"].iter().any(|kind| name.starts_with(kind))
                {
                    let text = String::from_utf8_lossy(&fs::read(&path)?).trim().to_owned();
                    texts.entry(text).or_default().push(format!("{} {}", one.name, one.version));
                }
            }
        }
        let mut parts: Vec<(Vec<String>, String)> = texts.into_iter().map(|(text, crates)| (crates, text)).collect();
        parts.sort();
        let rule = "-".repeat(80);
        let parts =
            parts.into_iter().map(|(crates, text)| format!("{rule}\n{}\n{rule}\n\n{text}\n\n", crates.join(", ")));
        Ok(parts.collect())
    }
}

impl Crate {
    /// package-url of crates.io.
    fn purl(&self) -> String {
        match self.source {
            Some(_) => format!("pkg:cargo/{}@{}", self.name, self.version),
            None => format!("pkg:generic/tombolo/{}@{}", self.name, self.version),
        }
    }

    fn component(&self) -> serde_json::Value {
        let mut component = json!({
            "type": "library", "bom-ref": self.purl(), "name": self.name, "version": self.version, "purl": self.purl(),
        });
        if let Some(license) = &self.license {
            // Cargo's old way to write OR.
            component["licenses"] = json!([{ "expression": license.replace('/', " OR ") }]);
        }
        component
    }
}
