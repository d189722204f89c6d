//! Tables: which answer for which address.
use super::*;
use crate::testing::{endpoint_of, host, ip, local, service, snapshot, workload};
use api::snapshot::Change;

const OWN_PORTS: [u16; 3] = [15001, 15006, 15008];

/// `web` is this host's; `orders` runs on two hosts of the mesh and one without; `pods` are somebody
/// else's; `billing` shares the host of `orders`.
fn mesh() -> (Snapshot, LocalWorkload) {
    let orders = service("orders", "shop", &["240.240.0.1", "fd74::1"], &[80]);
    let sick = service("sick", "shop", &["240.240.0.2"], &[80]);
    let none = service("none", "shop", &["240.240.0.3"], &[80]);
    let far = service("far", "shop", &["240.240.0.4"], &[80]);
    let mut sans = service("sans", "shop", &["240.240.0.5"], &[80]);
    sans.subject_alt_names = vec!["spiffe://td/ns/shop/sa/alias".into(), "spiffe://td/ns/shop/sa/orders".into()];
    let mut desperate = service("desperate", "shop", &["240.240.0.6"], &[80]);
    desperate.allow_unhealthy = true;
    let web = workload("tombolo/shop/web/a", "shop", "web", &["10.0.0.1"]);
    let mut one = workload("tombolo/shop/orders/b", "shop", "orders", &["10.0.0.2", "fd00::2"]);
    one = endpoint_of(endpoint_of(one, &orders, 80, 8080), &sans, 80, 8080);
    let billing = endpoint_of(workload("tombolo/shop/billing/b", "shop", "billing", &["10.0.0.2"]), &none, 81, 9090);
    let mut plain = endpoint_of(workload("tombolo/shop/entry/c", "shop", "orders", &["10.0.0.3"]), &orders, 80, 8081);
    plain.tunnel_protocol = TunnelProtocol::None;
    let mut ill = workload("tombolo/shop/sick/d", "shop", "sick", &["10.0.0.4"]);
    ill = endpoint_of(endpoint_of(ill, &sick, 80, 80), &desperate, 80, 80);
    ill.healthy = false;
    let mut remote = endpoint_of(workload("tombolo/shop/far/e", "shop", "far", &["10.0.0.5"]), &far, 80, 80);
    remote.network = "elsewhere".into();
    let pod = workload("cluster//Pod/shop/pod", "shop", "pod", &["10.1.0.1"]);
    let own = local(&web, &[3000]);
    let services = [orders, sick, none, far, sans, desperate].map(Change::Service);
    let workloads = [web, one, billing, plain, ill, remote, pod].map(Change::Workload);
    let host = Change::Host(host(vec![own.clone()]));
    (snapshot(services.into_iter().chain(workloads).chain([host]).collect()), own)
}

fn show(candidate: &Candidate) -> String {
    match &candidate.path {
        Path::Plain => format!("plain {}", candidate.target),
        Path::Hbone { expected } => {
            let accounts: Vec<_> = expected.iter().filter_map(SpiffeId::service_account).collect();
            format!("hbone {} as {}", candidate.target, accounts.join("|"))
        }
    }
}

fn answer(decision: &Decision) -> String {
    match decision {
        Decision::Service { service, candidates, .. } => {
            let mut shown: Vec<_> = candidates.iter().map(show).collect();
            shown.sort();
            format!("{}: {}", service.name, shown.join(", "))
        }
        Decision::Workload(candidate) => format!("workload: {}", show(candidate)),
        Decision::Passthrough { workload } => {
            format!("passthrough {}", workload.as_ref().map_or("", |workload| workload.name.as_str()))
        }
        Decision::Refuse(refusal) => refusal.to_string(),
    }
}

#[test]
fn every_kind_of_address_has_its_answer() {
    let (snapshot, own) = mesh();
    let cases = [
        ("240.240.0.1:80", "orders: hbone 10.0.0.2:8080 as orders, plain 10.0.0.3:8081"),
        ("[fd74::1]:80", "orders: hbone [fd00::2]:8080 as orders, plain 10.0.0.3:8081"),
        ("240.240.0.5:80", "sans: hbone 10.0.0.2:8080 as orders|alias"),
        ("240.240.0.6:80", "desperate: hbone 10.0.0.4:80 as sick"),
        ("240.240.0.1:81", "service orders.shop.mesh has no port 81; it has 80"),
        ("240.240.0.2:80", "none of the 1 workloads of service sick.shop.mesh is healthy"),
        ("240.240.0.3:80", "service none.shop.mesh has no workload that serves port 80"),
        ("240.240.0.4:80", "none of the 1 workloads of service far.shop.mesh has an address in network \"\""),
        ("10.0.0.2:8080", "workload: hbone 10.0.0.2:8080 as orders"),
        ("10.0.0.2:9090", "workload: hbone 10.0.0.2:9090 as billing"),
        ("10.0.0.2:22", "passthrough b"),
        ("10.0.0.3:8081", "passthrough c"),
        ("10.0.0.1:3000", "passthrough a"),
        ("10.1.0.1:22", "workload: hbone 10.1.0.1:22 as pod"),
        ("192.0.2.1:443", "passthrough "),
        ("[2001:db8::1]:443", "passthrough "),
    ];
    for (dialled, expected) in cases {
        let decision = decide(&snapshot, dialled.parse().expect("an address"), Some(&own), &OWN_PORTS.into());
        assert_eq!(answer(&decision), expected, "{dialled}");
    }
}

#[test]
fn our_own_ports_are_loops_wherever_they_are() {
    let (snapshot, own) = mesh();
    for address in ["127.0.0.1:15001", "10.0.0.1:15006", "10.0.0.2:15008", "240.240.0.1:15008", "192.0.2.1:15001"] {
        let dialled = address.parse().expect("an address");
        let decision = decide(&snapshot, dialled, Some(&own), &OWN_PORTS.into());
        assert!(matches!(decision, Decision::Refuse(Refusal::Loop { .. })), "{address}: {decision:?}");
    }
}

#[test]
fn a_process_that_is_no_workload_gets_the_same_answers() {
    let (snapshot, own) = mesh();
    for address in ["240.240.0.1:80", "10.0.0.2:8080", "192.0.2.1:443"] {
        let dialled = address.parse().expect("an address");
        let ours = answer(&decide(&snapshot, dialled, Some(&own), &BTreeSet::new()));
        assert_eq!(answer(&decide(&snapshot, dialled, None, &BTreeSet::new())), ours, "{address}");
    }
}

#[test]
fn distance_counts_only_what_is_known() {
    let cases = [
        ("", "", Distance::Elsewhere),
        ("eu", "us", Distance::Elsewhere),
        ("eu", "eu", Distance::SameRegion),
        ("eu/1", "eu/2", Distance::SameRegion),
        ("eu/1", "us/1", Distance::Elsewhere),
        ("eu/1", "eu/1", Distance::SameZone),
        ("eu/1/a", "eu/1/b", Distance::SameZone),
        ("eu/1/a", "eu/1/a", Distance::SameSubzone),
    ];
    for (here, there, expected) in cases {
        assert_eq!(Distance::between(&Locality::parse(here), &Locality::parse(there)), expected, "{here} {there}");
    }
    let near = Tier { unhealthy: true, distance: Distance::SameSubzone };
    let healthy = Tier { unhealthy: false, distance: Distance::Elsewhere };
    assert!(healthy < near, "health comes before distance");
    assert_eq!(ip("::1").to_string(), "::1");
}
