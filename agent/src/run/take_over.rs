//! How an agent takes over from one that runs, and what it then knows of it: the new one's side of
//! [`crate::hand_over`].

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use proxy::Proof;
use tokio::sync::{broadcast, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::info;

use super::{Agent, READY_CHECK, RunError, park_names, serve_admin};
use crate::hand_over::{Channel, Word};
use crate::systemd;

/// How far an agent may go. The first of a host may do all from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Turn {
    /// Get ready, and touch nothing that the other one has.
    Prepare,
    /// The rules are this agent's.
    Rules,
    /// All but the other one's open connections is this agent's.
    InCharge,
}

/// Does its work once it is its turn, and never if that does not come.
pub(super) fn when(
    turn: &watch::Sender<Turn>,
    at: Turn,
    work: impl Future<Output = ()> + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    let mut turn = turn.subscribe();
    async move {
        if turn.wait_for(|now| *now >= at).await.is_ok() {
            work.await;
        }
    }
}

/// The agent that this one took over from, as long as it has connections.
#[derive(Debug)]
pub(super) struct Elder {
    open: watch::Sender<Option<u64>>,
    stop: Arc<watch::Sender<bool>>,
}

impl Elder {
    pub(super) fn new(is_there: bool) -> Self {
        Self { open: watch::Sender::new(is_there.then_some(0)), stop: Arc::new(watch::Sender::new(false)) }
    }

    /// How many connections it has; `None` when it is gone.
    pub(super) fn open(&self) -> watch::Receiver<Option<u64>> {
        self.open.subscribe()
    }

    /// It is to drain as for a stop.
    pub(super) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// Completes when it is gone, or at the limit.
    pub(super) async fn ended(&self, limit: Duration) {
        let mut open = self.open();
        // An error cannot be: the sender is ours.
        let _ = timeout(limit, open.wait_for(Option::is_none)).await;
    }

    /// Hears how it is, and passes the stop on, until it is gone.
    fn follow(&self, mut channel: Channel, mut proofs: broadcast::Receiver<Proof>) -> impl Future<Output = ()> + use<> {
        let (open, mut stop) = (self.open.clone(), self.stop.subscribe());
        async move {
            let mut told = false;
            loop {
                tokio::select! {
                    heard = channel.hear() => match heard {
                        Ok(Some(Word::Open(connections))) => drop(open.send_replace(Some(connections))),
                        Ok(Some(_)) => {}
                        Ok(None) | Err(_) => break,
                    },
                    Ok(proof) = proofs.recv() => drop(channel.say_proof(proof).await),
                    () = async { drop(stop.wait_for(|stop| *stop).await) }, if !told => {
                        told = true;
                        // It may end just now.
                        let _ = channel.say(&Word::Stop).await;
                    }
                }
            }
            open.send_replace(None);
            info!("the agent before this one has ended: none of its connections is open any more");
        }
    }
}

impl Agent {
    /// Serves from when it answers: at once, or when the agent that runs has given way.
    pub(super) async fn begin(&mut self) -> Result<(), RunError> {
        let proofs = self.parts.proxy.proofs();
        let elder = match self.predecessor.take() {
            Some(predecessor) => Some(self.take_over(predecessor.channel().map_err(broken)?).await?),
            None => None,
        };
        if let Some(listeners) = self.listeners.take() {
            let (_, tasks, drain) = &self.admin;
            self.admin_sockets = serve_admin(listeners, &self.parts, tasks, drain)?;
        }
        park_names(&self.names_sockets);
        // What is to be kept over a loss could not be given to the service manager before.
        self.parts.control.settings(self.config.interception.clone()).await;
        if let Some(mut channel) = elder {
            info!("this agent has taken over");
            // The old one may be gone, and then nobody waits for it.
            let _ = channel.say(&Word::Serving).await;
            self.background.1.spawn(self.elder.follow(channel, proofs));
        }
        Ok(())
    }

    /// Up to being in charge. On an error it has changed nothing that the old one will not put right.
    async fn take_over(&self, mut channel: Channel) -> Result<Channel, RunError> {
        self.until_ready(&mut channel).await?;
        ask(&mut channel, &Word::Prepared, &Word::Rules).await?;
        self.turn.send_replace(Turn::Rules);
        // The rules' task answers once it has begun.
        self.parts.control.cover(self.parts.view.load()).await;
        self.until_ready(&mut channel).await?;
        ask(&mut channel, &Word::Ready, &Word::InCharge).await?;
        systemd::speak();
        self.turn.send_replace(Turn::InCharge);
        Ok(channel)
    }

    /// Until nothing keeps it from serving, as far as its turn goes. The old one knows the limit.
    async fn until_ready(&self, channel: &mut Channel) -> Result<(), RunError> {
        let mut check = interval(READY_CHECK);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut said = String::new();
        loop {
            tokio::select! {
                _ = check.tick() => {}
                heard = channel.hear() => {
                    if heard.map_err(broken)?.is_none() {
                        return Err(gone());
                    }
                }
            }
            let Some(problem) = self.parts.problems().into_iter().next() else { return Ok(()) };
            if problem != said {
                channel.say(&Word::Waiting(problem.clone())).await.map_err(broken)?;
                said = problem;
            }
        }
    }
}

/// Says a word and waits for the one that allows the next step.
async fn ask(channel: &mut Channel, word: &Word, answer: &Word) -> Result<(), RunError> {
    channel.say(word).await.map_err(broken)?;
    while let Some(heard) = channel.hear().await.map_err(broken)? {
        if heard == *answer {
            return Ok(());
        }
    }
    Err(gone())
}

fn broken(error: std::io::Error) -> RunError {
    RunError::TakeOver { problem: error.to_string() }
}

fn gone() -> RunError {
    RunError::TakeOver { problem: "it has ended, or does not want to any more".to_owned() }
}
