//! Talking to the kernel over netlink: nf_tables, routes and rules, socket diagnosis.
//!
//! A small encoder of our own, because nothing else can own a table, name our rule in an error, or
//! apply in a tenth of a millisecond. `intercept`, `attribute` and `sockets` call it. It knows the
//! kernel's formats (`linux/netfilter/nf_tables.h`, `linux/rtnetlink.h`, `linux/inet_diag.h`) and
//! nothing about the mesh.

pub(crate) mod conntrack;
pub(crate) mod diag;
pub(crate) mod message;
pub(crate) mod nftables;
pub(crate) mod route;
pub(crate) mod socket;

pub use socket::{KernelError, NetlinkError};
