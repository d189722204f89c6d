//! Where the admin server listens: a TCP address, or a Unix socket whose file it looks after.
//!
//! A socket file that a dead process left is replaced; one that somebody answers on is not.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener as GivenTcp};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingUnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// After accept failed (no descriptors left), before it is tried again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A bound socket to serve on.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixSocket),
}

/// A Unix socket and its file, which is removed when this is dropped and the file is still ours.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

/// A Unix socket that is bound and not yet found under its name.
#[derive(Debug)]
pub struct Unplaced {
    listener: Option<UnixListener>,
    fresh: PathBuf,
    path: PathBuf,
}

/// Why a listener could not be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("cannot listen on {address}")]
    Tcp {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("cannot listen on {}", path.display())]
    Unix {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("another process answers on {}: is the program already running?", path.display())]
    InUse { path: PathBuf },
    #[error("{} exists and is not a socket: remove it", path.display())]
    NotASocket { path: PathBuf },
}

pub(super) enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

impl Listener {
    pub async fn bind_tcp(address: SocketAddr) -> Result<Self, BindError> {
        Self::bind_tcp_or_take(address, &mut vec![]).await
    }

    /// As [`Self::bind_tcp`], or one of `given` that listens there already.
    pub async fn bind_tcp_or_take(address: SocketAddr, given: &mut Vec<GivenTcp>) -> Result<Self, BindError> {
        let there = given.iter().position(|socket| socket.local_addr().is_ok_and(|bound| bound == address));
        let bound = match there.map(|position| given.swap_remove(position)) {
            Some(socket) => TcpListener::from_std(socket),
            None => TcpListener::bind(address).await,
        };
        bound.map(Self::Tcp).map_err(|source| BindError::Tcp { address, source })
    }

    /// A copy of a TCP socket, for a process that is to accept from it too.
    pub fn copy(&self) -> Option<io::Result<OwnedFd>> {
        match self {
            Self::Tcp(listener) => Some(listener.as_fd().try_clone_to_owned()),
            Self::Unix(_) => None,
        }
    }

    /// Binds a Unix socket with this file mode, such as `0o660`. The file appears under its name
    /// only once it has the mode.
    pub fn bind_unix(path: &Path, mode: u32) -> Result<Self, BindError> {
        refuse_unless_stale(path)?;
        Unplaced::bind(path, mode)?.place()
    }

    /// The address bound, for a TCP listener on port 0.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    /// The next connection. A failing accept is logged at DEBUG and tried again after a pause.
    pub(super) async fn accept(&self) -> Accepted {
        loop {
            let accepted = match self {
                Self::Tcp(listener) => listener.accept().await.map(|(stream, peer)| Accepted::Tcp(stream, peer)),
                Self::Unix(socket) => socket.listener.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
            };
            match accepted {
                Ok(accepted) => return accepted,
                Err(error) => {
                    tracing::debug!(%error, "an admin connection was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

impl Unplaced {
    /// Binds under another name beside `path`, so that who answers on `path` goes on until [`Self::place`].
    pub fn bind(path: &Path, mode: u32) -> Result<Self, BindError> {
        let failed = |source| BindError::Unix { path: path.to_owned(), source };
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(format!(".{}", std::process::id()));
        let fresh = PathBuf::from(fresh);
        let _ = fs::remove_file(&fresh); // a namesake with our pid is dead
        let listener = Some(UnixListener::bind(&fresh).map_err(failed)?);
        let unplaced = Self { listener, fresh, path: path.to_owned() };
        fs::set_permissions(&unplaced.fresh, fs::Permissions::from_mode(mode)).map_err(failed)?;
        Ok(unplaced)
    }

    /// Takes the name, from whoever has it.
    pub fn place(mut self) -> Result<Listener, BindError> {
        let failed = |source| BindError::Unix { path: self.path.clone(), source };
        let inode = fs::metadata(&self.fresh).map_err(failed)?.ino();
        fs::rename(&self.fresh, &self.path).map_err(failed)?;
        let listener = self.listener.take().expect("only this, which consumes it, takes it");
        Ok(Listener::Unix(UnixSocket { listener, path: self.path.clone(), inode }))
    }
}

impl Drop for Unplaced {
    fn drop(&mut self) {
        // Gone when it was placed.
        let _ = fs::remove_file(&self.fresh);
    }
}

/// What else than a dead process's socket stands there is not replaced.
pub fn refuse_unless_stale(path: &Path) -> Result<(), BindError> {
    let Ok(file) = fs::symlink_metadata(path) else { return Ok(()) };
    if !file.file_type().is_socket() {
        return Err(BindError::NotASocket { path: path.to_owned() });
    }
    match BlockingUnixStream::connect(path) {
        Ok(_) => Err(BindError::InUse { path: path.to_owned() }),
        Err(_) => Ok(()),
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
