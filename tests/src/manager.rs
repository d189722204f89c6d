//! A service manager for one agent: hears what its processes say (sd_notify(3)), so that a test knows the
//! main process also after an agent has handed over, and ends what is left of them on drop.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::wait::wait_until;

/// Listens at a socket of its own.
#[derive(Debug)]
pub struct Manager {
    path: PathBuf,
    said: Arc<Mutex<Vec<String>>>,
    thread: Option<JoinHandle<()>>,
}

/// A process that is nobody's child; killed on drop.
#[derive(Debug)]
pub struct Process {
    pub pid: u32,
    descriptor: OwnedFd,
}

impl Manager {
    pub fn start(folder: &Path) -> Result<Self> {
        let path = folder.join("notify");
        let socket = UnixDatagram::bind(&path)?;
        let said = Arc::new(Mutex::new(Vec::new()));
        let heard = said.clone();
        let thread = std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length) = socket.recv(&mut bytes) {
                if length == 0 {
                    return;
                }
                let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
                heard.lock().unwrap_or_else(PoisonError::into_inner).push(text);
            }
        });
        Ok(Self { path, said, thread: Some(thread) })
    }

    /// `NOTIFY_SOCKET`.
    pub fn socket(&self) -> &Path {
        &self.path
    }

    /// Everything that was said, oldest first.
    pub fn said(&self) -> Vec<String> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The process that an agent said serves instead of it, once it is another than `than`.
    pub fn wait_main_process(&self, than: u32) -> Result<Process> {
        let pid = wait_until("the agent names another main process", || {
            let said = self.said();
            let named = said.iter().rev().flat_map(|text| text.lines()).find_map(|line| line.strip_prefix("MAINPID="));
            named.and_then(|pid| pid.parse().ok()).filter(|pid| *pid != than).ok_or(said)
        });
        Process::of(pid)
    }
}

impl Process {
    pub fn of(pid: u32) -> Result<Self> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no process number")?;
        Ok(Self { pid, descriptor: pidfd_open(number, PidfdFlags::empty())? })
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(pidfd_send_signal(&self.descriptor, signal)?)
    }

    pub fn has_ended(&self) -> bool {
        self.ended_within(Duration::ZERO)
    }

    pub fn ended_within(&self, limit: Duration) -> bool {
        let limit = Timespec::try_from(limit).ok();
        let mut polled = [PollFd::new(&self.descriptor, PollFlags::IN)];
        poll(&mut polled, limit.as_ref()).is_ok_and(|ready| ready > 0)
    }

    pub fn wait_ended(&self, what: &str) {
        wait_until(what, || if self.has_ended() { Ok(()) } else { Err("it runs") });
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.has_ended() {
            // An error means that it has ended meanwhile.
            let _ = self.signal(Signal::KILL);
            self.ended_within(Duration::from_secs(5));
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // An empty message ends the thread.
        let told = UnixDatagram::unbound().and_then(|socket| socket.send_to(&[], &self.path));
        if let (Ok(_), Some(thread)) = (told, self.thread.take()) {
            let _ = thread.join();
        }
    }
}
