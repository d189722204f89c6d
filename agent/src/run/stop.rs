//! How the agent stops: from not ready to nothing left.

use std::time::Duration;

use api::admin::InterceptCommand;
use api::wire::tombolo::LeaveRequest;
use api::wire::tombolo::enrolment_client::EnrolmentClient;
use proxy::drain::{DrainTrigger, DrainWatch, Drained, Tasks};
use tokio::time::sleep;
use tracing::{error, info, warn};

use super::{Agent, Leaving, RunError};
use crate::config::OnAgentLoss;
use crate::connect::Link;
use crate::intercept_control::Control;
use crate::systemd::{self, Ending};

/// How long an agent that stops waits for the control plane to hear of it.
const WITHDRAW_LIMIT: Duration = Duration::from_secs(2);
/// How much later than this one the agent before it may end.
const ELDER_LIMIT: Duration = Duration::from_secs(2);
/// How long tasks that serve nobody may take to end.
pub(super) const TASKS_LIMIT: Duration = Duration::from_secs(5);

impl Agent {
    /// From not ready to nothing left. Whoever leaves has told the control plane already.
    pub(super) async fn stop(self, leaving: Option<Leaving>) -> Result<(), RunError> {
        let deadline = self.config.drain_deadline;
        info!(deadline_ms = deadline.as_millis() as u64, "the agent stops");
        self.stopping.send_replace(true);
        systemd::stopping(deadline);
        let is_held = leaving.is_none() && self.comes_back_soon().await;
        self.elder.stop();
        end(self.lease, TASKS_LIMIT).await;
        if leaving.is_none()
            && let Err(problem) = withdraw(&self.parts.link).await
        {
            info!(error = problem, "the control plane is not told that the agent stops: the lease will end");
        }
        quiet(&self.parts.control, leaving.is_some(), is_held).await;
        match is_held {
            true => self.names.hand_over(),
            false => self.names.stop().await,
        }
        // The agent before this one has captured connections too: rules and names stay until it has ended.
        let (drained, ()) = tokio::join!(end(self.traffic, deadline), self.elder.ended(deadline + ELDER_LIMIT));
        if drained == Drained::Forced {
            warn!("connections were still open at the deadline and are cut");
        }
        let (stop_control, control) = self.control;
        let _ = stop_control.send(());
        if let Err(error) = control.await {
            error!(%error, "interception did not end as it should");
        }
        tokio::join!(end(self.answers, TASKS_LIMIT), end(self.duties, TASKS_LIMIT), end(self.background, TASKS_LIMIT));
        let mut forgotten = Ok(());
        if let Some(Leaving { reply }) = leaving {
            forgotten = self.state.forget();
            let said = match &forgotten {
                Ok(()) => Ok(()),
                Err(error) => Err(telemetry::Chain(error).to_string()),
            };
            // Whoever asked may have gone.
            let _ = reply.send(said);
        }
        end(self.admin, TASKS_LIMIT).await;
        info!("the agent has stopped");
        forgotten.map_err(RunError::State)
    }

    /// Whether rules and names are held for an agent that is started again in a moment: a stop for good
    /// leaves nothing, whatever `on_agent_loss` says.
    async fn comes_back_soon(&self) -> bool {
        let hold = self.config.interception.on_agent_loss == OnAgentLoss::Hold && systemd::is_managed();
        hold && systemd::ending(None).await != Ending::Stop
    }
}

/// New connections pass, unless the rules are held over a restart; leaving ends them for good.
async fn quiet(control: &Control, leaves: bool, is_held: bool) {
    if leaves && let Err(problem) = control.command(InterceptCommand::Off).await {
        warn!(error = problem, "interception is not switched off");
    }
    control.quiet(is_held).await;
}

/// Peers stop choosing this host's workloads; it stays a host of the mesh.
async fn withdraw(link: &Link) -> Result<(), String> {
    if !link.state().connected {
        return Err("it is away".to_owned());
    }
    let mut client = EnrolmentClient::new(link.channel());
    match tokio::time::timeout(WITHDRAW_LIMIT, client.leave(LeaveRequest { forget: false })).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) => Err(crate::connect::explain(&status)),
        Err(_) => Err(format!("no answer within {WITHDRAW_LIMIT:?}")),
    }
}

/// Waits for the tasks, by force after the deadline.
pub(super) async fn end(work: (DrainTrigger, Tasks, DrainWatch), deadline: Duration) -> Drained {
    end_until(work, sleep(deadline)).await
}

/// The same, by force once `deadline` completes.
pub(super) async fn end_until(
    (trigger, tasks, watch): (DrainTrigger, Tasks, DrainWatch),
    deadline: impl Future<Output = ()>,
) -> Drained {
    let finish = async move {
        tasks.finish(&watch).await;
        drop(watch);
    };
    tokio::join!(trigger.drain_until(deadline), finish).0
}
