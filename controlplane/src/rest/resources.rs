//! `/v1/apply` and `/v1/resources`.

use std::sync::Arc;
use std::time::SystemTime;

use api::resource::KindInfo;
use api::rest::{ApplyAction, ApplyOutcome, ApplyRequest, ApplyResponse, ErrorBody, ResourceList};
use axum::Json;
use axum::extract::{Extension, State};
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::info;
use utoipa::IntoParams;

use super::Actor;
use super::extract::{At, Body, Params};
use super::problem::Problem;
use crate::app::App;
use crate::resources::{self, Apply, Delete};
use crate::store::{ResourceRow, rfc3339, to_ms};

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ApplyParams {
    /// Say what would happen, and change nothing.
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParams {
    /// Only of this namespace.
    namespace: Option<String>,
}

/// Create or replace resources: all of them in one revision, or none.
#[utoipa::path(post, path = "/v1/apply", tag = "resources", params(ApplyParams), request_body = ApplyRequest,
    responses((status = 200, body = ApplyResponse), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub(super) async fn apply(
    State(app): State<Arc<App>>,
    Extension(Actor(actor)): Extension<Actor>,
    Params(params): Params<ApplyParams>,
    Body(request): Body<ApplyRequest>,
) -> Result<Json<ApplyResponse>, Problem> {
    let apply = Apply {
        documents: request.resources,
        dry_run: params.dry_run,
        actor,
        trust_domain: app.trust_domain.clone(),
        now: SystemTime::now(),
    };
    let response = resources::apply(&app.store, &apply).await?;
    let n_changed = response.outcomes.iter().filter(|outcome| outcome.action != ApplyAction::Unchanged).count();
    if n_changed > 0 && !apply.dry_run {
        info!(actor = apply.actor, revision = response.revision, n_changed, "{n_changed} resources were applied");
    }
    Ok(Json(response))
}

/// Every resource of a kind.
#[utoipa::path(get, path = "/v1/resources/{kind}", tag = "resources",
    params(("kind" = String, Path, description = "lower-case singular, such as authorizationpolicy"), ListParams),
    responses((status = 200, body = ResourceList), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    At(kind): At<String>,
    Params(params): Params<ListParams>,
) -> Result<Json<ResourceList>, Problem> {
    let kind = known(&kind)?;
    let (revision, rows) = resources::list(&app.store, kind.singular, params.namespace.as_deref()).await?;
    let items = rows.into_iter().map(|(row, status)| document(&row, status)).collect();
    Ok(Json(ResourceList { revision, items }))
}

/// One resource.
#[utoipa::path(get, path = "/v1/resources/{kind}/{namespace}/{name}", tag = "resources",
    params(("kind" = String, Path), ("namespace" = String, Path), ("name" = String, Path)),
    responses((status = 200, body = Value), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub(super) async fn get(
    State(app): State<Arc<App>>,
    At((kind, namespace, name)): At<(String, String, String)>,
) -> Result<Json<Value>, Problem> {
    let kind = known(&kind)?;
    let (_, rows) = resources::list(&app.store, kind.singular, Some(&namespace)).await?;
    let found = rows.into_iter().find(|(row, _)| row.resource.name() == name);
    let (row, status) = found.ok_or_else(|| {
        let message = format!("there is no {} {namespace}/{name}", kind.singular);
        Problem::not_found(message, format!("`tombolo get {} -n {namespace}` shows what there is", kind.singular))
    })?;
    Ok(Json(document(&row, status)))
}

/// Delete one resource.
#[utoipa::path(delete, path = "/v1/resources/{kind}/{namespace}/{name}", tag = "resources",
    params(("kind" = String, Path), ("namespace" = String, Path), ("name" = String, Path)),
    responses((status = 200, body = ApplyOutcome), (status = "4XX", body = ErrorBody), (status = "5XX", body = ErrorBody)))]
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    Extension(Actor(actor)): Extension<Actor>,
    At((kind, namespace, name)): At<(String, String, String)>,
) -> Result<Json<ApplyOutcome>, Problem> {
    let kind = known(&kind)?.singular.to_owned();
    let delete = Delete { kind, namespace, name, actor, now: SystemTime::now() };
    let outcome = resources::delete(&app.store, &delete).await?;
    info!(actor = delete.actor, "{} {}/{} was deleted", outcome.kind, outcome.namespace, outcome.name);
    Ok(Json(outcome))
}

fn known(kind: &str) -> Result<&'static KindInfo, Problem> {
    api::resource::kind(kind).ok_or_else(|| {
        let kinds: Vec<&str> = api::resource::kinds().iter().map(|info| info.singular).collect();
        let message = format!("{:?} is not a kind of this version", super::shown(kind));
        Problem::not_found(message, format!("one of {}", kinds.join(", ")))
    })
}

/// The document with what the control plane knows of it.
fn document(row: &ResourceRow, status: Value) -> Value {
    let mut document = row.resource.to_value();
    if let Some(metadata) = document.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("uid".to_owned(), json!(row.uid));
        metadata.insert("resourceVersion".to_owned(), json!(row.revision.to_string()));
        metadata.insert("generation".to_owned(), json!(row.generation));
        metadata.insert("creationTimestamp".to_owned(), json!(rfc3339(to_ms(row.created))));
    }
    document["status"] = status;
    document
}
