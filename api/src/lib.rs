//! What both sides of the mesh must agree on: domain types, policy evaluation, snapshot and delta,
//! the resource kinds people write, and the wire.
//!
//! Promise: no I/O, no clock, no tasks. Every decision that two programs share is made here once.

pub mod admin;
#[cfg(test)]
mod corpus;
pub mod host;
pub mod locality;
pub mod policy;
pub mod resource;
pub mod rest;
pub mod service;
pub mod snapshot;
pub mod spiffe;
pub mod token;
pub mod wire;
pub mod workload;

pub use host::{Check, HostConfig, InboundMode, LocalWorkload, Probe, Selector};
pub use locality::Locality;
pub use policy::AuthorizationPolicy;
pub use service::{NamespacedHostname, Port, Service};
pub use snapshot::{Delta, Revision, Snapshot};
pub use spiffe::{SpiffeId, TrustDomain};
pub use workload::{Class, TunnelProtocol, Workload, WorkloadUid};

/// Field names, units and defaults that more than one program must know.
pub mod ports {
    /// Where intercepted outbound connections arrive, on loopback (Istio's number).
    pub const OUTBOUND: u16 = 15001;
    /// Where observed plaintext arrives (Istio's number).
    pub const INBOUND_PLAINTEXT: u16 = 15006;
    /// Where mTLS tunnels from peers arrive (Istio's number).
    pub const INBOUND_TUNNEL: u16 = 15008;
    /// Where the host's processes' mesh names are answered, on loopback (Istio's number).
    pub const DNS: u16 = 15053;
    /// The agent's admin API, on loopback (Istio's number).
    pub const ADMIN: u16 = 15000;
    /// The agent's `/metrics` (Istio's number).
    pub const METRICS: u16 = 15020;
    /// The agent's `/healthz/ready` (Istio's number).
    pub const READINESS: u16 = 15021;
    /// The control plane's gRPC (Istio's number).
    pub const CONTROL_PLANE_GRPC: u16 = 15012;
    /// The control plane's REST API (Istio's monitoring port).
    pub const CONTROL_PLANE_REST: u16 = 15014;
}
