//! The daemon, start and stop on one page.
//!
//! Start: configuration → state → snapshot from disk → credentials → listeners → stream, certificates,
//! lease, probes → admin, metrics, readiness → interception if it was confirmed → READY=1 once it
//! serves. Stop (SIGTERM): not ready → the control plane is told → new connections pass (unless the
//! rules are held) → open ones end or the deadline comes → the rules go → nothing is left.
//!
//! A control plane that is away delays nothing of this.
//!
//! An agent that takes over from one that runs goes the same way and waits at two places for its turn:
//! before it writes rules, and before it serves ([`crate::hand_over`]).

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use api::SpiffeId;
use arc_swap::ArcSwap;
use proxy::dns::DnsServer;
use proxy::drain::{DrainTrigger, DrainWatch, Tasks};
use proxy::{Proxy, View};
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
use crate::hand_over::{HandOverError, Predecessor, Program};
use crate::health::{self, Verdicts};
use crate::intercept_control::{self, Control, self_test::Tester};
use crate::issuance::Issuance;
use crate::names::Names;
use crate::register::{self, Refused};
use crate::resolv::{self, Follower};
use crate::state::{HostIdentity, StateDir, StateError, StateLock};
use crate::systemd::{self, Kept, Parked};
use crate::{join, machine, memory, obey, workloads};

mod follow;
mod listeners;
mod reload;
mod retire;
mod stop;
mod take_over;

use follow::{Attributed, follow_interception, follow_workloads, local_workloads};
pub(crate) use listeners::own_ports;
use listeners::{AdminListeners, bind_admin, bind_dns, names_config, park_names, proxy_config, serve_admin};
use take_over::{Elder, Turn, when};

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
    #[error("the sockets of names cannot be kept for the next agent")]
    Sockets(#[source] std::io::Error),
    #[error("the agent that runs does not hand over: {problem}")]
    TakeOver { problem: String },
}

/// Looks whether the agent serves by now.
const READY_CHECK: Duration = Duration::from_millis(50);
/// Once it serves, how often the one line for `systemctl status` is looked at.
const STATUS_PERIOD: Duration = Duration::from_secs(5);
/// Runs the daemon until it is told to stop. Call it once, with `telemetry::nss::pin` and the crypto
/// provider in place.
pub fn run(sources: &Sources) -> Result<(), RunError> {
    memory::map_narrowly();
    let broken = |error: std::io::Error| RunError::TakeOver { problem: error.to_string() };
    let Some((predecessor, parked)) = Predecessor::of_this_process().map_err(broken)? else {
        return run_after(sources, systemd::parked(), None);
    };
    systemd::be_silent();
    let told = predecessor.another().map_err(broken)?;
    let ended = run_after(sources, Ok(parked), Some(predecessor));
    if let Err(error) = &ended {
        told.failed(Chain(error).to_string());
    }
    ended
}

