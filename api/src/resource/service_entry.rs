//! networking.istio.io ServiceEntry: a service by names of the operator's choice, whose endpoints are
//! listed or selected by label. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Serialize, Serializer};

use super::fields::{At, Fields};
use super::service::unique;
use super::workload_entry::{self, WorkloadEntry};
use super::{names, port_protocol};
use crate::service::AppProtocol;

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEntry {
    pub hosts: Vec<String>,
    /// Virtual addresses the operator chose; empty lets the control plane choose.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<ServiceEntryPort>,
    #[serde(skip_serializing_if = "Location::is_external")]
    pub location: Location,
    /// Always STATIC in this version.
    pub resolution: Resolution,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<WorkloadEntry>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", serialize_with = "as_selector")]
    pub workload_selector: BTreeMap<String, String>,
    /// Identities an endpoint may prove besides its own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subject_alt_names: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEntryPort {
    pub number: u16,
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// Absent is the endpoint's port of the same name, else `number`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_port: Option<u16>,
}

/// Whether the endpoints belong to the mesh.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Location {
    #[default]
    MeshExternal,
    MeshInternal,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Resolution {
    #[default]
    Static,
}

impl Location {
    fn is_external(&self) -> bool {
        *self == Self::MeshExternal
    }
}

impl ServiceEntryPort {
    /// What the port carries: `protocol`, else the port name's prefix.
    pub fn protocol(&self) -> AppProtocol {
        port_protocol(self.protocol.as_deref().unwrap_or(&self.name))
    }

    /// The port on an endpoint with these named ports (Istio's order: endpoint, targetPort, number).
    pub fn target(&self, named: &BTreeMap<String, u16>) -> u16 {
        named.get(&self.name).copied().or(self.target_port).unwrap_or(self.number)
    }
}

fn as_selector<S: Serializer>(labels: &BTreeMap<String, String>, serializer: S) -> Result<S::Ok, S::Error> {
    BTreeMap::from([("labels", labels)]).serialize(serializer)
}

pub(super) fn read(mut spec: Fields<'_>) -> ServiceEntry {
    let everywhere = "every namespace sees it; leave it out";
    spec.only("exportTo", &["*"], everywhere);
    let static_only = "write STATIC and list the endpoints' addresses; what is not in the mesh passes it untouched";
    if let Some(at) = spec.required("resolution", "STATIC, with endpoints or a workloadSelector") {
        match at.sibling().text().as_deref() {
            Some("STATIC") | None => {}
            Some("NONE" | "DNS" | "DNS_ROUND_ROBIN" | "DYNAMIC_DNS") => drop(at.unsupported::<()>(static_only)),
            Some(other) => drop(at.invalid::<()>(other, "STATIC")),
        }
    }
    let locations = [("MESH_EXTERNAL", Location::MeshExternal), ("MESH_INTERNAL", Location::MeshInternal)];
    let entry = ServiceEntry {
        hosts: hosts(&mut spec),
        addresses: addresses(&mut spec),
        ports: ports(&mut spec),
        location: spec.at("location").and_then(|at| at.one_of(&locations)).unwrap_or_default(),
        resolution: Resolution::Static,
        endpoints: spec.list("endpoints").into_iter().filter_map(At::object).map(workload_entry::read).collect(),
        workload_selector: spec.object("workloadSelector").map(selector).unwrap_or_default(),
        subject_alt_names: spec.texts("subjectAltNames"),
    };
    match (entry.endpoints.is_empty(), entry.workload_selector.is_empty()) {
        (true, true) => spec.conflict("must have endpoints or a workloadSelector"),
        (false, false) => spec.conflict("must have either endpoints or a workloadSelector, not both"),
        _ => {}
    }
    spec.finish(&[]);
    entry
}

fn hosts(spec: &mut Fields<'_>) -> Vec<String> {
    let Some(at) = spec.required("hosts", "at least one name") else { return Vec::new() };
    let mut seen = BTreeSet::new();
    let host = |at: At<'_>| match at.sibling().text()?.starts_with('*') {
        true => at.unsupported("names with a wildcard; list each name"),
        false => at.checked(names::hostname),
    };
    let items = at.filled_list("write at least one name").into_iter();
    items.filter_map(|at| unique(Some(at), &mut seen, host)).collect()
}

fn addresses(spec: &mut Fields<'_>) -> Vec<IpAddr> {
    let mut seen = BTreeSet::new();
    let items = spec.list("addresses").into_iter();
    items.filter_map(|at| unique(Some(at), &mut seen, At::address)).collect()
}

fn ports(spec: &mut Fields<'_>) -> Vec<ServiceEntryPort> {
    let Some(at) = spec.required("ports", "at least one port") else { return Vec::new() };
    let (mut numbers, mut port_names) = (BTreeSet::new(), BTreeSet::new());
    let items = at.filled_list("write at least one port").into_iter().filter_map(At::object);
    items
        .map(|mut fields| {
            let number = fields.required("number", "the port that callers dial");
            let name = fields.required("name", "each port needs a name");
            let port = ServiceEntryPort {
                number: unique(number, &mut numbers, At::port).unwrap_or_default(),
                name: unique(name, &mut port_names, |at| at.checked(names::label)).unwrap_or_default(),
                protocol: fields.at("protocol").and_then(protocol),
                target_port: fields.at("targetPort").and_then(At::port),
            };
            fields.finish(&[]);
            port
        })
        .collect()
}

fn protocol(at: At<'_>) -> Option<String> {
    let text = at.sibling().text()?;
    match text.to_ascii_uppercase().as_str() {
        "HTTP" | "HTTPS" | "HTTP2" | "GRPC" | "MONGO" | "TCP" | "TLS" => Some(text),
        "UDP" => at.unsupported("only TCP is meshed; other protocols pass the mesh untouched"),
        _ => at.invalid(&text, "one of HTTP, HTTPS, HTTP2, GRPC, MONGO, TCP, TLS"),
    }
}

fn selector(mut fields: Fields<'_>) -> BTreeMap<String, String> {
    let labels = fields.required("labels", "at least one label").map(At::labels);
    if labels.as_ref().is_some_and(BTreeMap::is_empty) {
        fields.conflict("must have at least one label");
    }
    fields.finish(&[]);
    labels.unwrap_or_default()
}
