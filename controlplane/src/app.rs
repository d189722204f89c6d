//! What every request handler of the control plane shares. Made once by `run.rs`, never changed.

use std::sync::Arc;
use std::time::Duration;

use api::TrustDomain;
use rustls::server::ResolvesServerCert;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::grpc::Agents;
use crate::issuer::Issuer;
use crate::metrics::Metrics;
use crate::snapshot::Published;
use crate::store::Store;

/// The parts of one running control plane.
pub struct App {
    pub store: Store,
    pub trust_domain: TrustDomain,
    pub issuer: Issuer,
    /// What agents are told, of the newest revision.
    pub published: watch::Receiver<Arc<Published>>,
    /// Streams to this replica.
    pub agents: Agents,
    /// Of both listeners; from [`Issuer::server_tls`].
    pub server_certificate: Arc<dyn ResolvesServerCert>,
    pub metrics: Metrics,
    pub settings: Settings,
    /// Cancelled when the program drains, so that what waits for news ends by itself.
    pub draining: CancellationToken,
}

/// What handlers need of the configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a host's workloads stay without a report. Default 15 s: three reports may be lost.
    pub lease: Duration,
    /// `https://HOST:15012`, as join commands name this control plane.
    pub join_url: String,
}
