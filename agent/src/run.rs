//! The daemon, start and stop on one page.
//!
//! Start: configuration → state → snapshot from disk → credentials → listeners → stream, certificates,
//! lease, probes → admin, metrics, readiness → interception if it was confirmed → READY=1 once it
//! serves. Stop (SIGTERM): not ready → the control plane is told → new connections pass (unless the
//! rules are held) → open ones end or the deadline comes → the rules go → nothing is left.
//!
//! A control plane that is away delays nothing of this.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::SpiffeId;
use arc_swap::ArcSwap;
use proxy::drain::{DrainTrigger, DrainWatch, Tasks};
use proxy::{Attribution, Proxy, View};
use telemetry::Chain;
use telemetry::log::LogHandle;
use telemetry::metrics::Registry;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

use crate::admin::{Order, Parts};
use crate::attribute::CgroupAttribution;
use crate::config::{Config, ConfigError, Sources};
use crate::connect::{Dial, Link};
use crate::discovery::{self, Discovery, cache};
use crate::health::{self, Verdicts};
use crate::intercept_control::{self, Control, self_test::Tester};
use crate::issuance::Issuance;
use crate::names::Names;
use crate::register::{self, Refused};
use crate::resolv::{self, Follower};
use crate::state::{HostIdentity, StateDir, StateError, StateLock};
use crate::systemd::{self, Kept, Parked};
use crate::{join, machine, memory, obey, workloads};

mod listeners;
mod reload;
mod stop;

pub(crate) use listeners::own_ports;
use listeners::{bind_admin, bind_dns, names_config, proxy_config, serve_admin};

