//! core/v1 Service: a name and ports for the workloads that its labels select. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::fields::{At, Fields};
use super::names;
use super::port_protocol;
use crate::service::AppProtocol;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    /// Labels that a workload must have, all of them.
    pub selector: BTreeMap<String, String>,
    pub ports: Vec<ServicePort>,
    /// Virtual addresses the operator chose; empty lets the control plane choose.
    pub cluster_ips: Vec<IpAddr>,
    /// Also send to workloads that are known to be unhealthy.
    pub publish_not_ready_addresses: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub port: u16,
    /// Absent is the same as `port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_port: Option<TargetPort>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
}

/// Which of a workload's ports is meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum TargetPort {
    Number(u16),
    /// As the workload's `ports` name it.
    Name(String),
}

impl ServicePort {
    /// What the port carries: `appProtocol`, else the port name's prefix (Istio's protocol selection).
    pub fn protocol(&self) -> AppProtocol {
        match &self.app_protocol {
            Some(declared) => port_protocol(declared),
            None => self.name.as_deref().map(port_protocol).unwrap_or_default(),
        }
    }

    /// The port on a workload with these named ports; `None` when it has none of that name.
    pub fn target(&self, named: &BTreeMap<String, u16>) -> Option<u16> {
        match &self.target_port {
            None => Some(self.port),
            Some(TargetPort::Number(port)) => Some(*port),
            Some(TargetPort::Name(name)) => named.get(name).copied(),
        }
    }
}

pub(super) fn read(mut spec: Fields<'_>) -> Service {
    let kind = "only ClusterIP services; hosts outside the mesh reach a workload by its host's address";
    spec.only("type", &["ClusterIP"], kind);
    spec.only("sessionAffinity", &["None"], "connections are balanced one by one; leave it out");
    spec.only("internalTrafficPolicy", &["Cluster"], "every endpoint is used; leave it out");
    spec.only("ipFamilies", &["IPv4", "IPv6"], "leave it out: a service has an IPv4 and an IPv6 address");
    let families = "leave it out: a service has an IPv4 and an IPv6 address";
    spec.only("ipFamilyPolicy", &["SingleStack", "PreferDualStack", "RequireDualStack"], families);
    let selector = spec.required("selector", "the labels of the workloads that serve it").map(|at| at.labels());
    let service = Service {
        cluster_ips: cluster_ips(&mut spec),
        ports: ports(spec.required("ports", "at least one port")),
        publish_not_ready_addresses: spec
            .at("publishNotReadyAddresses")
            .and_then(|at| at.boolean())
            .unwrap_or_default(),
        selector: selector.clone().unwrap_or_default(),
    };
    if selector.is_some_and(|selector| selector.is_empty()) {
        spec.conflict("selector is empty: write the labels of the workloads that serve it");
    }
    spec.finish(&[
        ("externalName", "use a ServiceEntry with the endpoints' addresses"),
        ("externalIPs", "write the address in clusterIP"),
        ("loadBalancerIP", "there are no load balancers to ask; use clusterIP"),
        ("loadBalancerSourceRanges", "use an AuthorizationPolicy with ipBlocks"),
        ("loadBalancerClass", "there are no load balancers to ask"),
        ("allocateLoadBalancerNodePorts", "there are no load balancers to ask"),
        ("externalTrafficPolicy", "there are no load balancers to ask"),
        ("healthCheckNodePort", "there are no load balancers to ask"),
        ("sessionAffinityConfig", "connections are balanced one by one"),
        ("trafficDistribution", "every endpoint is used"),
    ]);
    service
}

fn cluster_ips(spec: &mut Fields<'_>) -> Vec<IpAddr> {
    let address = |at: At<'_>| match at.is("None") {
        true => at.unsupported("headless services; leave it out, or name single hosts by ServiceEntry"),
        false => at.address(),
    };
    let one = spec.at("clusterIP").filter(|at| !at.is("")).and_then(address);
    let mut all: Vec<IpAddr> = Vec::new();
    for at in spec.list("clusterIPs") {
        let again = at.sibling();
        match address(at) {
            Some(ip) if all.contains(&ip) => again.duplicate(&ip),
            Some(ip) => all.push(ip),
            None => {}
        }
    }
    match (one, all.first()) {
        (Some(one), Some(first)) if one != *first => {
            spec.conflict(format!("clusterIP {one} and the first of clusterIPs, {first}, must be the same"));
        }
        (Some(one), None) => all.push(one),
        _ => {}
    }
    all
}

fn ports(list: Option<At<'_>>) -> Vec<ServicePort> {
    let Some(list) = list else { return Vec::new() };
    let items = list.filled_list("a service has at least one port");
    let several = items.len() > 1;
    let (mut numbers, mut port_names) = (BTreeSet::new(), BTreeSet::new());
    let mut ports = Vec::with_capacity(items.len());
    for at in items {
        let Some(mut fields) = at.object() else { continue };
        fields.only("protocol", &["TCP"], "only TCP is meshed; other protocols pass the mesh untouched");
        let number = fields.required("port", "the port that callers dial");
        let name = match several {
            true => fields.required("name", "with several ports each needs a name"),
            false => fields.at("name"),
        };
        let port = ServicePort {
            port: unique(number, &mut numbers, At::port).unwrap_or_default(),
            name: unique(name, &mut port_names, |at| at.checked(names::label)),
            target_port: fields.at("targetPort").and_then(target_port),
            app_protocol: fields.at("appProtocol").and_then(|at| at.checked(names::qualified)),
        };
        fields.finish(&[("nodePort", "a workload is reached by its host's address and its own port")]);
        ports.push(port);
    }
    ports
}

/// Reads a value and reports the second of two equal ones.
pub(super) fn unique<'a, T: Ord + Clone + ToString>(
    at: Option<At<'a>>,
    seen: &mut BTreeSet<T>,
    read: impl FnOnce(At<'a>) -> Option<T>,
) -> Option<T> {
    let at = at?;
    let again = at.sibling();
    let found = read(at)?;
    if !seen.insert(found.clone()) {
        again.duplicate(&found);
    }
    Some(found)
}

fn target_port(at: At<'_>) -> Option<TargetPort> {
    match at.is_text() {
        true => at.checked(names::port_name).map(TargetPort::Name),
        false => at.port().map(TargetPort::Number),
    }
}

impl Serialize for Service {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut spec = serializer.serialize_struct("ServiceSpec", 5)?;
        spec.serialize_field("selector", &self.selector)?;
        spec.serialize_field("ports", &self.ports)?;
        if let Some(first) = self.cluster_ips.first() {
            spec.serialize_field("clusterIP", first)?;
            spec.serialize_field("clusterIPs", &self.cluster_ips)?;
        }
        if self.publish_not_ready_addresses {
            spec.serialize_field("publishNotReadyAddresses", &true)?;
        }
        spec.end()
    }
}
