//! The device for mesh names, in a network namespace of the test's own. Needs root.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;

use agent::link::{self, LINK, LinkError};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace that goes with the test.
struct Namespace {
    name: String,
}

impl Namespace {
    /// None without root.
    fn new(role: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: network namespaces need root");
            return None;
        }
        let name = format!("tmb{}-{role}", std::process::id());
        run(&["ip", "netns", "add", &name]);
        Some(Self { name })
    }

    /// What `ip` says inside.
    fn ip(&self, words: &str) -> String {
        let mut command = vec!["ip", "-n", &self.name];
        command.extend(words.split_whitespace());
        run(&command)
    }

    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(format!("/run/netns/{}", self.name)).expect("the namespace is there");
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let entered = move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network));
                entered.expect("root may enter");
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        run(&["ip", "netns", "delete", &self.name]);
    }
}

fn run(words: &[&str]) -> String {
    let output = Command::new(words[0]).args(&words[1..]).output().expect("iproute2 is installed");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_device_comes_once_and_goes() {
    let Some(host) = Namespace::new("device") else { return };
    let index = match host.within(link::ensure) {
        Err(LinkError::NoKind) => return println!("SKIPPED: this kernel has neither dummy nor ifb devices"),
        made => made.expect("root may make devices"),
    };
    assert_eq!(host.within(link::ensure).expect("it is there"), index, "a second time changes nothing");
    let shown = host.ip("-brief address show dev tombolo0");
    assert_eq!(shown.matches("169.254.74.53/32").count(), 1, "{shown}");
    let details = host.ip("-oneline address show dev tombolo0");
    assert!(details.contains("scope global tombolo0"), "{details}");
    assert!(host.ip("-brief link show dev tombolo0").contains("LOWER_UP"));
    assert_eq!(host.ip("route show"), "", "no route changes");

    // Somebody took the address away and the device down.
    host.ip("address flush dev tombolo0");
    host.ip("link set tombolo0 down");
    assert_eq!(host.within(link::ensure).expect("repaired"), index);
    assert!(host.ip("-brief address show dev tombolo0").contains("169.254.74.53/32"));
    assert!(host.ip("-brief link show dev tombolo0").contains("LOWER_UP"));

    assert!(host.within(link::remove).expect("removed"));
    assert!(!host.within(link::remove).expect("nothing to do"));
    assert!(!host.ip("link").contains(LINK));
}

#[test]
fn a_device_that_somebody_else_made_is_left_alone() {
    let Some(host) = Namespace::new("foreign") else { return };
    host.ip("link add tombolo0 type bridge");
    let refused = host.within(link::ensure).expect_err("not ours");
    assert!(matches!(&refused, LinkError::Foreign { kind } if kind == "bridge"), "{refused}");
    assert!(!host.within(link::remove).expect("not touched"));
    assert!(host.ip("link").contains(LINK));
}
