//! The task that owns the rules: obeys commands, follows the snapshot, repairs, and rolls back.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use api::admin::{InterceptCommand, InterceptState};
use telemetry::Chain;
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tracing::{info, warn};

use super::wanted::Asked;
use super::{Command, Controller};
use crate::config;
use crate::intercept::ruleset::build;
use crate::intercept::{Applied, BlockTable, Interception, Ruleset, Wanted};
use crate::state::InterceptionState;
use crate::systemd::{self, Kept};

/// After a change of the snapshot, until the rules follow: a burst of changes is one.
const SETTLE: Duration = Duration::from_millis(50);
/// Between self-tests while a change waits for its confirmation.
const TEST_PERIOD: Duration = Duration::from_secs(2);
/// Failed self-tests in a row before the change is taken back: one lost packet is not harm.
const FAILED_TESTS: u32 = 2;
/// After the kernel refused the rules, until they are tried again.
const RETRY: Duration = Duration::from_secs(1);
/// How long switching on waits until mesh names are asked for: systemd-resolved takes some 100 ms.
const NAMES_LIMIT: Duration = Duration::from_secs(5);
/// While a new agent takes over.
const CHANGES_HANDS: &str = "a new agent is taking over from this one: try again in a moment";
/// Between looks whether the last captured connection has ended, after switching off.
const QUIET_CHECK: Duration = Duration::from_millis(500);

