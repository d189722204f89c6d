//! What is excluded goes straight to its destination; attribution of what is not.

use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use agent::attribute::CgroupAttribution;
use agent::cgroup;
use agent::intercept::{Capture, Exclusions, Wanted};
use api::{LocalWorkload, Selector};
use proxy::Attribution;

use crate::lab::{B4, B6, Host, Lab, VIP4, accept, mesh, original_destination, try_accept, wait_for, wait_until};
use crate::roles;

/// Whether a connection ended at the proxy or at the server itself.
#[derive(Debug, PartialEq, Eq)]
enum Reached {
    Proxy,
    Server,
}

fn reached(proxy: &TcpListener, server: &TcpListener) -> Reached {
    wait_for("a connection arrives", || {
        if try_accept(server, Duration::ZERO).is_some() {
            return Some(Reached::Server);
        }
        try_accept(proxy, Duration::ZERO).map(|_| Reached::Proxy)
    })
}

#[test]
fn excluded_users_connect_directly() {
    let Some(lab) = Lab::new() else { return };
    let (proxy, server) = (lab.a.listen("127.0.0.1:15001"), lab.b.listen(format!("{B4}:80")));
    let exclusions = Exclusions { uids: [12345].into(), ..Exclusions::default() };
    let _rules = lab.a.intercept(&Wanted { exclusions, ..mesh() });
    for (uid, expect) in [(12345, Reached::Server), (12346, Reached::Proxy)] {
        lab.a.within(|| {
            rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(uid)).expect("root may");
            std::net::TcpStream::connect(format!("{B4}:80")).expect("somebody answers");
        });
        assert_eq!(reached(&proxy, &server), expect, "uid {uid}");
    }
}

#[test]
fn excluded_networks_ports_and_interfaces_are_left_alone() {
    let Some(lab) = Lab::new() else { return };
    let (proxy, server) = (lab.a.listen("127.0.0.1:15001"), lab.b.listen(format!("{B4}:80")));
    let (proxy6, server6) = (lab.a.listen("[::1]:15001"), lab.b.listen(format!("[{B6}]:80")));
    let everything = || Wanted { capture: Capture::All, ..mesh() };
    let excluding = |exclusions| Wanted { exclusions, ..everything() };
    let net = |net: &str| net.parse().expect("a network");
    for (wanted, expect4, expect6) in [
        (everything(), Reached::Proxy, Reached::Proxy),
        (
            excluding(Exclusions { cidrs: [net("10.77.0.0/16"), net("10.0.0.0/9")].into(), ..Exclusions::default() }),
            Reached::Server,
            Reached::Proxy,
        ),
        (
            excluding(Exclusions { cidrs: [net("fd77::/64")].into(), ..Exclusions::default() }),
            Reached::Proxy,
            Reached::Server,
        ),
        (
            excluding(Exclusions { cidrs: [net("0.0.0.0/0")].into(), ..Exclusions::default() }),
            Reached::Server,
            Reached::Proxy,
        ),
        (
            excluding(Exclusions { cidrs: [net("10.77.0.3/32"), net("10.77.0.0/31")].into(), ..Exclusions::default() }),
            Reached::Proxy,
            Reached::Proxy,
        ),
        (excluding(Exclusions { ports: [80].into(), ..Exclusions::default() }), Reached::Server, Reached::Server),
        (
            excluding(Exclusions {
                interfaces: ["eth0".to_owned(), "eth7".to_owned()].into(),
                ..Exclusions::default()
            }),
            Reached::Server,
            Reached::Server,
        ),
    ] {
        let _rules = lab.a.intercept(&wanted);
        let _client = lab.a.connect(format!("{B4}:80")).expect("somebody answers");
        assert_eq!(reached(&proxy, &server), expect4, "{:?}", wanted.exclusions);
        let _client = lab.a.connect(format!("[{B6}]:80")).expect("somebody answers");
        assert_eq!(reached(&proxy6, &server6), expect6, "{:?}", wanted.exclusions);
    }
}

/// A cgroup for one test, removed with everything in it.
struct TestCgroup {
    path: PathBuf,
    relative: String,
}

impl TestCgroup {
    fn new(name: &str) -> Option<Self> {
        let relative = format!("tmb{}.slice/{name}", std::process::id());
        let path = cgroup::mount_point().ok()?.join(&relative);
        std::fs::create_dir_all(&path).expect("root may make cgroups");
        Some(Self { path, relative })
    }

    /// Makes it anew, as systemd does when a unit restarts.
    fn restart(&self) {
        std::fs::remove_dir(&self.path).expect("nothing runs in it");
        std::fs::create_dir(&self.path).expect("root may make cgroups");
    }

    /// A process in this cgroup that connects and waits to be told to end.
    fn connect(&self, host: &Host, to: &str) -> Connected {
        let (address, port) = to.rsplit_once(':').expect("address and port");
        self.start(host, &format!("nc {address} {port}"))
    }

