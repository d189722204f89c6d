//! What the agent keeps on disk: its identity, keys, certificates, last snapshot, and whether
//! interception was confirmed, so that a host that reboots without a control plane serves at once.
//!
//! The folder is 0700 and every file 0600. Every write is whole or not at all: a temporary file,
//! fsync, rename, fsync of the folder. A full disk is an error that names the file and the need, and
//! the caller goes on with what it has in memory. Nothing here knows the network or a clock.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use api::{SpiffeId, TrustDomain};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::machine;

pub mod snapshot_file;

/// The folder of one agent.
#[derive(Debug, Clone)]
pub struct StateDir {
    root: PathBuf,
}

/// Held while an agent runs, so that no second one writes the same folder.
#[derive(Debug)]
pub struct StateLock(fs::File);

/// From an agent that holds it: the lock is that of the open file, which both then have.
impl From<OwnedFd> for StateLock {
    fn from(held: OwnedFd) -> Self {
        Self(held.into())
    }
}

impl AsFd for StateLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Who this host is, as `tombolo join` learned it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostIdentity {
    pub host: String,
    #[serde(with = "text")]
    pub trust_domain: TrustDomain,
    /// `https://HOST:PORT`.
    pub control_plane: String,
    /// Presented at each renewal; the control plane counts it up.
    pub join_sequence: u64,
    /// `NAMESPACE/WORKLOADGROUP`.
    pub groups: Vec<String>,
    /// What `--advertise` said; empty means the address that reaches the control plane.
    #[serde(default)]
    pub advertise: Vec<std::net::IpAddr>,
    /// RFC 3339, for people.
    #[serde(default)]
    pub joined_at: String,
    /// The machine it is for, as [`machine::binding`] says it; without one it is for any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
}

/// Whether interception comes back at the next start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterceptionState {
    pub confirmed: bool,
}

/// A key and the certificates that go with it, PEM.
#[derive(Clone)]
pub struct StoredSvid {
    pub key_pem: String,
    pub chain_pem: String,
}

/// Why the state folder could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("no space left for {}: {need_bytes} bytes are needed; make room, the agent writes it again by itself", path.display())]
    Full { path: PathBuf, need_bytes: usize },
    #[error("{} is damaged: {problem}; restore it, or run `tombolo leave --purge` and join again", path.display())]
    Damaged { path: PathBuf, problem: String },
    #[error("another agent uses {}: stop it first (systemctl stop tombolo-agent)", path.display())]
    Busy { path: PathBuf },
    #[error(
        "{} is the state of another machine (host {host}, joined {joined_at}); {OTHER_MACHINE_CURE}", path.display()
    )]
    OtherMachine { path: PathBuf, host: String, joined_at: String },
}

/// What to do about [`StateError::OtherMachine`].
pub const OTHER_MACHINE_CURE: &str = "if this machine is a copy of it, run `tombolo leave --purge` (the other one stays \
    in the mesh) and join with a new token; if its /etc/machine-id was changed, run `tombolo agent --adopt`";

impl StateDir {
    /// Makes the folder if need be, and closes it to others.
    pub fn open(root: &Path) -> Result<Self, StateError> {
        let failed = |source| StateError::Write { path: root.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(failed)?;
        let mode = fs::metadata(root).map_err(failed)?.permissions().mode();
        if mode & 0o077 != 0 {
            fs::set_permissions(root, fs::Permissions::from_mode(0o700)).map_err(failed)?;
        }
        Ok(Self { root: root.to_owned() })
    }

    /// The folder as it is, for commands that only read.
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Claims the folder until the lock is dropped.
    pub fn lock(&self) -> Result<StateLock, StateError> {
        let path = self.root.join("lock");
        let failed = |source| StateError::Write { path: path.clone(), source };
        let mut options = fs::OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(failed)?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(StateLock(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StateError::Busy { path: self.root.clone() }),
            Err(error) => Err(failed(error.into())),
        }
    }

    /// `None` when this host has not joined.
    pub fn identity(&self) -> Result<Option<HostIdentity>, StateError> {
        let identity: Option<HostIdentity> = self.json(IDENTITY)?;
        let here = machine::binding();
        match identity {
            Some(HostIdentity { machine: Some(machine), host, joined_at, .. })
                if here.is_some_and(|here| here != machine) =>
            {
                Err(StateError::OtherMachine { path: self.root.clone(), host, joined_at })
            }
            identity => Ok(identity),
        }
    }

    /// Ties the identity to this machine, whichever it was for; answers the host's name, if it has joined.
    pub fn adopt(&self) -> Result<Option<String>, StateError> {
        let Some(identity) = self.json::<HostIdentity>(IDENTITY)? else { return Ok(None) };
        let host = identity.host.clone();
        self.set_identity(&HostIdentity { machine: machine::binding(), ..identity })?;
        Ok(Some(host))
    }

    pub fn set_identity(&self, identity: &HostIdentity) -> Result<(), StateError> {
        self.set_json(IDENTITY, identity)
    }

    pub fn interception(&self) -> Result<InterceptionState, StateError> {
        Ok(self.json("interception.json")?.unwrap_or_default())
    }

    pub fn set_interception(&self, state: InterceptionState) -> Result<(), StateError> {
        self.set_json("interception.json", &state)
    }

    /// PEM of the host's private key.
    pub fn host_key(&self) -> Result<Option<String>, StateError> {
        self.text("host.key")
    }

    pub fn set_host_key(&self, pem: &str) -> Result<(), StateError> {
        self.write("host.key", pem.as_bytes())
    }

    /// PEM of the host's certificate and its intermediates.
    pub fn host_chain(&self) -> Result<Option<String>, StateError> {
        self.text("host.pem")
    }

    pub fn set_host_chain(&self, pem: &str) -> Result<(), StateError> {
        self.write("host.pem", pem.as_bytes())
    }

    /// PEM of the roots of the host's own trust domain.
    pub fn roots(&self) -> Result<Option<String>, StateError> {
        self.text("roots.pem")
    }

    pub fn set_roots(&self, pem: &str) -> Result<(), StateError> {
        self.write("roots.pem", pem.as_bytes())
    }

    /// Key and chain of one workload identity.
    pub fn workload_svid(&self, identity: &SpiffeId) -> Result<Option<StoredSvid>, StateError> {
        let Some(name) = file_name(identity) else { return Ok(None) };
        let Some(text) = self.text(&format!("workloads/{name}.pem"))? else { return Ok(None) };
        // One file holds both, so that a crash never leaves a key beside another key's certificate.
        Ok(text
            .find(CERTIFICATE)
            .map(|at| StoredSvid { key_pem: text[..at].to_owned(), chain_pem: text[at..].to_owned() }))
    }

    pub fn set_workload_svid(&self, identity: &SpiffeId, key_pem: &str, chain_pem: &str) -> Result<(), StateError> {
        let Some(name) = file_name(identity) else { return Ok(()) };
        self.write(&format!("workloads/{name}.pem"), format!("{key_pem}{chain_pem}").as_bytes())
    }

    /// Removes the certificates of identities that this host does not run.
    pub fn keep_workload_svids(&self, identities: &[SpiffeId]) -> Result<(), StateError> {
        let folder = self.root.join("workloads");
        let kept: Vec<String> = identities.iter().filter_map(file_name).map(|name| format!("{name}.pem")).collect();
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(StateError::Read { path: folder, source }),
        };
        for entry in entries.flatten() {
            if !kept.iter().any(|name| entry.file_name() == name.as_str()) {
                let path = entry.path();
                fs::remove_file(&path).map_err(|source| StateError::Write { path, source })?;
            }
        }
        Ok(())
    }

