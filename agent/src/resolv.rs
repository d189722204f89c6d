//! The host's own resolvers, as resolv.conf(5) names them, followed as the file changes.
//!
//! [`crate::names`] and the proxy's DNS server follow them. Where the file points to systemd-resolved's
//! stub, its uplinks are asked instead: through the stub our own questions could come back to us.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tracing::{debug, info};

/// Where the resolvers are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvFiles {
    /// `/etc/resolv.conf`, from the configuration.
    pub conf: PathBuf,
    /// Where systemd-resolved lists the resolvers it asks itself.
    pub uplinks: PathBuf,
}

/// What the files say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolvers {
    /// Whom the host's processes ask.
    pub configured: Vec<SocketAddr>,
    /// Whom systemd-resolved asks, as far as it says.
    pub uplinks: Vec<SocketAddr>,
    /// Whom we ask: never ourselves, and never systemd-resolved's stub.
    pub upstreams: Vec<SocketAddr>,
}

/// Follows the files until it is dropped.
#[derive(Debug)]
pub struct Follower {
    resolvers: watch::Receiver<Resolvers>,
    upstreams: watch::Receiver<Vec<SocketAddr>>,
    task: JoinHandle<()>,
}

/// What [`Follower::spawn`] looks at.
#[derive(Debug, Clone)]
pub struct Sources {
    pub files: ResolvFiles,
    /// Resolvers that the operator named: they are asked whatever the files say.
    pub fixed: Vec<SocketAddr>,
    /// Our own listeners, which are never asked.
    pub own: Vec<SocketAddr>,
}

/// Where systemd-resolved writes its uplinks (systemd-resolved.service(8), "/etc/resolv.conf").
pub const RESOLVED_UPLINKS: &str = "/run/systemd/resolve/resolv.conf";
/// systemd-resolved's stub and its proxy-only stub.
const RESOLVED_STUBS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 54))];
const DNS_PORT: u16 = 53;
/// The files are read this often even when nothing was reported: bind mounts and directories that
/// come later report nothing.
const RECHECK: Duration = Duration::from_secs(5);
/// After a report, until the writer has done its other steps.
const SETTLE: Duration = Duration::from_millis(50);
/// A file without resolvers is believed after this long: it may be half written.
const DOUBT: Duration = Duration::from_secs(1);
/// Symbolic links followed to find directories to watch; the kernel's limit is 40.
const LINKS: usize = 8;

impl Resolvers {
    /// Whether the host's processes ask systemd-resolved.
    pub fn is_resolved_stub(&self) -> bool {
        is_stub(&self.configured)
    }
}

impl Default for ResolvFiles {
    fn default() -> Self {
        Self { conf: PathBuf::from("/etc/resolv.conf"), uplinks: PathBuf::from(RESOLVED_UPLINKS) }
    }
}

impl Follower {
    /// Reads the files and goes on following them.
    pub fn spawn(sources: Sources) -> Self {
        let first = read(&sources);
        let (upstreams_sender, upstreams) = watch::channel(first.upstreams.clone());
        let (resolvers_sender, resolvers) = watch::channel(first);
        let task = tokio::spawn(follow(sources, resolvers_sender, upstreams_sender));
        Self { resolvers, upstreams, task }
    }

    pub fn resolvers(&self) -> watch::Receiver<Resolvers> {
        self.resolvers.clone()
    }

