//! The control plane: one store, one issuer, and what is told to agents (gRPC) and operators (REST).
//!
//! `tombolo-controlplane serve` (`run.rs`) puts the parts together in an [`app::App`]. Nothing of the
//! data plane depends on this crate, and it knows neither proxies nor Kubernetes.

pub mod app;
mod audit;
pub mod cli;
pub mod config;
mod greeting;
pub mod grpc;
pub mod issuer;
pub mod metrics;
pub mod registry;
pub mod resources;
pub mod rest;
pub mod run;
pub mod snapshot;
pub mod store;

#[cfg(test)]
mod testing;
