//! systemd-resolved over D-Bus: which names it asks us for.
//!
//! [`crate::names`] registers the mesh's domains on the device of [`crate::link`] and takes them back.
//! Routing domains only: no other name comes to us, and nothing of what systemd-resolved does
//! otherwise changes. The interface is org.freedesktop.resolve1(5).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::sleep;
use zbus::DBusError;
use zbus::fdo::DBusProxy;
use zbus::names::BusName;
use zbus::proxy::OwnerChangedStream;

use crate::link::LINK;

/// A connection to the system bus, to talk with systemd-resolved.
#[derive(Debug, Clone)]
pub struct Resolved {
    connection: zbus::Connection,
    manager: ManagerProxy<'static>,
}

/// What systemd-resolved shall ask whom for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Index of the network device that carries it.
    pub link: u32,
    /// Our DNS listener.
    pub server: SocketAddr,
    /// Names at and below these come to us. Without final dots and wildcards.
    pub domains: BTreeSet<String>,
}

/// Why systemd-resolved does not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum ResolvedError {
    #[error("the system bus cannot be reached")]
    NoBus(#[source] zbus::Error),
    #[error("systemd-resolved is older than 246 and cannot ask a resolver on another port than 53")]
    TooOld,
    #[error("systemd-resolved does not let this process change names: run the agent as root")]
    Denied(#[source] zbus::Error),
    #[error(
        "systemd-networkd manages the device {LINK}: give it a file /etc/systemd/network/10-tombolo.network with \
         \"[Match] Name={LINK}\" and \"[Link] Unmanaged=yes\""
    )]
    Busy(#[source] zbus::Error),
    #[error("systemd-resolved failed {call}")]
    Failed {
        call: &'static str,
        #[source]
        source: zbus::Error,
    },
}

#[zbus::proxy(
    interface = "org.freedesktop.resolve1.Manager",
    default_service = "org.freedesktop.resolve1",
    default_path = "/org/freedesktop/resolve1"
)]
trait Manager {
    #[zbus(name = "SetLinkDNSEx", no_autostart)]
    fn set_link_dns_ex(&self, link: i32, servers: &[(i32, Vec<u8>, u16, &str)]) -> zbus::Result<()>;
    #[zbus(no_autostart)]
    fn set_link_domains(&self, link: i32, domains: &[(&str, bool)]) -> zbus::Result<()>;
    #[zbus(no_autostart)]
    fn set_link_default_route(&self, link: i32, enable: bool) -> zbus::Result<()>;
    #[zbus(name = "SetLinkLLMNR", no_autostart)]
    fn set_link_llmnr(&self, link: i32, mode: &str) -> zbus::Result<()>;
    #[zbus(name = "SetLinkMulticastDNS", no_autostart)]
    fn set_link_multicast_dns(&self, link: i32, mode: &str) -> zbus::Result<()>;
    #[zbus(name = "SetLinkDNSOverTLS", no_autostart)]
    fn set_link_dns_over_tls(&self, link: i32, mode: &str) -> zbus::Result<()>;
    #[zbus(name = "SetLinkDNSSEC", no_autostart)]
    fn set_link_dnssec(&self, link: i32, mode: &str) -> zbus::Result<()>;
    #[zbus(no_autostart)]
    fn revert_link(&self, link: i32) -> zbus::Result<()>;
    #[zbus(no_autostart)]
    fn flush_caches(&self) -> zbus::Result<()>;
    #[zbus(no_autostart)]
    fn get_link(&self, link: i32) -> zbus::Result<zbus::OwnedObjectPath>;
}

#[zbus::proxy(interface = "org.freedesktop.resolve1.Link", default_service = "org.freedesktop.resolve1")]
trait Link {
    #[zbus(property(emits_changed_signal = "false"), name = "DNSEx")]
    fn dns_ex(&self) -> zbus::Result<Vec<(i32, Vec<u8>, u16, String)>>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn scopes_mask(&self) -> zbus::Result<u64>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn domains(&self) -> zbus::Result<Vec<(String, bool)>>;
}

const SERVICE: &str = "org.freedesktop.resolve1";
/// A healthy systemd-resolved answers within milliseconds.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// systemd-resolved hears of a new device from the kernel, like we do, a moment later.
const UNKNOWN_LINK_TRIES: u32 = 100;
const UNKNOWN_LINK_PAUSE: Duration = Duration::from_millis(20);
/// In a link's `ScopesMask`: `SD_RESOLVED_DNS`.
const SCOPE_DNS: u64 = 1;
/// As many domains as systemd-resolved takes for one device (`LINK_SEARCH_DOMAINS_MAX`).
pub const DOMAINS: usize = 1024;

impl Resolved {
    /// Connects to the system bus, whether or not systemd-resolved runs.
    pub async fn connect() -> Result<Self, ResolvedError> {
        let connection = zbus::connection::Builder::system().method_timeout(CALL_TIMEOUT).build().await;
        let connection = connection.map_err(ResolvedError::NoBus)?;
        let manager = ManagerProxy::new(&connection).await.map_err(ResolvedError::NoBus)?;
        Ok(Self { connection, manager })
    }

    /// Whether systemd-resolved runs. Asking does not start it.
    pub async fn is_running(&self) -> Result<bool, ResolvedError> {
        let failed = |source| ResolvedError::Failed { call: "NameHasOwner", source };
        let bus = DBusProxy::new(&self.connection).await.map_err(failed)?;
        let name = BusName::from_static_str(SERVICE).map_err(&failed)?;
        bus.name_has_owner(name).await.map_err(|error| failed(error.into()))
    }

