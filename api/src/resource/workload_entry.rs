//! networking.istio.io WorkloadEntry: one workload that no agent of ours runs, written by hand. Pure.
//!
//! The label `networking.istio.io/tunnel: http` says that it speaks HBONE; else it is plain TCP.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use serde::Serialize;

use super::fields::{At, Fields};
use super::{Meta, names};
use crate::locality::Locality;
use crate::workload::TunnelProtocol;

/// Istio's label by which a workload says that it speaks HBONE.
const TUNNEL_LABEL: &str = "networking.istio.io/tunnel";

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadEntry {
    pub address: IpAddr,
    /// Port by name, for services whose `targetPort` is a name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, u16>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(flatten)]
    pub placement: Placement,
}

/// What a WorkloadEntry, a WorkloadGroup's template and a ServiceEntry's endpoint all say.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// Addresses are comparable within one network.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub network: String,
    /// `region/zone/subzone`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub locality: String,
    /// Share among the endpoints of a service; 1 when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// `default` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
}

impl WorkloadEntry {
    /// The labels that selectors see: the object's own and those of its spec, which win (Istio merges
    /// them so).
    pub fn labels(&self, meta: &Meta) -> BTreeMap<String, String> {
        let own = meta.labels.iter().chain(&self.labels);
        own.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    pub fn tunnel_protocol(&self, meta: &Meta) -> TunnelProtocol {
        match self.labels(meta).get(TUNNEL_LABEL).map(String::as_str) {
            Some("http") => TunnelProtocol::Hbone,
            _ => TunnelProtocol::None,
        }
    }
}

impl Placement {
    pub fn service_account(&self) -> &str {
        self.service_account.as_deref().unwrap_or("default")
    }

    pub fn locality(&self) -> Locality {
        Locality::parse(&self.locality)
    }

    pub fn weight(&self) -> u32 {
        self.weight.unwrap_or(1)
    }

    pub(super) fn read(fields: &mut Fields<'_>) -> Self {
        Self {
            network: fields.at("network").and_then(|at| at.checked(names::label_value)).unwrap_or_default(),
            locality: fields.at("locality").and_then(locality).unwrap_or_default(),
            weight: fields.at("weight").and_then(|at| at.number(0, u32::from(u16::MAX))),
            service_account: fields.at("serviceAccount").and_then(|at| at.checked(names::subdomain)),
        }
    }
}

fn locality(at: At<'_>) -> Option<String> {
    let text = at.sibling().text()?;
    let parts: Vec<&str> = text.split('/').collect();
    if parts.len() > 3 || parts.iter().any(|part| part.is_empty()) {
        return at.invalid(&text, "REGION, REGION/ZONE or REGION/ZONE/SUBZONE");
    }
    Some(text)
}

pub(super) fn read(mut spec: Fields<'_>) -> WorkloadEntry {
    let address = spec.required("address", "the address at which its peers reach it").and_then(address);
    let entry = WorkloadEntry {
        address: address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        ports: spec.at("ports").map(named_ports).unwrap_or_default(),
        labels: spec.at("labels").map(|at| at.labels()).unwrap_or_default(),
        placement: Placement::read(&mut spec),
    };
    spec.finish(&[]);
    entry
}

fn address(at: At<'_>) -> Option<IpAddr> {
    let text = at.sibling().text()?;
    if text.starts_with("unix:") {
        return at.unsupported("Unix sockets; write an IP address");
    }
    if names::hostname(&text).is_ok() {
        return at.unsupported("names as addresses; write an IP address");
    }
    at.address()
}

/// Ports by name.
pub(super) fn named_ports(at: At<'_>) -> BTreeMap<String, u16> {
    let entries = at.entries(names::label).into_iter();
    entries.filter_map(|(name, at)| Some((name, at.port()?))).collect()
}
