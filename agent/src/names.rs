//! How the host's processes come to ask us for mesh names.
//!
//! [`decide`] is pure; [`Names::spawn`] keeps the host as it decided, as resolv.conf, systemd-resolved
//! and the snapshot change. With systemd-resolved nothing is taken from anyone; else the run loop
//! hands [`NamesVia::port53`] to interception. Answers themselves come from the proxy's DNS server.

mod domains;

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use proxy::view::View;
use telemetry::Chain;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use crate::config;
use crate::link::{self, LinkError};
use crate::resolv::Resolvers;
use crate::resolved::{OwnerChanges, Registration, Resolved, ResolvedError};

pub use domains::wanted as domains;

/// How questions for mesh names reach our DNS server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamesVia {
    /// systemd-resolved asks us for the mesh's domains, and every process asks systemd-resolved.
    Resolved,
    /// As above for processes that use libc, and by port 53 for those that read resolv.conf, which
    /// points past systemd-resolved to these.
    ResolvedAndPort53(Vec<IpAddr>),
    /// Interception takes port 53 of local processes to these resolvers.
    Port53(Vec<IpAddr>),
    /// Nobody is led to us.
    Off,
}

/// What [`decide`] looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed<'a> {
    pub resolved: ResolvedState,
    pub resolvers: &'a Resolvers,
    /// nsswitch.conf has libc ask systemd-resolved.
    pub libc_asks_resolved: bool,
}

/// What can be had from systemd-resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResolvedState {
    /// It does not run, or there is no bus to reach it by.
    Absent,
    /// It runs and refused, or is too old.
    Unusable,
    Usable,
}

/// What is in force, for `status` and `doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamesStatus {
    pub via: NamesVia,
    /// Why it is not better.
    pub problem: Option<String>,
    /// It is in force, as far as it can be: with interception on, mesh names go this way.
    pub is_settled: bool,
}

/// What [`Names::spawn`] is told.
#[derive(Debug, Clone)]
pub struct NamesConfig {
    pub enabled: bool,
    pub resolved: config::Resolved,
    /// Our DNS listener, for systemd-resolved to ask.
    pub server: SocketAddr,
    /// `/etc/nsswitch.conf`.
    pub nsswitch: PathBuf,
}

/// Keeps the host's processes asking us, until [`Names::stop`].
#[derive(Debug)]
pub struct Names {
    status: watch::Receiver<NamesStatus>,
    switch: watch::Sender<Option<bool>>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// Between looks at what other programs may have changed.
const RECHECK: Duration = Duration::from_secs(10);
/// A snapshot that changes again at once is waited for.
const SETTLE: Duration = Duration::from_millis(200);
/// systemd-resolved that restarts is back well within this.
const RESTART: Duration = Duration::from_secs(5);
/// What an operator must change is tried again this often, or when systemd-resolved restarts.
const REFUSAL: Duration = Duration::from_secs(300);
const RESTART_POLL: Duration = Duration::from_millis(100);

/// Which way is right for a host.
pub fn decide(config: &NamesConfig, observed: &Observed<'_>) -> NamesVia {
    let configured = addresses(&observed.resolvers.configured);
    match (config.enabled, config.resolved, observed.resolved) {
        (false, _, _) => NamesVia::Off,
        // Asked for by name: its absence is waited out, port 53 is never taken instead.
        (true, config::Resolved::On, _) => NamesVia::Resolved,
        (true, config::Resolved::Auto, ResolvedState::Usable) if observed.resolvers.is_resolved_stub() => {
            NamesVia::Resolved
        }
        (true, config::Resolved::Auto, ResolvedState::Usable) if observed.libc_asks_resolved => {
            NamesVia::ResolvedAndPort53(configured)
        }
        // What goes through systemd-resolved all the same is met on its way out.
        (true, _, _) if observed.resolvers.is_resolved_stub() || observed.libc_asks_resolved => {
            let uplinks = addresses(&observed.resolvers.uplinks);
            NamesVia::Port53(configured.into_iter().chain(uplinks).collect::<BTreeSet<_>>().into_iter().collect())
        }
        (true, _, _) => NamesVia::Port53(configured),
    }
}

impl NamesVia {
    /// Whether the mesh's domains are registered with systemd-resolved.
    pub fn is_registered(&self) -> bool {
        matches!(self, Self::Resolved | Self::ResolvedAndPort53(_))
    }

