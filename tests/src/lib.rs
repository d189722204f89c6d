//! The harness: hosts as network namespaces joined by a bridge, real programs in them, real tools
//! around them. `make demo` and the end-to-end suite are written with it.
//!
//! Everything it makes carries the process id in its name and is removed when its owner is dropped,
//! also after a panic. Nothing leaves the machine: the hosts' network has no way out.

pub mod capture;
pub mod census;
pub mod daemon;
pub mod document;
pub mod estate;
pub mod fleet;
pub mod machine;
pub mod manager;
pub mod netns;
pub mod postgres;
pub mod repository;
pub mod resolver;
pub mod server;
pub mod soak;
pub mod wait;

pub use daemon::Daemon;
pub use estate::{Estate, Host, HostSpec};
pub use machine::Machine;
pub use netns::{Namespace, Output};
pub use wait::{wait_until, within};
