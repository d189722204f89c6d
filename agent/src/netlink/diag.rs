//! The host's TCP sockets by sock_diag: who holds which connection.
//!
//! `attribute` asks for one connection, `sockets` for all. Only the network namespace of the socket
//! that asks is seen, so connections from inside containers are not found.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use rustix::io::Errno;

use super::message::{Message, REQUEST, Received, u32_at};
use super::socket::{DIAGNOSIS, NetlinkError, NetlinkSocket};

/// A TCP socket of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TcpSocket {
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) state: u8,
    /// None when no process holds it any more: the kernel would call its owner root then.
    pub(crate) uid: Option<u32>,
    /// Number of its cgroup; kernels before 5.8 do not tell, nor does a socket that only waits.
    pub(crate) cgroup: Option<u64>,
    /// Told only with CAP_NET_ADMIN.
    pub(crate) mark: Option<u32>,
}

/// State of an open connection.
pub(crate) const ESTABLISHED: u8 = 1;
/// State of a listener.
pub(crate) const LISTEN: u8 = 10;

/// A socket to ask with.
#[derive(Debug)]
pub(crate) struct Diagnosis {
    socket: NetlinkSocket,
}

impl Diagnosis {
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        Ok(Self { socket: NetlinkSocket::open(DIAGNOSIS)? })
    }

    /// The socket that connected from `local` to `remote`.
    pub(crate) fn find(&self, local: SocketAddr, remote: SocketAddr) -> Result<Option<TcpSocket>, NetlinkError> {
        let (local, remote) = (canonical(local), canonical(remote));
        let request = Message::new(BY_FAMILY, REQUEST).fixed(&request(family(local.ip()), ANY_STATE, local, remote));
        match self.socket.request(request, read) {
            // Without such a connection the kernel may answer with a listener of the address.
            Ok(found) => Ok(found.into_iter().find(|socket| socket.local == local && socket.remote == remote)),
            Err(error) if error.errno() == Some(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every socket in this state, of both families.
    pub(crate) fn all(&self, state: u8) -> Result<Vec<TcpSocket>, NetlinkError> {
        let mut found = Vec::new();
        for unspecified in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
            let any = SocketAddr::new(unspecified, 0);
            let request = Message::new(BY_FAMILY, REQUEST).fixed(&request(family(unspecified), 1 << state, any, any));
            found.extend(self.socket.dump(&request, read)?);
        }
        Ok(found)
    }
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, states: u32, local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    const TCP: u8 = 6;
    const ANY_INTERFACE: [u8; 4] = [0; 4];
    const NO_COOKIE: [u8; 8] = [0xff; 8];
    let mut bytes = vec![family, TCP, 0, 0];
    bytes.extend(states.to_ne_bytes());
    bytes.extend(local.port().to_be_bytes());
    bytes.extend(remote.port().to_be_bytes());
    bytes.extend(sixteen(local.ip()));
    bytes.extend(sixteen(remote.ip()));
    bytes.extend(ANY_INTERFACE);
    bytes.extend(NO_COOKIE);
    bytes
}

/// `struct inet_diag_msg` and its attributes.
fn read(received: &Received<'_>) -> Option<TcpSocket> {
    let payload = received.payload;
    let [family, state] = *payload.get(..2)? else { return None };
    let port = |at: usize| Some(u16::from_be_bytes(payload.get(at..at + 2)?.try_into().ok()?));
    let address = |at: usize| address(family, payload.get(at..at + 16)?);
    let attributes = received.attributes(MESSAGE_BYTES);
    let cgroup = attributes.find(CGROUP_ID).and_then(|value| value.get(..8)?.try_into().ok());
    Some(TcpSocket {
        local: canonical(SocketAddr::new(address(8)?, port(4)?)),
        remote: canonical(SocketAddr::new(address(24)?, port(6)?)),
        state,
        uid: u32_at(payload, UID_OFFSET).filter(|_| u32_at(payload, INODE_OFFSET).is_some_and(|inode| inode != 0)),
        cgroup: cgroup.map(u64::from_ne_bytes),
        mark: attributes.find(MARK).and_then(|value| u32_at(value, 0)),
    })
}

fn address(family: u8, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        IPV4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(..4)?).ok()?).into()),
        IPV6 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

/// An IPv6 socket that talks IPv4 is found under its IPv4 addresses.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn sixteen(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&address.octets());
            bytes
        }
        IpAddr::V6(address) => address.octets(),
    }
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { IPV4 } else { IPV6 }
}

const BY_FAMILY: u16 = 20;
const IPV4: u8 = 2;
const IPV6: u8 = 10;
const ANY_STATE: u32 = u32::MAX;
const MESSAGE_BYTES: usize = 72;
const UID_OFFSET: usize = 64;
const INODE_OFFSET: usize = 68;
const MARK: u16 = 15;
const CGROUP_ID: u16 = 21;
