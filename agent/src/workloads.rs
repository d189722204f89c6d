//! What this host says itself about the workloads that the control plane gave it. Pure.
//!
//! Discovery lays `[[workload]]` over the HostConfig before anybody obeys it, so that the proxy, the
//! attribution, interception and probes all see the same workloads. The snapshot on disk is the
//! control plane's own.

use api::snapshot::Change;
use api::{Delta, HostConfig, Snapshot};

use crate::config::WorkloadOverride;

/// The snapshot as this host obeys it.
pub fn overlay(snapshot: &Snapshot, overrides: &[WorkloadOverride]) -> Snapshot {
    match snapshot.host() {
        Some(host) if !overrides.is_empty() => {
            let mut host = HostConfig::clone(host);
            for workload in &mut host.workloads {
                let key = (&workload.namespace, &workload.group);
                let Some(said) = overrides.iter().find(|said| (&said.namespace, &said.group) == key) else { continue };
                if let Some(selector) = &said.selector {
                    workload.selector = selector.clone();
                }
                if let Some(inbound) = said.inbound {
                    workload.ports.values_mut().for_each(|mode| *mode = inbound);
                }
            }
            snapshot.apply(Delta { revision: snapshot.revision(), changes: vec![Change::Host(host)] })
        }
        _ => snapshot.clone(),
    }
}

/// Groups that are spoken of and that this host does not run.
pub fn unknown(snapshot: &Snapshot, overrides: &[WorkloadOverride]) -> Vec<String> {
    let Some(host) = snapshot.host() else { return vec![] };
    let runs = |said: &&WorkloadOverride| {
        !host.workloads.iter().any(|workload| workload.namespace == said.namespace && workload.group == said.group)
    };
    overrides.iter().filter(runs).map(|said| format!("{}/{}", said.namespace, said.group)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::{InboundMode, LocalWorkload, Selector};
    use std::time::Duration;

    #[test]
    fn a_hosts_own_words_lie_over_the_control_planes() {
        let workload = |group: &str| LocalWorkload {
            uid: group.into(),
            namespace: "shop".into(),
            group: group.into(),
            service_account: group.into(),
            ports: [(80, InboundMode::Permissive), (90, InboundMode::Strict)].into(),
            selector: Selector { unit: Some("from-group.service".into()), ..Selector::default() },
            probe: None,
        };
        let host = HostConfig {
            host: "h".into(),
            workloads: vec![workload("web"), workload("orders")],
            lease: Duration::from_secs(30),
        };
        let snapshot = Snapshot::default().apply(Delta { revision: 3, changes: vec![Change::Host(host)] });
        let said = |group: &str, selector: Option<Selector>, inbound| WorkloadOverride {
            namespace: "shop".into(),
            group: group.into(),
            selector,
            inbound,
        };
        let by_uid = Selector { uid: Some(33), ..Selector::default() };
        let overrides = [
            said("web", Some(by_uid.clone()), None),
            said("orders", None, Some(InboundMode::Observe)),
            said("gone", None, None),
        ];
        let seen = overlay(&snapshot, &overrides);
        let workloads = &seen.host().expect("it is there").workloads;
        assert_eq!(workloads[0].selector, by_uid);
        assert_eq!(workloads[0].ports[&80], InboundMode::Permissive);
        assert_eq!(workloads[1].selector.unit.as_deref(), Some("from-group.service"));
        assert!(workloads[1].ports.values().all(|mode| *mode == InboundMode::Observe));
        assert_eq!((seen.revision(), unknown(&snapshot, &overrides)), (3, vec!["shop/gone".to_owned()]));
        assert!(unknown(&Snapshot::default(), &overrides).is_empty());
    }
}
