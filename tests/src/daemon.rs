//! A program running in the background, its output in a file, ended when dropped.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait::ended;

/// How long a daemon may take to end after SIGTERM before it is killed.
const END_LIMIT: Duration = Duration::from_secs(15);

/// One background process of ours.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it with both outputs appended to `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {name}: {command:?}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// The process id. `ip netns exec` and `nsenter` replace themselves, so it is the program's own.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has said so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    pub fn running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("no process id")?;
        kill_process(pid, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// `kill -9`, and waits for the end.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, and its exit code; killed when it does not end in time.
    pub fn stop(&mut self) -> Result<i32> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status.code().unwrap_or(-1));
        }
        self.signal(Signal::TERM)?;
        if let Some(status) = ended(&mut self.child, END_LIMIT)? {
            return Ok(status.code().unwrap_or(-1));
        }
        self.kill()?;
        anyhow::bail!("{} did not end within {END_LIMIT:?} of SIGTERM", self.name)
    }

    /// Resident memory in KiB (proc(5), VmRSS).
    pub fn rss_kib(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        line.trim().trim_end_matches(" kB").trim().parse().context("VmRSS is not a number")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("{}: {error:#}", self.name);
        }
    }
}
