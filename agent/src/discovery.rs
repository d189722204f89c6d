//! The configuration stream: delta ADS from the control plane into the [`View`] the proxy obeys.
//!
//! One stream carries four types (`api::wire`). [`holdings`] decides, without I/O, what a response
//! makes of the snapshot and what is answered: ACK, or NACK that names each bad resource while the
//! good ones of the same response are obeyed. A lost stream is opened again after a jittered pause,
//! and only what changed is sent again. Nothing that was received is lost while the control plane is
//! away: [`cache`] keeps it on disk. An older revision is never obeyed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use api::wire::xds::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use api::wire::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use arc_swap::ArcSwap;
use futures_util::{StreamExt, stream};
use identity::{Bundles, Credentials};
use proxy::drain::DrainWatch;
use proxy::view::View;
use rustls_pki_types::CertificateDer;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::{info, warn};

use crate::config::{ControlPlane, WorkloadOverride};
use crate::connect::{self, Link};
use crate::state::StateDir;

pub mod cache;
pub mod holdings;

pub use holdings::{Holdings, Taken};

/// The largest response (ztunnel's limit, `src/xds/client.rs`).
const MAX_RESPONSE_BYTES: usize = 200 << 20;
/// How often an open stream looks whether the host certificate was renewed.
const ROTATION_CHECK: Duration = Duration::from_secs(5);

/// How long a stream that is given up stays, so that the control plane hears why.
const NACK_DELIVERY: Duration = Duration::from_millis(500);

/// What discovery knows of itself, for `status` and for the control plane.
#[derive(Debug, Clone)]
pub struct DiscoveryState {
    /// `control plane`, `disk`, or `nothing` so far.
    pub source: &'static str,
    pub received_at: Option<SystemTime>,
    /// The last NACK, or why the control plane's answer is not obeyed; empty when all is.
    pub problem: String,
}

/// The stream's task and what it shares with others.
pub struct Discovery {
    link: Link,
    view: View,
    credentials: Credentials,
    holdings: Arc<Mutex<Holdings>>,
    state: watch::Sender<DiscoveryState>,
    overrides: Overrides,
    reconnect: (Duration, Duration),
    node: Node,
}

/// What this host says itself about its workloads; swapped whole when the configuration is read again.
pub type Overrides = Arc<ArcSwap<Vec<WorkloadOverride>>>;

/// Why a stream ended.
enum Ended {
    /// The agent stops.
    Drained,
    /// The host certificate was renewed: the next stream proves the new one.
    Rotated,
    /// For this reason; whether anything was received before.
    Lost { why: String, received: bool },
}

impl Discovery {
    /// Starts from what `holdings` has, which the cache read from disk.
    pub fn new(
        settings: &ControlPlane,
        link: Link,
        view: View,
        credentials: Credentials,
        holdings: Holdings,
        overrides: Overrides,
    ) -> Self {
        let host = link.host().host_name().unwrap_or_default().to_owned();
        let is_stored = holdings.synced();
        let source = if is_stored { "disk" } else { "nothing" };
        let state = DiscoveryState { source, received_at: None, problem: String::new() };
        Self {
            link,
            view,
            credentials,
            holdings: Arc::new(Mutex::new(holdings)),
            state: watch::Sender::new(state),
            overrides,
            reconnect: (settings.reconnect_min, settings.reconnect_max),
            node: Node { id: format!("tombolo~{host}"), ..Node::default() },
        }
    }

    pub fn holdings(&self) -> Arc<Mutex<Holdings>> {
        self.holdings.clone()
    }

    pub fn subscribe(&self) -> watch::Receiver<DiscoveryState> {
        self.state.subscribe()
    }

