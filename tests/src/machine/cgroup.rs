//! The control group of one machine: what is in it is the machine's and nobody else's.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::wait::wait_until;

/// One cgroup v2 of ours, below the mount that has the processes.
pub(super) struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    pub(super) fn create(name: &str) -> Result<Self> {
        // On a machine with both hierarchies (systemd's "hybrid" layout) v2 has a folder of its own.
        let hybrid = Path::new("/sys/fs/cgroup/unified");
        let mount = if hybrid.join("cgroup.procs").exists() { hybrid } else { Path::new("/sys/fs/cgroup") };
        let path = mount.join(name);
        fs::create_dir(&path).with_context(|| format!("cannot make the control group {}", path.display()))?;
        Ok(Self { path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Ends everything in it and removes it, also its shadows in the v1 hierarchies that systemd made.
    pub(super) fn kill(&self) -> Result<()> {
        fs::write(self.path.join("cgroup.kill"), "1").context("cannot kill the control group")?;
        wait_until("the machine's processes are gone", || {
            let events = fs::read_to_string(self.path.join("cgroup.events")).unwrap_or_default();
            if events.contains("populated 1") { Err(events) } else { Ok(()) }
        });
        remove(&self.path)?;
        let name = self.path.file_name().context("it has a name")?;
        for hierarchy in fs::read_dir("/sys/fs/cgroup")?.flatten() {
            remove(&hierarchy.path().join(name))?;
        }
        Ok(())
    }
}

/// Folders only: the files in a cgroup are the kernel's and go with it.
fn remove(folder: &Path) -> Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(folder).with_context(|| format!("cannot remove {}", folder.display()))
}
