//! The kinds of resources that people write, as Kubernetes and Istio define them. Pure.
//!
//! [`documents`] splits what was typed, [`Resource::from_value`] checks one document and reports every
//! mistake with its path, [`Resource::to_value`] gives it back in its normal form. Nothing is ignored
//! silently: a field that no version knows is refused by name, one that this version does not do says
//! so. `status` and what the server owns are taken and forgotten. What needs more than one document
//! (does the selector match anything?) the control plane checks.

pub mod authorization_policy;
mod fields;
mod meta;
mod mistake;
mod names;
pub mod peer_authentication;
pub mod service;
pub mod service_entry;
pub mod workload_entry;
pub mod workload_group;
mod yaml;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

pub use self::authorization_policy::AuthorizationPolicy;
use self::fields::{At, Fields, Mistakes};
pub use self::meta::Meta;
use self::mistake::closest;
pub use self::mistake::{Mistake, Problem};
pub use self::peer_authentication::PeerAuthentication;
pub use self::service::Service;
pub use self::service_entry::ServiceEntry;
pub use self::workload_entry::WorkloadEntry;
pub use self::workload_group::WorkloadGroup;
pub use self::yaml::documents;
use crate::service::AppProtocol;

/// One checked resource.
#[derive(Debug, Clone, PartialEq)]
pub struct Resource {
    pub meta: Meta,
    pub spec: Spec,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Spec {
    Service(Service),
    WorkloadGroup(WorkloadGroup),
    WorkloadEntry(WorkloadEntry),
    ServiceEntry(ServiceEntry),
    AuthorizationPolicy(AuthorizationPolicy),
    PeerAuthentication(PeerAuthentication),
}

/// What there is to know of a kind besides its spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KindInfo {
    /// `AuthorizationPolicy`.
    pub kind: &'static str,
    /// `authorizationpolicy`, as in paths and on the command line.
    pub singular: &'static str,
    pub plural: &'static str,
    pub short: &'static str,
    /// What `to_value` writes.
    pub api_version: &'static str,
    /// Older versions with the same schema.
    pub also: &'static [&'static str],
    pub namespaced: bool,
}

const NETWORKING: &str = "networking.istio.io/v1";
const NETWORKING_BEFORE: &[&str] = &["networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"];
const SECURITY: &str = "security.istio.io/v1";
const SECURITY_BEFORE: &[&str] = &["security.istio.io/v1beta1"];

const KINDS: [KindInfo; 6] = [
    info("Service", "service", "services", "svc", "v1", &[]),
    info("WorkloadGroup", "workloadgroup", "workloadgroups", "wg", NETWORKING, NETWORKING_BEFORE),
    info("WorkloadEntry", "workloadentry", "workloadentries", "we", NETWORKING, NETWORKING_BEFORE),
    info("ServiceEntry", "serviceentry", "serviceentries", "se", NETWORKING, NETWORKING_BEFORE),
    info("AuthorizationPolicy", "authorizationpolicy", "authorizationpolicies", "ap", SECURITY, SECURITY_BEFORE),
    info("PeerAuthentication", "peerauthentication", "peerauthentications", "pa", SECURITY, SECURITY_BEFORE),
];

const fn info(
    kind: &'static str,
    singular: &'static str,
    plural: &'static str,
    short: &'static str,
    api_version: &'static str,
    also: &'static [&'static str],
) -> KindInfo {
    KindInfo { kind, singular, plural, short, api_version, also, namespaced: true }
}

/// Every kind of this version.
pub fn kinds() -> &'static [KindInfo] {
    &KINDS
}

/// The kind that somebody means: its name, singular, plural or short form, in any case.
pub fn kind(name: &str) -> Option<&'static KindInfo> {
    let name = name.to_ascii_lowercase();
    KINDS.iter().find(|info| [info.singular, info.plural, info.short].contains(&name.as_str()))
}

impl Resource {
    /// Checks one document. Every mistake that can be found is.
    pub fn from_value(document: Value) -> Result<Self, Vec<Mistake>> {
        let mistakes = Mistakes::default();
        let read = match &document {
            Value::Object(map) => read(Fields::document(map, &mistakes), &mistakes),
            _ => {
                let why = "an object with apiVersion, kind, metadata and spec was expected".to_owned();
                mistakes.report("", Problem::Conflict { why });
                None
            }
        };
        mistakes.into_result(read)?.ok_or_else(Vec::new)
    }

    /// What was typed, as single documents: see [`documents`].
    pub fn documents(yaml: &str) -> Result<Vec<Value>, Mistake> {
        documents(yaml)
    }