/// Why the agent cannot start, or not go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("this host has not joined a mesh: run `tombolo join URL --token TOKEN` first")]
    NotJoined,
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("the host's identity cannot be used: {problem}")]
    Identity { problem: String },
    #[error("the data plane cannot listen")]
    Proxy(#[source] proxy::BindError),
    #[error("names cannot be served")]
    Dns(#[source] proxy::dns::DnsBindError),
    #[error("the admin API cannot listen")]
    Admin(#[source] telemetry::admin::BindError),
    #[error("cannot make {}", path.display())]
    RunDir {
        path: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the runtime cannot start")]
    Runtime(#[source] std::io::Error),
}

/// Looks whether the agent serves by now.
const READY_CHECK: Duration = Duration::from_millis(50);
/// Once it serves, how often the one line for `systemctl status` is looked at.
const STATUS_PERIOD: Duration = Duration::from_secs(5);
/// Runs the daemon until it is told to stop. Call it once, with `telemetry::nss::pin` and the crypto
/// provider in place.
pub fn run(sources: &Sources) -> Result<(), RunError> {
    let parked = systemd::parked();
    let config = Config::load(sources)?;
    let log = telemetry::log::init(&config.log.settings());
    let log = log.inspect_err(|error| eprint_once(&Chain(error).to_string())).ok();
    let parked = parked.unwrap_or_else(|error| {
        warn!(%error, "what the agent before this one has parked cannot be taken over and is released");
        systemd::unpark(Kept::Rules);
        Parked::default()
    });
    // Traffic has threads of its own: nothing that the control plane sends can hold it up.
    let mut threads = tokio::runtime::Builder::new_multi_thread();
    threads.worker_threads(traffic_threads(config.workers)).thread_name("traffic").enable_all();
    let traffic = threads.build().map_err(RunError::Runtime)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(RunError::Runtime)?;
    let on = traffic.handle().clone();
    let ended = runtime.block_on(async { Agent::start(config, sources.clone(), log, parked, on).await?.serve().await });
    runtime.shutdown_timeout(Duration::from_secs(1));
    traffic.shutdown_timeout(Duration::from_secs(1));
    ended
}

/// As many as are wanted. Each one more costs wake-ups as long as one could do the work, and the cores are
/// the applications' (docs/performance.md).
fn traffic_threads(wanted: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if wanted > 0 { wanted } else { cores.div_ceil(4) }
}

/// The running agent.
struct Agent {
    config: Config,
    sources: Sources,
    log: Option<LogHandle>,
    parts: Arc<Parts>,
    orders: mpsc::Receiver<Order>,
    published: watch::Sender<Arc<Config>>,
    stopping: watch::Sender<bool>,
    overrides: discovery::Overrides,
    discovery: Arc<std::sync::Mutex<discovery::Holdings>>,
    received: View,
    names: Names,
    _resolvers: Follower,
    state: StateDir,
    _lock: StateLock,
    /// Ends the data plane.
    traffic: (DrainTrigger, Tasks, DrainWatch),
    /// Ends the lease, first: a report after leaving would bring the workloads back.
    lease: (DrainTrigger, Tasks, DrainWatch),
    /// Ends what talks to the control plane and to the host.
    background: (DrainTrigger, Tasks, DrainWatch),
    /// Ends the admin API, last: whoever asked for the end wants its answer.
    admin: (DrainTrigger, Tasks, DrainWatch),
    control: (oneshot::Sender<()>, tokio::task::JoinHandle<()>),
}

/// The control plane knows that this host leaves; somebody waits for the end.
struct Leaving {
    reply: oneshot::Sender<Result<(), String>>,
}

/// The proxy asks who opened a connection.
struct Attributed(CgroupAttribution);

impl Attribution for Attributed {
    fn source(&self, client: SocketAddr, dialled: SocketAddr) -> Option<api::WorkloadUid> {
        self.0.source(client, dialled)
    }
}

impl Agent {
    async fn start(
        config: Config,
        sources: Sources,
        log: Option<LogHandle>,
        parked: Parked,
        traffic_threads: tokio::runtime::Handle,
    ) -> Result<Self, RunError> {
        // Who are we?
        let state = StateDir::open(&config.paths.state_dir)?;
        let identity = state.identity()?.ok_or(RunError::NotJoined)?;
        let lock = state.lock()?;
        let identity = bound(&state, identity)?;
        let unusable = |problem: String| RunError::Identity { problem };
        let host =
            SpiffeId::host(&identity.trust_domain, &identity.host).map_err(|e| unusable(Chain(&e).to_string()))?;
        info!(version = telemetry::build::VERSION, identity = %host, "the agent starts");

        // What did we obey, and what can we prove?
        let holdings = cache::load(&state);
        let overrides: discovery::Overrides = Arc::new(ArcSwap::from_pointee(config.workloads.clone()));
        // What the control plane says, and what of it is in force.
        let received = View::new(workloads::overlay(holdings.snapshot(), &overrides.load()));
        let view = View::new(received.load());
        let credentials = join::load_credentials(&state, &identity).map_err(unusable)?;
        discovery::set_bundles(&credentials, holdings.snapshot());

        // Listeners.
        let mut registry = Registry::default();
        telemetry::metrics::register_process(&mut registry);
        let attribution = Arc::new(Attributed(CgroupAttribution::new(local_workloads(&view))));
        let proxy = {
            let _here = traffic_threads.enter();
            Proxy::bind(proxy_config(&config), view.clone(), credentials.clone(), attribution.clone(), &mut registry)
                .await
                .map_err(RunError::Proxy)?
        };
        let resolvers = Follower::spawn(resolv::Sources {
            files: resolv::ResolvFiles { conf: config.dns.resolv_conf.clone(), ..resolv::ResolvFiles::default() },
            fixed: config.dns.upstreams.clone(),
            own: config.dns.listen.clone(),
        });
        let dns = bind_dns(&config, parked.names, &resolvers, &view, &mut registry).await?;
        let ports = own_ports(&proxy.handle(), &config);
        let names = Names::spawn(names_config(&config, dns.as_ref()), resolvers.resolvers(), view.clone());
        let registry = Arc::new(registry);

        // Tasks that talk to the control plane and to the host.
        let (traffic, background, api) = (proxy::drain::channel(), proxy::drain::channel(), proxy::drain::channel());
        let (serving, tasks, api_tasks) = (Tasks::new(), Tasks::new(), Tasks::new());
        let (lease, lease_tasks) = (proxy::drain::channel(), Tasks::new());
        let url = config.control_plane.url.as_deref().unwrap_or(&identity.control_plane);
        let link = Link::new(&config, Dial::new(&config, url).map_err(unusable)?, host, credentials.clone());
        let stream = Discovery::new(
            &config.control_plane,
            link.clone(),
            received.clone(),
            credentials.clone(),
            holdings,
            overrides.clone(),
        );
        let (holdings, discovery_state) = (stream.holdings(), stream.subscribe());
        let issuance = Issuance::new(link.clone(), credentials.clone(), state.clone(), view.clone(), identity.clone());
        let standing = issuance.standing();
        let (verdicts, reports) = (Verdicts::new(BTreeMap::new()), Refused::new(String::new()));
        let unstored = watch::Sender::new(String::new());
        let (control, controller) = Control::new(intercept_control::Parts {
            settings: config.interception.clone(),
            ports,
            view: view.clone(),
            proxy: proxy.handle(),
            names: names.status(),
            names_switch: names.switch(),
            state_dir: state.clone(),
            tester: Tester {
                link: link.clone(),
                view: view.clone(),
                resolvers: resolvers.resolvers(),
                health: verdicts.subscribe(),
                registry: registry.clone(),
            },
            parked: parked.rules,
        });
        let intercepting = watch::Sender::new(false);
        let (published, stopping) = (watch::Sender::new(Arc::new(config.clone())), watch::Sender::new(false));
        let (orders_in, orders) = mpsc::channel(8);
        let parts = Arc::new(Parts {
            config: published.subscribe(),
            identity: identity.clone(),
            view: view.clone(),
            credentials: credentials.clone(),
            link: link.clone(),
            discovery: discovery_state.clone(),
            standing,
            health: verdicts.subscribe(),
            reports: reports.subscribe(),
            unstored: unstored.subscribe(),
            control: control.clone(),
            names: names.status(),
            proxy: proxy.handle(),
            registry,
            stopping: stopping.subscribe(),
            orders: orders_in,
        });

        // The admin API before traffic: a second agent on this host fails here, harming nothing.
        let admin = bind_admin(&config).await?;
        let handle = proxy.handle();
        {
            let _here = traffic_threads.enter();
            serving.spawn(proxy.run(traffic.1.clone()));
        }
        if let Some(dns) = dns {
            // As long as there is an agent: programs ask for names until it is gone.
            tasks.spawn(dns.run(background.1.clone()));
        }
        let drain = background.1.clone();
        tasks.spawn(stream.run(drain.clone()));
        tasks.spawn(obey::run(received.clone(), view.clone(), control.clone(), drain.clone()));
        let changes = received.subscribe();
        tasks.spawn(cache::run(state.clone(), holdings.clone(), credentials, changes, unstored, drain.clone()));
        tasks.spawn(issuance.run(link.connected(), drain.clone()));
        tasks.spawn(health::run(view.clone(), verdicts.clone(), config.health.exec, drain.clone()));
        let report = register::Sources {
            view: view.clone(),
            health: verdicts.subscribe(),
            intercepting: intercepting.subscribe(),
            discovery: discovery_state,
            advertise: identity.advertise.clone(),
        };
        lease_tasks.spawn(register::run(link.clone(), report, reports, lease.1.clone()));
        tasks.spawn(follow_workloads(view, attribution, drain.clone()));
        tasks.spawn(follow_interception(control, intercepting, drain.clone()));
        tasks.spawn(memory::keep_small(drain.clone()));
        tasks.spawn(systemd::watchdog(move || handle.alive(), stopping.subscribe(), drain.clone()));
        serve_admin(admin, &parts, &api_tasks, &api.1);
        let (stop_control, control_stops) = oneshot::channel();
        let control = (stop_control, tokio::spawn(controller.run(control_stops)));
        Ok(Self {
            config,
            sources,
            log,
            parts,
            orders,
            published,
            stopping,
            overrides,
            discovery: holdings,
            received,
            names,
            _resolvers: resolvers,
            state,
            _lock: lock,
            traffic: (traffic.0, serving, traffic.1),
            lease: (lease.0, lease_tasks, lease.1),
            background: (background.0, tasks, background.1),
            admin: (api.0, api_tasks, api.1),
            control,
        })
    }

    /// Serves until a signal or an order ends it.
    async fn serve(mut self) -> Result<(), RunError> {
        let signals = signal(SignalKind::terminate())
            .and_then(|term| Ok((term, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?)));
        let (mut terminate, mut interrupt, mut hangup) = signals.map_err(RunError::Runtime)?;
        let mut check = tokio::time::interval(READY_CHECK);
        let mut was_ready = false;
        let mut said = String::new();
        let leave = loop {
            tokio::select! {
                _ = terminate.recv() => break None,
                _ = interrupt.recv() => break None,
                _ = hangup.recv() => self.reload_and_log().await,
                order = self.orders.recv() => match order {
                    Some(Order::Drain) | None => break None,
                    Some(Order::Leave { force, local, reply }) => {
                        let told = if local { Ok(()) } else { join::leave_over(&self.parts.link).await };
                        match told {
                            Err(problem) if !force => {
                                let _ = reply.send(Err(join::LeaveError::NotTold { problem }.to_string()));
                            }
                            Ok(()) | Err(_) => break Some(Leaving { reply }),
                        }
                    }
                    Some(Order::Reload(reply)) => {
                        let done = self.reload().await;
                        // Whoever asked may have gone.
                        let _ = reply.send(done);
                    }
                },
                _ = check.tick() => {
                    let ready = self.say_how_it_is(was_ready, &mut said);
                    if ready && !was_ready {
                        was_ready = true;
                        check = tokio::time::interval(STATUS_PERIOD);
                    }
                }
            }
        };
        self.stop(leave).await
    }

    /// Tells the service manager what is news; answers whether the agent serves.
    fn say_how_it_is(&self, was_ready: bool, said: &mut String) -> bool {
        let problem = self.parts.problems().into_iter().next();
        let is_ready = problem.is_none();
        let line = problem.unwrap_or_else(|| self.summary());
        if is_ready && !was_ready {
            info!(revision = self.parts.view.load().revision(), "the agent serves");
            systemd::ready(&line);
        } else if line != *said {
            systemd::status(&line);
        }
        *said = line;
        is_ready
    }

    fn summary(&self) -> String {
        let snapshot = self.parts.view.load();
        let workloads = snapshot.host().map_or(0, |host| host.workloads.len());
        let connected = if self.parts.link.state().connected { "" } else { ", control plane away" };
        format!(
            "revision {}, {workloads} workloads, {} connections{connected}",
            snapshot.revision(),
            self.parts.proxy.open()
        )
    }
}

/// An identity that was stored before machines were told apart is this machine's from here on.
fn bound(state: &StateDir, identity: HostIdentity) -> Result<HostIdentity, StateError> {
    let here = machine::binding();
    if identity.machine.is_some() || here.is_none() {
        return Ok(identity);
    }
    let identity = HostIdentity { machine: here, ..identity };
    state.set_identity(&identity)?;
    Ok(identity)
}

fn local_workloads(view: &View) -> Vec<api::LocalWorkload> {
    view.load().host().map(|host| host.workloads.clone()).unwrap_or_default()
}

/// Which processes are whose, as the snapshot says.
async fn follow_workloads(view: View, attribution: Arc<Attributed>, drain: DrainWatch) {
    let mut changed = view.subscribe();
    loop {
        attribution.0.update(local_workloads(&view));
        tokio::select! {
            news = changed.changed() => if news.is_err() { return },
            () = drain.signaled() => return,
        }
    }
}

/// Whether interception is on, for the lease.
async fn follow_interception(control: Control, intercepting: watch::Sender<bool>, drain: DrainWatch) {
    let mut state = control.subscribe();
    loop {
        let on = state.borrow_and_update().state != api::admin::InterceptState::Off;
        intercepting.send_if_modified(|known| std::mem::replace(known, on) != on);
        tokio::select! {
            news = state.changed() => if news.is_err() { return },
            () = drain.signaled() => return,
        }
    }
}

/// Logging itself cannot be set up: the one line that does not go through it.
fn eprint_once(problem: &str) {
    use std::io::Write;
    // With standard error closed too there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "tombolo: the log is not set up: {problem}");
}
