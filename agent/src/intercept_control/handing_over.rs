//! The rules change hands: what the task of the agent that gives way does ([`crate::hand_over`]).
//!
//! The table's owner is a socket, so both agents can have a copy of it; that only one of them writes is
//! seen to here.

use std::os::fd::{AsFd, OwnedFd};

use api::admin::InterceptState;
use telemetry::Chain;
use tokio::sync::oneshot;
use tracing::warn;

use super::{Command, Control, Controller};

pub(super) enum Step {
    /// A copy of the socket that owns the rules. Nobody switches anything until [`Step::Resume`].
    Share(oneshot::Sender<Result<Option<OwnedFd>, String>>),
    Pause(oneshot::Sender<()>),
    Resume(oneshot::Sender<()>),
}

impl Control {
    /// A copy of the socket that owns the rules, if there are any; or why they cannot change hands now.
    pub async fn share(&self) -> Result<Option<OwnedFd>, String> {
        let stopping = || "the agent is stopping".to_owned();
        self.step(Step::Share).await.ok_or_else(stopping)?
    }

    /// The new agent writes the rules, and this one does not, from when it answers.
    pub async fn pause(&self) {
        self.step(Step::Pause).await;
    }

    /// The new agent is gone: this one writes the rules again, if it did not.
    pub async fn resume(&self) {
        self.step(Step::Resume).await;
    }

    async fn step<T>(&self, step: impl FnOnce(oneshot::Sender<T>) -> Step) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::HandOver(step(reply))).await.ok()?;
        answer.await.ok()
    }
}

impl Controller {
    pub(super) fn hand_over(&mut self, step: Step) {
        // Whoever asked may have given up.
        match step {
            Step::Share(reply) => drop(reply.send(self.share())),
            Step::Pause(reply) => {
                self.paused = true;
                let _ = reply.send(());
            }
            Step::Resume(reply) => {
                self.resume();
                let _ = reply.send(());
            }
        }
    }

    fn share(&mut self) -> Result<Option<OwnedFd>, String> {
        if self.state.borrow().state == InterceptState::Unconfirmed {
            return Err("interception waits for its `tombolo intercept confirm`".to_owned());
        }
        if self.quieting {
            return Err("interception was switched off, and captured connections are still open".to_owned());
        }
        let copy = self.interception.as_ref().map(|interception| interception.as_fd().try_clone_to_owned());
        let copy = copy.transpose().map_err(|error| format!("the rules' socket cannot be copied: {error}"))?;
        self.shared = true;
        Ok(copy)
    }

    /// Whatever the new agent has written, it is written anew.
    fn resume(&mut self) {
        self.shared = false;
        if !std::mem::take(&mut self.paused) {
            return;
        }
        self.in_force = None;
        if let Some(interception) = &mut self.interception
            && let Err(error) = interception.repair()
        {
            warn!(error = %Chain(&error), "the rules are those of the agent that could not take over");
        }
        self.follow();
    }
}
