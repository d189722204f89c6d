//! Sockets and bytes: what the listeners of this crate share below the mesh's words.
//!
//! Nothing in here knows identities, policies or snapshots.

pub(crate) mod addr;
pub(crate) mod copy;
pub mod socket;
pub(crate) mod traffic;
