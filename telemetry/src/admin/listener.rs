//! Where the admin server listens: a TCP address, or a Unix socket whose file it looks after.
//!
//! A socket file that a dead process left is replaced; one that somebody answers on is not.

use std::fs;
use std::io;
use std::net::SocketAddr;
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
        TcpListener::bind(address).await.map(Self::Tcp).map_err(|source| BindError::Tcp { address, source })
    }

    /// Binds a Unix socket with this file mode, such as `0o660`. The file appears under its name
    /// only once it has the mode.
    pub fn bind_unix(path: &Path, mode: u32) -> Result<Self, BindError> {
        refuse_unless_stale(path)?;
        let failed = |source| BindError::Unix { path: path.to_owned(), source };
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(format!(".{}", std::process::id()));
        let fresh = PathBuf::from(fresh);
        let _ = fs::remove_file(&fresh); // a namesake with our pid is dead
        let listener = UnixListener::bind(&fresh).map_err(failed)?;
        let placed = fs::set_permissions(&fresh, fs::Permissions::from_mode(mode))
            .and_then(|()| fs::metadata(&fresh))
            .and_then(|file| fs::rename(&fresh, path).map(|()| file.ino()));
        let inode = placed.map_err(|source| {
            let _ = fs::remove_file(&fresh);
            failed(source)
        })?;
        Ok(Self::Unix(UnixSocket { listener, path: path.to_owned(), inode }))
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

fn refuse_unless_stale(path: &Path) -> Result<(), BindError> {
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
