//! What the programs and the lock file say about themselves: manual pages, completions, SBOM, licences.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::{Build, output, sbom};

impl Build {
    /// Fills the folder that the description calls `@made`.
    pub(super) fn make(&self, archive_key: Option<&Path>) -> Result<()> {
        let made = self.work.join("made");
        for program in ["tombolo", "tombolo-controlplane"] {
            let pages = made.join("man").join(program);
            fs::create_dir_all(&pages)?;
            self.tool(self.program(program).args(["man", "--dir"]).arg(&pages))?;
        }
        for shell in ["bash", "zsh", "fish"] {
            let script = self.tool(self.program("tombolo").args(["completion", shell]))?;
            fs::write(made.join(format!("tombolo.{shell}")), script)?;
        }
        let metadata = sbom::Metadata::read(&self.sources, self.rust_target()?)?;
        for (program, room) in [("tombolo", "cli"), ("tombolo-controlplane", "controlplane")] {
            let bill = metadata.bill(program, room, &self.version)?;
            fs::write(made.join(format!("{program}.cdx.json")), bill)?;
            fs::write(made.join(format!("{program}.licences")), metadata.licences(room)?)?;
        }
        if let Some(key) = archive_key {
            fs::copy(key, made.join("archive-key.gpg")).with_context(|| format!("cannot read {}", key.display()))?;
            let armored = output(Command::new("gpg").args(["--enarmor", "--output", "-"]).arg(key))?;
            let armored = armored.replace("PGP ARMORED FILE", "PGP PUBLIC KEY BLOCK");
            let without_comment = armored.lines().filter(|line| !line.starts_with("Comment:"));
            fs::write(
                made.join("archive-key.asc"),
                without_comment.map(|line| format!("{line}\n")).collect::<String>(),
            )?;
        }
        Ok(())
    }

    fn program(&self, name: &str) -> Command {
        Command::new(self.native_programs.join(name))
    }

    /// Rust's name of what is packaged.
    pub(super) fn rust_target(&self) -> Result<&'static str> {
        Ok(match self.arch.as_str() {
            "amd64" => "x86_64-unknown-linux-gnu",
            "arm64" => "aarch64-unknown-linux-gnu",
            other => anyhow::bail!("{other} is not packaged: amd64, arm64"),
        })
    }
}
