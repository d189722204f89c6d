//! Probes by a command: exit code 0 is health.
//!
//! The command runs in a process group of its own, which is killed whole when the probe's time is
//! over (the future is dropped) so that nothing it started lingers. Its output goes nowhere.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Command;

pub(super) async fn run(command: &[String]) -> Result<(), String> {
    let (program, arguments) = command.split_first().ok_or("the probe has no command")?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("cannot run {program}: {error}"))?;
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw));
    let status = child.wait().await.map_err(|error| format!("cannot wait for {program}: {error}"))?;
    group.0 = None; // it ended in time: what it left running on purpose is its own matter
    if status.success() { Ok(()) } else { Err(format!("{program} ended with {status}")) }
}

/// Everything the command started; its leader's id is the group's.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // An error means that nothing of the group is left.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}
