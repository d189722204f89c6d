//! Pure: question × snapshot → what to answer, or that another resolver is to be asked.
//!
//! [`super::DnsServer`] calls [`answer`]; `why` calls [`resolve`], so that both mean the same service
//! by a name. Names below `.mesh` are ours alone; names of clusters and of the outside world are
//! answered when the snapshot knows them and asked of the host's resolvers when it does not.

use std::net::IpAddr;
use std::sync::Arc;

use api::service::AppProtocol;
use api::{NamespacedHostname, Port, Service, Snapshot};
use hickory_proto::op::Query;
use hickory_proto::rr::rdata::{A, AAAA, SRV};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

/// What a question gets.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Records, and further ones that the asker will want next.
    Records { answers: Vec<Record>, additionals: Vec<Record> },
    /// The name exists, this type of record does not. `zone` is whose SOA says so.
    NoData { zone: Name },
    /// The name does not exist.
    NxDomain { zone: Name },
    /// Ask the host's resolvers.
    Forward,
    /// Neither ours to answer nor fit to be asked elsewhere.
    Refused,
}

/// The domain of names that exist in the mesh only.
pub const MESH_DOMAIN: &str = "mesh";
/// Names that a Kubernetes cluster may own; those that the mesh does not know are asked elsewhere.
const CLUSTER_SUFFIXES: [&str; 2] = [".svc.cluster.local", ".svc"];
/// How long an answer may be kept. VIPs are stable, 30 s is Istio's choice too.
pub const TTL_SECONDS: u32 = 30;
/// As above for addresses of endpoints, which come and go, and for "does not exist".
pub const SHORT_TTL_SECONDS: u32 = 5;
/// More endpoint addresses than this are not told: a TCP answer takes 64 KiB.
const ADDRESSES: usize = 256;

/// Decides a question. `namespace` is the asking workload's, whose services come first where two
/// namespaces have one of the same name.
pub fn answer(snapshot: &Snapshot, question: &Query, namespace: Option<&str>) -> Answer {
    let asked = &question.name;
    let name = asked.to_lowercase().to_ascii();
    let name = name.trim_end_matches('.');
    if question.query_class != DNSClass::IN || is_transfer(question.query_type) {
        return if is_mesh(name) || is_transfer(question.query_type) { Answer::Refused } else { Answer::Forward };
    }
    if let Some(service) = resolve(snapshot, name, namespace) {
        return about_service(snapshot, &service, name, question);
    }
    if let Some(found) = about_port(snapshot, name, question, namespace) {
        return found;
    }
    if !is_mesh(name) {
        return Answer::Forward;
    }
    let zone = mesh_zone();
    if has_names_below(snapshot, name) { Answer::NoData { zone } } else { Answer::NxDomain { zone } }
}

/// The service that a name means: `NAME.NS.mesh`, `NAME.NS.svc.cluster.local`, `NAME.NS.svc`, any
/// hostname of the snapshot, or the most specific wildcard that covers it. Case and a final dot do
/// not matter.
pub fn resolve(snapshot: &Snapshot, name: &str, namespace: Option<&str>) -> Option<Arc<Service>> {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let first = |hostname: &str| snapshot.services_by_hostname(hostname, namespace).first().map(|s| Arc::clone(s));
    first(&name).or_else(|| aliases(&name).iter().find_map(|alias| first(alias))).or_else(|| {
        let parents = name.match_indices('.').map(|(dot, _)| &name[dot..]);
        parents.map(|parent| format!("*{parent}")).find_map(|wildcard| first(&wildcard))
    })
}

/// The namespace that questions come from, when all workloads of this host share one.
pub fn asking_namespace(snapshot: &Snapshot) -> Option<&str> {
    let mut namespaces = snapshot.host()?.workloads.iter().map(|workload| workload.namespace.as_str());
    let first = namespaces.next()?;
    namespaces.all(|namespace| namespace == first).then_some(first)
}

/// The zone that all mesh names are in.
pub fn mesh_zone() -> Name {
    Name::root().prepend_label(MESH_DOMAIN).unwrap_or_default()
}

/// The other hostnames that `NAME.NAMESPACE.SUFFIX` may be kept under.
fn aliases(name: &str) -> Vec<String> {
    let mut suffixes = CLUSTER_SUFFIXES.iter().copied().chain([".mesh"]);
    let Some(stem) = suffixes.find_map(|suffix| name.strip_suffix(suffix)) else { return Vec::new() };
    match stem.split_once('.') {
        Some((service, namespace)) if !service.is_empty() && !namespace.is_empty() && !namespace.contains('.') => {
            vec![format!("{stem}.mesh"), format!("{stem}.svc.cluster.local")]
        }
        _ => Vec::new(),
    }
}

fn is_mesh(name: &str) -> bool {
    name == MESH_DOMAIN || name.ends_with(".mesh")
}

/// Whether no other resolver has a say in a name that the snapshot knows.
fn is_ours(name: &str) -> bool {
    is_mesh(name) || CLUSTER_SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
}

fn is_transfer(record_type: RecordType) -> bool {
    matches!(record_type, RecordType::AXFR | RecordType::IXFR)
}

