//! One netlink socket: requests, dumps and nf_tables batches, with the kernel's own explanations.
//!
//! Called by the other netlink files. Everything is synchronous: the kernel works while `send` runs,
//! so a call takes microseconds to a few milliseconds and needs no task. The `unsafe`
//! here is for three socket options that no safe crate offers.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

use super::message::{ACK, DUMP, Message, Received, attributes, messages, text, u32_at};

/// What the kernel said about one request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct KernelError {
    pub errno: Errno,
    /// The kernel's own sentence, when it had one.
    pub message: Option<String>,
    /// Which byte of the request it did not like.
    pub offset: Option<u32>,
}

impl std::fmt::Display for KernelError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}", std::io::Error::from(self.errno))?;
        if let Some(message) = &self.message {
            write!(formatter, ": {message}")?;
        }
        if let Some(offset) = self.offset {
            write!(formatter, " (at byte {offset} of the message)")?;
        }
        Ok(())
    }
}

/// A request over netlink did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("cannot open a netlink socket: RestrictAddressFamilies= of the unit must include AF_NETLINK")]
    Open(#[source] std::io::Error),
    #[error("the file descriptor that was handed over is not a netlink socket of the expected kind")]
    Foreign,
    #[error("cannot send {bytes} bytes to the kernel")]
    Send { bytes: usize, source: std::io::Error },
    #[error("no answer from the kernel")]
    Receive(#[source] std::io::Error),
    #[error("the kernel refused")]
    Refused(#[source] KernelError),
    #[error("the kernel's tables changed during each of {attempts} attempts to read them")]
    Inconsistent { attempts: u32 },
}

impl NetlinkError {
    /// The kernel's error number, when it was the kernel that refused.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused(error) => Some(error.errno),
            _ => None,
        }
    }
}

/// nf_tables, policy routing (protocol number 0) and socket diagnosis.
pub(crate) const NETFILTER: Option<Protocol> = Some(netlink::NETFILTER);
pub(crate) const ROUTE: Option<Protocol> = None;
pub(crate) const DIAGNOSIS: Option<Protocol> = Some(netlink::SOCK_DIAG);

/// The kernel's answers to a batch, each with the number of the message it is about.
pub(crate) type Answers = Vec<(u32, Result<(), KernelError>)>;

/// A netlink socket of one protocol, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct NetlinkSocket {
    fd: OwnedFd,
    next_sequence: AtomicU32,
}

impl NetlinkSocket {
    pub(crate) fn open(protocol: Option<Protocol>) -> Result<Self, NetlinkError> {
        let open = || -> Result<OwnedFd, Errno> {
            let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
            // Port 0 lets the kernel choose, so that `port` is known from here on.
            rustix::net::bind(&fd, &SocketAddrNetlink::new(0, 0))?;
            Ok(fd)
        };
        Ok(Self::with_options(open().map_err(|errno| NetlinkError::Open(errno.into()))?))
    }

    /// Takes over a socket that another process opened.
    pub(crate) fn adopt(fd: OwnedFd, protocol: Option<Protocol>) -> Result<Self, NetlinkError> {
        let matches =
            sockopt::socket_domain(&fd) == Ok(AddressFamily::NETLINK) && sockopt::socket_protocol(&fd) == Ok(protocol);
        matches.then(|| Self::with_options(fd)).ok_or(NetlinkError::Foreign)
    }

    /// The kernel's number of this socket, which is what owns a table.
    pub(crate) fn port(&self) -> Option<u32> {
        let address = rustix::net::getsockname(&self.fd).ok()?;
        SocketAddrNetlink::try_from(address).ok().map(|address| address.pid())
    }

    /// Sends one request and returns what came before the acknowledgement.
    pub(crate) fn request<T>(
        &self,
        mut message: Message,
        mut read: impl FnMut(&Received<'_>) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        self.discard();
        let sequence = self.reserve(1);
        message.add_flags(ACK);
        self.send(&message.finish(sequence))?;
        let mut found = Vec::new();
        loop {
            let buffer = self.receive()?;
            for received in messages(&buffer).filter(|received| received.sequence == sequence) {
                match answer(&received) {
                    Some(Answer::Done) => return Ok(found),
                    Some(Answer::Refused(error)) => return Err(NetlinkError::Refused(error)),
                    None => found.extend(read(&received)),
                }
            }
        }
    }

    /// Asks for all objects of a kind; asks again when they changed meanwhile.
    pub(crate) fn dump<T>(
        &self,
        message: &Message,
        mut read: impl FnMut(&Received<'_>) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            if let Some(found) = self.dump_once(message, &mut read)? {
                return Ok(found);
            }
        }
        Err(NetlinkError::Inconsistent { attempts: DUMP_ATTEMPTS })
    }

