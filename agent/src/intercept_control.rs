//! Switches interception on and off, keeps it as the snapshot wants it, and takes it back when it
//! does harm.
//!
//! One task owns the [`Interception`]; the admin API sends it commands and reads its [`ControlState`].
//! Switching on with a time tests the host before and after and rolls back alone when the time is
//! over without a `confirm`, or when the test fails: the timer lives here, not in the operator's
//! terminal. What is confirmed is kept on disk. Switching off lets captured connections end before
//! the table goes.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use api::Snapshot;
use api::admin::{InterceptCommand, InterceptState, SelfTest};
use proxy::{Handle, View};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::config;
use crate::intercept::{BlockTable, Interception, OwnPorts, Wanted};
use crate::names::NamesStatus;
use crate::state::StateDir;

mod controller;
mod handing_over;
pub mod plan;
pub mod self_test;
pub mod wanted;

use self_test::{Baseline, Tester};
use wanted::Asked;

/// What others see of it.
#[derive(Debug, Clone)]
pub struct ControlState {
    pub state: InterceptState,
    pub rolls_back_at: Option<Instant>,
    pub self_test: Vec<SelfTest>,
    pub rolled_back_because: String,
    /// What was last asked of the kernel.
    pub asked: Option<Arc<Asked>>,
    /// Why the rules are not as wanted; empty when they are.
    pub problem: String,
    /// The kernel removes the rules when the agent dies.
    pub owned: bool,
}

/// Commands to the task, and its state.
#[derive(Clone)]
pub struct Control {
    commands: mpsc::Sender<Command>,
    state: watch::Receiver<ControlState>,
}

enum Command {
    Intercept(InterceptCommand, oneshot::Sender<Result<(), String>>),
    Settings(Box<config::Interception>),
    /// This snapshot is obeyed in a moment: its addresses are to lead to the agent before.
    Cover(Arc<Snapshot>, oneshot::Sender<()>),
    /// The agent stops: let captured connections end, unless the rules are to be held.
    Quiet {
        is_held: bool,
        reply: oneshot::Sender<()>,
    },
    HandOver(handing_over::Step),
}

/// What the task is made of.
pub struct Parts {
    pub settings: config::Interception,
    pub ports: OwnPorts,
    pub view: View,
    pub proxy: Handle,
    pub names: watch::Receiver<NamesStatus>,
    /// [`crate::names::Names::switch`].
    pub names_switch: watch::Sender<Option<bool>>,
    pub state_dir: StateDir,
    pub tester: Tester,
    /// The owner socket of the agent before this one.
    pub parked: Option<OwnedFd>,
    /// The service manager has that socket; else the agent before this one has handed it over.
    pub is_stored: bool,
    /// How many captured connections the agent before this one still has open; `None` when it is gone.
    pub predecessor: watch::Receiver<Option<u64>>,
}

/// The task.
pub struct Controller {
    parts: Parts,
    interception: Option<Interception>,
    /// What the kernel has; unknown after an error, and while connections end.
    in_force: Option<Arc<Asked>>,
    block: Option<BlockTable>,
    state: watch::Sender<ControlState>,
    commands: mpsc::Receiver<Command>,
    baseline: Option<Baseline>,
    failed_tests: u32,
    /// What is obeyed next, until it is.
    coming: Option<Arc<Snapshot>>,
    /// Switched off, and waiting for the last captured connection.
    quieting: bool,
    /// The service manager was given the owner socket.
    parked: bool,
    /// The agent ends: the rules follow nothing any more.
    stopping: bool,
    /// A new agent is about to take over.
    shared: bool,
    /// It writes the rules.
    paused: bool,
    /// The rules outlive this process, in the service manager's hands.
    held: bool,
}

impl Control {
    /// The handle and the task, which does nothing before it is run.
    pub fn new(parts: Parts) -> (Self, Controller) {
        let (sender, commands) = mpsc::channel(16);
        let state = watch::Sender::new(ControlState {
            state: InterceptState::Off,
            rolls_back_at: None,
            self_test: vec![],
            rolled_back_because: String::new(),
            asked: None,
            problem: String::new(),
            owned: false,
        });
        let control = Self { commands: sender, state: state.subscribe() };
        let controller = Controller {
            parts,
            interception: None,
            in_force: None,
            block: None,
            state,
            commands,
            baseline: None,
            failed_tests: 0,
            coming: None,
            quieting: false,
            parked: false,
            stopping: false,
            shared: false,
            paused: false,
            held: false,
        };
        (control, controller)
    }

    pub fn state(&self) -> ControlState {
        self.state.borrow().clone()
    }

    pub fn subscribe(&self) -> watch::Receiver<ControlState> {
        self.state.clone()
    }

    /// Carries a command out; the error is a sentence for the operator.
    pub async fn command(&self, command: InterceptCommand) -> Result<(), String> {
        let (reply, answer) = oneshot::channel();
        let stopping = || "the agent is stopping".to_owned();
        self.commands.send(Command::Intercept(command, reply)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    }

    pub async fn settings(&self, settings: config::Interception) {
        // An agent that stops needs no new settings.
        let _ = self.commands.send(Command::Settings(Box::new(settings))).await;
    }

    /// The rules know this snapshot's addresses, too, from when it answers.
    pub async fn cover(&self, coming: Arc<Snapshot>) {
        let (reply, done) = oneshot::channel();
        if self.commands.send(Command::Cover(coming, reply)).await.is_ok() {
            let _ = done.await;
        }
    }

    /// New connections pass from when it answers, unless the rules are to be held; captured ones go on.
    pub async fn quiet(&self, is_held: bool) {
        let (reply, done) = oneshot::channel();
        if self.commands.send(Command::Quiet { is_held, reply }).await.is_ok() {
            let _ = done.await;
        }
    }
}

/// Every address that is captured, for `plan`.
pub(crate) fn captured(wanted: &Wanted) -> Vec<String> {
    let vips = wanted.vips.iter().map(ToString::to_string);
    let endpoints: BTreeSet<String> = wanted.endpoints.iter().map(ToString::to_string).collect();
    vips.chain(endpoints).collect()
}
