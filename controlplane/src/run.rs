//! Puts the parts of the control plane together, runs them, and ends them in order.
//!
//! [`ControlPlane::start`] does everything that can fail before the first client is served: data
//! directory, store, authority, listeners, first snapshot. `cli.rs` and component tests call it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::TrustDomain;
use data_encoding::HEXLOWER;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::app::{App, Settings};
use crate::config::Config;
use crate::grpc::{self, Agents};
use crate::issuer::{CaCredentials, CaError, Issuer, SignError};
use crate::metrics::Metrics;
use crate::registry;
use crate::rest::{self, AdminToken, AdminTokenError};
use crate::snapshot::{self, Mesh, Snapshots};
use crate::store::{Store, StoreError, StoreUrl};

/// A control plane that is ready to serve.
pub struct ControlPlane {
    app: Arc<App>,
    snapshots: Snapshots,
    grpc: TcpListener,
    api: TcpListener,
    admin_token: AdminToken,
    first_start: bool,
    grace: Duration,
}

/// Why the control plane does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot use the data directory {}", path.display())]
    DataDir {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot use the store {store}")]
    Store {
        store: StoreUrl,
        #[source]
        source: StoreError,
    },
    #[error("the store {store} belongs to the mesh {kept}, not to {asked}")]
    OtherMesh { store: StoreUrl, kept: String, asked: TrustDomain },
    #[error("the store {store} belongs to another authority (root sha256:{kept}) than {}", ca.display())]
    OtherAuthority { store: StoreUrl, kept: String, ca: PathBuf },
    #[error("the authority cannot be used")]
    Authority(#[source] CaError),
    #[error("the administrator's token cannot be used")]
    AdminToken(#[source] AdminTokenError),
    #[error("the server's certificate cannot be made")]
    Certificate(#[source] SignError),
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        flag: &'static str,
        #[source]
        source: io::Error,
    },
}

/// Why the control plane ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("the agents' API ended")]
    Grpc(#[source] grpc::ServeError),
    #[error("the operators' API ended")]
    Rest(#[source] rest::ServeError),
}

impl StartError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::DataDir { path, .. } => {
                format!("make {} writable for this user, or choose another with --data-dir", path.display())
            }
            Self::Store { source, .. } => source.hint().to_owned(),
            Self::OtherMesh { kept, .. } => {
                format!("start with --trust-domain {kept}, or give this mesh a store of its own with --store")
            }
            Self::OtherAuthority { .. } => {
                "every replica has the same authority: copy ca.pem and ca/ of the first one's data directory here, or \
                 give it the same credentials"
                    .to_owned()
            }
            Self::Authority(_) | Self::AdminToken(_) => "correct the file that is named, then start again".to_owned(),
            Self::Certificate(_) => "look at --advertise and at the authority's certificates".to_owned(),
            Self::Listen { flag, source, .. } => match source.kind() {
                io::ErrorKind::AddrInUse => {
                    format!(
                        "another program listens there (`ss -ltnp` shows it): end it, or choose another port with {flag}"
                    )
                }
                io::ErrorKind::AddrNotAvailable => format!("this machine has no such address: choose one with {flag}"),
                _ => format!("choose another address with {flag}"),
            },
        }
    }
}

impl ControlPlane {
    pub async fn start(config: &Config) -> Result<Self, StartError> {
        prepare(&config.data_dir).map_err(|source| StartError::DataDir { path: config.data_dir.clone(), source })?;
        let failed = |source| StartError::Store { store: config.store.clone(), source };
        let grpc = listen(config.grpc_listen, "--listen").await?;
        let api = listen(config.api_listen, "--api-listen").await?;
        let store = Store::open(&config.store).await.map_err(failed)?;
        let issuer = authority(config, &store).await?;
        let (admin_token, first_start) =
            AdminToken::load_or_create(&config.data_dir).map_err(StartError::AdminToken)?;
        let names = names(config);
        let server_certificate = issuer.server_tls(&names).map_err(StartError::Certificate)?;
        let roots = issuer.roots().iter().map(|root| root.to_vec()).collect();
        let mesh = Mesh { trust_domain: config.trust_domain.clone(), roots, lease: config.lease };
        let snapshots = snapshot::start(store.clone(), mesh).await.map_err(failed)?;
        let agents = Agents::default();
        let port = grpc.local_addr().map_or(config.grpc_listen.port(), |address| address.port());
        let app = App {
            metrics: Metrics::new(&store, &agents),
            trust_domain: config.trust_domain.clone(),
            published: snapshots.subscribe(),
            settings: Settings { lease: config.lease, join_url: url(&names, port) },
            draining: CancellationToken::new(),
            store,
            issuer,
            agents,
            server_certificate,
        };
        Ok(Self { app: Arc::new(app), snapshots, grpc, api, admin_token, first_start, grace: config.grace })
    }

    pub fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// Whether the administrator's token was made just now.
    pub fn first_start(&self) -> bool {
        self.first_start
    }

    /// Where agents connect.
    pub fn grpc_address(&self) -> io::Result<SocketAddr> {
        self.grpc.local_addr()
    }

    /// Where operators connect.
    pub fn api_address(&self) -> io::Result<SocketAddr> {
        self.api.local_addr()
    }

    /// `https://NAME:PORT` for operators.
    pub fn api_url(&self) -> String {
        let port = self.api.local_addr().map_or(api::ports::CONTROL_PLANE_REST, |address| address.port());
        match self.app.settings.join_url.rsplit_once(':') {
            Some((base, _)) => format!("{base}:{port}"),
            None => self.app.settings.join_url.clone(),
        }
    }

