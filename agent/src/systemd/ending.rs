//! Whether the service comes back after it has ended: what `on_agent_loss = "hold"` hangs on.
//!
//! A stop and a restart both begin with SIGTERM. What tells them apart is the job that systemd works
//! on for the unit. systemctl is asked for it: it talks to systemd itself, also where there is no bus
//! or where the bus has stopped before us.

use std::path::Path;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;
use tracing::warn;

/// How the end of this process, or of the one that it cleans up after, goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// No service of systemd, or it does not say.
    Unknown,
    /// systemd starts the service again.
    Restart,
    /// The service stays ended until somebody starts it. What it has parked is released then.
    Stop,
}

/// Why systemd does not say.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("systemctl cannot be run")]
    Run(#[source] std::io::Error),
    #[error("systemctl gave no answer within {LIMIT:?}")]
    Silent,
    #[error("systemctl failed: {said}")]
    Failed { said: String },
}

/// systemd answers within milliseconds; one that does not must not cost a stop its time.
const LIMIT: Duration = Duration::from_secs(2);
/// Of an agent that has no identity: the unit's `RestartPreventExitStatus=`.
const NOT_JOINED: &str = "3";

/// Asks systemd about the unit of this process, whose main process ended with `status` if it has.
pub async fn ending(status: Option<&str>) -> Ending {
    let cgroups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    // What sd_booted(3) looks for.
    let Some(unit) = unit(&cgroups).filter(|_| Path::new("/run/systemd/system").exists()) else {
        return Ending::Unknown;
    };
    ask(unit, status).await.unwrap_or_else(|error| {
        warn!(error = %telemetry::Chain(&error), unit, "systemd does not say whether this is a stop or a restart");
        Ending::Unknown
    })
}

async fn ask(unit: &str, status: Option<&str>) -> Result<Ending, AskError> {
    let jobs = systemctl(&["list-jobs", "--no-legend", "--plain", unit]).await?;
    if let Some(kind) = job(&jobs, unit) {
        return Ok(if kind == "stop" { Ending::Stop } else { Ending::Restart });
    }
    // It ended by itself: a crash, somebody's signal, or it has not joined.
    let restart = systemctl(&["show", "--value", "--property=Restart", unit]).await?;
    Ok(if restart.trim() == "always" && status != Some(NOT_JOINED) { Ending::Restart } else { Ending::Stop })
}

async fn systemctl(arguments: &[&str]) -> Result<String, AskError> {
    let output = Command::new("systemctl").args(arguments).kill_on_drop(true).output();
    let output = timeout(LIMIT, output).await.map_err(|_| AskError::Silent)?.map_err(AskError::Run)?;
    if !output.status.success() {
        return Err(AskError::Failed { said: String::from_utf8_lossy(&output.stderr).trim().to_owned() });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The service that `/proc/self/cgroup` says this process belongs to.
fn unit(cgroups: &str) -> Option<&str> {
    let paths = cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let mut services = paths.filter_map(|path| path.split('/').rfind(|part| part.ends_with(".service")));
    services.next()
}

/// The kind of a unit's job: `NUMBER UNIT KIND STATE` is the line.
fn job<'a>(jobs: &'a str, unit: &str) -> Option<&'a str> {
    jobs.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.nth(1) == Some(unit)).then(|| words.next()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::{job, unit};

    #[test]
    fn the_unit_is_found_in_either_hierarchy() {
        let found = Some("tombolo-agent.service");
        assert_eq!(unit("0::/system.slice/tombolo-agent.service\n"), found);
        assert_eq!(unit("8:pids:/\n1:name=systemd:/system.slice/tombolo-agent.service/.control\n0::/\n"), found);
        assert_eq!(unit("0::/user.slice/user-0.slice/session-3.scope\n"), None);
    }

    #[test]
    fn a_job_is_read_by_its_unit() {
        let jobs = "12 a.service start waiting\n7 tombolo-agent.service restart running\n";
        assert_eq!(job(jobs, "tombolo-agent.service"), Some("restart"));
        assert_eq!(job(jobs, "agent.service"), None);
        assert_eq!(job("", "tombolo-agent.service"), None);
    }
}
