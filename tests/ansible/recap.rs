//! What a play said it did, read from its output as people read it.

use std::collections::BTreeSet;

use tests::Output;

/// What a run of `ansible-playbook` printed, and its exit code.
#[derive(Debug)]
pub struct Recap {
    pub code: i32,
    pub said: String,
}

impl Recap {
    pub fn of(output: Output) -> Self {
        Self { code: output.code, said: format!("{}{}", output.stdout, output.stderr) }
    }

    pub fn ok(&self) -> bool {
        self.code == 0
    }

    /// `TASK on HOST`, for every task that changed something, or in check mode said that it would.
    pub fn changed(&self) -> BTreeSet<String> {
        let mut task = "";
        let mut changed = BTreeSet::new();
        for line in self.said.lines() {
            if let Some(name) = line.strip_prefix("TASK [").or_else(|| line.strip_prefix("RUNNING HANDLER [")) {
                task = name.split(']').next().unwrap_or_default();
            } else if let Some(host) = line.strip_prefix("changed: [") {
                let host = host.split([']', ' ']).next().unwrap_or_default();
                changed.insert(format!("{task} on {host}"));
            }
        }
        changed
    }
}
