//! The local API: `api::admin` on the Unix socket (root) and, for reading, on loopback; `/metrics` and
//! `/healthz/ready` on ports of their own.
//!
//! This file routes; [`views`] says how the agent is, [`readiness`] what keeps it from serving.
//! Changes are taken from the Unix socket alone: a browser or another user's process can reach
//! loopback.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::WorkloadUid;
use api::admin::InterceptCommand;
use api::rest::ErrorBody;
use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{Method, StatusCode};
use identity::Credentials;
use proxy::{Handle, View};
use serde::Serialize;
use telemetry::admin::{BoxFuture, Handler, Origin, Response};
use telemetry::metrics::Registry;
use tokio::sync::{mpsc, watch};

use crate::config::Config;
use crate::connect::Link;
use crate::discovery::DiscoveryState;
use crate::doctor;
use crate::health::Health;
use crate::intercept_control::wanted::Asked;
use crate::intercept_control::{Control, plan};
use crate::issuance::Standing;
use crate::names::NamesStatus;
use crate::state::HostIdentity;
use crate::why;

pub mod readiness;
mod views;

/// What the running agent is made of, as the API reads it.
pub struct Parts {
    pub config: watch::Receiver<Arc<Config>>,
    pub identity: HostIdentity,
    pub view: View,
    pub credentials: Credentials,
    pub link: Link,
    pub discovery: watch::Receiver<DiscoveryState>,
    pub standing: Standing,
    pub health: watch::Receiver<BTreeMap<WorkloadUid, Health>>,
    pub reports: watch::Receiver<String>,
    /// Why the snapshot is not on disk; empty when it is.
    pub unstored: watch::Receiver<String>,
    pub control: Control,
    pub names: watch::Receiver<NamesStatus>,
    pub proxy: Handle,
    pub registry: Arc<Registry>,
    /// How many connections the agent that this one took over from has; `None` when it is gone.
    pub predecessor: watch::Receiver<Option<u64>>,
    /// Set when the agent stops.
    pub stopping: watch::Receiver<bool>,
    pub orders: mpsc::Sender<Order>,
}

/// What the run loop is asked to do.
#[derive(Debug)]
pub enum Order {
    /// Stop as on SIGTERM.
    Drain,
    /// Tell the control plane, stop, and forget the identity. `force` does so also when it cannot be
    /// told; else the agent goes on, and the answer says why. `local` tells nobody.
    Leave { force: bool, local: bool, reply: tokio::sync::oneshot::Sender<Result<(), String>> },
    /// Start the program that is installed now and give way to it. The answer comes when that one serves.
    HandOver(tokio::sync::oneshot::Sender<Result<HandedOver, String>>),
    /// Read the configuration again; the answer says what needs a restart.
    Reload(tokio::sync::oneshot::Sender<Result<Vec<String>, String>>),
}

/// An agent has given way to another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HandedOver {
    /// The process that serves now.
    pub pid: u32,
    /// How many connections the old one still has. They end by themselves.
    pub connections: u64,
}

/// The whole admin API.
pub struct Admin(pub Arc<Parts>);

/// `/metrics` alone.
pub struct Metrics(pub Arc<Parts>);

/// `/healthz/ready` alone.
pub struct Readiness(pub Arc<Parts>);

impl Handler for Admin {
    fn handle(&self, method: Method, path: PathAndQuery, body: Bytes, origin: Origin) -> BoxFuture<'_, Response> {
        Box::pin(async move {
            match (method, origin) {
                (_, Origin::Any) => refused(StatusCode::FORBIDDEN, "the admin API is for processes of this host"),
                (Method::GET, _) => self.get(path.path(), &query(&path)).await,
                (Method::POST, Origin::Unix) => self.post(path.path(), &body).await,
                (Method::POST, _) => refused(StatusCode::FORBIDDEN, "changes are taken on the Unix socket alone"),
                _ => refused(StatusCode::METHOD_NOT_ALLOWED, "GET or POST"),
            }
        })
    }
}

impl Handler for Metrics {
    fn handle(&self, method: Method, path: PathAndQuery, _: Bytes, _: Origin) -> BoxFuture<'_, Response> {
        Box::pin(async move {
            match (method, path.path()) {
                (Method::GET, "/metrics") => Response::metrics(&self.0.registry),
                _ => refused(StatusCode::NOT_FOUND, "only GET /metrics is here"),
            }
        })
    }
}

impl Handler for Readiness {
    fn handle(&self, method: Method, path: PathAndQuery, _: Bytes, _: Origin) -> BoxFuture<'_, Response> {
        Box::pin(async move {
            if method != Method::GET || path.path() != "/healthz/ready" {
                return refused(StatusCode::NOT_FOUND, "only GET /healthz/ready is here");
            }
            match self.0.problems().as_slice() {
                [] => Response::text(StatusCode::OK, "ready\n"),
                problems => Response::text(StatusCode::SERVICE_UNAVAILABLE, problems.join("\n") + "\n"),
            }
        })
    }
}

