//! The host daemon: configuration, interception, enrolment, discovery, rotation, and the commands
//! that a host answers without a control plane. `cli/` makes a program of it.
//!
//! Start order and stop order are on one page in [`run`].

pub mod attribute;
pub mod cgroup;
pub mod config;
pub mod connect;
pub mod intercept;
pub mod join;
pub mod netlink;
pub mod sockets;
pub mod state;
