//! `AggregatedDiscoveryService/DeltaAggregatedResources`: tells each host's agent what there is.
//!
//! [`session`] decides what is sent; this file moves it. A stream is one future that tonic polls when
//! it can send, so a slow agent holds back its own stream and nobody else's. A host that is locked,
//! revoked or forgotten loses its stream with the next snapshot. Opening and closing mean nothing to
//! the registry.

use std::pin::Pin;
use std::sync::Arc;

use api::wire::xds::aggregated_discovery_service_server::AggregatedDiscoveryService;
use api::wire::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use futures_util::{Stream, stream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info, warn};

use self::session::{Heard, Session};
use super::agents::Connected;
use super::peer::{self, Host, check_standing};
use crate::app::App;
use crate::metrics::{Metrics, OutcomeLabels};
use crate::snapshot::Published;

mod session;

pub(super) struct Discovery {
    pub(super) app: Arc<App>,
    pub(super) stopping: CancellationToken,
}

/// One open stream.
struct Feed {
    host: Host,
    metrics: Metrics,
    session: Session,
    requests: Streaming<DeltaDiscoveryRequest>,
    published: watch::Receiver<Arc<Published>>,
    current: Arc<Published>,
    connected: Connected,
    stopping: CancellationToken,
    /// Nothing more is sent.
    ended: bool,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type DeltaAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send + 'static>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let host = peer::standing_host(request.extensions(), &self.app).await?;
        let mut published = self.app.published.clone();
        let current = published.borrow_and_update().clone();
        info!(host = %host.name, src.addr = %host.address, "the agent of host {} is connected", host.name);
        let feed = Feed {
            session: Session::new(&host.name),
            metrics: self.app.metrics.clone(),
            requests: request.into_inner(),
            connected: self.app.agents.connect(&host.name, host.address),
            host,
            published,
            current,
            stopping: self.stopping.clone(),
            ended: false,
        };
        Ok(Response::new(Box::pin(stream::unfold(feed, Feed::turn))))
    }
}

/// Why a stream ends.
enum End {
    /// The agent closed it, or the connection is gone.
    Closed,
    Refused(Status),
}

impl Feed {
    /// The next response, and the feed for the one after.
    async fn turn(mut self) -> Option<(Result<DeltaDiscoveryResponse, Status>, Self)> {
        if self.ended {
            return None;
        }
        match self.next().await {
            Ok(response) => Some((Ok(response), self)),
            Err(End::Closed) => {
                info!(host = %self.host.name, "the agent of host {} is gone", self.host.name);
                None
            }
            Err(End::Refused(status)) => {
                warn!(host = %self.host.name, error = status.message(), "the stream of host {} is ended", self.host.name);
                self.ended = true;
                Some((Err(status), self))
            }
        }
    }

    async fn next(&mut self) -> Result<DeltaDiscoveryResponse, End> {
        loop {
            check_standing(&self.current, &self.host.name).map_err(End::Refused)?;
            if let Some(response) = self.session.next(&self.current) {
                debug!(
                    host = %self.host.name, revision = self.current.revision, resources = response.resources.len(),
                    removed = response.removed_resources.len(), "{} for host {}", response.type_url, self.host.name
                );
                let n_resources = response.resources.len() + response.removed_resources.len();
                self.metrics.discovery_resources.inc_by(n_resources as u64);
                return Ok(response);
            }
            self.connected.acked(self.session.acked(&self.current));
            tokio::select! {
                request = self.requests.message() => self.hear(request)?,
                changed = self.published.changed() => match changed {
                    Ok(()) => self.current = self.published.borrow_and_update().clone(),
                    Err(_) => return Err(End::Refused(stopping())),
                },
                () = self.stopping.cancelled() => return Err(End::Refused(stopping())),
            }
        }
    }

    fn hear(&mut self, request: Result<Option<DeltaDiscoveryRequest>, Status>) -> Result<(), End> {
        // A lost connection ends a stream as often as a polite close does.
        let Ok(Some(request)) = request else { return Err(End::Closed) };
        let type_url = request.type_url.clone();
        match self.session.hear(request) {
            Ok(Heard::Nacked { type_url, message }) => {
                warn!(
                    host = %self.host.name, revision = self.current.revision, error = message,
                    "the agent of host {} refuses {type_url}", self.host.name
                );
                self.connected.refused(&message);
                self.count("refused");
            }
            Ok(Heard::UnknownType) => debug!(host = %self.host.name, "{type_url:?} is not served"),
            Ok(Heard::Acked) => self.count("acknowledged"),
            Ok(Heard::Subscribed) => {}
            Err(error) => return Err(End::Refused(Status::resource_exhausted(error.to_string()))),
        }
        Ok(())
    }

    fn count(&self, outcome: &'static str) {
        self.metrics.discovery_answers.get_or_create(&OutcomeLabels { outcome }).inc();
    }
}

fn stopping() -> Status {
    Status::unavailable("this control plane is stopping; connect again")
}
