//! The process of the new agent, as the old one starts and, if need be, ends it.
//!
//! It must not be a child of the old agent: systemd supervises its own children, and would warn that it
//! cannot see a grandchild end. So a process between the two starts it and ends, and the new agent becomes
//! a child of process 1, as the old one is.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tracing::warn;

use super::{Channel, HandOverError, send};
use crate::config;
use crate::systemd::Kept;

/// How this process was started, as its successor is to be.
#[derive(Debug, Clone)]
pub struct Program {
    file: PathBuf,
    arguments: Vec<OsString>,
}

/// The new agent.
pub struct Successor {
    pub channel: Channel,
    process: Process,
}

/// Its process, killed when dropped, unless it was released.
struct Process {
    pid: Pid,
    descriptor: OwnedFd,
    is_ours: bool,
}

impl Program {
    /// To be called at the start: once its file is replaced, nothing tells a process its name.
    pub fn of_this_process() -> Self {
        let mut arguments = std::env::args_os();
        let called = PathBuf::from(arguments.next().unwrap_or_default());
        Self { file: std::env::current_exe().unwrap_or(called), arguments: arguments.collect() }
    }

    pub fn name(&self) -> String {
        self.file.display().to_string()
    }
}

impl Successor {
    /// Starts the program as it is installed now, and passes `left` on to it.
    pub fn start(program: &Program, left: &[(Kept, BorrowedFd<'_>)]) -> Result<Self, HandOverError> {
        let failed = |source| HandOverError::Start { program: program.name(), source };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let pid = spawn(program, theirs).map_err(failed)?;
        let descriptor = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| failed(error.into()))?;
        let process = Process { pid, descriptor, is_ours: true };
        // An error means that it has ended already.
        send(&ours, left).map_err(|_| HandOverError::Ended)?;
        let channel = Channel::new(ours).map_err(failed)?;
        Ok(Self { channel, process })
    }

    pub fn pid(&self) -> u32 {
        self.process.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Kills it, and waits until it holds nothing any more.
    pub async fn end(self) {
        let (pid, process) = (self.pid(), self.process);
        process.kill();
        let ended = tokio::task::spawn_blocking(move || process.ended_within(&END_LIMIT)).await;
        if !matches!(ended, Ok(true)) {
            warn!(pid, "the new agent does not end");
        }
    }

    /// It is the service manager's from here on.
    pub fn release(mut self) -> Channel {
        self.process.is_ours = false;
        self.channel
    }
}

impl Process {
    fn kill(&self) {
        // An error means that it has ended.
        let _ = pidfd_send_signal(&self.descriptor, Signal::KILL);
    }

    /// A descriptor of a process is readable once that has ended (pidfd_open(2)).
    fn ended_within(&self, limit: &Timespec) -> bool {
        let mut polled = [PollFd::new(&self.descriptor, PollFlags::IN)];
        poll(&mut polled, Some(limit)).is_ok_and(|ready| ready > 0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_ours {
            self.kill();
        }
    }
}

/// Starts the program with `theirs` as its standard input; its process number.
fn spawn(program: &Program, theirs: UnixStream) -> io::Result<Pid> {
    let (number, told) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let mut command = Command::new(&program.file);
    command.args(&program.arguments).env(config::TAKES_OVER, "1").stdin(Stdio::from(OwnedFd::from(theirs)));
    // They are about this process, or about descriptors that only it got.
    for name in ["WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
        command.env_remove(name);
    }
    fork_once_more(&mut command, told.as_raw_fd());
    let between = command.spawn();
    drop(told);
    between?.wait()?;
    let mut bytes = [0; size_of::<libc::pid_t>()];
    std::fs::File::from(number).read_exact(&mut bytes)?;
    Pid::from_raw(libc::pid_t::from_ne_bytes(bytes)).ok_or_else(|| io::Error::other("the process has no number"))
}

/// The process that runs the program is a child of one that only writes its number down, and has ended.
#[expect(unsafe_code, reason = "no safe interface starts a process that is nobody's child")]
fn fork_once_more(command: &mut Command, told: RawFd) {
    let fork = move || {
        // SAFETY: between fork and exec only what signal-safety(7) allows is called: fork, write, _exit.
        // `told` is open in this process, a copy of one that still has it.
        match unsafe { libc::fork() } {
            0 => Ok(()),
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: as above.
            child => unsafe {
                libc::write(told, (&raw const child).cast(), size_of::<libc::pid_t>());
                libc::_exit(0)
            },
        }
    };
    // SAFETY: as above; the closure neither allocates nor takes locks.
    unsafe { command.pre_exec(fork) };
}

/// A process that is killed ends as soon as the kernel has closed its sockets.
const END_LIMIT: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };
