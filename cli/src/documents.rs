//! What `-f` names: files, folders and standard input, as documents with their source.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::Value;

/// `-f`, as `apply`, `diff` and `delete` take it.
#[derive(Debug, Clone, Args)]
pub(crate) struct Files {
    /// File, folder (its *.yaml, *.yml and *.json) or - for standard input; may be repeated
    #[arg(short, long = "filename", value_name = "FILE|DIR|-", required = true)]
    filename: Vec<PathBuf>,
    /// Folders with all that is below them
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Namespace of objects that name none; others must name this one
    #[arg(short, long, value_name = "NS")]
    namespace: Option<String>,
}

impl Files {
    pub(crate) fn new(filename: Vec<PathBuf>, recursive: bool, namespace: Option<String>) -> Self {
        Self { filename, recursive, namespace }
    }

    /// Every document, in the order of the files' names.
    pub(crate) fn documents(&self) -> anyhow::Result<Vec<Value>> {
        let mut found = Vec::new();
        for name in &self.filename {
            if name == Path::new("-") {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
                self.read("standard input", &text, &mut found)?;
                continue;
            }
            for file in files(name, self.recursive)? {
                let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
                self.read(&file.display().to_string(), &text, &mut found)?;
            }
        }
        if found.is_empty() {
            bail!("nothing to do: there is no object in what -f names");
        }
        Ok(found)
    }

    fn read(&self, source: &str, text: &str, found: &mut Vec<Value>) -> anyhow::Result<()> {
        let documents = api::resource::documents(text).with_context(|| source.to_owned())?;
        for mut document in documents {
            self.place(&mut document).with_context(|| source.to_owned())?;
            found.push(document);
        }
        Ok(())
    }

    /// Puts a document that names no namespace into the one of `-n`.
    fn place(&self, document: &mut Value) -> anyhow::Result<()> {
        let Some(wanted) = &self.namespace else { return Ok(()) };
        let Some(meta) = document.get_mut("metadata").and_then(Value::as_object_mut) else { return Ok(()) };
        match meta.get("namespace").and_then(Value::as_str) {
            None => {
                meta.insert("namespace".to_owned(), Value::from(wanted.as_str()));
            }
            Some(said) if said == wanted => {}
            Some(said) => {
                let name = meta.get("name").and_then(Value::as_str).unwrap_or("?");
                bail!("{said}/{name} is not in the namespace {wanted} of -n");
            }
        }
        Ok(())
    }
}

fn files(name: &Path, recursive: bool) -> anyhow::Result<Vec<PathBuf>> {
    if !name.is_dir() {
        return Ok(vec![name.to_owned()]);
    }
    let mut found = Vec::new();
    let mut folders = vec![name.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries {
            let path = entry.with_context(|| format!("cannot read {}", folder.display()))?.path();
            let extension = path.extension().and_then(|extension| extension.to_str());
            if path.is_dir() && recursive {
                folders.push(path);
            } else if path.is_file() && matches!(extension, Some("yaml" | "yml" | "json")) {
                found.push(path);
            }
        }
    }
    found.sort();
    if found.is_empty() {
        bail!("{} holds no *.yaml, *.yml or *.json", name.display());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_namespace_is_filled_in_but_never_changed() {
        let files = Files { filename: vec![], recursive: false, namespace: Some("shop".into()) };
        let mut found = Vec::new();
        files.read("a", "metadata: {name: x}\n---\nmetadata: {name: y, namespace: shop}", &mut found).expect("taken");
        assert_eq!(found[0], json!({"metadata": {"name": "x", "namespace": "shop"}}));
        let refused = files.read("b.yaml", "metadata: {name: z, namespace: other}", &mut found).expect_err("refused");
        assert_eq!(format!("{refused:#}"), "b.yaml: other/z is not in the namespace shop of -n");
    }
}