fn run_after(
    sources: &Sources,
    parked: std::io::Result<Parked>,
    predecessor: Option<Predecessor>,
) -> Result<(), RunError> {
    let program = Program::of_this_process();
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
    let start = Start { config, sources: sources.clone(), log, parked, predecessor, program };
    let on = traffic.handle().clone();
    let ended = runtime.block_on(async { Agent::start(start, on).await?.serve().await });
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

/// What an agent begins with.
struct Start {
    config: Config,
    sources: Sources,
    log: Option<LogHandle>,
    parked: Parked,
    predecessor: Option<Predecessor>,
    program: Program,
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
    unstored: watch::Sender<String>,
    received: View,
    names: Names,
    _resolvers: Follower,
    state: StateDir,
    /// For a successor: the lock of `state`, and the sockets of names, which wait there for questions.
    lock: StateLock,
    names_sockets: Vec<OwnedFd>,
    program: Program,
    listeners: Option<AdminListeners>,
    admin_sockets: Vec<OwnedFd>,
    /// How far it may go, and the agent before it.
    turn: watch::Sender<Turn>,
    predecessor: Option<Predecessor>,
    elder: Elder,
    /// Ends the data plane.
    traffic: (DrainTrigger, Tasks, DrainWatch),
    /// Ends the lease, first: a report after leaving would bring the workloads back.
    lease: (DrainTrigger, Tasks, DrainWatch),
    /// Ends what only one process of a host does: renewals, probes, the disk, the watchdog.
    duties: (DrainTrigger, Tasks, DrainWatch),
    /// Ends the answers to names.
    answers: (DrainTrigger, Tasks, DrainWatch),
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

impl Agent {
    async fn start(start: Start, traffic_threads: tokio::runtime::Handle) -> Result<Self, RunError> {
        let Start { config, sources, log, parked, predecessor, program } = start;
        let is_first = predecessor.is_none();
        let turn = watch::Sender::new(if is_first { Turn::InCharge } else { Turn::Prepare });
        let elder = Elder::new(!is_first);
        // Who are we?
        let state = StateDir::open(&config.paths.state_dir)?;
        let identity = state.identity()?.ok_or(RunError::NotJoined)?;
        let lock = parked.lock.map_or_else(|| state.lock(), |held| Ok(StateLock::from(held)))?;
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
            let (settings, given) = (proxy_config(&config), parked.traffic);
            Proxy::bind(settings, given, view.clone(), credentials.clone(), attribution.clone(), &mut registry)
                .await
                .map_err(RunError::Proxy)?
        };
        let resolvers = Follower::spawn(resolv::Sources {
            files: resolv::ResolvFiles { conf: config.dns.resolv_conf.clone(), ..resolv::ResolvFiles::default() },
            fixed: config.dns.upstreams.clone(),
            own: config.dns.listen.clone(),
        });
        let dns = bind_dns(&config, parked.names, &resolvers, &view, &mut registry).await?;
        let names_sockets = dns.as_ref().map_or(Ok(vec![]), DnsServer::copies).map_err(RunError::Sockets)?;
        let ports = own_ports(&proxy.handle(), &config);
        let names = Names::spawn(names_config(&config, dns.as_ref()), resolvers.resolvers(), view.clone());
        let registry = Arc::new(registry);

        // Tasks that talk to the control plane and to the host.
        let (traffic, background, api) = (proxy::drain::channel(), proxy::drain::channel(), proxy::drain::channel());
        let (serving, tasks, api_tasks) = (Tasks::new(), Tasks::new(), Tasks::new());
        let (lease, lease_tasks) = (proxy::drain::channel(), Tasks::new());
        let (duties, duty_tasks) = (proxy::drain::channel(), Tasks::new());
        let (answers, answer_tasks) = (proxy::drain::channel(), Tasks::new());
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
            is_stored: is_first,
            predecessor: elder.open(),
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
            predecessor: elder.open(),
            orders: orders_in,
        });

        // The admin API before traffic: a second agent on this host fails here, harming nothing.
        let listeners = bind_admin(&config, parked.admin, is_first).await?;
        let handle = proxy.handle();
        let (charge, rules) = (Turn::InCharge, Turn::Rules);
        {
            let _here = traffic_threads.enter();
            serving.spawn(when(&turn, charge, proxy.run(traffic.1.clone())));
        }
        if let Some(dns) = dns {
            // As long as there is an agent: programs ask for names until it is gone.
            answer_tasks.spawn(when(&turn, charge, dns.run(answers.1.clone())));
        }
        let (drain, duty) = (background.1.clone(), duties.1.clone());
        tasks.spawn(stream.run(drain.clone()));
        tasks.spawn(when(&turn, rules, obey::run(received.clone(), view.clone(), control.clone(), drain.clone())));
        let changes = received.subscribe();
        let kept = cache::run(state.clone(), holdings.clone(), credentials, changes, unstored.clone(), duty.clone());
        duty_tasks.spawn(when(&turn, charge, kept));
        duty_tasks.spawn(when(&turn, charge, issuance.run(link.connected(), duty.clone())));
        duty_tasks.spawn(health::run(view.clone(), verdicts.clone(), config.health.exec, duty.clone()));
        let report = register::Sources {
            view: view.clone(),
            health: verdicts.subscribe(),
            intercepting: intercepting.subscribe(),
            discovery: discovery_state,
            advertise: identity.advertise.clone(),
        };
        lease_tasks.spawn(when(&turn, charge, register::run(link.clone(), report, reports, lease.1.clone())));
        tasks.spawn(follow_workloads(view, attribution, drain.clone()));
        duty_tasks.spawn(when(&turn, rules, follow_interception(control, intercepting, duty.clone())));
        tasks.spawn(memory::keep_small(drain.clone()));
        let watchdog = systemd::watchdog(move || handle.alive(), stopping.subscribe(), duty);
        duty_tasks.spawn(when(&turn, charge, watchdog));
        let (stop_control, control_stops) = oneshot::channel();
        let control = (stop_control, tokio::spawn(when(&turn, rules, controller.run(control_stops))));
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
            unstored,
            received,
            names,
            _resolvers: resolvers,
            state,
            lock,
            names_sockets,
            program,
            listeners: Some(listeners),
            admin_sockets: vec![],
            turn,
            predecessor,
            elder,
            traffic: (traffic.0, serving, traffic.1),
            lease: (lease.0, lease_tasks, lease.1),
            duties: (duties.0, duty_tasks, duties.1),
            answers: (answers.0, answer_tasks, answers.1),
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
        self.begin().await?;
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
                    Some(Order::HandOver(reply)) => match self.hand_over(&mut terminate).await {
                        Ok(successor) => return self.retire(successor, reply, terminate, interrupt).await,
                        Err(error) => {
                            let problem = Chain(&error).to_string();
                            warn!(error = problem, "this agent goes on as it was");
                            let _ = reply.send(Err(format!("the running agent goes on as it was: {problem}")));
                            if matches!(error, HandOverError::Stopping) {
                                break None;
                            }
                        }
                    },
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

/// Logging itself cannot be set up: the one line that does not go through it.
fn eprint_once(problem: &str) {
    use std::io::Write;
    // With standard error closed too there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "tombolo: the log is not set up: {problem}");
}
