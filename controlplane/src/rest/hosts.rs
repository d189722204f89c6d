//! `/v1/hosts`.

use std::sync::Arc;
use std::time::SystemTime;

use api::SpiffeId;
use api::rest::{ErrorBody, HostList, HostState, HostView};
use axum::Json;
use axum::extract::{Extension, State};
use tracing::info;

use super::Actor;
use super::extract::At;
use super::problem::Problem;
use crate::app::App;
use crate::registry::{self, HostActionError, HostRecord};
use crate::store::{HostRowState, rfc3339};

/// Every host.
#[utoipa::path(get, path = "/v1/hosts", tag = "hosts",
    responses((status = 200, body = HostList), (status = "5XX", body = ErrorBody)))]
pub(super) async fn list(State(app): State<Arc<App>>) -> Result<Json<HostList>, Problem> {
    let items = registry::list(&app.store).await?.iter().map(|record| view(&app, record)).collect();
    Ok(Json(HostList { items }))
}

/// Forget a host; its name is free again.
#[utoipa::path(delete, path = "/v1/hosts/{name}", tag = "hosts", params(("name" = String, Path)),
    responses((status = 200, body = HostView, description = "as it was"), (status = "4XX", body = ErrorBody)))]
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    Extension(Actor(actor)): Extension<Actor>,
    At(name): At<String>,
) -> Result<Json<HostView>, Problem> {
    let before = one(&app, &name).await?;
    registry::delete(&app.store, &name, &actor, SystemTime::now()).await?;
    info!(actor, host = %name, "host {name} was deleted");
    Ok(Json(before))
}

/// Approve, lock, unlock or revoke a host.
#[utoipa::path(post, path = "/v1/hosts/{name}/{action}", tag = "hosts",
    params(("name" = String, Path), ("action" = String, Path, description = "approve, lock, unlock or revoke")),
    responses((status = 200, body = HostView), (status = "4XX", body = ErrorBody)))]
pub(super) async fn act(
    State(app): State<Arc<App>>,
    Extension(Actor(actor)): Extension<Actor>,
    At((name, action)): At<(String, String)>,
) -> Result<Json<HostView>, Problem> {
    let (store, now) = (&app.store, SystemTime::now());
    match action.as_str() {
        "approve" => registry::approve(store, &name, &actor, now).await?,
        "lock" => registry::lock(store, &name, &actor, now).await?,
        "unlock" => registry::unlock(store, &name, &actor, now).await?,
        "revoke" => registry::revoke(store, &name, &actor, now).await?,
        other => {
            let message = format!("{:?} cannot be done to a host", super::shown(other));
            return Err(Problem::not_found(message, "approve, lock, unlock or revoke it"));
        }
    }
    info!(actor, host = %name, "host {name}: {action}");
    one(&app, &name).await.map(Json)
}

async fn one(app: &App, name: &str) -> Result<HostView, Problem> {
    let records = registry::list(&app.store).await?;
    let found = records.iter().find(|record| record.name == name);
    Ok(view(app, found.ok_or_else(|| HostActionError::NotFound { host: super::shown(name) })?))
}

fn view(app: &App, record: &HostRecord) -> HostView {
    let state = match record.state {
        HostRowState::Pending => HostState::Pending,
        HostRowState::Locked => HostState::Locked,
        HostRowState::Revoked => HostState::Revoked,
        HostRowState::Active if record.alive => HostState::Ready,
        HostRowState::Active => HostState::Away,
    };
    let refused = || app.agents.agent(&record.name).map(|agent| agent.problem).unwrap_or_default();
    HostView {
        name: record.name.clone(),
        identity: SpiffeId::host(&app.trust_domain, &record.name).map(|id| id.to_string()).unwrap_or_default(),
        addresses: record.addresses.iter().map(ToString::to_string).collect(),
        groups: record.groups.clone(),
        state,
        problem: if record.problem.is_empty() { refused() } else { record.problem.clone() },
        version: record.version.clone(),
        revision: record.revision,
        intercepting: record.intercepting,
        joined_at: rfc3339(record.joined_ms),
        last_seen_at: rfc3339(record.reported_ms),
        certificate_not_after: rfc3339(record.certificate_not_after_ms),
    }
}
