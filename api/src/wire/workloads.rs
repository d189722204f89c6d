//! Workloads and services between the domain and `istio.workload`. Called by `wire` alone. Pure.
//!
//! Empty means what Istio means by it: trust domain `cluster.local`, service account `default`
//! (ztunnel's `src/state/workload.rs`).

use std::collections::{BTreeMap, BTreeSet};

use super::workload as pb;
use super::{FieldError, FieldProblem, enumeration, ip, ip_bytes, port, required, shorten};
use crate::locality::Locality;
use crate::service::{AppProtocol, NamespacedHostname, Port, Service};
use crate::workload::{Class, TunnelProtocol, Workload};

/// Istio's trust domain where none is said.
const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
/// Kubernetes' service account where none is said.
pub(super) const DEFAULT_SERVICE_ACCOUNT: &str = "default";

impl TryFrom<pb::Workload> for Workload {
    type Error = FieldError;

    fn try_from(message: pb::Workload) -> Result<Self, FieldError> {
        let or = |text: String, default: &str| if text.is_empty() { default.to_owned() } else { text };
        let addresses = message.addresses.iter().enumerate();
        let addresses = addresses.map(|(n, bytes)| ip(bytes).map_err(|p| p.at(format!("addresses[{n}]"))));
        let trust_domain = or(message.trust_domain, DEFAULT_TRUST_DOMAIN).parse();
        enumeration::<pb::WorkloadType>(message.workload_type).map_err(|p| p.at("workload_type"))?;
        enumeration::<pb::NetworkMode>(message.network_mode).map_err(|p| p.at("network_mode"))?;
        let class = Class {
            namespace: required(message.namespace, "namespace")?,
            network: message.network,
            tunnel_protocol: tunnel(message.tunnel_protocol).map_err(|p| p.at("tunnel_protocol"))?,
            trust_domain: trust_domain.map_err(|reason| FieldProblem::Identity { reason }.at("trust_domain"))?,
            service_account: or(message.service_account, DEFAULT_SERVICE_ACCOUNT),
            canonical_name: message.canonical_name,
            canonical_revision: message.canonical_revision,
            workload_name: message.workload_name,
            cluster_id: message.cluster_id,
            locality: message.locality.map(Locality::from).unwrap_or_default(),
            services: services(message.services)?,
            authorization_policies: policy_names(message.authorization_policies)?,
        };
        let mut workload = Self {
            uid: required(message.uid, "uid")?.into(),
            name: message.name,
            addresses: addresses.collect::<Result<_, _>>()?,
            hostname: message.hostname,
            node: message.node,
            class: class.into(),
            healthy: status(message.status).map_err(|p| p.at("status"))?,
            capacity: message.capacity.unwrap_or(1),
        };
        // What is collected with errors in view has room for four.
        workload.addresses.shrink_to_fit();
        workload.identity().map_err(|reason| FieldProblem::Identity { reason }.at("service_account"))?;
        Ok(workload)
    }
}

fn tunnel(value: i32) -> Result<TunnelProtocol, FieldProblem> {
    match enumeration(value)? {
        pb::TunnelProtocol::None => Ok(TunnelProtocol::None),
        pb::TunnelProtocol::Hbone => Ok(TunnelProtocol::Hbone),
        pb::TunnelProtocol::LegacyIstioMtls => Err(FieldProblem::Unsupported { what: "LEGACY_ISTIO_MTLS" }),
    }
}

fn status(value: i32) -> Result<bool, FieldProblem> {
    Ok(match enumeration(value)? {
        pb::WorkloadStatus::Healthy => true,
        pb::WorkloadStatus::Unhealthy => false,
    })
}

fn services(found: BTreeMap<String, pb::PortList>) -> Result<BTreeMap<NamespacedHostname, Vec<Port>>, FieldError> {
    let service = |(name, list): (String, pb::PortList)| {
        let field = || format!("services[{:?}]", shorten(&name));
        let expected = "NAMESPACE/HOSTNAME";
        let key = name.parse().map_err(|_| FieldProblem::Malformed { text: shorten(&name), expected }.at(field()))?;
        let ports = ports(&list.ports, port).map_err(|fault| fault.below(field()))?;
        Ok((key, ports))
    };
    found.into_iter().map(service).collect()
}

