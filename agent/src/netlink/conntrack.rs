//! Where a redirected connection really came from.
//!
//! Two connections from one source port to different destinations become the same connection once
//! both are redirected to one listener, so NAT gives the later one another source port. Connection
//! tracking knows the first; `attribute` asks when the port it sees is nobody's.

use std::net::{IpAddr, SocketAddr};

use rustix::io::Errno;

use super::message::{Attributes, Message, REQUEST, attributes};
use super::socket::{NETFILTER, NetlinkError, NetlinkSocket};

/// A socket to ask with.
#[derive(Debug)]
pub(crate) struct Conntrack {
    socket: NetlinkSocket,
}

impl Conntrack {
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        Ok(Self { socket: NetlinkSocket::open(NETFILTER)? })
    }

    /// The true source of the TCP connection that `listener` sees as coming from `peer`.
    pub(crate) fn source(&self, listener: SocketAddr, peer: SocketAddr) -> Result<Option<SocketAddr>, NetlinkError> {
        let family = if listener.is_ipv4() { IPV4 } else { IPV6 };
        let mut request = Message::new(GET, REQUEST).fixed(&[family, 0, 0, 0]);
        // Answers go from the listener to the peer.
        request.nest(TUPLE_REPLY, |tuple| write_tuple(tuple, listener, peer));
        let found = self.socket.request(request, |received| {
            read_source(&attributes(received.attributes(NETFILTER_HEADER_BYTES).find(TUPLE_ORIGINAL)?))
        });
        match found {
            Ok(found) => Ok(found.into_iter().next()),
            Err(error) if error.errno() == Some(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn write_tuple(tuple: &mut Message, source: SocketAddr, destination: SocketAddr) {
    tuple.nest(TUPLE_IP, |ip| match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            ip.attribute(IPV4_SOURCE, &source.octets());
            ip.attribute(IPV4_DESTINATION, &destination.octets());
        }
        (source, destination) => {
            ip.attribute(IPV6_SOURCE, &six(source));
            ip.attribute(IPV6_DESTINATION, &six(destination));
        }
    });
    tuple.nest(TUPLE_PROTOCOL, |protocol| {
        protocol.attribute(PROTOCOL_NUMBER, &[TCP]);
        protocol.attribute(SOURCE_PORT, &source.port().to_be_bytes());
        protocol.attribute(DESTINATION_PORT, &destination.port().to_be_bytes());
    });
}

fn read_source(tuple: &Attributes<'_>) -> Option<SocketAddr> {
    let ip = attributes(tuple.find(TUPLE_IP)?);
    let address: IpAddr = match (ip.find(IPV4_SOURCE), ip.find(IPV6_SOURCE)) {
        (Some(octets), _) => <[u8; 4]>::try_from(octets).ok()?.into(),
        (None, octets) => <[u8; 16]>::try_from(octets?).ok()?.into(),
    };
    let port = attributes(tuple.find(TUPLE_PROTOCOL)?).find(SOURCE_PORT)?;
    Some(SocketAddr::new(address, u16::from_be_bytes(port.get(..2)?.try_into().ok()?)))
}

fn six(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

// `linux/netfilter/nfnetlink_conntrack.h`.
const GET: u16 = 1 << 8 | 1;
const NETFILTER_HEADER_BYTES: usize = 4;
const IPV4: u8 = 2;
const IPV6: u8 = 10;
const TCP: u8 = 6;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const IPV4_SOURCE: u16 = 1;
const IPV4_DESTINATION: u16 = 2;
const IPV6_SOURCE: u16 = 3;
const IPV6_DESTINATION: u16 = 4;
const PROTOCOL_NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;
