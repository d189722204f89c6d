//! `tombolo doctor`: what can be wrong with a host, each with its cause and its cure.
//!
//! Works before joining and without a running agent; changes nothing but a throwaway table of its
//! own and a probe file in the state folder, both gone when it ends. What only the running agent knows
//! (certificates in use, rules in force, refusals of the control plane) it takes from the agent's `status`.

use api::admin::{Check, CheckOutcome, Diagnosis};

use crate::config::Config;
use crate::state::StateDir;

mod control_plane;
mod host;
mod kernel;
mod names;

/// What is asked besides the host itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Agent {
    /// It runs: its ports are taken by itself, its rules are its own. What its `status` finds wrong.
    Running {
        problems: Vec<String>,
    },
    Absent,
}

/// Every check, in the order in which one would mend what they find.
pub async fn diagnose(config: &Config, agent: &Agent) -> Diagnosis {
    let state = StateDir::at(&config.paths.state_dir);
    let mut checks = vec![
        host::privileges(),
        host::state_folder(&state),
        host::ports(config, agent).await,
        kernel::owned_tables(),
        kernel::cgroups(),
        kernel::leftovers(agent),
        kernel::conflicts(),
        names::resolvers(config).await,
    ];
    checks.extend(control_plane::checks(config, &state).await);
    checks.push(host::running(config, agent));
    Diagnosis { checks }
}

fn check(name: &str, outcome: CheckOutcome, detail: impl Into<String>, cure: impl Into<String>) -> Check {
    Check { name: name.to_owned(), outcome, detail: detail.into(), cure: cure.into() }
}

fn ok(name: &str, detail: impl Into<String>) -> Check {
    check(name, CheckOutcome::Ok, detail, "")
}

#[cfg(test)]
mod tests;
