//! `/healthz`, `/metrics`, `/v1/status` and `/v1/watch`.

use std::sync::Arc;
use std::time::Duration;

use api::Revision;
use api::rest::{ControlPlaneStatus, ErrorBody, WatchAnswer};
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::extract::Params;
use super::problem::Problem;
use crate::app::App;
use crate::store::{rfc3339, to_ms};

/// What `/healthz` answers.
#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok`, or `degraded` while the database is away: agents keep what they have.
    status: &'static str,
    /// `ok` or `unavailable`.
    database: &'static str,
    revision: Revision,
}

/// Whether the control plane and its database work. 503 while the database does not answer.
#[utoipa::path(get, path = "/healthz", tag = "status", security(()),
    responses((status = 200, body = Health), (status = 503, body = Health)))]
pub(super) async fn healthz(State(app): State<Arc<App>>) -> (StatusCode, Json<Health>) {
    let (code, status, database) = match app.store.available() {
        true => (StatusCode::OK, "ok", "ok"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "degraded", "unavailable"),
    };
    (code, Json(Health { status, database, revision: app.store.revision() }))
}

/// Metrics in OpenMetrics' text form.
#[utoipa::path(get, path = "/metrics", tag = "status", security(()), responses((status = 200, body = String)))]
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    ([(header::CONTENT_TYPE, telemetry::metrics::CONTENT_TYPE)], app.metrics.encode()).into_response()
}

/// What runs here and how far the mesh is.
#[utoipa::path(get, path = "/v1/status", tag = "status", responses((status = 200, body = ControlPlaneStatus)))]
pub(super) async fn status(State(app): State<Arc<App>>) -> Json<ControlPlaneStatus> {
    let published = app.published.borrow().clone();
    let revision = app.store.revision();
    Json(ControlPlaneStatus {
        version: telemetry::build::VERSION.to_owned(),
        trust_domain: app.trust_domain.to_string(),
        revision,
        store: app.store.kind().to_owned(),
        ca_pin: pin_text(&app.issuer.ca_pin()),
        ca_not_after: rfc3339(to_ms(app.issuer.ca_not_after())),
        connected_agents: app.agents.n_connected() as u64,
        current_agents: app.agents.n_current(revision) as u64,
        hosts: published.world.hosts.len() as u64,
        workloads: published.workloads.len() as u64,
        services: published.services.len() as u64,
    })
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct WatchParams {
    /// The revision that the asker knows.
    #[serde(default)]
    since: Revision,
    /// How long to wait for another one, at most 300.
    #[serde(default = "half_a_minute")]
    timeout_s: u64,
}

fn half_a_minute() -> u64 {
    30
}

/// Wait for another revision: answers at once when the asker's is not the newest, else after the time.
#[utoipa::path(get, path = "/v1/watch", tag = "status", params(WatchParams),
    responses((status = 200, body = WatchAnswer), (status = "4XX", body = ErrorBody)))]
pub(super) async fn watch(
    State(app): State<Arc<App>>,
    Params(params): Params<WatchParams>,
) -> Result<Json<WatchAnswer>, Problem> {
    let mut changes = app.store.changes();
    let limit = Duration::from_secs(params.timeout_s.min(MAX_WAIT_S));
    tokio::select! {
        // Another, not only a newer one: the database may have been restored from a backup.
        _ = changes.wait_for(|revision| *revision != params.since) => {}
        () = tokio::time::sleep(limit) => {}
        () = app.draining.cancelled() => {}
    }
    Ok(Json(WatchAnswer { revision: app.store.revision() }))
}

/// A root's fingerprint as `--ca-pin` takes it.
pub(super) fn pin_text(pin: &[u8; 32]) -> String {
    format!("sha256:{}", HEXLOWER.encode(pin))
}

/// Shorter than what load balancers and firewalls let a quiet connection be.
const MAX_WAIT_S: u64 = 300;
