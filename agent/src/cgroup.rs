//! The cgroup v2 tree: which cgroup has which number, and which systemd unit a cgroup belongs to.
//!
//! The kernel compares numbers (`socket cgroupv2`, sock_diag); people write units and paths. A
//! restarted unit has a new number, so whoever keeps numbers must look again: `Interception::
//! refresh_cgroups` and `CgroupAttribution` do.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The cgroup v2 tree could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("cannot read {path}")]
    Mounts { path: &'static str, source: io::Error },
    #[error("no cgroup v2 file system is mounted: units and cgroups cannot be told apart on this host")]
    NotMounted,
    #[error("cannot read the cgroup tree at {}", path.display())]
    Read { path: PathBuf, source: io::Error },
}

/// Every cgroup of the host at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CgroupTree {
    paths: HashMap<u64, String>,
}

impl CgroupTree {
    /// Reads the tree of this host.
    pub fn load() -> Result<Self, CgroupError> {
        Self::load_from(&mount_point()?)
    }

    /// Reads the tree below this mount point.
    pub fn load_from(mount: &Path) -> Result<Self, CgroupError> {
        let failed = |source| CgroupError::Read { path: mount.to_owned(), source };
        let root = fs::metadata(mount).map_err(failed)?;
        let mut paths = HashMap::from([(root.ino(), String::new())]);
        let mut pending = vec![PathBuf::new()];
        while let Some(relative) = pending.pop() {
            let entries = match fs::read_dir(mount.join(&relative)) {
                Ok(entries) => entries,
                // A cgroup may end while the tree is walked; the mount itself may not.
                Err(_) if !relative.as_os_str().is_empty() => continue,
                Err(source) => return Err(failed(source)),
            };
            for entry in entries.flatten() {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                let path = relative.join(entry.file_name());
                if let Ok(metadata) = entry.metadata() {
                    paths.insert(metadata.ino(), path.to_string_lossy().into_owned());
                }
                pending.push(path);
            }
        }
        Ok(Self { paths })
    }

    /// Path below the mount of the cgroup with this number; the root's is empty.
    pub fn path(&self, id: u64) -> Option<&str> {
        self.paths.get(&id).map(String::as_str)
    }

    /// The cgroups that are one of these units or one of these paths.
    pub fn select(&self, units: &BTreeSet<String>, paths: &BTreeSet<String>) -> BTreeMap<String, u64> {
        let wanted = |path: &str| paths.contains(path) || units.contains(path.rsplit('/').next().unwrap_or_default());
        self.paths.iter().filter(|(_, path)| wanted(path)).map(|(id, path)| (path.clone(), *id)).collect()
    }

    #[cfg(test)]
    pub(crate) fn of(cgroups: &[(u64, &str)]) -> Self {
        Self { paths: cgroups.iter().map(|(id, path)| (*id, (*path).to_owned())).collect() }
    }
}

/// The units in a cgroup's path, outermost first: a user's service is inside `user@1000.service`.
pub fn units(path: &str) -> impl DoubleEndedIterator<Item = &str> {
    path.split('/')
        .filter(|part| [".service", ".scope", ".socket", ".mount", ".swap"].iter().any(|kind| part.ends_with(kind)))
}

/// The innermost unit of a cgroup, which is how people know its processes.
pub fn unit(path: &str) -> Option<&str> {
    units(path).next_back()
}

/// As systemd does, a name without a type is a service.
pub(crate) fn unit_name(unit: &str) -> String {
    if unit.contains('.') { unit.to_owned() } else { format!("{unit}.service") }
}

/// Where cgroup v2 is mounted: hybrid hosts have it below the v1 tree.
pub fn mount_point() -> Result<PathBuf, CgroupError> {
    const FILE: &str = "/proc/self/mountinfo";
    let lines = fs::read_to_string(FILE).map_err(|source| CgroupError::Mounts { path: FILE, source })?;
    lines.lines().find_map(cgroup2_mount).ok_or(CgroupError::NotMounted)
}

/// One line of mountinfo (proc_pid_mountinfo(5)): the fifth field is the mount point, the file
/// system's type follows a lone hyphen.
fn cgroup2_mount(line: &str) -> Option<PathBuf> {
    let (left, right) = line.split_once(" - ")?;
    let cgroup2 = right.split(' ').next() == Some("cgroup2");
    left.split(' ').nth(4).filter(|_| cgroup2).map(|path| PathBuf::from(unescape(path)))
}

/// Blanks in paths are written as octal in mountinfo.
fn unescape(path: &str) -> String {
    path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests;
