//! How a running agent gives way to the program that is installed now, and no connection is cut.
//!
//! `tombolo agent --hand-over` asks the running agent. It starts the program file of its own start as a
//! second process of its service, with the same arguments, and both speak over a pair of Unix sockets, one
//! [`Word`] a line. The old one decides; whatever goes wrong before [`Word::InCharge`] ends the new one, and
//! the old one goes on as it was.
//!
//! | the word | from | what has come before it | who owns what from here on |
//! |---|---|---|---|
//! | `sockets` | old | the snapshot is on disk | everything is the old one's |
//! | `prepared` | new | settings read, sockets taken over, certificates and snapshot good to serve with | |
//! | `rules` | old | its rules stand still | the rules are the new one's |
//! | `ready` | new | the rules are in force as it wants them | |
//! | `in_charge` | old | lease, renewals and disk are let go; systemd knows the new main process | all but open connections is the new one's |
//! | `serving` | new | it accepts, answers names and commands | the old one accepts nothing any more |
//! | `open` | old | | its connections end by themselves; when none is left it ends |
//! | `proved` | new | | callers shake hands with the new one, and what the old one has open with them lasts by that |
//! | `stop` | new | it is being stopped itself | the old one drains as for a stop |
//!
//! Both have the listening sockets themselves, not copies of addresses: what waits in their queues is taken
//! by either, and lost by neither. The table of rules belongs to a socket that both have, so it is there
//! throughout, and one of the two writes at a time. The old one keeps its stream from the control plane while
//! it has connections, because a policy that changes is for them too, and takes renewed certificates from disk,
//! because peers look at how long its own last.
//!
//! `run/retire.rs` is the old one's side, `run/take_over.rs` the new one's.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, SystemTime};

use api::SpiffeId;
use proxy::Proof;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage};
use rustix::net::{SendFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::config;
use crate::systemd::{Kept, Parked};

pub mod successor;

pub use successor::{Program, Successor};

/// How long a new agent may take until it serves. It waits for nobody: settings, certificates and snapshot
/// are on disk.
pub const LIMIT: Duration = Duration::from_secs(30);

/// What two agents of one service say to each other. One of another version may know more of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// Comes with as many descriptors, of these names ([`Kept::name`]).
    Sockets(Vec<String>),
    /// Why it is not ready yet.
    Waiting(String),
    Prepared,
    Rules,
    Ready,
    /// Why it ends.
    Failed(String),
    InCharge,
    Serving,
    /// How many connections are open still.
    Open(u64),
    /// A caller has shown a certificate: what the old process has open with it may last as long.
    Proved {
        identity: SpiffeId,
        address: IpAddr,
        not_after_s: u64,
    },
    Stop,
}

/// Why a running agent does not give way.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    #[error(
        "no service manager runs this agent, and whoever watches its process would take its end for a failure: \
         stop it and start the new one"
    )]
    Unmanaged,
    #[error("{0}: try again after that")]
    Rules(String),
    #[error("the new agent would begin with an older snapshot, because this one is not on disk: {0}")]
    Snapshot(String),
    #[error("{program} cannot be started")]
    Start { program: String, source: io::Error },
    #[error("the sockets cannot be copied")]
    Sockets(#[source] io::Error),
    #[error("the new agent cannot serve: {0}")]
    Failed(String),
    #[error("this agent is to stop")]
    Stopping,
    #[error("the new agent ended without a word: see `journalctl -u tombolo-agent`")]
    Ended,
    #[error("the new agent does not serve after {LIMIT:?}: {said}")]
    Late { said: String },
}

/// The agent that this one takes over from, before there is a runtime.
pub struct Predecessor {
    stream: UnixStream,
}

/// The way to the other agent.
pub struct Channel {
    heard: Lines<BufReader<OwnedReadHalf>>,
    says: OwnedWriteHalf,
}

impl Predecessor {
    /// The agent that started this process to take over from it, and what it passes on. Called once, early.
    pub fn of_this_process() -> io::Result<Option<(Self, Parked)>> {
        if !config::takes_over() {
            return Ok(None);
        }
        // The old one made its end our standard input.
        let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        stream.set_read_timeout(Some(LIMIT))?;
        let parked = receive(&stream)?;
        stream.set_read_timeout(None)?;
        Ok(Some((Self { stream }, parked)))
    }

    /// Says why this process ends, where it cannot even begin.
    pub fn failed(self, why: String) {
        use std::io::Write;
        // The old one may have given up, and the log says it too.
        let _ = (&self.stream).write_all(line(&Word::Failed(why)).as_bytes());
    }

    /// A second end of the same.
    pub fn another(&self) -> io::Result<Self> {
        Ok(Self { stream: self.stream.try_clone()? })
    }

    /// Needs a running tokio runtime.
    pub fn channel(self) -> io::Result<Channel> {
        Channel::new(self.stream)
    }
}

impl Channel {
    fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let (heard, says) = tokio::net::UnixStream::from_std(stream)?.into_split();
        Ok(Self { heard: BufReader::new(heard).lines(), says })
    }

    /// What callers have proved to this process, for the one that drains.
    pub async fn say_proof(&mut self, proof: Proof) -> io::Result<()> {
        let Proof { identity, address, not_after } = proof;
        let since_epoch = not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.say(&Word::Proved { identity, address, not_after_s: since_epoch.as_secs() }).await
    }

    pub async fn say(&mut self, word: &Word) -> io::Result<()> {
        self.says.write_all(line(word).as_bytes()).await
    }

    /// The next word that this version knows; `None` when the other process has ended. Dropping the future
    /// loses nothing.
    pub async fn hear(&mut self) -> io::Result<Option<Word>> {
        while let Some(line) = self.heard.next_line().await? {
            if let Ok(word) = serde_json::from_str(&line) {
                return Ok(Some(word));
            }
        }
        Ok(None)
    }
}

fn line(word: &Word) -> String {
    // Neither numbers nor text can fail to be JSON.
    serde_json::to_string(word).unwrap_or_default() + "\n"
}

/// Passes descriptors on, with their names.
fn send(stream: &UnixStream, left: &[(Kept, BorrowedFd<'_>)]) -> io::Result<()> {
    let names = left.iter().map(|(kept, _)| kept.name().to_owned()).collect();
    let descriptors: Vec<BorrowedFd<'_>> = left.iter().map(|(_, descriptor)| *descriptor).collect();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other(format!("more than {MOST_DESCRIPTORS} sockets")));
    }
    let text = line(&Word::Sockets(names));
    let sent = sendmsg(stream, &[io::IoSlice::new(text.as_bytes())], &mut ancillary, SendFlags::empty())?;
    if sent == text.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Takes what [`send`] passes on; it is the first thing said.
fn receive(stream: &UnixStream) -> io::Result<Parked> {
    let (mut bytes, mut parked) = (vec![0; 8192], Parked::default());
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(stream, &mut [io::IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors: Vec<OwnedFd> = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let word = serde_json::from_slice(bytes.get(..received.bytes).unwrap_or_default());
    match word {
        Ok(Word::Sockets(names)) if names.len() == descriptors.len() => {
            names.iter().zip(descriptors).for_each(|(name, descriptor)| parked.take(name, descriptor));
            Ok(parked)
        }
        _ => Err(io::Error::other("it did not begin with its sockets")),
    }
}

/// Linux passes up to 253 at once (unix(7)); an agent with every listener on both families has 16.
const MOST_DESCRIPTORS: usize = 64;

#[cfg(test)]
mod tests;
