//! The host daemon: configuration, interception, enrolment, discovery, rotation, and the commands
//! that a host answers without a control plane. `cli/` makes a program of it.
//!
//! Start order and stop order are on one page in [`run`].

pub mod admin;
pub mod attribute;
pub mod cgroup;
pub mod cleanup;
pub mod config;
pub mod connect;
pub mod discovery;
pub mod doctor;
pub mod hand_over;
pub mod health;
pub mod intercept;
pub mod intercept_control;
pub mod issuance;
pub mod join;
pub mod link;
mod machine;
pub mod memory;
pub mod names;
pub mod netlink;
pub mod obey;
pub mod register;
pub mod resolv;
pub mod resolved;
pub mod run;
pub mod sockets;
pub mod state;
pub mod systemd;
#[cfg(test)]
mod testing;
pub mod why;
pub mod workloads;
