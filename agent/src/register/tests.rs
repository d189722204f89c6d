//! Reports as a control plane sees them.
use super::*;
use crate::config::Config;
use crate::testing::{AN_HOUR, TestControlPlane};
use api::snapshot::Change;
use api::{Check, Delta, HostConfig, LocalWorkload, Probe, Selector, Snapshot};

fn workload(group: &str, probed: bool) -> LocalWorkload {
    let probe = Probe {
        check: Check::Tcp { host: String::new(), port: 1 },
        initial_delay: Duration::ZERO,
        timeout: Duration::from_secs(1),
        period: Duration::from_secs(1),
        success_threshold: 1,
        failure_threshold: 1,
    };
    LocalWorkload {
        uid: format!("tombolo/shop/{group}/web1").into(),
        namespace: "shop".into(),
        group: group.into(),
        service_account: group.into(),
        ports: [].into(),
        selector: Selector::default(),
        probe: probed.then_some(probe),
    }
}

#[tokio::test]
async fn the_first_report_waits_for_probes_and_a_change_is_reported_at_once() {
    let mut control_plane = TestControlPlane::start().await;
    let credentials = control_plane.credentials(AN_HOUR);
    let link = control_plane.link(&Config::defaults(), &credentials);
    let workloads = vec![workload("orders", true), workload("web", false)];
    let host = HostConfig { host: "web1".into(), workloads, lease: Duration::from_secs(30) };
    let view = View::new(Snapshot::default().apply(Delta { revision: 12, changes: vec![Change::Host(host)] }));
    let health = watch::Sender::new(BTreeMap::new());
    let intercepting = watch::Sender::new(false);
    let problem = DiscoveryState { source: "disk", received_at: None, problem: "a NACK".into() };
    let discovery = watch::Sender::new(problem);
    let sources = Sources {
        view,
        health: health.subscribe(),
        intercepting: intercepting.subscribe(),
        discovery: discovery.subscribe(),
        advertise: vec!["10.0.0.7".parse().expect("an address")],
    };
    let (_trigger, watch) = proxy::drain::channel();
    let refused = Refused::new(String::new());
    tokio::spawn(run(link, sources, refused, watch));

    health.send_modify(|kept| {
        kept.insert("tombolo/shop/orders/web1".into(), Health { healthy: false, reason: "port 1 is closed".into() });
    });
    let first = control_plane.report().await;
    assert_eq!((first.revision, first.intercepting, first.problem.as_str()), (12, false, "a NACK"));
    assert_eq!(first.addresses, ["10.0.0.7"]);
    assert_ne!(first.epoch, 0);
    let said: Vec<(bool, &str)> = first.workloads.iter().map(|it| (it.healthy, it.reason.as_str())).collect();
    assert_eq!(said, [(false, "port 1 is closed"), (true, "")]);

    health.send_modify(|kept| {
        kept.insert("tombolo/shop/orders/web1".into(), Health { healthy: true, reason: String::new() });
    });
    let second = control_plane.report().await;
    assert!(second.workloads[0].healthy);
    assert_eq!(second.epoch, first.epoch);
    intercepting.send_replace(true);
    assert!(control_plane.report().await.intercepting);
}