/// `target` checks the target port: a workload has to say it, a service need not.
fn ports(found: &[pb::Port], target: fn(u32) -> Result<u16, FieldProblem>) -> Result<Vec<Port>, FieldError> {
    let one = |(n, found): (usize, &pb::Port)| {
        let at = |field: &'static str| move |problem: FieldProblem| problem.at(format!("ports[{n}].{field}"));
        Ok(Port {
            service_port: port(found.service_port).map_err(at("service_port"))?,
            target_port: target(found.target_port).map_err(at("target_port"))?,
            app_protocol: protocol(found.app_protocol).map_err(at("app_protocol"))?,
        })
    };
    found.iter().enumerate().map(one).collect()
}

fn port_or_unsaid(value: u32) -> Result<u16, FieldProblem> {
    if value == 0 { Ok(0) } else { port(value) }
}

fn protocol(value: i32) -> Result<AppProtocol, FieldProblem> {
    Ok(match enumeration(value)? {
        pb::AppProtocol::Unknown => AppProtocol::Unknown,
        pb::AppProtocol::Http11 => AppProtocol::Http11,
        pb::AppProtocol::Http2 => AppProtocol::Http2,
        pb::AppProtocol::Grpc => AppProtocol::Grpc,
        pb::AppProtocol::Tcp => AppProtocol::Tcp,
        pb::AppProtocol::Tls => AppProtocol::Tls,
    })
}

fn policy_names(found: Vec<String>) -> Result<Vec<String>, FieldError> {
    for (n, name) in found.iter().enumerate() {
        if name.split_once('/').is_none_or(|(namespace, name)| namespace.is_empty() || name.is_empty()) {
            let problem = FieldProblem::Malformed { text: shorten(name), expected: "NAMESPACE/NAME" };
            return Err(problem.at(format!("authorization_policies[{n}]")));
        }
    }
    Ok(found)
}

impl TryFrom<pb::Service> for Service {
    type Error = FieldError;

    fn try_from(message: pb::Service) -> Result<Self, FieldError> {
        enumeration::<pb::IpFamilies>(message.ip_families).map_err(|p| p.at("ip_families"))?;
        enumeration::<pb::Visibility>(message.visibility).map_err(|p| p.at("visibility"))?;
        let vips = message.addresses.iter().enumerate();
        let vips = vips.map(|(n, found)| vip(found).map_err(|fault| fault.below(format!("addresses[{n}]"))));
        let mut service = Self {
            name: message.name,
            namespace: message.namespace,
            hostname: required(message.hostname, "hostname")?,
            vips: vips.collect::<Result<_, _>>()?,
            ports: ports(&message.ports, port_or_unsaid)?,
            subject_alt_names: message.subject_alt_names,
            allow_unhealthy: allow_unhealthy(message.load_balancing)?,
        };
        service.vips.shrink_to_fit();
        service.ports.shrink_to_fit();
        let mut seen = BTreeSet::new();
        for (n, port) in service.ports.iter().enumerate() {
            if !seen.insert(port.service_port) {
                let problem = FieldProblem::Duplicate { text: port.service_port.to_string() };
                return Err(problem.at(format!("ports[{n}].service_port")));
            }
        }
        let expected = "a hostname without a slash";
        if service.hostname.contains('/') {
            return Err(FieldProblem::Malformed { text: shorten(&service.hostname), expected }.at("hostname"));
        }
        Ok(service)
    }
}

/// A service of this version has single addresses, no ranges.
fn vip(found: &pb::NetworkAddress) -> Result<std::net::IpAddr, FieldError> {
    let address = ip(&found.address).map_err(|p| p.at("address"))?;
    let bits = if found.address.len() == 4 { 32 } else { 128 };
    match found.length {
        None => Ok(address),
        Some(length) if length == bits => Ok(address),
        Some(length) if length > bits => Err(FieldProblem::PrefixLength { length, address }.at("length")),
        Some(_) => Err(FieldProblem::Unsupported { what: "a range of addresses" }.at("length")),
    }
}