    /// The resolvers whose port 53 interception takes for local processes.
    pub fn port53(&self) -> Option<&[IpAddr]> {
        match self {
            Self::ResolvedAndPort53(resolvers) | Self::Port53(resolvers) => Some(resolvers),
            Self::Resolved | Self::Off => None,
        }
    }
}

impl Names {
    pub fn spawn(config: NamesConfig, resolvers: watch::Receiver<Resolvers>, view: View) -> Self {
        let (status_sender, status) =
            watch::channel(NamesStatus { via: NamesVia::Off, problem: None, is_settled: false });
        let (stop, stopped) = oneshot::channel();
        let (switch, is_wanted) = watch::channel(None);
        let keeper = Keeper {
            config,
            is_wanted,
            resolvers,
            view,
            status: status_sender,
            resolved: None,
            link: None,
            is_registered: false,
            is_clean: false,
            refused: None,
        };
        Self { status, switch, stop, task: tokio::spawn(keeper.run(stopped)) }
    }

    /// What is in force, from when it is.
    pub fn status(&self) -> watch::Receiver<NamesStatus> {
        self.status.clone()
    }

    /// Switches registration on and off, together with interception: an outside host's VIP that nothing
    /// takes to the mesh would cut the host off from it. Before the first word everything stays as an
    /// agent before this one has left it. What [`NamesStatus::via`] says stays, for `plan`.
    pub fn switch(&self) -> watch::Sender<Option<bool>> {
        self.switch.clone()
    }

    /// Takes everything back.
    pub async fn stop(self) {
        let _ = self.stop.send(());
        let _ = self.task.await;
    }