    fn start(&self, host: &Host, command: &str) -> Connected {
        let procs = self.path.join("cgroup.procs");
        let line = format!("echo $$ > {} && exec nsenter --net=/run/netns/{} {command}", procs.display(), host.name);
        let child = Command::new("sh").args(["-c", &line]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
        Connected(child.expect("sh is there"))
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.path);
        let _ = self.path.parent().map(std::fs::remove_dir);
    }
}

struct Connected(Child);

impl Drop for Connected {
    fn drop(&mut self) {
        let _ = self.0.stdin.take().map(|mut stdin| stdin.flush());
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_excluded_unit_stays_excluded_when_it_restarts() {
    let Some(lab) = Lab::new() else { return };
    let Some(unit) = TestCgroup::new("backup.service") else { return };
    let (proxy, server) = (lab.a.listen("127.0.0.1:15001"), lab.b.listen(format!("{B4}:80")));
    for exclusions in [
        Exclusions { units: ["backup".to_owned()].into(), ..Exclusions::default() },
        Exclusions { cgroups: [format!("/{}", unit.relative)].into(), ..Exclusions::default() },
    ] {
        let mut rules = lab.a.intercept(&Wanted { exclusions, ..mesh() });
        let to = format!("{B4}:80");
        drop((unit.connect(&lab.a, &to), assert_eq!(reached(&proxy, &server), Reached::Server)));
        assert!(!rules.refresh_cgroups().expect("the tree can be read"));
        wait_until("nothing runs in the cgroup", || {
            std::fs::read_to_string(unit.path.join("cgroup.procs")).is_ok_and(|procs| procs.is_empty())
        });
        unit.restart();
        drop((unit.connect(&lab.a, &to), assert_eq!(reached(&proxy, &server), Reached::Proxy)));
        assert!(rules.refresh_cgroups().expect("the tree can be read"));
        drop((unit.connect(&lab.a, &to), assert_eq!(reached(&proxy, &server), Reached::Server)));
        assert_eq!(rules.verify().expect("the kernel answers"), Vec::<String>::new());
    }
}

fn workload(name: &str, selector: Selector) -> LocalWorkload {
    LocalWorkload {
        uid: name.into(),
        namespace: "shop".to_owned(),
        group: name.to_owned(),
        service_account: name.to_owned(),
        ports: [].into(),
        selector,
        probe: None,
    }
}

#[test]
fn a_captured_connection_is_attributed_to_its_unit() {
    let Some(lab) = Lab::new() else { return };
    let Some(unit) = TestCgroup::new("orders.service") else { return };
    let proxy = lab.a.listen("127.0.0.1:15001");
    let _rules = lab.a.intercept(&mesh());
    let orders = Selector { unit: Some("orders.service".to_owned()), ..Selector::default() };
    let attribution = CgroupAttribution::new(vec![workload("rest", Selector::default()), workload("orders", orders)]);
    for (mut process, expect) in [(Some(unit.connect(&lab.a, &format!("{B4}:80"))), "orders"), (None, "rest")] {
        let own = process.is_none().then(|| lab.a.connect(format!("{B4}:80")).expect("the proxy answers"));
        let (taken, client) = accept(&proxy);
        let dialled = original_destination(&taken);
        let found = lab.a.within(|| attribution.source(client, dialled));
        assert_eq!(found.as_deref(), Some(expect));
        drop((process.take(), own));
    }
}

#[test]
fn a_connection_whose_source_port_was_translated_is_attributed_too() {
    let Some(lab) = Lab::new() else { return };
    let Some(unit) = TestCgroup::new("billing.service") else { return };
    let proxy = lab.a.listen("127.0.0.1:15001");
    let _rules = lab.a.intercept(&mesh());
    let billing = Selector { unit: Some("billing.service".to_owned()), ..Selector::default() };
    let attribution = CgroupAttribution::new(vec![workload("rest", Selector::default()), workload("billing", billing)]);
    let ask = |expect: &str| {
        let (taken, client) = accept(&proxy);
        let dialled = original_destination(&taken);
        let found = lab.a.within(|| attribution.source(client, dialled));
        assert_eq!(found.as_deref(), Some(expect), "{client} -> {dialled}");
        (taken, client.port())
    };
    const PORT: u16 = 41_235;
    let _first = lab.a.connect_from_port(PORT, format!("{B4}:80")).expect("the proxy answers");
    let (_first_taken, port) = ask("rest");
    assert_eq!(port, PORT);
    let program = std::env::current_exe().expect("this program");
    let client = format!("{} --exact {} {PORT} {VIP4}:80", program.display(), roles::CLIENT);
    let _second = unit.start(&lab.a, &client);
    let (_second_taken, port) = ask("billing");
    assert_ne!(port, PORT, "the kernel must have told the two apart");
}