fn allow_unhealthy(found: Option<pb::LoadBalancing>) -> Result<bool, FieldError> {
    use pb::load_balancing::{HealthPolicy, Mode, Scope};
    let Some(found) = found else { return Ok(false) };
    enumeration::<Mode>(found.mode).map_err(|p| p.at("load_balancing.mode"))?;
    for (n, scope) in found.routing_preference.iter().enumerate() {
        enumeration::<Scope>(*scope).map_err(|p| p.at(format!("load_balancing.routing_preference[{n}]")))?;
    }
    let policy = enumeration(found.health_policy).map_err(|p| p.at("load_balancing.health_policy"))?;
    Ok(match policy {
        HealthPolicy::OnlyHealthy => false,
        HealthPolicy::AllowAll => true,
    })
}

impl From<pb::Locality> for Locality {
    fn from(message: pb::Locality) -> Self {
        Self { region: message.region, zone: message.zone, subzone: message.subzone }
    }
}

impl From<&Workload> for pb::Workload {
    fn from(workload: &Workload) -> Self {
        let services = workload.services.iter().map(|(key, ports)| {
            let ports = ports.iter().map(pb::Port::from).collect();
            (key.to_string(), pb::PortList { ports })
        });
        let tunnel_protocol = match workload.tunnel_protocol {
            TunnelProtocol::None => pb::TunnelProtocol::None,
            TunnelProtocol::Hbone => pb::TunnelProtocol::Hbone,
        };
        let status = if workload.healthy { pb::WorkloadStatus::Healthy } else { pb::WorkloadStatus::Unhealthy };
        let Locality { region, zone, subzone } = workload.locality.clone();
        Self {
            uid: workload.uid.to_string(),
            name: workload.name.clone(),
            namespace: workload.namespace.clone(),
            addresses: workload.addresses.iter().copied().map(ip_bytes).collect(),
            hostname: workload.hostname.clone(),
            network: workload.network.clone(),
            tunnel_protocol: tunnel_protocol.into(),
            trust_domain: workload.trust_domain.to_string(),
            service_account: workload.service_account.clone(),
            node: workload.node.clone(),
            canonical_name: workload.canonical_name.clone(),
            canonical_revision: workload.canonical_revision.clone(),
            // istiod says POD of a WorkloadEntry too.
            workload_type: pb::WorkloadType::Pod.into(),
            workload_name: workload.workload_name.clone(),
            services: services.collect(),
            authorization_policies: workload.authorization_policies.clone(),
            status: status.into(),
            cluster_id: workload.cluster_id.clone(),
            locality: (workload.locality != Locality::default()).then_some(pb::Locality { region, zone, subzone }),
            capacity: (workload.capacity != 1).then_some(workload.capacity),
            ..Self::default()
        }
    }
}

impl From<&Service> for pb::Service {
    fn from(service: &Service) -> Self {
        let address = |vip: &std::net::IpAddr| pb::NetworkAddress { address: ip_bytes(*vip), ..Default::default() };
        let load_balancing = service.allow_unhealthy.then(|| pb::LoadBalancing {
            health_policy: pb::load_balancing::HealthPolicy::AllowAll.into(),
            ..Default::default()
        });
        Self {
            name: service.name.clone(),
            namespace: service.namespace.clone(),
            hostname: service.hostname.clone(),
            addresses: service.vips.iter().map(address).collect(),
            ports: service.ports.iter().map(pb::Port::from).collect(),
            subject_alt_names: service.subject_alt_names.clone(),
            load_balancing,
            ..Self::default()
        }
    }
}

impl From<&Port> for pb::Port {
    fn from(port: &Port) -> Self {
        let app_protocol = match port.app_protocol {
            AppProtocol::Unknown => pb::AppProtocol::Unknown,
            AppProtocol::Http11 => pb::AppProtocol::Http11,
            AppProtocol::Http2 => pb::AppProtocol::Http2,
            AppProtocol::Grpc => pb::AppProtocol::Grpc,
            AppProtocol::Tcp => pb::AppProtocol::Tcp,
            AppProtocol::Tls => pb::AppProtocol::Tls,
        };
        Self {
            service_port: port.service_port.into(),
            target_port: port.target_port.into(),
            app_protocol: app_protocol.into(),
        }
    }
}
