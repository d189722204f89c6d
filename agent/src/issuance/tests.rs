//! Issuance against a real control plane: first certificates, renewal, refusals, disk.
use super::*;
use crate::config::Config;
use crate::testing::{AN_HOUR, Issuing, Life, TestControlPlane, eventually, host_id, trust_domain};
use api::snapshot::Change;
use api::{Delta, HostConfig, LocalWorkload, Selector};

struct Running {
    control_plane: TestControlPlane,
    credentials: Credentials,
    view: View,
    state: StateDir,
    standing: Standing,
    connected: watch::Sender<bool>,
    _trigger: proxy::drain::DrainTrigger,
    folder: tempfile::TempDir,
}

fn spiffe(account: &str) -> SpiffeId {
    SpiffeId::workload(&trust_domain(), "shop", account).expect("valid")
}

fn snapshot(accounts: &[&str]) -> Snapshot {
    let workload = |account: &&str| LocalWorkload {
        uid: format!("tombolo/shop/{account}/web1").into(),
        namespace: "shop".into(),
        group: (*account).into(),
        service_account: (*account).into(),
        ports: [].into(),
        selector: Selector::default(),
        probe: None,
    };
    let workloads = accounts.iter().map(workload).collect();
    let host = HostConfig { host: "web1".into(), workloads, lease: Duration::from_secs(30) };
    Snapshot::default().apply(Delta { revision: 1, changes: vec![Change::Host(host)] })
}

impl Running {
    async fn start(host: Life, issuing: Issuing) -> Self {
        let control_plane = TestControlPlane::start().await;
        control_plane.set_issuing(issuing);
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self::begin(control_plane, host, folder)
    }

    fn begin(control_plane: TestControlPlane, host: Life, folder: tempfile::TempDir) -> Self {
        let state = StateDir::open(folder.path()).expect("it can be made");
        let credentials = control_plane.credentials(host);
        let link = control_plane.link(&Config::defaults(), &credentials);
        let view = View::new(snapshot(&["web", "orders"]));
        let identity = HostIdentity {
            host: "web1".into(),
            trust_domain: trust_domain(),
            control_plane: String::new(),
            join_sequence: 4,
            groups: vec![],
            advertise: vec![],
            joined_at: String::new(),
            machine: None,
        };
        state.set_identity(&identity).expect("writable");
        let issuance = Issuance::new(link, credentials.clone(), state.clone(), view.clone(), identity);
        let standing = issuance.standing();
        let (trigger, watch) = proxy::drain::channel();
        let connected = watch::Sender::new(false);
        tokio::spawn(issuance.run(connected.subscribe(), watch));
        Self { control_plane, credentials, view, state, standing, connected, _trigger: trigger, folder }
    }

    async fn proves(&self, account: &str) -> std::sync::Arc<Svid> {
        let identity = spiffe(account);
        eventually("the identity is proved", || self.credentials.svid(&identity).ok_or_else(|| "nothing".to_owned()))
            .await
    }
}

#[tokio::test]
async fn every_workload_gets_its_own_certificate_and_keeps_it_over_a_restart() {
    let running = Running::start(AN_HOUR, Issuing::Good(AN_HOUR)).await;
    let svid = running.proves("web").await;
    running.proves("orders").await;
    assert_eq!(svid.identity(), &spiffe("web"));
    let state = running.state.clone();
    eventually("it is on disk", || {
        state.workload_svid(&spiffe("web")).expect("readable").map(drop).ok_or_else(|| "nothing".to_owned())
    })
    .await;
    let stands = running.standing.of(&spiffe("web")).expect("it is followed");
    assert!(stands.problem.is_empty() && stands.renews_at > SystemTime::now());

    // The next start, with an issuer that gives nothing: what is on disk serves.
    let Running { control_plane, folder, .. } = running;
    control_plane.set_issuing(Issuing::Refuse("not today"));
    let again = Running::begin(control_plane, AN_HOUR, folder);
    assert_eq!(again.proves("web").await.serial(), svid.serial());
}