    /// The last snapshot's bytes; [`snapshot_file::decode`] reads them.
    pub fn snapshot_bytes(&self) -> Result<Option<Vec<u8>>, StateError> {
        self.read("snapshot")
    }

    pub fn set_snapshot_bytes(&self, bytes: &[u8]) -> Result<(), StateError> {
        self.write("snapshot", bytes)
    }

    /// Moves a snapshot that cannot be read aside, for a look at it; answers where to.
    pub fn set_snapshot_aside(&self) -> Result<PathBuf, StateError> {
        let (from, to) = (self.root.join("snapshot"), self.root.join("snapshot.corrupt"));
        fs::rename(&from, &to).map_err(|source| StateError::Write { path: to.clone(), source })?;
        Ok(to)
    }

    /// Forgets the identity: everything of the mesh, not the folder.
    pub fn forget(&self) -> Result<(), StateError> {
        let files =
            [IDENTITY, "host.pem", "host.key", "roots.pem", "interception.json", "snapshot", "snapshot.corrupt"];
        for name in files {
            remove(&self.root.join(name), |path| fs::remove_file(path))?;
        }
        remove(&self.root.join("workloads"), |path| fs::remove_dir_all(path))
    }

    /// Removes the folder and everything in it.
    pub fn purge(&self) -> Result<(), StateError> {
        self.forget()?;
        remove(&self.root, |path| fs::remove_dir_all(path))
    }

    /// Whether a file can be written here, by writing one.
    pub fn probe(&self) -> Result<(), StateError> {
        self.write("probe", b"tombolo doctor\n")?;
        remove(&self.root.join("probe"), |path| fs::remove_file(path))
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.root.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateError::Read { path, source }),
        }
    }

    fn text(&self, name: &str) -> Result<Option<String>, StateError> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        let damaged = |_| StateError::Damaged { path: self.root.join(name), problem: "it is not text".into() };
        String::from_utf8(bytes).map(Some).map_err(damaged)
    }

    fn json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StateError> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        let damaged =
            |error: serde_json::Error| StateError::Damaged { path: self.root.join(name), problem: error.to_string() };
        serde_json::from_slice(&bytes).map(Some).map_err(damaged)
    }

    fn set_json<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StateError> {
        let write = |source| StateError::Write { path: self.root.join(name), source };
        let mut bytes = serde_json::to_vec_pretty(value).map_err(|error| write(error.into()))?;
        bytes.push(b'\n');
        self.write(name, &bytes)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StateError> {
        let path = self.root.join(name);
        write_atomically(&path, bytes).map_err(|source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                StateError::Full { path: path.clone(), need_bytes: bytes.len() }
            }
            _ => StateError::Write { path: path.clone(), source },
        })
    }
}

/// Old or new, never half: rename(2) replaces the name at once, and only after the bytes are on disk.
fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    fs::File::open(folder)?.sync_all()
}

fn remove(path: &Path, how: impl Fn(&Path) -> io::Result<()>) -> Result<(), StateError> {
    match how(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StateError::Write { path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// `NAMESPACE~SERVICE-ACCOUNT`: neither may hold a `~` or a `/` (SPIFFE-ID specification §2.2).
fn file_name(identity: &SpiffeId) -> Option<String> {
    Some(format!("{}~{}", identity.namespace()?, identity.service_account()?))
}

const IDENTITY: &str = "identity.json";
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";

/// Trust domains as plain text in JSON.
mod text {
    use api::TrustDomain;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &TrustDomain, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TrustDomain, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
