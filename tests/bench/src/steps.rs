//! The steps of a connection and of a change that run in every agent all day, each as something to call
//! again and again. `benches/steps.rs` times them, `bin/instructions.rs` counts their instructions.

use std::collections::BTreeSet;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use agent::discovery::Holdings;
use agent::intercept::OwnPorts;
use agent::intercept_control::wanted::Asked;
use agent::names::NamesVia;
use api::policy::{Action, Connection};
use api::snapshot::Change;
use api::{Delta, SpiffeId};
use proxy::View;
use proxy::dns::answer::answer;
use proxy::dns::message::Request;
use proxy::hbone::{Authority, Baggage, TraceParent};
use proxy::outbound::decide::decide;

use crate::world;

/// A step, ready to be taken.
pub type Step = Box<dyn FnMut()>;

/// A name, and what makes the step. Making one may take long, taking it does not.
pub type Named = (&'static str, fn() -> Step);

/// Every step.
pub const STEPS: &[Named] = &[
    ("decide for a service's address", decide_service),
    ("decide for a workload's address", decide_workload),
    ("judge a connection by its policy", judge),
    ("read a CONNECT's authority", read_authority),
    ("read a CONNECT's baggage and traceparent", read_headers),
    ("write a CONNECT's baggage", write_baggage),
    ("answer a DNS question", answer_name),
    ("apply one changed endpoint to the snapshot", change_endpoint),
    ("take one changed endpoint from the wire and publish it", take_endpoint),
    ("find what one moved endpoint changes of the rules", move_endpoint),
];

/// Large enough that indexes have depth, small enough to be made under valgrind.
const WORKLOADS: u32 = 2_000;

fn decide_service() -> Step {
    deciding(SocketAddr::new(world::vip(77), world::PORT.service_port))
}

fn decide_workload() -> Step {
    deciding(SocketAddr::new(world::address(777), world::PORT.target_port))
}

fn deciding(dialled: SocketAddr) -> Step {
    let (snapshot, own_ports) = (world::snapshot(WORKLOADS), BTreeSet::from([15001, 15006, 15008]));
    Box::new(move || drop(black_box(decide(black_box(&snapshot), black_box(dialled), None, &own_ports))))
}

fn judge() -> Step {
    let policies = [world::policy("team-0", Action::Deny), world::policy("team-1", Action::Allow)];
    let caller = format!("spiffe://{}/ns/team-1/sa/service-9", world::TRUST_DOMAIN);
    let connection = Connection {
        source: Some(caller.parse::<SpiffeId>().expect("an identity")),
        source_ip: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7)),
        destination: SocketAddr::new(world::address(1), world::PORT.target_port),
    };
    Box::new(move || drop(black_box(api::policy::evaluate(black_box(policies.iter()), black_box(&connection)))))
}

fn read_authority() -> Step {
    Box::new(|| drop(black_box(black_box("10.0.3.9:8080").parse::<Authority>())))
}

fn read_headers() -> Step {
    let (workload, parent) = (world::workload(7), TraceParent::fresh(7, 9).to_string());
    let baggage = Baggage::of(&workload).to_string();
    Box::new(move || {
        black_box(Baggage::parse(black_box(&baggage)));
        black_box(TraceParent::parse(black_box(&parent)));
    })
}

fn write_baggage() -> Step {
    let workload = world::workload(7);
    Box::new(move || drop(black_box(Baggage::of(black_box(&workload)).to_string())))
}

fn answer_name() -> Step {
    let snapshot = world::snapshot(WORKLOADS);
    let question = question("service-77.team-0.mesh");
    Box::new(move || {
        let Ok(request) = Request::read(black_box(&question)) else { panic!("our own question cannot be read") };
        let answer = answer(&snapshot, request.question(), Some("team-0"));
        black_box(request.reply(answer, 1, request.udp_limit()));
    })
}

/// An A question (RFC 1035 §4.1).
fn question(name: &str) -> Vec<u8> {
    let mut bytes = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("a short label"));
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

fn change_endpoint() -> Step {
    let (snapshot, mut healthy) = (world::snapshot(WORKLOADS), false);
    Box::new(move || {
        healthy = !healthy;
        let workload = api::Workload { healthy, ..world::workload(777) };
        let delta = Delta { revision: 2, changes: vec![Change::Workload(workload)] };
        black_box(snapshot.apply(black_box(delta)));
    })
}

fn take_endpoint() -> Step {
    take_endpoint_of(WORKLOADS)
}

/// The same in a mesh of any size.
pub fn take_endpoint_of(n_workloads: u32) -> Step {
    let mut holdings = Holdings::default();
    holdings.take(world::response(1, &world::changes(n_workloads)));
    let view = View::new(holdings.snapshot().clone());
    let change = [Change::Workload(api::Workload { healthy: false, ..world::workload(777) })];
    let response = world::response(2, &change);
    Box::new(move || {
        black_box(holdings.take(black_box(response.clone())));
        view.publish(holdings.snapshot().clone());
    })
}

fn move_endpoint() -> Step {
    move_endpoint_of(WORKLOADS)
}

/// The same in a mesh of any size.
pub fn move_endpoint_of(n_workloads: u32) -> Step {
    let (settings, before) = (agent::config::Config::defaults().interception, Arc::new(world::snapshot(n_workloads)));
    let moved = api::Workload { addresses: vec![world::address(n_workloads)], ..world::workload(777) };
    let after = Arc::new(before.apply(Delta { revision: 2, changes: vec![Change::Workload(moved)] }));
    let asked = move |coming| Asked::new(before.clone(), coming, &settings, &NamesVia::Resolved, OwnPorts::default());
    let now = asked(None);
    Box::new(move || {
        let changes = asked(Some(after.clone())).since(black_box(&now));
        assert_eq!(changes.map(|(added, gone)| (added.len(), gone.len())), Some((1, 0)));
    })
}
