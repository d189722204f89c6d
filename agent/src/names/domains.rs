//! Pure: which domains systemd-resolved shall ask us for.

use std::collections::BTreeSet;

use api::{Service, Snapshot};
use proxy::dns::MESH_DOMAIN;

use crate::resolved::DOMAINS;

/// `mesh`, and for services whose names others might answer too: their namespaces' cluster names,
/// and outside hosts one by one. Where there are more than systemd-resolved takes, outside hosts are
/// left out first.
pub fn wanted(snapshot: &Snapshot) -> BTreeSet<String> {
    let mut namespaces = BTreeSet::new();
    let mut hosts = BTreeSet::new();
    for service in snapshot.services() {
        match namespace_of(&service.hostname) {
            Some(namespace) => {
                namespaces.insert(format!("{namespace}.svc"));
                namespaces.insert(format!("{namespace}.svc.cluster.local"));
            }
            None => hosts.extend(outside_host(service)),
        }
    }
    let all = std::iter::once(MESH_DOMAIN.to_owned()).chain(namespaces).chain(hosts);
    all.filter(|domain| is_domain(domain)).take(DOMAINS).collect()
}

/// NAMESPACE of `NAME.NAMESPACE.mesh` and `NAME.NAMESPACE.svc.cluster.local`, whose aliases differ
/// only behind it.
fn namespace_of(hostname: &str) -> Option<&str> {
    let stem = hostname.strip_suffix(".svc.cluster.local").or_else(|| hostname.strip_suffix(".mesh"))?;
    let (_, namespace) = stem.split_once('.')?;
    (!namespace.contains('.')).then_some(namespace)
}

/// A host outside the mesh that we answer for: one that has a VIP. `*.` covers what is below.
fn outside_host(service: &Service) -> Option<String> {
    let is_outside = !service.hostname.ends_with(".mesh");
    let host = service.hostname.strip_prefix("*.").unwrap_or(&service.hostname);
    (is_outside && !service.vips.is_empty()).then(|| host.to_ascii_lowercase())
}

/// One refused domain would cost all others their registration.
fn is_domain(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(is_label)
}
