//! What the agent listens on: from the configuration to bound sockets.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use proxy::dns::{DnsConfig, DnsServer};
use proxy::drain::{DrainWatch, Tasks};
use proxy::{Handle, View};
use telemetry::Chain;
use telemetry::admin::Listener;
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

/// With the sockets of the agent before this one, in which questions wait, where they fit.
pub(super) async fn bind_dns(
    config: &Config,
    parked: Vec<OwnedFd>,
    resolvers: &Follower,
    view: &View,
    registry: &mut Registry,
) -> Result<Option<DnsServer>, RunError> {
    // What does not fit any more would take questions that nobody answers.
    systemd::unpark(Kept::Names);
    if !config.dns.enabled {
        return Ok(None);
    }
    let mut settings = DnsConfig::new(resolvers.upstreams());
    settings.listen.clone_from(&config.dns.listen);
    settings.attempt_timeout = config.dns.timeout;
    settings.total_timeout = config.dns.timeout * 3;
    let server = DnsServer::bind(settings, parked, view.clone(), registry).await.map_err(RunError::Dns)?;
    if systemd::is_managed()
        && let Err(error) = systemd::park(Kept::Names, server.sockets())
    {
        warn!(%error, "names have a gap when the agent restarts: the service manager does not take the sockets");
    }
    Ok(Some(server))
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
    admin: Vec<Listener>,
    metrics: Vec<Listener>,
    readiness: Vec<Listener>,
}

pub(super) async fn bind_admin(config: &Config) -> Result<AdminListeners, RunError> {
    let run_dir = &config.paths.run_dir;
    std::fs::create_dir_all(run_dir).map_err(|source| RunError::RunDir { path: run_dir.clone(), source })?;
    let socket = Listener::bind_unix(&config.paths.admin_socket(), 0o660).map_err(RunError::Admin)?;
    let mut admin = vec![socket];
    admin.extend(bind_tcp(&config.admin).await?);
    Ok(AdminListeners {
        admin,
        metrics: bind_tcp(&config.metrics).await?,
        readiness: bind_tcp(&config.readiness).await?,
    })
}

/// An address of a family that the host does not have is left out; `[::]` becomes `0.0.0.0` there.
async fn bind_tcp(addresses: &[SocketAddr]) -> Result<Vec<Listener>, RunError> {
    let mut bound = vec![];
    for address in addresses {
        match Listener::bind_tcp(*address).await {
            Ok(listener) => bound.push(listener),
            Err(error) if !is_absent(&error) => return Err(RunError::Admin(error)),
            Err(_) if address.is_ipv6() && address.ip().is_unspecified() => {
                let any = SocketAddr::from(([0, 0, 0, 0], address.port()));
                bound.push(Listener::bind_tcp(any).await.map_err(RunError::Admin)?);
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

pub(super) fn serve_admin(listeners: AdminListeners, parts: &Arc<Parts>, tasks: &Tasks, drain: &DrainWatch) {
    let spawn = |listener: Listener, handler: Arc<dyn telemetry::admin::Handler>| {
        let drain = drain.clone();
        tasks.spawn(async move { telemetry::admin::serve(listener, handler, drain.signaled()).await });
    };
    listeners.admin.into_iter().for_each(|listener| spawn(listener, Arc::new(Admin(parts.clone()))));
    listeners.metrics.into_iter().for_each(|listener| spawn(listener, Arc::new(Metrics(parts.clone()))));
    listeners.readiness.into_iter().for_each(|listener| spawn(listener, Arc::new(Readiness(parts.clone()))));
}
