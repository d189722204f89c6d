//! The network device that carries the mesh's names for systemd-resolved.
//!
//! systemd-resolved keeps routing domains per network device and wants one that is up, is not
//! loopback and has an address of global scope. [`crate::names`] makes this one, without a driver
//! behind it, and takes it away again. No packet ever passes it: resolvers on loopback are asked
//! through loopback.

use std::net::Ipv4Addr;

use rustix::io::Errno;

use crate::netlink::NetlinkError;
use crate::netlink::message::{CREATE, EXCLUSIVE, Message, REPLACE, REQUEST, Received, attributes, text, u32_at};
use crate::netlink::socket::{NetlinkSocket, ROUTE};

/// The device's name.
pub const LINK: &str = "tombolo0";
/// Its address. Link-local by number, so that programs which look for the host's address skip it, and
/// a single one, so that no route changes; 169.254/16 is where hosts already keep such addresses
/// (cloud metadata 169.254.169.254, node-local DNS 169.254.20.10), none of which it equals.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 74, 53);

/// Kinds of device without a driver, the usual one first; kernels without it often have the other.
const KINDS: [&str; 2] = ["dummy", "ifb"];

/// Why the device could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("the device {LINK} is a {kind} that somebody else made: rename or remove it")]
    Foreign { kind: String },
    #[error("this kernel has neither dummy nor ifb devices")]
    NoKind,
    #[error("the device {LINK} cannot be set up")]
    Netlink(#[from] NetlinkError),
}

/// Makes the device as it should be, if it is not; its index.
pub fn ensure() -> Result<u32, LinkError> {
    let socket = NetlinkSocket::open(ROUTE)?;
    let index = match find(&socket)? {
        Some(link) if KINDS.contains(&link.kind.as_str()) => link.index,
        Some(link) => return Err(LinkError::Foreign { kind: link.kind }),
        None => create(&socket)?,
    };
    socket.request(up_message(index), none)?;
    socket.request(address_message(index), none)?;
    Ok(index)
}

/// Removes the device; whether it was there. One that somebody else made stays.
pub fn remove() -> Result<bool, LinkError> {
    let socket = NetlinkSocket::open(ROUTE)?;
    match find(&socket)? {
        Some(link) if KINDS.contains(&link.kind.as_str()) => {}
        Some(_) | None => return Ok(false),
    }
    let mut request = link_message(DELETE_LINK, 0, 0, 0);
    request.string(IFLA_IFNAME, LINK);
    match socket.request(request, none) {
        Ok(_) => Ok(true),
        Err(error) if error.errno() == Some(Errno::NODEV) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

struct Link {
    index: u32,
    kind: String,
}

fn find(socket: &NetlinkSocket) -> Result<Option<Link>, NetlinkError> {
    let mut request = link_message(GET_LINK, 0, 0, 0);
    request.string(IFLA_IFNAME, LINK);
    match socket.request(request, read_link) {
        Ok(mut found) => Ok(found.pop()),
        Err(error) if error.errno() == Some(Errno::NODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

fn read_link(received: &Received<'_>) -> Option<Link> {
    let about = received.attributes(LINK_HEADER_BYTES).find(IFLA_LINKINFO).unwrap_or_default();
    let kind = attributes(about).find(IFLA_INFO_KIND).map(text).unwrap_or_default();
    Some(Link { index: u32_at(received.payload, 4)?, kind })
}

fn create(socket: &NetlinkSocket) -> Result<u32, LinkError> {
    for kind in KINDS {
        let mut request = link_message(NEW_LINK, CREATE | EXCLUSIVE, 0, 0);
        request.string(IFLA_IFNAME, LINK);
        request.nest(IFLA_LINKINFO, |about| about.string(IFLA_INFO_KIND, kind));
        match socket.request(request, none) {
            Ok(_) => return find(socket)?.map(|link| link.index).ok_or(LinkError::NoKind),
            // The kernel says so of a kind that it does not have and cannot load.
            Err(error) if error.errno() == Some(Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(LinkError::NoKind)
}

fn up_message(index: u32) -> Message {
    const IFF_UP: u32 = 1;
    link_message(NEW_LINK, 0, index, IFF_UP)
}

/// `struct ifinfomsg`; the flags given are switched on.
fn link_message(kind: u16, message_flags: u16, index: u32, flags: u32) -> Message {
    let mut header = [0; LINK_HEADER_BYTES];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&flags.to_ne_bytes());
    Message::new(kind, REQUEST | message_flags).fixed(&header)
}

/// `struct ifaddrmsg`, of global scope: systemd-resolved overlooks addresses of link scope.
fn address_message(index: u32) -> Message {
    const SCOPE_GLOBAL: u8 = 0;
    let family = crate::netlink::route::IPV4;
    let mut header = [family, 32, 0, SCOPE_GLOBAL, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut message = Message::new(NEW_ADDRESS, REQUEST | CREATE | REPLACE).fixed(&header);
    message.attribute(IFA_LOCAL, &ADDRESS.octets());
    message.attribute(IFA_ADDRESS, &ADDRESS.octets());
    message
}

fn none(_: &Received<'_>) -> Option<()> {
    None
}

// linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h
const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const LINK_HEADER_BYTES: usize = 16;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