    /// Keeps a stream open until the drain.
    pub async fn run(self, drain: DrainWatch) {
        let mut pause = self.reconnect.0;
        loop {
            let ended = self.stream(&drain).await;
            match ended {
                Ended::Drained => return,
                Ended::Rotated => {
                    pause = self.reconnect.0;
                    continue;
                }
                Ended::Lost { why, received } => {
                    if received {
                        pause = self.reconnect.0;
                    }
                    if self.link.set(SystemTime::now(), Err(why.clone())) {
                        let (control_plane, revision) = (self.link.url(), self.view.load().revision());
                        warn!(
                            error = why,
                            revision, "no stream from the control plane {control_plane}, the last snapshot stays"
                        );
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(jittered(pause, rand::random())) => {}
                () = drain.signaled() => return,
            }
            pause = (pause * 2).min(self.reconnect.1);
        }
    }

    async fn stream(&self, drain: &DrainWatch) -> Ended {
        let lost = |why: String| Ended::Lost { why, received: false };
        let serial = self.link.serial();
        let (requests, outgoing) = mpsc::channel(holdings::TYPES.len() * 2);
        // Made when they can be sent: they name all that is held, and the control plane may be away.
        let (holdings, node) = (self.holdings.clone(), self.node.clone());
        let first = stream::once(async move { stream::iter(held(&holdings).subscriptions(&node)) }).flatten();
        let outgoing = first.chain(ReceiverStream::new(outgoing));
        let mut client =
            AggregatedDiscoveryServiceClient::new(self.link.channel()).max_decoding_message_size(MAX_RESPONSE_BYTES);
        let opened = tokio::select! {
            opened = client.delta_aggregated_resources(outgoing) => opened,
            () = drain.signaled() => return Ended::Drained,
        };
        let responses = match opened {
            Ok(response) => response.into_inner(),
            Err(status) => return lost(connect::explain(&status)),
        };
        if self.link.set(SystemTime::now(), Ok(())) {
            info!(revision = self.view.load().revision(), "connected to the control plane {}", self.link.url());
        }
        self.receive(responses, requests, &serial, drain).await
    }

    async fn receive(
        &self,
        mut responses: Streaming<DeltaDiscoveryResponse>,
        requests: mpsc::Sender<DeltaDiscoveryRequest>,
        serial: &str,
        drain: &DrainWatch,
    ) -> Ended {
        let mut received = false;
        let mut check = tokio::time::interval(ROTATION_CHECK);
        loop {
            let response = tokio::select! {
                response = responses.message() => response,
                _ = check.tick() => {
                    if self.link.serial() == serial { continue }
                    return Ended::Rotated;
                }
                () = drain.signaled() => return Ended::Drained,
            };
            let response = match response {
                Ok(Some(response)) => response,
                Ok(None) => return Ended::Lost { why: "the control plane closed the stream".to_owned(), received },
                Err(status) => return Ended::Lost { why: connect::explain(&status), received },
            };
            let (answer, stale) = self.take(response);
            let sent = tokio::select! {
                sent = requests.send(answer) => sent.is_ok(),
                () = drain.signaled() => return Ended::Drained,
            };
            // Another replica, or the same one later, may know what this one does not yet.
            if let Some(why) = stale {
                drop(requests);
                let _ = tokio::time::timeout(NACK_DELIVERY, responses.message()).await;
                return Ended::Lost { why, received: false };
            }
            if !sent {
                return Ended::Lost { why: "the control plane closed the stream".to_owned(), received };
            }
            received = true;
        }
    }

    /// Obeys one response; answers what to send back, and whether the stream is of the past.
    fn take(&self, response: DeltaDiscoveryResponse) -> (DeltaDiscoveryRequest, Option<String>) {
        let mut holdings = self.held();
        let taken = holdings.take(response);
        for refused in &taken.refused {
            warn!(revision = taken.revision, error = %refused, "a resource was refused, the older one of its name stays");
        }
        let problem = taken.answer.error_detail.as_ref().map(|status| status.message.clone()).unwrap_or_default();
        if let Some(why) = &taken.stale {
            warn!(revision = taken.revision, error = why, "an older revision is not obeyed");
        } else if holdings.synced() {
            self.publish(&holdings, taken.bundles_changed);
        }
        self.state.send_modify(|state| {
            if taken.stale.is_none() {
                (state.source, state.received_at) = ("control plane", Some(SystemTime::now()));
            }
            state.problem = problem;
        });
        (taken.answer, taken.stale)
    }

    fn publish(&self, holdings: &Holdings, bundles_changed: bool) {
        let snapshot = crate::workloads::overlay(holdings.snapshot(), &self.overrides.load());
        if bundles_changed {
            set_bundles(&self.credentials, &snapshot);
        }
        let revision = snapshot.revision();
        self.view.publish(snapshot);
        tracing::debug!(revision, "revision {revision} is received");
    }

    fn held(&self) -> MutexGuard<'_, Holdings> {
        held(&self.holdings)
    }
}

fn held(holdings: &Mutex<Holdings>) -> MutexGuard<'_, Holdings> {
    // Nothing under this lock waits; a panic in it leaves whole values.
    holdings.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts the snapshot's roots in force. Those of the own trust domain are never lost: without them
/// this host could not even hear that they changed.
pub fn set_bundles(credentials: &Credentials, snapshot: &api::Snapshot) {
    let own = credentials.trust_domain();
    let mut bundles = Bundles::default();
    let current = credentials.bundles();
    if !current.roots(own).is_empty()
        && let Err(error) = bundles.insert(own.clone(), current.roots(own).to_vec())
    {
        warn!(error = %telemetry::Chain(&error), "the roots of {own} cannot be kept");
    }
    for bundle in snapshot.bundles() {
        let roots = bundle.roots.iter().cloned().map(CertificateDer::from).collect();
        if let Err(error) = bundles.insert(bundle.trust_domain.clone(), roots) {
            warn!(error = %telemetry::Chain(&error), "the trust bundle of {} is not usable", bundle.trust_domain);
        }
    }
    credentials.set_bundles(bundles);
}

/// Keeps the roots of the own trust domain on disk, for the next start.
pub fn store_roots(state: &StateDir, credentials: &Credentials) -> Result<(), crate::state::StateError> {
    let pem = credentials.bundles().roots_pem(credentials.trust_domain());
    if pem.is_empty() || state.roots()?.as_deref() == Some(pem.as_str()) {
        return Ok(());
    }
    state.set_roots(&pem)
}

/// Between half and all of the pause: a fleet does not come back in one moment.
fn jittered(pause: Duration, unit: f64) -> Duration {
    pause.mul_f64(0.5 + unit.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests;