impl Controller {
    /// Follows commands and changes until `stop` says so; the rules go with it, unless held.
    pub async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        self.begin();
        let mut view = self.parts.view.subscribe();
        let mut names = self.parts.names.clone();
        let mut cgroups = ticker(self.parts.settings.cgroup_refresh);
        let mut verify = ticker(self.parts.settings.verify_interval);
        let mut tests = ticker(TEST_PERIOD);
        let mut quiet = ticker(QUIET_CHECK);
        let mut retry = ticker(RETRY);
        let mut follow_at: Option<Instant> = None;
        loop {
            let rolls_back_at = self.state.borrow().rolls_back_at;
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.handle(command).await,
                    None => break,
                },
                Ok(()) = view.changed() => follow_at = follow_at.or(Some(Instant::now() + SETTLE)),
                Ok(()) = names.changed() => follow_at = follow_at.or(Some(Instant::now() + SETTLE)),
                () = at(follow_at) => {
                    follow_at = None;
                    self.follow();
                }
                () = at(rolls_back_at) => self.roll_back("nobody confirmed in time".to_owned()),
                _ = tests.tick(), if rolls_back_at.is_some() => self.test().await,
                _ = cgroups.tick() => self.refresh_cgroups(),
                _ = verify.tick() => self.verify(),
                _ = retry.tick(), if !self.state.borrow().problem.is_empty() => self.follow(),
                _ = quiet.tick(), if self.quieting => self.end_quiet(),
                _ = &mut stop => break,
            }
        }
        self.end();
    }

    /// As it was confirmed before, or as the configuration says.
    fn begin(&mut self) {
        let confirmed = self.parts.state_dir.interception().unwrap_or_else(|error| {
            warn!(error = %Chain(&error), "it is not known whether interception was confirmed: it stays off");
            InterceptionState::default()
        });
        let on = match self.parts.settings.enabled_at_start {
            // What is handed over is not a start: it stays as it is.
            _ if !self.parts.is_stored => self.parts.parked.is_some(),
            config::EnabledAtStart::Remembered => confirmed.confirmed,
            config::EnabledAtStart::Always => true,
            config::EnabledAtStart::Never => false,
        };
        if !on {
            self.remove();
            return;
        }
        self.state.send_modify(|state| state.state = InterceptState::On);
        self.follow();
    }

    async fn handle(&mut self, command: Command) {
        match command {
            Command::Intercept(command, reply) => {
                let done = match command {
                    _ if self.shared => Err(CHANGES_HANDS.to_owned()),
                    InterceptCommand::On { confirm_within_s } => self.switch_on(confirm_within_s).await,
                    InterceptCommand::Confirm => self.confirm(),
                    InterceptCommand::Off => self.switch_off(),
                };
                // Whoever asked may have gone; the command holds all the same.
                let _ = reply.send(done);
            }
            Command::Settings(settings) => {
                self.parts.settings = *settings;
                self.follow();
            }
            Command::Cover(coming, reply) => {
                self.coming = Some(coming);
                self.follow();
                // Whoever asked may not have waited.
                let _ = reply.send(());
            }
            Command::Quiet { is_held, reply } => {
                self.stopping = true;
                self.held = is_held && self.state.borrow().state != InterceptState::Off;
                if !self.held {
                    self.make_quiet();
                }
                let _ = reply.send(());
            }
            Command::HandOver(step) => self.hand_over(step),
        }
    }

    async fn switch_on(&mut self, confirm_within_s: Option<u64>) -> Result<(), String> {
        if self.parts.view.load().host().is_none() {
            return Err("this host has no snapshot yet: wait until `tombolo status` shows one".to_owned());
        }
        let was = self.state.borrow().state;
        let baseline = self.parts.tester.baseline().await;
        self.quieting = false;
        self.state.send_modify(|state| {
            // What is confirmed already stays so: asking again with a time cannot take it back.
            let timed = confirm_within_s.filter(|_| was != InterceptState::On);
            state.state = if timed.is_some() { InterceptState::Unconfirmed } else { InterceptState::On };
            state.rolls_back_at = timed.map(|seconds| Instant::now() + Duration::from_secs(seconds));
            state.rolled_back_because.clear();
            state.self_test.clear();
        });
        self.follow();
        let problem = self.state.borrow().problem.clone();
        if !problem.is_empty() {
            if was == InterceptState::Off {
                self.remove();
                self.state.send_modify(|state| (state.state, state.rolls_back_at) = (InterceptState::Off, None));
            }
            return Err(format!("interception is not on: {problem}"));
        }
        let settled = self.parts.names.wait_for(|names| names.is_settled);
        if timeout(NAMES_LIMIT, settled).await.is_err() {
            warn!(waited = ?NAMES_LIMIT, "mesh names are not asked for yet");
        }
        self.failed_tests = 0;
        self.baseline = Some(baseline);
        self.test().await;
        if self.state.borrow().state == InterceptState::On {
            self.remember(true);
        }
        info!(confirm_within_s, "interception is on");
        Ok(())
    }

    fn confirm(&mut self) -> Result<(), String> {
        match self.state.borrow().state {
            InterceptState::Off => {
                let because = self.state.borrow().rolled_back_because.clone();
                let why = if because.is_empty() {
                    "interception is off".to_owned()
                } else {
                    format!("interception was taken back: {because}")
                };
                return Err(format!("there is nothing to confirm: {why}"));
            }
            InterceptState::On => return Ok(()),
            InterceptState::Unconfirmed => {}
        }
        self.state.send_modify(|state| (state.state, state.rolls_back_at) = (InterceptState::On, None));
        self.baseline = None;
        self.remember(true);
        info!("interception is confirmed");
        Ok(())
    }

    fn switch_off(&mut self) -> Result<(), String> {
        self.state.send_modify(|state| {
            (state.state, state.rolls_back_at) = (InterceptState::Off, None);
            state.rolled_back_because.clear();
        });
        self.remember(false);
        self.make_quiet();
        info!("interception is off");
        Ok(())
    }

    fn roll_back(&mut self, because: String) {
        warn!(reason = because, "interception is taken back: {because}");
        self.state.send_modify(|state| {
            (state.state, state.rolls_back_at) = (InterceptState::Off, None);
            state.rolled_back_because = because;
        });
        self.baseline = None;
        self.make_quiet();
    }

    async fn test(&mut self) {
        let Some(baseline) = &self.baseline else { return };
        let results = self.parts.tester.test(baseline).await;
        let failed: Vec<String> =
            results.iter().filter(|test| !test.passed).map(|test| format!("{}: {}", test.check, test.detail)).collect();
        self.state.send_modify(|state| state.self_test = results);
        self.failed_tests = if failed.is_empty() { 0 } else { self.failed_tests + 1 };
        let unconfirmed = self.state.borrow().state == InterceptState::Unconfirmed;
        if unconfirmed && self.failed_tests >= FAILED_TESTS {
            self.roll_back(format!("the self-test failed: {}", failed.join("; ")));
        }
    }

    /// Makes the kernel's rules what the snapshot wants now, if interception is on.
    pub(super) fn follow(&mut self) {
        if self.state.borrow().state == InterceptState::Off || self.stopping || self.paused {
            return;
        }
        let names = self.parts.names.borrow().via.clone();
        let obeyed = self.parts.view.load();
        self.coming.take_if(|coming| Arc::ptr_eq(coming, &obeyed));
        let asked = Asked::new(obeyed, self.coming.clone(), &self.parts.settings, &names, self.parts.ports);
        let applied = self.ask(&asked);
        match &applied {
            Ok(Applied::Unchanged) => {}
            Ok(Applied::Elements(count)) => tracing::debug!(count, "the captured addresses changed"),
            Ok(Applied::Whole) => info!("the rules are in force"),
            Err(problem) if *problem == self.state.borrow().problem => {}
            Err(problem) => warn!(error = problem, "the rules are not as wanted, the earlier ones stay"),
        }
        if applied.is_ok() {
            self.keep_on_loss(&asked.frame);
            self.parts.proxy.set_transparent(true);
            self.switch_names(true);
        }
        let owned = self.interception.as_ref().is_some_and(Interception::owned);
        let asked = applied.is_ok().then(|| Arc::new(asked));
        self.in_force.clone_from(&asked);
        self.state.send_modify(|state| {
            state.asked = asked.or(state.asked.take());
            state.owned = owned;
            state.problem = applied.err().unwrap_or_default();
        });
    }

    /// Only what changed, where only destinations did: a large mesh changes often.
    fn ask(&mut self, asked: &Asked) -> Result<Applied, String> {
        let changes = self.in_force.as_ref().and_then(|before| asked.since(before));
        match (changes, &mut self.interception) {
            (Some((added, gone)), Some(interception)) => {
                interception.change(&added, &gone).map_err(|error| Chain(&error).to_string())
            }
            _ => self.apply(&build(&asked.wanted())),
        }
    }

    fn apply(&mut self, rules: &Ruleset) -> Result<Applied, String> {
        self.in_force = None;
        if self.interception.is_none() {
            let opened = self.take_over().map_or_else(|| Interception::open(None), Ok);
            self.interception = Some(opened.map_err(|error| Chain(&error).to_string())?);
        }
        let Some(interception) = &mut self.interception else { return Err("no netlink socket".to_owned()) };
        interception.apply(rules).map_err(|error| Chain(&error).to_string())
    }

    /// The interception of the agent before this one, if it was parked. One that cannot be used is let
    /// go, or its rules would stay as they are for ever.
    fn take_over(&mut self) -> Option<Interception> {
        let opened = Interception::open(Some(self.parts.parked.take()?));
        if let Err(error) = &opened {
            warn!(error = %Chain(error), "the held rules cannot be taken over: they go, and are written anew");
            systemd::unpark(Kept::Rules);
        }
        let hold = self.parts.settings.on_agent_loss == config::OnAgentLoss::Hold;
        // From another agent's hands it may be stored or not: to be stored it is given again, which is no harm.
        self.parked = opened.is_ok() && (self.parts.is_stored || !hold);
        opened.ok()
    }

    /// `hold` parks the owner socket with the service manager; `block` writes its own table.
    fn keep_on_loss(&mut self, wanted: &Wanted) {
        let on_loss = self.parts.settings.on_agent_loss;
        if on_loss != config::OnAgentLoss::Hold && systemd::speaks() && std::mem::take(&mut self.parked) {
            systemd::unpark(Kept::Rules);
        }
        let to_be_parked = !self.parked && systemd::speaks();
        if let (config::OnAgentLoss::Hold, Some(interception), true) = (on_loss, &self.interception, to_be_parked) {
            self.parked = true;
            if let Err(error) = systemd::park(Kept::Rules, [interception.as_fd()]) {
                warn!(%error, "the rules cannot be held over a restart: the service manager does not take their socket");
            }
        }
        let blocked = match on_loss {
            config::OnAgentLoss::Block => {
                self.block_table().and_then(|block| block.apply(wanted).map_err(|e| Chain(&e).to_string()))
            }
            config::OnAgentLoss::Bypass | config::OnAgentLoss::Hold => Ok(()),
        };
        if let Err(error) = blocked {
            warn!(error, "protected ports are not blocked when the agent dies");
        }
    }

    fn block_table(&mut self) -> Result<&BlockTable, String> {
        if self.block.is_none() {
            self.block = Some(BlockTable::open().map_err(|error| Chain(&error).to_string())?);
        }
        self.block.as_ref().ok_or_else(|| "no netlink socket".to_owned())
    }

    fn refresh_cgroups(&mut self) {
        let Some(interception) = self.interception.as_mut().filter(|_| !self.paused) else { return };
        match interception.refresh_cgroups() {
            Ok(false) => {}
            Ok(true) => tracing::debug!("excluded units were found again"),
            Err(error) => warn!(error = %Chain(&error), "excluded units cannot be looked up"),
        }
    }

    /// Puts the rules back where somebody else changed them.
    fn verify(&mut self) {
        let (is_ours, applied) = (!self.paused, |interception: &&mut Interception| interception.applied().is_some());
        let Some(interception) = self.interception.as_mut().filter(|_| is_ours).filter(applied) else { return };
        let differences = match interception.verify() {
            Ok(differences) => differences,
            Err(error) => vec![Chain(&error).to_string()],
        };
        if let Err(error) = interception.refresh_routes() {
            warn!(error = %Chain(&error), "the routes of service addresses cannot be kept");
        }
        let mut problem = String::new();
        if !differences.is_empty() {
            warn!(differences = differences.join("; "), "the kernel's rules were changed, they are put back");
            if let Err(error) = interception.repair() {
                problem = format!("the kernel's rules differ and cannot be put back: {}", Chain(&error));
            }
        }
        if self.state.borrow().state != InterceptState::Off {
            self.state.send_if_modified(|state| {
                let was = std::mem::replace(&mut state.problem, problem.clone());
                was != problem
            });
        }
    }

    /// Names lead to the mesh's own addresses, and only the rules lead on from there.
    fn switch_names(&self, on: bool) {
        self.parts.names_switch.send_if_modified(|known| known.replace(on) != Some(on));
    }

    /// Nothing new is captured; what is captured goes on.
    fn make_quiet(&mut self) {
        self.switch_names(false);
        self.remove_block();
        let asked = self.state.borrow().asked.clone();
        let Some(asked) = asked.filter(|_| self.interception.is_some()) else { return self.remove() };
        if let Err(problem) = self.apply(&build(&asked.quiet())) {
            warn!(error = problem, "captured connections cannot be let end, the rules go at once");
            return self.remove();
        }
        self.quieting = true;
        self.end_quiet();
    }

    fn end_quiet(&mut self) {
        if self.parts.proxy.open() == 0 && self.parts.predecessor.borrow().is_none() {
            self.quieting = false;
            self.remove();
        }
    }

    fn remove(&mut self) {
        self.switch_names(false);
        self.remove_block();
        self.parts.proxy.set_transparent(false);
        // Another agent's owner socket may still be parked: opening takes it over, removing ends it.
        if self.interception.is_none() && self.parts.parked.is_some() {
            self.interception = self.take_over();
        }
        self.in_force = None;
        if let Some(mut interception) = self.interception.take() {
            if let Err(error) = interception.remove() {
                warn!(error = %Chain(&error), "the rules cannot be removed; they go with the agent");
            }
            if std::mem::take(&mut self.parked) {
                systemd::unpark(Kept::Rules);
            }
        }
        self.state.send_modify(|state| {
            (state.asked, state.owned) = (None, false);
            state.problem.clear();
        });
    }

    fn remove_block(&mut self) {
        if let Some(block) = self.block.take()
            && let Err(error) = block.remove()
        {
            warn!(error = %Chain(&error), "the block table cannot be removed");
        }
    }

    /// The agent is gone in a moment.
    fn end(&mut self) {
        if !self.held {
            self.remove();
        }
    }

    fn remember(&self, confirmed: bool) {
        if let Err(error) = self.parts.state_dir.set_interception(InterceptionState { confirmed }) {
            warn!(error = %Chain(&error), "whether interception is on is not kept: after a restart it is as it was before");
        }
    }
}

/// Never, when there is no moment.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

fn ticker(period: Duration) -> tokio::time::Interval {
    let mut ticker = interval(period);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticker
}
