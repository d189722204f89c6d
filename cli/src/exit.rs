//! The exit codes of every command of `tombolo`.

use std::process::ExitCode;

/// How a command ended, as scripts see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Ok,
    /// It failed, or `diff` found a difference.
    Failed,
    /// The command line was wrong (clap ends so by itself too).
    Usage,
    /// This host has not joined a mesh.
    NotJoined,
    /// A policy or role refuses it.
    Refused,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::NotJoined => 3,
            Exit::Refused => 4,
        })
    }
}