    /// [`Resolvers::upstreams`] alone, for the DNS server.
    pub fn upstreams(&self) -> watch::Receiver<Vec<SocketAddr>> {
        self.upstreams.clone()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(sources: Sources, resolvers: watch::Sender<Resolvers>, upstreams: watch::Sender<Vec<SocketAddr>>) {
    let mut watcher = Watcher::open();
    if let Err(error) = &watcher {
        info!(%error, "changes of resolv.conf are noticed every {RECHECK:?} only");
    }
    loop {
        // Watched before read: what changes in between is read again.
        if let Ok(watcher) = &watcher {
            watcher.watch(&sources.files);
        }
        let known = resolvers.borrow().configured.clone();
        let now = read_settled(&sources, &known).await;
        let is_new = resolvers.send_if_modified(|known| std::mem::replace(known, now.clone()) != now);
        if is_new {
            debug!(upstreams = ?now.upstreams, "the host's resolvers changed");
        }
        upstreams.send_if_modified(|known| std::mem::replace(known, now.upstreams.clone()) != now.upstreams);
        match &mut watcher {
            Ok(watcher) => tokio::select! {
                () = watcher.reported() => sleep(SETTLE).await,
                () = sleep(RECHECK) => {}
            },
            Err(_) => sleep(RECHECK).await,
        }
    }
}

async fn read_settled(sources: &Sources, known: &[SocketAddr]) -> Resolvers {
    let now = read(sources);
    let is_doubtful = now.configured == default_resolver() && now.configured != known;
    if !is_doubtful {
        return now;
    }
    sleep(DOUBT).await;
    read(sources)
}

fn read(sources: &Sources) -> Resolvers {
    let nameservers = |path: &Path| match fs::read_to_string(path) {
        Ok(text) => parse(&text, interface_index),
        Err(_) => Vec::new(),
    };
    let configured = Some(nameservers(&sources.files.conf)).filter(|found| !found.is_empty());
    let configured = configured.unwrap_or_else(default_resolver);
    let uplinks = nameservers(&sources.files.uplinks);
    let mut upstreams = match sources.fixed.as_slice() {
        [] if is_stub(&configured) => uplinks.clone(),
        [] => configured.clone(),
        fixed => fixed.to_vec(),
    };
    upstreams.retain(|upstream| !sources.own.contains(upstream) && !RESOLVED_STUBS.contains(&upstream.ip()));
    Resolvers { configured, uplinks, upstreams }
}

/// Every `nameserver` line, as resolv.conf(5) has it; a line that is not understood is skipped, as
/// libc does. `interface` turns the name in `fe80::1%eth0` into its index.
pub fn parse(text: &str, interface: impl Fn(&str) -> Option<u32>) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some("nameserver"), Some(word)) = (words.next(), words.next()) else { continue };
        let server = match word.split_once('%') {
            None => word.parse().ok().map(|address: IpAddr| SocketAddr::new(address, DNS_PORT)),
            Some((address, scope)) => {
                let scope = scope.parse().ok().or_else(|| interface(scope));
                address
                    .parse()
                    .ok()
                    .zip(scope)
                    .map(|(address, scope)| SocketAddr::V6(SocketAddrV6::new(address, DNS_PORT, 0, scope)))
            }
        };
        found.extend(server.filter(|server| !found.contains(server)));
    }
    found
}

fn is_stub(configured: &[SocketAddr]) -> bool {
    !configured.is_empty() && configured.iter().all(|server| RESOLVED_STUBS.contains(&server.ip()))
}

/// A file without a nameserver means one on this host (resolv.conf(5), "nameserver").
fn default_resolver() -> Vec<SocketAddr> {
    vec![SocketAddr::from((Ipv4Addr::LOCALHOST, DNS_PORT))]
}

fn interface_index(name: &str) -> Option<u32> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None);
    rustix::net::netdevice::name_to_index(socket.ok()?, name).ok()
}

/// Reports changes in the directories that the files, and what they link to, are in. Directories,
/// because writers replace the file.
struct Watcher {
    /// An inotify descriptor: read like a pipe, and like one it is ready when there is something.
    inotify: pipe::Receiver,
}

impl Watcher {
    fn open() -> io::Result<Self> {
        let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        Ok(Self { inotify: pipe::Receiver::from_owned_fd_unchecked(inotify)? })
    }

    /// Watching what is watched changes nothing.
    fn watch(&self, files: &ResolvFiles) {
        use inotify::WatchFlags as On;
        let changes = On::CLOSE_WRITE | On::CREATE | On::DELETE | On::MOVED_TO | On::MOVED_FROM | On::ONLYDIR;
        for directory in directories(&files.conf).into_iter().chain(directories(&files.uplinks)) {
            if let Err(error) = inotify::add_watch(&self.inotify, &directory, changes) {
                debug!(%error, directory = %directory.display(), "changes in this directory are not reported");
            }
        }
    }

    /// What changed does not matter: the files are read again whatever it was.
    async fn reported(&mut self) {
        if self.inotify.read(&mut [0; 4096]).await.is_err() {
            std::future::pending().await
        }
    }
}

/// The directories in which a change may change what is read under this path.
fn directories(path: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        let Some(parent) = path.parent().map(Path::to_owned) else { break };
        found.insert(parent.clone());
        match fs::read_link(&path) {
            Ok(target) => path = parent.join(target),
            Err(_) => break,
        }
    }
    found
}

#[cfg(test)]
mod tests;