/// Whether a service's name lies below this one, which then exists too (RFC 8020): a resolver that
/// was told it does not may deny every name below.
fn has_names_below(snapshot: &Snapshot, name: &str) -> bool {
    let is_below = |hostname: &str| hostname.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'));
    name == MESH_DOMAIN || snapshot.services().any(|service| is_below(&service.hostname))
}

fn about_service(snapshot: &Snapshot, service: &Service, name: &str, question: &Query) -> Answer {
    let asked = &question.name;
    let none = || Answer::NoData { zone: if is_mesh(name) { mesh_zone() } else { asked.clone() } };
    let (addresses, ttl) = addresses(snapshot, service);
    let is_unaddressed = addresses.is_empty() && !is_ours(name);
    let answers = match question.query_type {
        // An outside name without a VIP has real addresses, which others know.
        RecordType::A | RecordType::AAAA | RecordType::ANY if is_unaddressed => return Answer::Forward,
        RecordType::A | RecordType::AAAA | RecordType::ANY => {
            address_records(asked, &addresses, question.query_type, ttl)
        }
        RecordType::SRV if is_ours(name) => {
            let additionals = address_records(asked, &addresses, RecordType::ANY, ttl);
            let answers: Vec<_> = service.ports.iter().map(|port| srv(asked, asked, port)).collect();
            return if answers.is_empty() { none() } else { Answer::Records { answers, additionals } };
        }
        // Their address hints would lead around the VIP.
        RecordType::HTTPS | RecordType::SVCB if !is_unaddressed => return none(),
        // Mail, text and other records of an outside name are its owner's.
        _ if !is_ours(name) => return Answer::Forward,
        _ => return none(),
    };
    if answers.is_empty() { none() } else { Answer::Records { answers, additionals: Vec::new() } }
}

/// `_PORT._tcp.NAME`: PORT is a number, or the protocol the port is declared to carry. `None` when
/// the name is not of that form or NAME means no service.
fn about_port(snapshot: &Snapshot, name: &str, question: &Query, namespace: Option<&str>) -> Option<Answer> {
    let (port_label, rest) = name.strip_prefix('_')?.split_once('.')?;
    let (transport, service_name) = rest.strip_prefix('_')?.split_once('.')?;
    let service = resolve(snapshot, service_name, namespace)?;
    let ports: Vec<&Port> = service.ports.iter().filter(|port| port_is(port, port_label)).collect();
    let asked = &question.name;
    let zone = if is_mesh(name) { mesh_zone() } else { asked.base_name().base_name() };
    if ports.is_empty() || transport != "tcp" {
        return Some(if is_ours(service_name) { Answer::NxDomain { zone } } else { Answer::Forward });
    }
    if !matches!(question.query_type, RecordType::SRV | RecordType::ANY) {
        return Some(Answer::NoData { zone });
    }
    let target = asked.base_name().base_name();
    let (addresses, ttl) = addresses(snapshot, &service);
    let answers = ports.into_iter().map(|port| srv(asked, &target, port)).collect();
    Some(Answer::Records { answers, additionals: address_records(&target, &addresses, RecordType::ANY, ttl) })
}

fn port_is(port: &Port, label: &str) -> bool {
    match label.parse::<u16>() {
        Ok(number) => port.service_port == number,
        Err(_) => match port.app_protocol {
            AppProtocol::Http11 => label == "http",
            AppProtocol::Http2 => label == "http2",
            AppProtocol::Grpc => label == "grpc",
            AppProtocol::Tls => label == "tls" || label == "https",
            AppProtocol::Tcp => label == "tcp",
            AppProtocol::Unknown => false,
        },
    }
}

/// Where a service is reached: its VIPs, or without any (headless) its endpoints; and for how long.
fn addresses(snapshot: &Snapshot, service: &Service) -> (Vec<IpAddr>, u32) {
    if !service.vips.is_empty() {
        return (service.vips.clone(), TTL_SECONDS);
    }
    let key: NamespacedHostname = service.key();
    let endpoints = service.ports.iter().flat_map(|port| snapshot.endpoints(&key, port.service_port));
    let usable = endpoints.filter(|endpoint| endpoint.workload.healthy || service.allow_unhealthy);
    let mut addresses: Vec<IpAddr> = usable.flat_map(|endpoint| endpoint.workload.addresses.clone()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(ADDRESSES);
    (addresses, SHORT_TTL_SECONDS)
}

fn address_records(owner: &Name, addresses: &[IpAddr], wanted: RecordType, ttl: u32) -> Vec<Record> {
    let data = addresses.iter().filter_map(|address| match address {
        IpAddr::V4(v4) if wanted != RecordType::AAAA => Some(RData::A(A(*v4))),
        IpAddr::V6(v6) if wanted != RecordType::A => Some(RData::AAAA(AAAA(*v6))),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    });
    data.map(|data| Record::from_rdata(owner.clone(), ttl, data)).collect()
}

fn srv(owner: &Name, target: &Name, port: &Port) -> Record {
    let data = RData::SRV(SRV::new(0, 1, port.service_port, target.clone()));
    Record::from_rdata(owner.clone(), TTL_SECONDS, data)
}

#[cfg(test)]
mod tests;
