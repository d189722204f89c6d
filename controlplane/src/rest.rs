//! The operators' API on 15014: REST over HTTPS, described by `/openapi.json`. What the paths take and
//! answer is `api::rest`; every refusal, also of the router itself, is an `ErrorBody`.
//!
//! Handlers translate between JSON and `resources` and `registry`, where all decisions are.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Extension, MatchedPath, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use telemetry::metrics::prometheus_client::metrics::gauge::Gauge;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{Components, InfoBuilder, LicenseBuilder, OpenApiBuilder};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

mod admin_token;
mod extract;
mod hosts;
mod problem;
mod resources;
mod server;
mod status;
mod tokens;
mod workloads;

pub use admin_token::{AdminToken, AdminTokenError};
use problem::Problem;
pub use server::{ServeError, serve};

use crate::app::App;
use crate::metrics::RequestLabels;

/// Who asks, for the audit log.
#[derive(Debug, Clone)]
pub(crate) struct Actor(String);

/// Every route, ready to be served.
pub fn router(app: Arc<App>, admin_token: AdminToken) -> Router {
    let (guarded, mut description) = OpenApiRouter::with_openapi(describe())
        .routes(routes!(resources::apply))
        .routes(routes!(resources::list))
        .routes(routes!(resources::get, resources::delete))
        .routes(routes!(workloads::list))
        .routes(routes!(hosts::list))
        .routes(routes!(hosts::delete))
        .routes(routes!(hosts::act))
        .routes(routes!(tokens::list, tokens::create))
        .routes(routes!(tokens::revoke))
        .routes(routes!(status::status))
        .route_layer(middleware::from_fn(limited))
        .routes(routes!(status::watch))
        .route_layer(middleware::from_fn_with_state(admin_token, admin_token::check))
        .split_for_parts();
    let (open, open_description) =
        OpenApiRouter::new().routes(routes!(status::healthz)).routes(routes!(status::metrics)).split_for_parts();
    description.merge(open_description);
    let description = description.to_pretty_json().unwrap_or_default();
    guarded
        .merge(open)
        .route("/openapi.json", axum::routing::get(openapi).layer(Extension(Description(description.into()))))
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(middleware::from_fn_with_state(app.clone(), counted))
        .with_state(app)
}

#[derive(Clone)]
struct Description(Arc<str>);

async fn openapi(Extension(Description(json)): Extension<Description>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], json.to_string()).into_response()
}

fn describe() -> utoipa::openapi::OpenApi {
    let license = LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build();
    let info = InfoBuilder::new()
        .title("Tombolo control plane")
        .version(telemetry::build::VERSION)
        .description(Some("Resources, hosts and join tokens of the mesh. Every refusal is an ErrorBody."))
        .license(Some(license))
        .build();
    let mut components = Components::new();
    let scheme = Http::builder().scheme(HttpAuthScheme::Bearer).build();
    components.add_security_scheme("admin", SecurityScheme::Http(scheme));
    OpenApiBuilder::new()
        .info(info)
        .components(Some(components))
        .security(Some([SecurityRequirement::new::<_, _, &str>("admin", [])]))
        .build()
}

/// Ends what takes too long, such as a body that trickles in.
async fn limited(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::new(
            StatusCode::REQUEST_TIMEOUT,
            "unavailable",
            format!("the request was not finished within {} s", REQUEST_TIMEOUT.as_secs()),
            "send it faster, or less of it; if the database is slow, look at its load",
        )
        .into_response(),
    }
}

/// Counts every request by its route's pattern.
async fn counted(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let known = [Method::GET, Method::POST, Method::DELETE, Method::PUT, Method::HEAD];
    let method = if known.contains(request.method()) { request.method().to_string() } else { "other".to_owned() };
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let in_flight = InFlight::new(&app.metrics.requests_in_flight);
    let response = next.run(request).await;
    drop(in_flight);
    let status = response.status().as_u16();
    app.metrics.requests.get_or_create(&RequestLabels { method, route, status }).inc();
    response
}

/// Counts one request until it is answered, or its client has gone.
struct InFlight(Gauge);

impl InFlight {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

async fn not_found(request: Request) -> Problem {
    let message = format!("there is nothing at {}", shown(request.uri().path()));
    Problem::new(StatusCode::NOT_FOUND, "not_found", message, "GET /openapi.json lists every path")
}

async fn not_allowed(method: Method, request: Request) -> Problem {
    let message = format!("{method} cannot be done at {}", shown(request.uri().path()));
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "invalid", message, "GET /openapi.json lists what can")
}

/// Foreign text in an answer stays short.
fn shown(text: &str) -> String {
    text.chars().take(120).collect()
}

/// Some ten thousand resources.
const MAX_BODY: usize = 10 << 20;
/// More than the store's own time-outs and retries take together.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests;
