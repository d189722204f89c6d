//! `tombolo agent --cleanup`: takes away what a dead agent left on the host. ExecStopPost runs it, and
//! so does an operator by hand; with nothing left it does nothing.
//!
//! The rules and names of an agent that lives are not touched, nor those that the service manager
//! holds for the next one. When the service has ended for good nothing is held. The table of
//! `on_agent_loss = "block"` is there for just the moment after a death and goes only then.

use telemetry::Chain;

use crate::config::{self, OnAgentLoss};
use crate::intercept::{self, BlockTable};
use crate::systemd::{self, Ending};
use crate::{link, names};

/// What was removed, and what could not be.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Cleaned {
    pub removed: Vec<String>,
    pub failed: Vec<String>,
}

/// Removes what is left. `all` also removes the block table.
pub fn cleanup(on_agent_loss: OnAgentLoss, all: bool) -> Cleaned {
    let mut cleaned = Cleaned::default();
    let ended = service_ended();
    match intercept::is_owned() {
        Ok(true) if !ended => return cleaned,
        Ok(_) => {}
        Err(error) => cleaned.failed.push(Chain(&error).to_string()),
    }
    match intercept::clean() {
        Ok(leftovers) => cleaned.removed.extend(leftovers.into_iter().map(|leftover| leftover.what)),
        Err(error) => cleaned.failed.push(Chain(&error).to_string()),
    }
    match names::clean() {
        Ok(true) => cleaned.removed.push(format!("device {}", link::LINK)),
        Ok(false) => {}
        Err(error) => cleaned.failed.push(Chain(&error).to_string()),
    }
    if all || ended || on_agent_loss != OnAgentLoss::Block {
        match remove_block_table() {
            Ok(true) => cleaned.removed.push("table inet tombolo_block".to_owned()),
            Ok(false) => {}
            Err(error) => cleaned.failed.push(error),
        }
    }
    cleaned
}

/// Whether this runs after the service has ended, and nobody starts it again: then nobody lives, and
/// what is parked is released in a moment.
fn service_ended() -> bool {
    let Some(status) = config::ended_service() else { return false };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.is_ok_and(|runtime| runtime.block_on(systemd::ending(Some(&status))) == Ending::Stop)
}

fn remove_block_table() -> Result<bool, String> {
    let table = BlockTable::open().map_err(|error| Chain(&error).to_string())?;
    let present = table.present().map_err(|error| Chain(&error).to_string())?;
    if present {
        table.remove().map_err(|error| Chain(&error).to_string())?;
    }
    Ok(present)
}
