//! How the programs speak: logs, metrics, the local admin server, errors with their causes.
//!
//! Every program calls [`nss::pin`] first, then [`log::init`]. Promise: no mesh type is known here.

pub mod admin;
pub mod build;
pub mod chain;
pub mod log;
pub mod metrics;
pub mod nss;

pub use chain::Chain;
