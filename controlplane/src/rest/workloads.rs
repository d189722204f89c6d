//! `/v1/workloads`: what agents are told of workloads, with what they are not told.

use std::sync::Arc;

use api::rest::{ErrorBody, WorkloadList, WorkloadView};
use api::{TunnelProtocol, Workload};
use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;

use super::extract::Params;
use super::problem::Problem;
use crate::app::App;
use crate::snapshot::Published;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParams {
    /// Only of this namespace.
    namespace: Option<String>,
}

/// Every workload of the registry.
#[utoipa::path(get, path = "/v1/workloads", tag = "workloads", params(ListParams),
    responses((status = 200, body = WorkloadList), (status = "4XX", body = ErrorBody)))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Params(params): Params<ListParams>,
) -> Result<Json<WorkloadList>, Problem> {
    let published = app.published.borrow().clone();
    let wanted = |workload: &&Workload| params.namespace.as_deref().is_none_or(|wanted| wanted == workload.namespace);
    let items = published.workloads.values().filter(wanted).map(|workload| view(workload, &published)).collect();
    Ok(Json(WorkloadList { revision: published.revision, items }))
}

fn view(workload: &Workload, published: &Published) -> WorkloadView {
    let reported = published.world.health.get(workload.uid.as_ref()).map(|health| health.reason.clone());
    WorkloadView {
        uid: workload.uid.to_string(),
        name: workload.name.clone(),
        namespace: workload.namespace.clone(),
        group: workload.workload_name.clone(),
        host: workload.node.clone(),
        addresses: workload.addresses.iter().map(ToString::to_string).collect(),
        identity: workload.identity().map(|identity| identity.to_string()).unwrap_or_default(),
        tunnel: match workload.tunnel_protocol {
            TunnelProtocol::Hbone => "HBONE".to_owned(),
            TunnelProtocol::None => "NONE".to_owned(),
        },
        healthy: workload.healthy,
        reason: if workload.healthy { String::new() } else { reported.unwrap_or_default() },
        services: workload.services.keys().map(|service| service.hostname.clone()).collect(),
    }
}
