//! How work ends: no new work, finish the old, and at the deadline end it by force.
//!
//! The program holds the [`DrainTrigger`]; every listener holds a [`DrainWatch`] for as long as it has
//! work, and its connections are [`Tasks`], which it awaits. Nothing here knows what the work is.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

/// Starts the drain. Dropping it without a drain ends the work by force.
#[derive(Debug)]
pub struct DrainTrigger(watch::Sender<Phase>);

/// Says when to stop taking work, and when to end what is left. The drain is over when every clone of
/// it is dropped.
#[derive(Debug, Clone)]
pub struct DrainWatch(watch::Receiver<Phase>);

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// All work finished by itself.
    Finished,
    /// The deadline came first.
    Forced,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serve,
    Drain,
    Force,
}

/// A trigger and the first of its watches.
pub fn channel() -> (DrainTrigger, DrainWatch) {
    let (sender, receiver) = watch::channel(Phase::Serve);
    (DrainTrigger(sender), DrainWatch(receiver))
}

impl DrainTrigger {
    /// Tells every watch to take no new work, waits until all are dropped, and after `deadline` ends
    /// what is left by force.
    pub async fn drain(self, deadline: Duration) -> Drained {
        self.drain_until(sleep(deadline)).await
    }

    /// As [`DrainTrigger::drain`], until `deadline` completes.
    pub async fn drain_until(self, deadline: impl Future<Output = ()>) -> Drained {
        self.0.send_replace(Phase::Drain);
        tokio::select! {
            () = self.0.closed() => return Drained::Finished,
            () = deadline => {}
        }
        self.0.send_replace(Phase::Force);
        // Aborted tasks end at their next poll; a watch that somebody keeps must not hang the program.
        let _ = timeout(FORCE_LIMIT, self.0.closed()).await;
        Drained::Forced
    }
}

impl DrainWatch {
    /// Completes when no new work is to be taken. Dropping the future has no effect.
    pub async fn signaled(&self) {
        self.reached(Phase::Drain).await;
    }

    /// Completes when what is left is to be ended.
    pub async fn forced(&self) {
        self.reached(Phase::Force).await;
    }

    pub fn is_signaled(&self) -> bool {
        *self.0.borrow() >= Phase::Drain
    }

    async fn reached(&self, phase: Phase) {
        // An error means that the trigger is gone, which is as final as force.
        let _ = self.0.clone().wait_for(|now| *now >= phase).await;
    }
}

/// Tasks with one owner. Clones add to the same set.
#[derive(Debug, Clone, Default)]
pub struct Tasks(Arc<Running>);

#[derive(Debug, Default)]
struct Running {
    tasks: Mutex<Set>,
    ended: Notify,
}

#[derive(Debug, Default)]
struct Set {
    next: u64,
    /// `None` for the moment between the list and the runtime.
    running: HashMap<u64, Option<AbortHandle>>,
    aborted: bool,
}

/// Takes a task off the list when it ends: by itself, by a panic or by force.
struct Ended {
    tasks: Tasks,
    id: u64,
}

impl Tasks {
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `future` to its end, or until [`Tasks::finish`] ends it by force; after that, not at all.
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        // Listed before it runs, so that one that ends at once finds its entry; and not under the
        // lock, because a runtime that shuts down drops the future, and so `Ended`, inside `spawn`.
        let id = self.set().add();
        let ended = Ended { tasks: self.clone(), id };
        // An async block would have room for the future twice: where it was given and where it is awaited.
        let task = tokio::spawn(future.map(|()| drop(ended)));
        let mut set = self.set();
        if set.aborted {
            task.abort();
        } else if let Some(entry) = set.running.get_mut(&id) {
            *entry = Some(task.abort_handle());
        }
    }

    pub fn len(&self) -> usize {
        self.set().running.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until every task has ended, and ends them when `drain` comes to its deadline.
    pub async fn finish(&self, drain: &DrainWatch) {
        tokio::select! {
            () = self.emptied() => {}
            () = drain.forced() => {
                self.abort();
                self.emptied().await;
            }
        }
    }

    fn abort(&self) {
        let mut set = self.set();
        set.aborted = true;
        set.running.values().flatten().for_each(AbortHandle::abort);
    }

    async fn emptied(&self) {
        loop {
            let ended = self.0.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if self.is_empty() {
                return;
            }
            ended.await;
        }
    }

    fn set(&self) -> MutexGuard<'_, Set> {
        // No code that can panic runs under this lock; a poisoned one is still whole.
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Set {
    fn add(&mut self) -> u64 {
        let id = self.next;
        self.next += 1;
        self.running.insert(id, None);
        id
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        let mut set = self.tasks.set();
        set.running.remove(&self.id);
        if set.running.is_empty() {
            drop(set);
            self.tasks.0.ended.notify_waiters();
        }
    }
}

/// How long a drain waits for watches to be dropped after it used force.
const FORCE_LIMIT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