    /// Leaves everything in force for the agent's next process, which takes it over.
    pub fn hand_over(self) {
        self.task.abort();
    }
}

/// Removes what an agent that died left behind; whether there was anything. Without the device
/// systemd-resolved forgets what was registered on it.
pub fn clean() -> Result<bool, LinkError> {
    link::remove()
}

/// The loop's state.
struct Keeper {
    config: NamesConfig,
    is_wanted: watch::Receiver<Option<bool>>,
    resolvers: watch::Receiver<Resolvers>,
    view: View,
    status: watch::Sender<NamesStatus>,
    resolved: Option<Resolved>,
    /// The device, while it is there for us.
    link: Option<u32>,
    /// Whether the mesh's domains were registered on it.
    is_registered: bool,
    /// Whether there is surely no device.
    is_clean: bool,
    /// Why trying again at once is of no use, and until when.
    refused: Option<(String, Instant)>,
}

/// Registering failed; the host's names are as they were.
#[derive(Debug, thiserror::Error)]
enum RegisterError {
    #[error("mesh names have no device to be registered on")]
    Link(#[from] LinkError),
    #[error("mesh names are not registered")]
    Resolved(#[from] ResolvedError),
    #[error("systemd-resolved does not run")]
    Absent,
}

impl RegisterError {
    /// Whether the same would be said again until somebody changes the host.
    fn is_final(&self) -> bool {
        match self {
            Self::Link(error) => matches!(error, LinkError::NoKind | LinkError::Foreign { .. }),
            Self::Resolved(error) => {
                matches!(error, ResolvedError::TooOld | ResolvedError::Denied(_) | ResolvedError::Busy(_))
            }
            Self::Absent => false,
        }
    }
}

impl Keeper {
    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        let mut revisions = self.view.subscribe();
        let mut resolvers = self.resolvers.clone();
        let mut is_wanted = self.is_wanted.clone();
        let mut changes = None;
        loop {
            revisions.mark_unchanged();
            resolvers.mark_unchanged();
            is_wanted.mark_unchanged();
            let round = async {
                if changes.is_none() {
                    changes = self.follow_resolved().await;
                }
                self.reconcile().await;
                tokio::select! {
                    Ok(()) = revisions.changed() => sleep(SETTLE).await,
                    Ok(()) = resolvers.changed() => {}
                    Ok(()) = is_wanted.changed() => {}
                    change = next(&mut changes) => match change {
                        Some(is_running) => self.await_restart(is_running).await,
                        None => (changes, self.resolved) = (None, None),
                    },
                    () = sleep(RECHECK) => {}
                }
            };
            tokio::select! {
                _ = &mut stopped => break,
                () = round => {}
            }
        }
        self.withdraw().await;
    }

    /// Makes the host as it should be. The same path at start, on every change and on the timer.
    async fn reconcile(&mut self) {
        self.refused.take_if(|(_, until)| *until <= Instant::now());
        let resolvers = self.resolvers.borrow().clone();
        let libc_asks_resolved = fs::read_to_string(&self.config.nsswitch).is_ok_and(|text| uses_resolve(&text));
        let mut observed = Observed { resolved: self.state().await, resolvers: &resolvers, libc_asks_resolved };
        let mut via = decide(&self.config, &observed);
        let mut problem = self.refused.as_ref().map(|(problem, _)| problem.clone());
        let is_wanted = *self.is_wanted.borrow();
        // The first snapshot says which domains there are, and nothing is served before it.
        let has_snapshot = self.view.load().host().is_some();
        if via.is_registered()
            && is_wanted == Some(true)
            && has_snapshot
            && problem.is_none()
            && let Err(error) = self.register(observed.resolved).await
        {
            let text = Chain(&error).to_string();
            self.refused = error.is_final().then(|| (text.clone(), Instant::now() + REFUSAL));
            problem = Some(text);
            observed.resolved = ResolvedState::Unusable;
            via = decide(&self.config, &observed);
        }
        if !via.is_registered() || is_wanted == Some(false) || self.refused.is_some() {
            self.withdraw().await;
        }
        let is_settled = problem.is_some() || !via.is_registered() || self.is_registered;
        self.publish(NamesStatus { via, problem, is_settled });
    }

    async fn state(&self) -> ResolvedState {
        match &self.resolved {
            Some(resolved) if resolved.is_running().await.unwrap_or(false) => match self.refused {
                Some(_) => ResolvedState::Unusable,
                None => ResolvedState::Usable,
            },
            Some(_) | None => ResolvedState::Absent,
        }
    }

    /// Registers the domains of now, unless they are.
    async fn register(&mut self, state: ResolvedState) -> Result<(), RegisterError> {
        let (Some(resolved), ResolvedState::Usable) = (&self.resolved, state) else {
            return Err(RegisterError::Absent);
        };
        let link = link::ensure()?;
        (self.link, self.is_clean) = (Some(link), false);
        let domains = domains(&self.view.load());
        let registration = Registration { link, server: self.config.server, domains };
        if resolved.is_registered(&registration).await? {
            self.is_registered = true;
        } else {
            resolved.register(&registration).await?;
            self.is_registered = true;
            info!(domains = registration.domains.len(), "systemd-resolved asks this agent for mesh names");
        }
        Ok(())
    }

    /// Takes back what is in force, also what an agent before this one left. Cut off half way it can
    /// be done again.
    async fn withdraw(&mut self) {
        if self.is_clean {
            return;
        }
        if let (Some(resolved), Some(link), true) = (&self.resolved, self.link, self.is_registered)
            && let Err(error) = resolved.revert(link).await
        {
            debug!(error = %Chain(&error), "the device goes without being reverted");
        }
        match link::remove() {
            Ok(_) if self.is_registered => info!("systemd-resolved no longer asks this agent for mesh names"),
            Ok(was_there) => debug!(was_there, "there is no device {} left", link::LINK),
            Err(error) => warn!(error = %Chain(&error), "the device {} is left behind", link::LINK),
        }
        (self.link, self.is_registered, self.is_clean) = (None, false, true);
    }

    fn publish(&self, now: NamesStatus) {
        let previous = self.status.borrow().problem.clone();
        if let Some(problem) = now.problem.as_ref().filter(|problem| Some(*problem) != previous.as_ref()) {
            warn!(error = %problem, via = ?now.via, "mesh names are not asked for through systemd-resolved");
        }
        self.status.send_if_modified(|known| std::mem::replace(known, now.clone()) != now);
    }

    /// Connects to the bus if that is wanted and possible; tried again with every round.
    async fn follow_resolved(&mut self) -> Option<OwnerChanges> {
        if !self.config.enabled || self.config.resolved == config::Resolved::Off {
            return None;
        }
        let connected = async {
            let resolved = Resolved::connect().await?;
            let changes = resolved.changes().await?;
            Ok::<_, ResolvedError>((resolved, changes))
        };
        match connected.await {
            Ok((resolved, changes)) => {
                self.resolved = Some(resolved);
                Some(changes)
            }
            Err(error) => {
                debug!(error = %Chain(&error), "systemd-resolved cannot be reached");
                None
            }
        }
    }

    /// When systemd-resolved stops, gives it the time of a restart before port 53 is taken instead.
    async fn await_restart(&mut self, is_running: bool) {
        self.refused = None;
        let polls = RESTART.as_millis() / RESTART_POLL.as_millis();
        for _ in 0..polls {
            if is_running || self.state().await == ResolvedState::Usable {
                return;
            }
            sleep(RESTART_POLL).await;
        }
    }
}

async fn next(changes: &mut Option<OwnerChanges>) -> Option<bool> {
    match changes {
        Some(changes) => changes.next().await,
        None => std::future::pending().await,
    }
}

/// Whether nsswitch.conf(5) has host names looked up by nss-resolve.
fn uses_resolve(nsswitch: &str) -> bool {
    let lines = nsswitch.lines().map(|line| line.split('#').next().unwrap_or_default());
    let mut hosts = lines.filter_map(|line| line.trim().strip_prefix("hosts:"));
    hosts.any(|modules| modules.split_whitespace().any(|module| module == "resolve"))
}

fn addresses(resolvers: &[SocketAddr]) -> Vec<IpAddr> {
    resolvers.iter().map(SocketAddr::ip).collect()
}

#[cfg(test)]
mod tests;