    fn dump_once<T>(
        &self,
        message: &Message,
        read: &mut impl FnMut(&Received<'_>) -> Option<T>,
    ) -> Result<Option<Vec<T>>, NetlinkError> {
        self.discard();
        let sequence = self.reserve(1);
        let mut message = message.clone();
        message.add_flags(DUMP);
        self.send(&message.finish(sequence))?;
        let (mut found, mut interrupted) = (Vec::new(), false);
        loop {
            let buffer = self.receive()?;
            for received in messages(&buffer).filter(|received| received.sequence == sequence) {
                interrupted |= received.flags & DUMP_INTERRUPTED != 0;
                match answer(&received) {
                    Some(Answer::Done) => return Ok((!interrupted).then_some(found)),
                    Some(Answer::Refused(error)) => return Err(NetlinkError::Refused(error)),
                    None => found.extend(read(&received)),
                }
            }
        }
    }

    /// Sends a whole batch and returns every answer with its sequence number: the kernel has queued
    /// all of them by the time `send` returns.
    pub(crate) fn exchange(&self, bytes: &[u8]) -> Result<Answers, NetlinkError> {
        self.discard();
        self.reserve_send_buffer(bytes.len());
        self.send(bytes)?;
        let mut answers = Vec::new();
        while let Some(buffer) = self.receive_now()? {
            for received in messages(&buffer) {
                match answer(&received) {
                    Some(Answer::Done) => answers.push((received.sequence, Ok(()))),
                    Some(Answer::Refused(error)) => answers.push((received.sequence, Err(error))),
                    None => {}
                }
            }
        }
        Ok(answers)
    }

    /// Sequence numbers for this many messages; the first of them.
    pub(crate) fn reserve(&self, count: u32) -> u32 {
        self.next_sequence.fetch_add(count, Ordering::Relaxed)
    }

    fn with_options(fd: OwnedFd) -> Self {
        // Each of these only improves errors or room: an old kernel without them still works.
        for option in [NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK] {
            let _ = enable(fd.as_fd(), option);
        }
        let _ = sockopt::set_socket_recv_buffer_size_force(&fd, RECEIVE_BUFFER_BYTES);
        let _ = sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT));
        Self { fd, next_sequence: AtomicU32::new(1) }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        rustix::net::send(&self.fd, bytes, SendFlags::empty())
            .map_err(|errno| NetlinkError::Send { bytes: bytes.len(), source: errno.into() })?;
        Ok(())
    }

    fn receive(&self) -> Result<Vec<u8>, NetlinkError> {
        self.receive_with(RecvFlags::empty()).map_err(|errno| NetlinkError::Receive(errno.into()))
    }

    fn receive_now(&self) -> Result<Option<Vec<u8>>, NetlinkError> {
        match self.receive_with(RecvFlags::DONTWAIT) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Errno::AGAIN) => Ok(None),
            Err(errno) => Err(NetlinkError::Receive(errno.into())),
        }
    }

    /// Leaves no answer of an earlier request, or of another holder of this socket, in the way.
    fn discard(&self) {
        while let Ok(Some(_)) = self.receive_now() {}
    }

    fn receive_with(&self, flags: RecvFlags) -> Result<Vec<u8>, Errno> {
        let mut buffer = vec![0; DATAGRAM_BYTES];
        loop {
            match rustix::net::recv(&self.fd, &mut buffer[..], flags | RecvFlags::TRUNC) {
                Ok((copied, _)) => {
                    buffer.truncate(copied);
                    return Ok(buffer);
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    fn reserve_send_buffer(&self, bytes: usize) {
        let wanted = bytes + SEND_BUFFER_SLACK_BYTES;
        if sockopt::socket_send_buffer_size(&self.fd).is_ok_and(|present| present < wanted) {
            let _ = sockopt::set_socket_send_buffer_size_force(&self.fd, wanted);
        }
    }
}

impl AsFd for NetlinkSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

enum Answer {
    Done,
    Refused(KernelError),
}

/// Whether a message ends an exchange, and how.
fn answer(received: &Received<'_>) -> Option<Answer> {
    match received.kind {
        NLMSG_DONE | NLMSG_ERROR => {}
        _ => return None,
    }
    let code = u32_at(received.payload, 0).unwrap_or(0).cast_signed();
    if code == 0 || received.kind == NLMSG_DONE && code > 0 {
        return Some(Answer::Done);
    }
    let request_bytes = match (received.kind, received.flags & CAPPED) {
        (NLMSG_DONE, _) => 0,
        (_, 0) => u32_at(received.payload, 4).unwrap_or(16) as usize,
        _ => 16,
    };
    let mut error = KernelError { errno: Errno::from_raw_os_error(-code), message: None, offset: None };
    if received.flags & ACK_ATTRIBUTES != 0 {
        let rest = received.payload.get((4 + request_bytes).next_multiple_of(4)..).unwrap_or_default();
        error.message = attributes(rest).find(1).map(text);
        error.offset = attributes(rest).find(2).and_then(|value| u32_at(value, 0));
    }
    Some(Answer::Refused(error))
}

#[expect(unsafe_code, reason = "neither rustix nor socket2 knows SOL_NETLINK options")]
fn enable(fd: BorrowedFd<'_>, option: libc::c_int) -> std::io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open for the whole call, and the pointer and length describe `on`,
    // which the kernel only reads.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const DUMP_INTERRUPTED: u16 = 0x10;
const CAPPED: u16 = 0x100;
const ACK_ATTRIBUTES: u16 = 0x200;
const NETLINK_CAP_ACK: libc::c_int = 10;
const NETLINK_EXT_ACK: libc::c_int = 11;
const NETLINK_GET_STRICT_CHK: libc::c_int = 12;
/// The kernel never sends more than this in one piece (`NLMSG_GOODSIZE`, 32 KiB for dumps).
const DATAGRAM_BYTES: usize = 64 * 1024;
/// Room for the answers to a batch in which every message fails.
const RECEIVE_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// The kernel wants a little more room than the message has.
const SEND_BUFFER_SLACK_BYTES: usize = 4096;
/// The kernel answers while the request is sent; this only keeps a broken kernel from hanging us.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const DUMP_ATTEMPTS: u32 = 10;