    /// Serves until `shutdown`; then streams are told to go, requests under way finish within
    /// [`DRAIN`], and the store is closed.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
        let Self { app, snapshots, grpc, api, admin_token, grace, .. } = self;
        let draining = app.draining.clone();
        let leases = registry::keep_leases(app.store.clone(), app.settings.lease, grace);
        let grpc = grpc::serve(grpc, app.clone(), draining.clone().cancelled_owned());
        let rest = rest::serve(api, app.clone(), admin_token, draining.clone().cancelled_owned());
        let mut served = std::pin::pin!(async {
            tokio::try_join!(async { grpc.await.map_err(RunError::Grpc) }, async { rest.await.map_err(RunError::Rest) },)
        });
        let ended = tokio::select! {
            ended = served.as_mut() => ended.map(|_| ()),
            () = leases => Ok(()),
            () = shutdown => {
                info!("the control plane drains");
                draining.cancel();
                if tokio::time::timeout(DRAIN, served.as_mut()).await.is_err() {
                    warn!("some connections were still open after {DRAIN:?} and are closed");
                }
                Ok(())
            }
        };
        draining.cancel();
        drop(snapshots);
        if tokio::time::timeout(DRAIN, app.store.close()).await.is_err() {
            warn!("the database did not close within {DRAIN:?}");
        }
        ended
    }
}

/// Makes the data directory for its owner alone and proves that it can be written.
fn prepare(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let probe = path.join(".writable");
    std::fs::write(&probe, "")?;
    std::fs::remove_file(&probe)
}

/// The authority, if it is the one of the store's mesh.
async fn authority(config: &Config, store: &Store) -> Result<Issuer, StartError> {
    let failed = |source| StartError::Store { store: config.store.clone(), source };
    let kept = store.remember("trust_domain", config.trust_domain.as_str()).await.map_err(failed)?;
    if kept != config.trust_domain.as_str() {
        let asked = config.trust_domain.clone();
        return Err(StartError::OtherMesh { store: config.store.clone(), kept, asked });
    }
    let ca = config.data_dir.join("ca.pem");
    let other = |kept| StartError::OtherAuthority { store: config.store.clone(), kept, ca: ca.clone() };
    let given = config.credentials.as_deref().map(CaCredentials::find).transpose();
    let given = given.map_err(|problem| StartError::Authority(problem.into()))?;
    let issuer = match given.flatten() {
        Some(credentials) => {
            info!("the authority is what systemd gave as credentials");
            Issuer::from_credentials(&credentials, &config.data_dir, &config.trust_domain)
        }
        None => {
            // Not one more authority for a mesh that has one.
            if let Some(kept) = store.remembered("root").await.map_err(failed)?
                && !config.data_dir.join("ca").exists()
            {
                return Err(other(kept));
            }
            Issuer::load_or_create(&config.data_dir, &config.trust_domain)
        }
    };
    let issuer = issuer.map_err(StartError::Authority)?;
    let root = HEXLOWER.encode(&issuer.ca_pin());
    let kept = store.remember("root", &root).await.map_err(failed)?;
    if kept == root { Ok(issuer) } else { Err(other(kept)) }
}

/// A machine without IPv6 listens on its IPv4 addresses when all are meant.
async fn listen(address: SocketAddr, flag: &'static str) -> Result<TcpListener, StartError> {
    let failed = |source| StartError::Listen { address, flag, source };
    match TcpListener::bind(address).await {
        Err(_) if address.ip() == IpAddr::from(Ipv6Addr::UNSPECIFIED) && !has_ipv6() => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await.map_err(failed)
        }
        bound => bound.map_err(failed),
    }
}

fn has_ipv6() -> bool {
    UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

/// What the server's certificate is for; the first one is in join commands.
fn names(config: &Config) -> Vec<String> {
    let mut names = config.advertise.clone();
    for listen in [config.grpc_listen, config.api_listen] {
        if !listen.ip().is_unspecified() {
            names.push(listen.ip().to_string());
        }
    }
    names.extend(machine_name());
    if config.grpc_listen.ip().is_unspecified() || config.api_listen.ip().is_unspecified() {
        names.extend(primary_addresses().iter().map(ToString::to_string));
    }
    names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

fn machine_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = text.trim().to_ascii_lowercase();
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.');
    (!name.is_empty() && name != "(none)" && name.bytes().all(sound)).then_some(name)
}

/// The addresses from which this machine reaches others. A UDP socket that is connected sends nothing.
fn primary_addresses() -> Vec<IpAddr> {
    let towards = |from: IpAddr, to: IpAddr| {
        let socket = UdpSocket::bind((from, 0)).ok()?;
        socket.connect((to, 9)).ok()?;
        socket.local_addr().ok().map(|address| address.ip())
    };
    // Documentation addresses (RFC 5737, RFC 3849): routed like any other.
    let v4 = towards(Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(192, 0, 2, 1).into());
    let v6 = towards(Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into());
    v4.into_iter().chain(v6).filter(|address| !address.is_unspecified()).collect()
}

fn url(names: &[String], port: u16) -> String {
    let name = names.first().map_or("localhost", String::as_str);
    match name.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) => format!("https://[{address}]:{port}"),
        Ok(IpAddr::V4(_)) | Err(_) => format!("https://{name}:{port}"),
    }
}

/// How long requests under way may take at the end.
const DRAIN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests;
