//! Sockets and bytes: what the listeners of this crate share below the mesh's words.
//!
//! Nothing in here knows identities, policies or snapshots.

pub(crate) mod addr;
pub(crate) mod buffers;
pub(crate) mod copy;
pub(crate) mod records;
pub mod socket;
pub(crate) mod tls;
pub(crate) mod traffic;
