//! Selectors against processes, and one real question to the kernel.

use std::collections::BTreeMap;
use std::net::{TcpListener, TcpStream};

use super::*;

fn workload(name: &str, selector: Selector) -> LocalWorkload {
    LocalWorkload {
        uid: name.into(),
        namespace: "shop".to_owned(),
        group: name.to_owned(),
        service_account: name.to_owned(),
        ports: BTreeMap::new(),
        selector,
        probe: None,
    }
}

fn unit(unit: &str) -> Selector {
    Selector { unit: Some(unit.to_owned()), ..Selector::default() }
}

fn cgroup(path: &str) -> Selector {
    Selector { cgroup: Some(path.to_owned()), ..Selector::default() }
}

fn uid(uid: u32) -> Selector {
    Selector { uid: Some(uid), ..Selector::default() }
}

#[test]
fn the_most_specific_selector_wins() {
    let workloads = [
        workload("rest", Selector::default()),
        workload("by-uid", uid(1000)),
        workload("by-unit", unit("orders.service")),
        workload("by-short-unit", unit("web")),
        workload("by-cgroup", cgroup("system.slice/orders.service/worker")),
        workload("by-slice", cgroup("/batch.slice/")),
        workload("by-unit-and-uid", Selector { uid: Some(7), ..unit("orders.service") }),
    ];
    let check = |uid: u32, cgroup: &str, expect: &str| {
        let process = Process { uid: Some(uid), cgroup: Some(cgroup.to_owned()) };
        assert_eq!(choose(&workloads, &process).map(|workload| &*workload.uid), Some(expect), "{process:?}");
    };
    check(0, "", "rest");
    check(0, "system.slice/other.service", "rest");
    check(1000, "", "by-uid");
    check(1000, "system.slice/orders.service", "by-unit");
    check(0, "system.slice/orders.service/other", "by-unit");
    check(7, "system.slice/orders.service", "by-unit-and-uid");
    check(0, "system.slice/orders.service/worker", "by-cgroup");
    check(0, "system.slice/orders.service/worker/1", "by-cgroup");
    check(0, "system.slice/orders.service/worker-2", "by-unit");
    check(0, "user.slice/user-1.slice/user@1.service/app.slice/web.service", "by-short-unit");
    check(0, "batch.slice/x.service", "by-slice");
}

#[test]
fn a_process_of_no_workload_has_none() {
    let workloads = [workload("by-uid", uid(1000))];
    assert!(choose(&workloads, &Process { uid: Some(0), cgroup: Some(String::new()) }).is_none());
}

#[test]
fn what_the_kernel_does_not_know_gives_no_identity() {
    let workloads =
        [workload("rest", Selector::default()), workload("root", uid(0)), workload("orders", unit("orders.service"))];
    let check = |uid: Option<u32>, cgroup: Option<&str>, expect: Option<&str>| {
        let process = Process { uid, cgroup: cgroup.map(str::to_owned) };
        assert_eq!(choose(&workloads, &process).map(|workload| &*workload.uid), expect, "{process:?}");
    };
    check(None, None, None);
    check(None, Some("system.slice/orders.service"), Some("orders"));
    check(None, Some("system.slice/other.service"), None);
    check(Some(0), None, None);
    check(Some(7), Some("system.slice/other.service"), Some("rest"));
}

#[test]
fn a_closed_socket_has_no_owner() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let dialled = listener.local_addr().expect("a bound listener");
    let client = TcpStream::connect(dialled).expect("loopback");
    let local = client.local_addr().expect("a connected socket");
    let held = listener.accept().expect("the client").0;
    drop(client);
    let attribution = CgroupAttribution::new(vec![workload("rest", Selector::default()), workload("root", uid(0))]);
    assert_eq!(attribution.source(local, dialled), None);
    drop(held);
}

#[test]
fn a_host_with_one_workload_asks_nothing() {
    let attribution = CgroupAttribution::new(vec![workload("only", Selector::default())]);
    let nowhere = "192.0.2.1:1".parse().expect("an address");
    assert_eq!(attribution.source(nowhere, nowhere).as_deref(), Some("only"));
}

#[test]
fn the_kernel_names_the_owner_of_a_connection() {
    for listen in ["127.0.0.1:0", "[::1]:0"] {
        let Ok(listener) = TcpListener::bind(listen) else { continue };
        let dialled = listener.local_addr().expect("a bound listener");
        let client = TcpStream::connect(dialled).expect("loopback");
        let own = rustix::process::getuid().as_raw();
        let attribution = CgroupAttribution::new(vec![workload("mine", uid(own)), workload("other", uid(own + 1))]);
        let local = client.local_addr().expect("a connected socket");
        assert_eq!(attribution.source(local, dialled).as_deref(), Some("mine"));
        attribution.update(vec![workload("other", uid(own + 1))]);
        assert_eq!(attribution.source(local, dialled), None);
        assert_eq!(attribution.source(dialled, dialled), None);
    }
}

#[test]
fn an_ipv6_socket_that_talks_ipv4_is_found() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let dialled = listener.local_addr().expect("a bound listener");
    let mapped: SocketAddr = format!("[::ffff:127.0.0.1]:{}", dialled.port()).parse().expect("an address");
    let Ok(client) = TcpStream::connect(mapped) else { return };
    let own = rustix::process::getuid().as_raw();
    let attribution = CgroupAttribution::new(vec![workload("mine", uid(own))]);
    let peer = listener.accept().expect("the client").1;
    assert_eq!(attribution.source(peer, dialled).as_deref(), Some("mine"));
    assert_eq!(attribution.source(client.local_addr().expect("connected"), mapped).as_deref(), Some("mine"));
}