    /// The document in its normal form: newest version, one spelling, nothing of the server's.
    pub fn to_value(&self) -> Value {
        json!({
            "apiVersion": self.info().api_version,
            "kind": self.kind(),
            "metadata": self.meta,
            "spec": self.spec,
        })
    }

    pub fn info(&self) -> &'static KindInfo {
        let n = match self.spec {
            Spec::Service(_) => 0,
            Spec::WorkloadGroup(_) => 1,
            Spec::WorkloadEntry(_) => 2,
            Spec::ServiceEntry(_) => 3,
            Spec::AuthorizationPolicy(_) => 4,
            Spec::PeerAuthentication(_) => 5,
        };
        &KINDS[n]
    }

    /// `AuthorizationPolicy`.
    pub fn kind(&self) -> &'static str {
        self.info().kind
    }

    pub fn namespace(&self) -> &str {
        &self.meta.namespace
    }

    pub fn name(&self) -> &str {
        &self.meta.name
    }
}

/// `None` only together with a mistake.
fn read(mut document: Fields<'_>, mistakes: &Mistakes) -> Option<Resource> {
    let info = info_of(&mut document);
    let name = if info.is_some_and(|info| info.kind == "Service") { names::service } else { names::subdomain };
    let metadata = document.required("metadata", "at least a name").and_then(At::object);
    let meta = metadata.map(|fields| Meta::read(fields, name)).unwrap_or_default();
    document.at("status");
    let spec = match info?.kind {
        // These mean something without a spec: nothing is allowed, nothing is changed.
        "AuthorizationPolicy" | "PeerAuthentication" => document.at("spec"),
        _ => document.required("spec", "what it is"),
    };
    let empty = serde_json::Map::new();
    let spec = match spec {
        Some(at) => at.object()?,
        None => Fields::document(&empty, mistakes),
    };
    let spec = match info?.kind {
        "Service" => Spec::Service(service::read(spec)),
        "WorkloadGroup" => Spec::WorkloadGroup(workload_group::read(spec, mistakes)),
        "WorkloadEntry" => Spec::WorkloadEntry(workload_entry::read(spec)),
        "ServiceEntry" => Spec::ServiceEntry(service_entry::read(spec)),
        "AuthorizationPolicy" => Spec::AuthorizationPolicy(authorization_policy::read(spec)),
        _ => Spec::PeerAuthentication(peer_authentication::read(spec)),
    };
    document.finish(&[]);
    Some(Resource { meta, spec })
}

fn info_of(document: &mut Fields<'_>) -> Option<&'static KindInfo> {
    let version = document.required("apiVersion", "such as v1 or security.istio.io/v1");
    let at = document.required("kind", "such as Service")?;
    let found = at.sibling().text()?;
    let Some(info) = KINDS.iter().find(|info| info.kind == found) else {
        let known = KINDS.iter().map(|info| info.kind);
        return match closest(&found, known.clone()) {
            Some(meant) => at.invalid(&found, format!("a kind of this version, did you mean {meant}?")),
            None => at.invalid(&found, format!("a kind of this version: {}", known.collect::<Vec<_>>().join(", "))),
        };
    };
    let version = version?;
    let text = version.sibling().text()?;
    if text != info.api_version && !info.also.contains(&text.as_str()) {
        return version.invalid(&text, format!("a version of {found}: write {}", info.api_version));
    }
    Some(info)
}

/// `selector.matchLabels` of a policy. An empty one is refused: it could mean all or none.
fn selector(spec: &mut Fields<'_>) -> Option<BTreeMap<String, String>> {
    let mut fields = spec.object("selector")?;
    let before = fields.n_mistakes();
    let labels = fields.at("matchLabels").map(At::labels).unwrap_or_default();
    let empty = "needs a label in matchLabels; leave the selector out to mean every workload";
    fields.finish_unless(&[("matchExpressions", "use matchLabels")], before, labels.is_empty().then_some(empty));
    Some(labels)
}

/// The protocol of a declared name, or of a port name's prefix (Istio's protocol selection).
fn port_protocol(name: &str) -> AppProtocol {
    let lower = name.to_ascii_lowercase();
    match lower.as_str() {
        "kubernetes.io/h2c" => return AppProtocol::Http2,
        "kubernetes.io/ws" => return AppProtocol::Http11,
        "kubernetes.io/wss" => return AppProtocol::Tls,
        "grpc-web" => return AppProtocol::Http11,
        _ => {}
    }
    match lower.split('-').next().unwrap_or_default() {
        "http" => AppProtocol::Http11,
        "http2" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "https" | "tls" => AppProtocol::Tls,
        "tcp" | "mongo" | "mysql" | "redis" => AppProtocol::Tcp,
        _ => AppProtocol::Unknown,
    }
}

#[cfg(test)]
mod tests;