    /// Follows systemd-resolved's start and stop.
    pub async fn changes(&self) -> Result<OwnerChanges, ResolvedError> {
        let stream = self.manager.inner().receive_owner_changed().await;
        Ok(OwnerChanges(stream.map_err(|source| ResolvedError::Failed { call: "AddMatch", source })?))
    }

    /// Puts the registration in force, whatever was in force on that device.
    pub async fn register(&self, registration: &Registration) -> Result<(), ResolvedError> {
        let link = link_number(registration.link);
        let (family, address) = octets(registration.server.ip());
        let servers = [(family, address, registration.server.port(), "")];
        let domains: Vec<_> = registration.domains.iter().map(|domain| (domain.as_str(), true)).collect();
        let mut tries = UNKNOWN_LINK_TRIES;
        loop {
            match self.manager.set_link_dns_ex(link, &servers).await {
                Err(error) if is(&error, "org.freedesktop.resolve1.NoSuchLink") && tries > 0 => {
                    tries -= 1;
                    sleep(UNKNOWN_LINK_PAUSE).await;
                }
                Err(error) if is(&error, "org.freedesktop.DBus.Error.UnknownMethod") => {
                    return Err(ResolvedError::TooOld);
                }
                set => break checked("SetLinkDNSEx", set)?,
            }
        }
        checked("SetLinkDomains", self.manager.set_link_domains(link, &domains).await)?;
        checked("SetLinkDefaultRoute", self.manager.set_link_default_route(link, false).await)?;
        // Our listener speaks plain DNS and signs nothing; a build of systemd-resolved without one
        // of these has nothing to switch off.
        let _ = self.manager.set_link_llmnr(link, "no").await;
        let _ = self.manager.set_link_multicast_dns(link, "no").await;
        let _ = self.manager.set_link_dns_over_tls(link, "no").await;
        let _ = self.manager.set_link_dnssec(link, "no").await;
        self.await_scope(link).await?;
        // It may have kept that a name does not exist from before it asked us.
        checked("FlushCaches", self.manager.flush_caches().await)
    }

    /// Waits until it asks for names on the device: not before it has heard from the kernel that the
    /// device is up and has an address, and until then it asks others, who say that there is no such name.
    async fn await_scope(&self, link: i32) -> Result<(), ResolvedError> {
        let failed = |source| ResolvedError::Failed { call: "GetLink", source };
        let path = self.manager.get_link(link).await.map_err(failed)?;
        let device = LinkProxy::builder(&self.connection).path(path).build().await.map_err(failed)?;
        for _ in 0..UNKNOWN_LINK_TRIES {
            if device.scopes_mask().await.map_err(failed)? & SCOPE_DNS != 0 {
                break;
            }
            sleep(UNKNOWN_LINK_PAUSE).await;
        }
        Ok(())
    }

    /// Whether exactly this registration is in force: other programs may have overwritten it.
    pub async fn is_registered(&self, registration: &Registration) -> Result<bool, ResolvedError> {
        let failed = |source| ResolvedError::Failed { call: "GetLink", source };
        let path = match self.manager.get_link(link_number(registration.link)).await {
            Err(error) if is(&error, "org.freedesktop.resolve1.NoSuchLink") => return Ok(false),
            path => path.map_err(failed)?,
        };
        let link = LinkProxy::builder(&self.connection).path(path).build().await.map_err(failed)?;
        let (family, address) = octets(registration.server.ip());
        let servers = [(family, address, registration.server.port(), String::new())];
        let domains = link.domains().await.map_err(failed)?;
        let domains: BTreeSet<String> = domains.into_iter().filter(|(_, is_route)| *is_route).map(|d| d.0).collect();
        Ok(domains == registration.domains && link.dns_ex().await.map_err(failed)? == servers)
    }

    /// Takes everything back that was set on the device.
    pub async fn revert(&self, link: u32) -> Result<(), ResolvedError> {
        match self.manager.revert_link(link_number(link)).await {
            Err(error) if is(&error, "org.freedesktop.resolve1.NoSuchLink") => Ok(()),
            reverted => checked("RevertLink", reverted),
        }
    }
}

/// Says when systemd-resolved starts or stops.
pub struct OwnerChanges(OwnerChangedStream<'static>);

impl OwnerChanges {
    /// Whether it runs from here on; `None` when the bus is gone.
    pub async fn next(&mut self) -> Option<bool> {
        self.0.next().await.map(|owner| owner.is_some())
    }
}

fn checked(call: &'static str, result: zbus::Result<()>) -> Result<(), ResolvedError> {
    result.map_err(|source| {
        let denied = ["AccessDenied", "InteractiveAuthorizationRequired", "AuthFailed"];
        if denied.iter().any(|name| is(&source, &format!("org.freedesktop.DBus.Error.{name}"))) {
            ResolvedError::Denied(source)
        } else if is(&source, "org.freedesktop.resolve1.LinkBusy") {
            ResolvedError::Busy(source)
        } else {
            ResolvedError::Failed { call, source }
        }
    })
}

fn is(error: &zbus::Error, name: &str) -> bool {
    match error {
        zbus::Error::MethodError(found, _, _) => found.as_str() == name,
        zbus::Error::FDO(known) => known.name().as_str() == name,
        _ => false,
    }
}

/// D-Bus carries an interface's index as a signed number; the kernel's stay far below its end.
fn link_number(link: u32) -> i32 {
    i32::try_from(link).unwrap_or(i32::MAX)
}

fn octets(address: IpAddr) -> (i32, Vec<u8>) {
    match address {
        IpAddr::V4(v4) => (libc::AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec()),
    }
}
