//! How an agent gives way to a new one and ends with its last connection: the old one's side of
//! [`crate::hand_over`].

use std::convert::Infallible;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, SystemTime};

use proxy::drain::Drained;
use proxy::{Handle, Proof};
use tokio::signal::unix::Signal;
use tokio::sync::{oneshot, watch};
use tokio::time::{interval, sleep, timeout, timeout_at};
use tracing::{info, warn};

use super::stop::{TASKS_LIMIT, end, end_until};
use super::{Agent, RunError};
use crate::admin::HandedOver;
use crate::discovery::cache;
use crate::hand_over::{Channel, HandOverError, LIMIT, Successor, Word};
use crate::issuance;
use crate::systemd::{self, Kept};

impl Agent {
    /// Starts the new agent and waits until it is ready to serve. On an error everything is as before.
    /// `terminate` ends the attempt: this agent is to stop.
    pub(super) async fn hand_over(&self, terminate: &mut Signal) -> Result<Successor, HandOverError> {
        if !systemd::is_managed() {
            return Err(HandOverError::Unmanaged);
        }
        let rules = self.parts.control.share().await.map_err(HandOverError::Rules)?;
        let done = tokio::select! {
            done = self.start_successor(rules) => done,
            _ = terminate.recv() => Err(HandOverError::Stopping),
        };
        if done.is_err() {
            self.parts.control.resume().await;
        }
        done
    }

    async fn start_successor(&self, rules: Option<OwnedFd>) -> Result<Successor, HandOverError> {
        if !cache::write(&self.state, &self.discovery, &self.parts.credentials, &self.unstored).await {
            return Err(HandOverError::Snapshot(self.unstored.borrow().clone()));
        }
        let traffic = self.parts.proxy.sockets().map_err(HandOverError::Sockets)?;
        let mut left = vec![(Kept::Lock, self.lock.as_fd())];
        let each = [(Kept::Traffic, &traffic), (Kept::Names, &self.names_sockets), (Kept::Admin, &self.admin_sockets)];
        for (kept, sockets) in each {
            left.extend(sockets.iter().map(|socket| (kept, socket.as_fd())));
        }
        left.extend(rules.iter().map(|socket| (Kept::Rules, socket.as_fd())));
        let mut successor = Successor::start(&self.program, &left)?;
        info!(pid = successor.pid(), "a new agent is started: {}", self.program.name());
        match self.until_ready_to_serve(&mut successor.channel).await {
            Ok(()) => Ok(successor),
            Err(error) => {
                successor.end().await;
                Err(error)
            }
        }
    }

    async fn until_ready_to_serve(&self, channel: &mut Channel) -> Result<(), HandOverError> {
        let deadline = tokio::time::Instant::now() + LIMIT;
        let mut said = "it has said nothing".to_owned();
        loop {
            let heard =
                timeout_at(deadline, channel.hear()).await.map_err(|_| HandOverError::Late { said: said.clone() })?;
            match heard.map_err(|_| HandOverError::Ended)? {
                Some(Word::Waiting(why)) => said = why,
                Some(Word::Prepared) => {
                    self.parts.control.pause().await;
                    channel.say(&Word::Rules).await.map_err(|_| HandOverError::Ended)?;
                }
                Some(Word::Ready) => return Ok(()),
                Some(Word::Failed(why)) => return Err(HandOverError::Failed(why)),
                Some(_) => {}
                None => return Err(HandOverError::Ended),
            }
        }
    }

