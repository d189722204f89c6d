//! What the agent listens on: from the configuration to bound sockets.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use proxy::dns::{DnsConfig, DnsServer};
use proxy::drain::{DrainWatch, Tasks};
use proxy::{Handle, View};
use telemetry::Chain;
use telemetry::admin::{Listener, Unplaced, refuse_unless_stale};
use telemetry::metrics::Registry;
use tracing::{info, warn};

use super::RunError;
use crate::admin::{Admin, Metrics, Parts, Readiness};
use crate::config::Config;
use crate::intercept::OwnPorts;
use crate::names::NamesConfig;
use crate::resolv::Follower;
use crate::systemd::{self, Kept};

/// What the agent listens on, for the rules.
pub(crate) fn own_ports(proxy: &Handle, config: &Config) -> OwnPorts {
    let first = |addresses: &[SocketAddr], default: u16| addresses.first().map_or(default, SocketAddr::port);
    let addresses = proxy.addresses();
    OwnPorts {
        outbound: first(&addresses.outbound, api::ports::OUTBOUND),
        inbound_plaintext: first(&addresses.plaintext, api::ports::INBOUND_PLAINTEXT),
        dns: first(&config.dns.listen, api::ports::DNS),
    }
}

pub(super) fn proxy_config(config: &Config) -> proxy::Config {
    let mut made = proxy::Config::default();
    made.outbound.listen.clone_from(&config.outbound.listen);
    made.outbound.connect_timeout = config.outbound.connect_timeout;
    made.outbound.max_endpoints_tried = config.outbound.max_endpoints_tried;
    made.outbound.tunnel = config.outbound.tunnel;
    made.outbound.idle_timeout = config.outbound.idle_timeout;
    made.inbound.listen.clone_from(&config.inbound.listen);
    made.inbound.plaintext_listen.clone_from(&config.inbound.plaintext_listen);
    made.inbound.handshake_timeout = config.inbound.handshake_timeout;
    made.inbound.max_handshakes = config.inbound.max_handshakes;
    made.inbound.connect_timeout = config.inbound.connect_timeout;
    made.inbound.idle_timeout = config.inbound.idle_timeout;
    made
}

/// With the sockets of the agent before this one, in which questions wait, where they fit. [`park_names`]
/// tells the service manager.
pub(super) async fn bind_dns(
    config: &Config,
    parked: Vec<OwnedFd>,
    resolvers: &Follower,
    view: &View,
    registry: &mut Registry,
) -> Result<Option<DnsServer>, RunError> {
    if !config.dns.enabled {
        return Ok(None);
    }
    let mut settings = DnsConfig::new(resolvers.upstreams());
    settings.listen.clone_from(&config.dns.listen);
    settings.attempt_timeout = config.dns.timeout;
    settings.total_timeout = config.dns.timeout * 3;
    DnsServer::bind(settings, parked, view.clone(), registry).await.map(Some).map_err(RunError::Dns)
}

/// The service manager keeps the sockets of names over a restart, and none that do not fit any more: those
/// would take questions that nobody answers.
pub(super) fn park_names(sockets: &[OwnedFd]) {
    systemd::unpark(Kept::Names);
    if systemd::is_managed()
        && !sockets.is_empty()
        && let Err(error) = systemd::park(Kept::Names, sockets.iter().map(OwnedFd::as_fd))
    {
        warn!(%error, "names have a gap when the agent restarts: the service manager does not take the sockets");
    }
}

pub(super) fn names_config(config: &Config, dns: Option<&DnsServer>) -> NamesConfig {
    let served = dns.and_then(|dns| dns.local_addrs().first().copied());
    NamesConfig {
        enabled: config.dns.enabled,
        resolved: config.dns.resolved,
        server: served.or(config.dns.listen.first().copied()).unwrap_or(([127, 0, 0, 1], api::ports::DNS).into()),
        nsswitch: "/etc/nsswitch.conf".into(),
    }
}

pub(super) struct AdminListeners {
    socket: Unplaced,
    admin: Vec<Listener>,
    metrics: Vec<Listener>,
    readiness: Vec<Listener>,
    /// Copies, for a successor.
    copies: Vec<OwnedFd>,
}

/// With the sockets of the agent before this one where they fit. Unless it is the only one of this host, its
/// Unix socket waits for its place.
pub(super) async fn bind_admin(
    config: &Config,
    given: Vec<OwnedFd>,
    is_only: bool,
) -> Result<AdminListeners, RunError> {
    let run_dir = &config.paths.run_dir;
    std::fs::create_dir_all(run_dir).map_err(|source| RunError::RunDir { path: run_dir.clone(), source })?;
    let path = config.paths.admin_socket();
    if is_only {
        refuse_unless_stale(&path).map_err(RunError::Admin)?;
    }
    let mut given: Vec<TcpListener> = given.into_iter().map(TcpListener::from).collect();
    let socket = Unplaced::bind(&path, 0o660).map_err(RunError::Admin)?;
    let admin = bind_tcp(&config.admin, &mut given).await?;
    let metrics = bind_tcp(&config.metrics, &mut given).await?;
    let readiness = bind_tcp(&config.readiness, &mut given).await?;
    let copies = admin.iter().chain(&metrics).chain(&readiness).filter_map(Listener::copy).collect::<Result<_, _>>();
    Ok(AdminListeners { socket, admin, metrics, readiness, copies: copies.map_err(RunError::Sockets)? })
}

/// An address of a family that the host does not have is left out; `[::]` becomes `0.0.0.0` there.
async fn bind_tcp(addresses: &[SocketAddr], given: &mut Vec<TcpListener>) -> Result<Vec<Listener>, RunError> {
    let mut bound = vec![];
    for address in addresses {
        match Listener::bind_tcp_or_take(*address, given).await {
            Ok(listener) => bound.push(listener),
            Err(error) if !is_absent(&error) => return Err(RunError::Admin(error)),
            Err(_) if address.is_ipv6() && address.ip().is_unspecified() => {
                let any = SocketAddr::from(([0, 0, 0, 0], address.port()));
                bound.push(Listener::bind_tcp_or_take(any, given).await.map_err(RunError::Admin)?);
            }
            Err(error) => info!(%address, error = %Chain(&error), "this host has no such address: left out"),
        }
    }
    Ok(bound)
}

fn is_absent(error: &telemetry::admin::BindError) -> bool {
    let telemetry::admin::BindError::Tcp { source, .. } = error else { return false };
    let errno = source.raw_os_error();
    errno == Some(libc::EADDRNOTAVAIL) || errno == Some(libc::EAFNOSUPPORT)
}

/// Answers from here on; copies of the sockets, for a successor.
pub(super) fn serve_admin(
    listeners: AdminListeners,
    parts: &Arc<Parts>,
    tasks: &Tasks,
    drain: &DrainWatch,
) -> Result<Vec<OwnedFd>, RunError> {
    let spawn = |listener: Listener, handler: Arc<dyn telemetry::admin::Handler>| {
        let drain = drain.clone();
        tasks.spawn(async move { telemetry::admin::serve(listener, handler, drain.signaled()).await });
    };
    spawn(listeners.socket.place().map_err(RunError::Admin)?, Arc::new(Admin(parts.clone())));
    listeners.admin.into_iter().for_each(|listener| spawn(listener, Arc::new(Admin(parts.clone()))));
    listeners.metrics.into_iter().for_each(|listener| spawn(listener, Arc::new(Metrics(parts.clone()))));
    listeners.readiness.into_iter().for_each(|listener| spawn(listener, Arc::new(Readiness(parts.clone()))));
    Ok(listeners.copies)
}