#[tokio::test]
async fn a_workload_that_is_gone_is_withdrawn_and_forgotten() {
    let running = Running::start(AN_HOUR, Issuing::Good(AN_HOUR)).await;
    running.proves("web").await;
    running.proves("orders").await;
    running.view.publish(snapshot(&["orders"]));
    eventually("web is withdrawn", || match running.credentials.svid(&spiffe("web")) {
        None => Ok(()),
        Some(_) => Err("still there".to_owned()),
    })
    .await;
    eventually("and not on disk", || match running.state.workload_svid(&spiffe("web")).expect("readable") {
        None => Ok(()),
        Some(_) => Err("still there".to_owned()),
    })
    .await;
    assert!(running.credentials.svid(&spiffe("orders")).is_some());
}

#[tokio::test]
async fn a_host_certificate_past_its_half_life_is_renewed_with_the_join_sequence() {
    let old = Life { before: Duration::from_secs(3600), length: Duration::from_secs(4200) };
    let running = Running::start(old, Issuing::Good(AN_HOUR)).await;
    let before = running.credentials.svid(&host_id()).expect("loaded").serial().to_owned();
    eventually("the host has a new one", || match running.credentials.svid(&host_id()) {
        Some(svid) if svid.serial() != before => Ok(()),
        _ => Err("the old one".to_owned()),
    })
    .await;
    let kept = running.state.identity().expect("readable").expect("joined");
    assert_eq!(kept.join_sequence, 5, "what the control plane counted");
    eventually("it is on disk", || {
        running.state.host_chain().expect("readable").map(drop).ok_or_else(|| "nothing".to_owned())
    })
    .await;
}

#[tokio::test]
async fn a_certificate_for_another_identity_or_of_the_past_is_not_used() {
    let running = Running::start(AN_HOUR, Issuing::OtherIdentity(spiffe("somebody"))).await;
    let problem =
        |account: &str| running.standing.of(&spiffe(account)).map(|stands| stands.problem).unwrap_or_default();
    eventually("the refusal is told", || match problem("web") {
        text if text.contains("certifies spiffe://corp.example/ns/shop/sa/somebody") => Ok(()),
        text => Err(text),
    })
    .await;
    assert!(running.credentials.svid(&spiffe("web")).is_none());

    let past = Life { before: Duration::from_secs(7200), length: Duration::from_secs(3600) };
    running.control_plane.set_issuing(Issuing::Good(past));
    running.connected.send_replace(true);
    eventually("the refusal is told", || match problem("web") {
        text if text.contains("not valid here") && text.contains("expired") => Ok(()),
        text => Err(text),
    })
    .await;
    assert!(running.credentials.svid(&spiffe("web")).is_none());

    running.control_plane.set_issuing(Issuing::Good(AN_HOUR));
    running.proves("web").await;
}

#[tokio::test]
async fn a_refusal_is_told_with_the_control_planes_words_and_is_not_hammered() {
    let running = Running::start(AN_HOUR, Issuing::Refuse("the host web1 may not be that")).await;
    eventually("the refusal is told", || match running.standing.of(&spiffe("web")) {
        Some(stands) if stands.problem.contains("the host web1 may not be that") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let failing = running.standing.failing();
    assert!(failing.iter().any(|(identity, _)| *identity == spiffe("web")), "{failing:?}");
    assert!(failing.iter().all(|(identity, _)| *identity != host_id()), "the host's own is good: {failing:?}");
    let asked = running.control_plane.asked().iter().filter(|who| who.ends_with("/sa/web")).count();
    assert!(asked <= 2, "{asked} requests at once");
}

#[tokio::test]
async fn what_another_process_renews_is_used_when_it_is_on_disk() {
    let running = Running::start(AN_HOUR, Issuing::Good(AN_HOUR)).await;
    let web = running.proves("web").await;
    let half_an_hour = Life { length: AN_HOUR.length / 2, ..AN_HOUR };
    let drains = running.control_plane.credentials(AN_HOUR);
    drains.publish(running.control_plane.ca.svid(&spiffe("web"), half_an_hour));
    let (_trigger, watch) = proxy::drain::channel();
    tokio::spawn(follow(drains.clone(), running.state.clone(), host_id(), watch));
    eventually("the renewed certificate is used", || match drains.svid(&spiffe("web")) {
        Some(svid) if svid.serial() == web.serial() => Ok(()),
        other => Err(format!("{:?}", other.map(|svid| svid.serial().to_owned()))),
    })
    .await;
}
