//! The commands in the documents: fenced blocks whose info string says where they run.
//!
//! ```` ```sh PLACE… ```` holds commands only; ```` ```console PLACE… ```` holds commands after `# ` or `$ `
//! and what they print. The suite of machines runs them (`vm/documents.rs`); this only reads. A block that
//! could hide a command, because it has no language or no place, is an error.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// One block of commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// `DOCUMENT:LINE`, for messages.
    pub at: String,
    /// The heading of the second level above it.
    pub section: String,
    /// Where its commands run, in this order.
    pub places: Vec<String>,
    pub commands: Vec<String>,
    /// What a `console` block says that they print.
    pub printed: Vec<String>,
}

/// Languages that hold no commands.
const QUIET: &[&str] = &["json", "nft", "text", "toml", "yaml"];

/// Every document of the project, from its top folder.
pub fn documents() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![workspace()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            let hidden = path.file_name().is_some_and(|name| name == "target" || name.as_encoded_bytes()[0] == b'.');
            if path.is_dir() && !hidden {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path.strip_prefix(workspace())?.to_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The blocks of one document, in order.
pub fn blocks(document: &Path) -> Result<Vec<Block>> {
    let text = std::fs::read_to_string(workspace().join(document))
        .with_context(|| format!("cannot read {}", document.display()))?;
    parse(&document.display().to_string(), &text)
}

fn parse(document: &str, text: &str) -> Result<Vec<Block>> {
    let mut blocks = Vec::new();
    let mut lines = text.lines().zip(1..);
    let mut section = String::new();
    while let Some((line, number)) = lines.next() {
        if let Some(heading) = line.strip_prefix("## ") {
            heading.clone_into(&mut section);
        }
        let Some(info) = line.trim_start().strip_prefix("```") else { continue };
        let at = format!("{document}:{number}");
        let body: Vec<&str> = lines.by_ref().map(|(line, _)| line).take_while(|line| line.trim() != "```").collect();
        let mut words = info.split_whitespace();
        let language = words.next().with_context(|| format!("{at}: a block without a language; say text"))?;
        if QUIET.contains(&language) {
            continue;
        }
        let places: Vec<String> = words.map(str::to_owned).collect();
        ensure!(!places.is_empty(), "{at}: where do these commands run? Say ```{language} PLACE");
        let (commands, printed) = match language {
            "sh" => (joined(body.into_iter()), Vec::new()),
            "console" => {
                let typed = |line: &&str| line.starts_with("# ") || line.starts_with("$ ");
                let printed = body.iter().filter(|line| !typed(line)).map(|line| (*line).to_owned()).collect();
                (joined(body.iter().filter(|line| typed(line)).map(|line| &line[2..])), printed)
            }
            other => bail!("{at}: {other:?} is neither sh nor console nor one of {}", QUIET.join(", ")),
        };
        blocks.push(Block { at, section: section.clone(), places, commands, printed });
    }
    Ok(blocks)
}

/// Commands of one line each, without comments; a backslash at its end continues one.
fn joined<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    let mut goes_on = false;
    for line in lines.map(|line| line.split(" # ").next().unwrap_or_default().trim()) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let part = line.strip_suffix('\\');
        match commands.last_mut() {
            Some(last) if goes_on => last.push_str(part.unwrap_or(line)),
            _ => commands.push(part.unwrap_or(line).to_owned()),
        }
        goes_on = part.is_some();
    }
    commands
}

/// The folder of the sources.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_found_and_none_is_hidden() {
        let text = "a\n## B\n```toml\nx = 1\n```\n```sh host\n# why\nls \\\n  -l   # all\n\nid\n```\n\
                    ```console a b\n# make demo\nit works\n```\n";
        let found = parse("X.md", text).expect("both say where they run");
        assert_eq!((found[0].at.as_str(), found[0].section.as_str()), ("X.md:6", "B"));
        assert_eq!(found[0].commands, ["ls -l", "id"]);
        assert_eq!(
            (found[1].places.len(), &found[1].commands[0], &found[1].printed[0]),
            (2, &"make demo".to_owned(), &"it works".to_owned())
        );
        for (hidden, why) in
            [("```\nls\n```", "without a language"), ("```sh\nls\n```", "where"), ("```bash x\n```", "bash")]
        {
            let error = parse("X.md", hidden).expect_err(hidden).to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
