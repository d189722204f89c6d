//! `tombolo agent --cleanup`: takes away what a dead agent left on the host. ExecStopPost runs it, and
//! so does an operator by hand; with nothing left it does nothing.
//!
//! The rules of an agent that lives are not touched. The table of `on_agent_loss = "block"` is there
//! for just this moment and goes only when everything shall.

use telemetry::Chain;

use crate::config::OnAgentLoss;
use crate::intercept::{self, BlockTable};
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
    match intercept::clean() {
        Ok(leftovers) => cleaned.removed.extend(leftovers.into_iter().map(|leftover| leftover.what)),
        Err(error) => cleaned.failed.push(Chain(&error).to_string()),
    }
    match names::clean() {
        Ok(true) => cleaned.removed.push(format!("device {}", link::LINK)),
        Ok(false) => {}
        Err(error) => cleaned.failed.push(Chain(&error).to_string()),
    }
    if all || on_agent_loss != OnAgentLoss::Block {
        match remove_block_table() {
            Ok(true) => cleaned.removed.push("table inet tombolo_block".to_owned()),
            Ok(false) => {}
            Err(error) => cleaned.failed.push(error),
        }
    }
    cleaned
}

fn remove_block_table() -> Result<bool, String> {
    let table = BlockTable::open().map_err(|error| Chain(&error).to_string())?;
    let present = table.present().map_err(|error| Chain(&error).to_string())?;
    if present {
        table.remove().map_err(|error| Chain(&error).to_string())?;
    }
    Ok(present)
}
