//! `/v1/tokens`: join tokens. The token itself is in one answer only and in no log.

use std::sync::Arc;
use std::time::SystemTime;

use api::rest::{ErrorBody, TokenCreated, TokenList, TokenRequest, TokenView};
use axum::Json;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use tracing::info;

use super::Actor;
use super::extract::{At, Body};
use super::problem::Problem;
use crate::app::App;
use crate::registry::{self, TokenRecord};
use crate::store::rfc3339;

/// Every token that can be used or ended lately; never the tokens themselves.
#[utoipa::path(get, path = "/v1/tokens", tag = "tokens",
    responses((status = 200, body = TokenList), (status = "5XX", body = ErrorBody)))]
pub(super) async fn list(State(app): State<Arc<App>>) -> Result<Json<TokenList>, Problem> {
    let items = registry::list_tokens(&app.store).await?.iter().map(view).collect();
    Ok(Json(TokenList { items }))
}

/// Make a token.
#[utoipa::path(post, path = "/v1/tokens", tag = "tokens", request_body = TokenRequest,
    responses((status = 201, body = TokenCreated), (status = "4XX", body = ErrorBody)))]
pub(super) async fn create(
    State(app): State<Arc<App>>,
    Extension(Actor(actor)): Extension<Actor>,
    Body(request): Body<TokenRequest>,
) -> Result<(StatusCode, Json<TokenCreated>), Problem> {
    let pin = app.issuer.ca_pin();
    let (token, record) = registry::create_token(&app.store, &request, &pin, &actor, SystemTime::now()).await?;
    info!(actor, token = %record.id, groups = ?record.groups, "join token {} was made", record.id);
    let token = token.reveal();
    let created = TokenCreated {
        join_command: format!("tombolo join {} --token {token}", app.settings.join_url),
        token,
        ca_pin: super::status::pin_text(&pin),
        view: view(&record),
    };
    Ok((StatusCode::CREATED, Json(created)))
}

/// Make a token useless at once; hosts that joined with it stay.
#[utoipa::path(delete, path = "/v1/tokens/{id}", tag = "tokens", params(("id" = String, Path)),
    responses((status = 200, body = TokenView, description = "as it was"), (status = "4XX", body = ErrorBody)))]
pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    Extension(Actor(actor)): Extension<Actor>,
    At(id): At<String>,
) -> Result<Json<TokenView>, Problem> {
    let unknown = || {
        Problem::not_found(format!("there is no join token {}", super::shown(&id)), "`tombolo token list` shows them")
    };
    let before = registry::list_tokens(&app.store).await?.into_iter().find(|record| record.id == id);
    let before = before.ok_or_else(unknown)?;
    if !registry::revoke_token(&app.store, &id, &actor, SystemTime::now()).await? {
        return Err(unknown());
    }
    info!(actor, token = %id, "join token {id} was revoked");
    Ok(Json(view(&before)))
}

fn view(record: &TokenRecord) -> TokenView {
    TokenView {
        id: record.id.clone(),
        groups: record.groups.clone(),
        uses_left: u32::try_from(record.uses_left).unwrap_or_default(),
        name_pattern: record.name_pattern.clone(),
        cidrs: record.cidrs.clone(),
        created_at: rfc3339(record.created_ms),
        expires_at: rfc3339(record.expires_ms),
        created_by: record.created_by.clone(),
    }
}