    /// Lets everything go but what is open, and ends with the last of it.
    pub(super) async fn retire(
        self,
        successor: Successor,
        reply: oneshot::Sender<Result<HandedOver, String>>,
        terminate: Signal,
        interrupt: Signal,
    ) -> Result<(), RunError> {
        let pid = successor.pid();
        end(self.lease, TASKS_LIMIT).await;
        end(self.duties, TASKS_LIMIT).await;
        systemd::give_way_to(pid);
        let mut channel = successor.release();
        let serves = begin_to_serve(&mut channel).await;
        let connections = self.parts.proxy.open();
        let died = "the new agent ended once it was in charge: `journalctl -u tombolo-agent` says why";
        let said = if serves { Ok(HandedOver { pid, connections }) } else { Err(died.to_owned()) };
        // Whoever asked may have gone.
        let _ = reply.send(said);
        info!(pid, connections, "process {pid} serves; this one ends with its last connection");
        self.stopping.send_replace(true);
        self.names.hand_over();
        self.parts.control.quiet(true).await;
        let _ = self.control.0.send(());
        // Its end cannot fail: it leaves everything as it is.
        let _ = self.control.1.await;
        drop((self.lock, self.names_sockets, self.admin_sockets));

        let (_, tasks, drain) = &self.background;
        let host = self.parts.link.host().clone();
        tasks.spawn(issuance::follow(self.parts.credentials.clone(), self.state, host, drain.clone()));

        let (stop, mut stopped) = watch::channel(false);
        let (limit, at_stop) = (self.config.drain_hand_over, self.config.drain_deadline);
        let deadline = async move {
            tokio::select! {
                () = sleep(limit) => {}
                _ = stopped.wait_for(|stopped| *stopped) => sleep(at_stop).await,
            }
        };
        let (proxy, elder) = (self.parts.proxy.clone(), &self.elder);
        let work = async {
            let rest = async { tokio::join!(end(self.answers, TASKS_LIMIT), end(self.admin, TASKS_LIMIT)) };
            let (drained, _) = tokio::join!(end_until(self.traffic, deadline), rest);
            // The new one knows of older ones only through this one.
            elder.ended(limit).await;
            drained
        };
        let ask_to_end = || {
            stop.send_replace(true);
            elder.stop();
        };
        let open = || proxy.open() + elder.open().borrow().unwrap_or_default();
        let drained = tokio::select! {
            drained = work => drained,
            never = keep_in_touch(channel, [terminate, interrupt], &proxy, open, ask_to_end) => match never {},
        };
        if drained == Drained::Forced {
            warn!("connections were still open at the deadline and are cut");
        }
        end(self.background, TASKS_LIMIT).await;
        info!("the agent has ended after its successor took over");
        Ok(())
    }
}

/// Tells the successor how many connections are left, and hears when they are to end.
async fn keep_in_touch(
    mut channel: Channel,
    [mut terminate, mut interrupt]: [Signal; 2],
    proxy: &Handle,
    open: impl Fn() -> u64,
    ask_to_end: impl Fn(),
) -> Infallible {
    let mut tell = interval(TELL_INTERVAL);
    let mut is_there = true;
    loop {
        tokio::select! {
            _ = tell.tick(), if is_there => is_there = channel.say(&Word::Open(open())).await.is_ok(),
            heard = channel.hear(), if is_there => match heard {
                Ok(Some(Word::Stop)) => ask_to_end(),
                Ok(Some(Word::Proved { identity, address, not_after_s })) => {
                    let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(not_after_s);
                    proxy.heard(Proof { identity, address, not_after });
                }
                Ok(Some(_)) => {}
                // What becomes of the service is the service manager's matter.
                Ok(None) | Err(_) => is_there = false,
            },
            _ = terminate.recv() => ask_to_end(),
            _ = interrupt.recv() => ask_to_end(),
        }
    }
}

/// Whether the successor says that it serves, now that it may.
async fn begin_to_serve(channel: &mut Channel) -> bool {
    let begun = async {
        channel.say(&Word::InCharge).await.ok()?;
        while let Some(word) = channel.hear().await.ok()? {
            if word == Word::Serving {
                return Some(());
            }
        }
        None
    };
    timeout(SERVING_LIMIT, begun).await.is_ok_and(|begun| begun.is_some())
}

/// What is left to do by then takes milliseconds.
const SERVING_LIMIT: Duration = Duration::from_secs(10);
/// How old the number of connections may be that `status` shows.
const TELL_INTERVAL: Duration = Duration::from_secs(1);