impl Admin {
    async fn get(&self, path: &str, query: &BTreeMap<String, String>) -> Response {
        let parts = &self.0;
        match path {
            "/status" => blocking(parts, |parts| Ok(views::status(parts))).await,
            "/intercept" => blocking(parts, |parts| Ok(views::intercept(parts))).await,
            "/plan" => blocking(parts, self::plan).await,
            "/why" => {
                let asked = |name: &str| query.get(name).cloned().unwrap_or_default();
                let snapshot = parts.view.load();
                match why::explain(&snapshot, &parts.own_ports(), &asked("src"), &asked("dst")) {
                    Ok(explanation) => answer(&explanation),
                    Err(error) => refused(StatusCode::BAD_REQUEST, &error.to_string()),
                }
            }
            "/doctor" => {
                let config = parts.config.borrow().clone();
                let running = doctor::Agent::Running { problems: views::status(parts).problems };
                answer(&doctor::diagnose(&config, &running).await)
            }
            "/workloads" => answer(&views::workloads(parts)),
            "/connections" => answer(&parts.proxy.connections()),
            "/snapshot" => answer(&views::snapshot(&parts.view.load())),
            _ => refused(StatusCode::NOT_FOUND, "there is no such page; see /status, /plan, /intercept, /why, /doctor"),
        }
    }

    async fn post(&self, path: &str, body: &[u8]) -> Response {
        match path {
            "/intercept" => match serde_json::from_slice::<InterceptCommand>(body) {
                Ok(command) => self.intercept(command).await,
                Err(error) => refused(StatusCode::BAD_REQUEST, &format!("not an interception command: {error}")),
            },
            "/drain" => match self.0.orders.send(Order::Drain).await {
                Ok(()) => answer(&serde_json::json!({})),
                Err(_) => stopping(),
            },
            "/leave" => {
                let asked = serde_json::from_slice::<serde_json::Value>(body).unwrap_or_default();
                let (reply, told) = tokio::sync::oneshot::channel();
                let (force, local) = (asked["force"] == true, asked["local"] == true);
                self.order(Order::Leave { force, local, reply }, told).await
            }
            "/hand-over" => {
                let (reply, done) = tokio::sync::oneshot::channel();
                self.order(Order::HandOver(reply), done).await
            }
            "/reload" => {
                let (reply, done) = tokio::sync::oneshot::channel();
                self.order(Order::Reload(reply), done).await
            }
            _ => refused(StatusCode::NOT_FOUND, "there is no such command"),
        }
    }

    async fn intercept(&self, command: InterceptCommand) -> Response {
        match self.0.control.command(command).await {
            Ok(()) => blocking(&self.0, |parts| Ok(views::intercept(parts))).await,
            Err(why) => refused(StatusCode::CONFLICT, &why),
        }
    }

    async fn order<T: Serialize>(
        &self,
        order: Order,
        done: tokio::sync::oneshot::Receiver<Result<T, String>>,
    ) -> Response {
        if self.0.orders.send(order).await.is_err() {
            return stopping();
        }
        match done.await {
            Ok(Ok(value)) => answer(&serde_json::json!({ "done": value })),
            Ok(Err(why)) => refused(StatusCode::CONFLICT, &why),
            Err(_) => stopping(),
        }
    }
}

impl Parts {
    /// Ports that are never a legal destination.
    pub(crate) fn own_ports(&self) -> std::collections::BTreeSet<u16> {
        let addresses = self.proxy.addresses();
        let bound = addresses.outbound.iter().chain(&addresses.tunnels).chain(&addresses.plaintext);
        bound.map(std::net::SocketAddr::port).chain([api::ports::INBOUND_TUNNEL]).collect()
    }
}

fn plan(parts: &Parts) -> Result<api::admin::Plan, String> {
    let snapshot = parts.view.load();
    let config = parts.config.borrow().clone();
    let names = parts.names.borrow().via.clone();
    let ports = crate::run::own_ports(&parts.proxy, &config);
    let wanted = Asked::new(snapshot.clone(), None, &config.interception, &names, ports).wanted();
    let running = parts.control.state().asked.map(|asked| asked.wanted());
    plan::plan(&snapshot, &wanted, running.as_ref()).map_err(|error| telemetry::Chain(&error).to_string())
}

/// The kernel is asked; that may take some milliseconds.
async fn blocking<T, F>(parts: &Arc<Parts>, make: F) -> Response
where
    T: Serialize + Send + 'static,
    F: FnOnce(&Parts) -> Result<T, String> + Send + 'static,
{
    let parts = parts.clone();
    match tokio::task::spawn_blocking(move || make(&parts)).await {
        Ok(Ok(value)) => answer(&value),
        Ok(Err(why)) => refused(StatusCode::INTERNAL_SERVER_ERROR, &why),
        Err(error) => refused(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn answer<T: Serialize>(value: &T) -> Response {
    match serde_json::to_value(value) {
        Ok(value) => Response::json(StatusCode::OK, &value),
        Err(error) => refused(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn refused(status: StatusCode, why: &str) -> Response {
    let code = match status {
        StatusCode::BAD_REQUEST | StatusCode::METHOD_NOT_ALLOWED => "invalid",
        StatusCode::NOT_FOUND => "not_found",
        StatusCode::CONFLICT => "conflict",
        StatusCode::FORBIDDEN => "forbidden",
        StatusCode::SERVICE_UNAVAILABLE => "unavailable",
        _ => "internal",
    };
    let body = ErrorBody { code: code.to_owned(), message: why.to_owned(), hint: String::new(), mistakes: vec![] };
    Response::json(status, &serde_json::to_value(body).unwrap_or_default())
}

fn stopping() -> Response {
    refused(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping")
}

fn query(path: &PathAndQuery) -> BTreeMap<String, String> {
    let pairs = url::form_urlencoded::parse(path.query().unwrap_or_default().as_bytes());
    pairs.map(|(name, value)| (name.into_owned(), value.into_owned())).collect()
}

#[cfg(test)]
mod tests;
