//! Batches against the kernel, in a network namespace of their own. They need root.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::expression::{self as write, Verdict};
use super::*;
use crate::netlink::socket::NETFILTER;

/// Runs on a thread in a fresh network namespace, which is removed afterwards.
fn in_namespace(role: &str, work: impl FnOnce(&NetlinkSocket) + Send) {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: network namespaces need root");
        return;
    }
    let namespace = Namespace(format!("tmb{}-nft-{role}", std::process::id()));
    assert!(ip(&["netns", "add", &namespace.0]), "ip netns add {}", namespace.0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = File::open(format!("/run/netns/{}", namespace.0)).expect("the namespace exists");
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may enter");
            work(&NetlinkSocket::open(NETFILTER).expect("nf_tables is there"));
        });
    });
}

struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&["netns", "del", &self.0]);
    }
}

fn ip(arguments: &[&str]) -> bool {
    Command::new("ip").args(arguments).status().is_ok_and(|status| status.success())
}

fn refusal(batch: Batch, socket: &NetlinkSocket) -> (String, KernelError) {
    match batch.send(socket, None) {
        Err(BatchError::Refused { object, source }) => (object, source),
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn a_refusal_names_our_rule_the_reason_and_the_place() {
    in_namespace("refusal", |socket| {
        let mut batch = Batch::default();
        batch.add_table("t", 0);
        batch.add_rule("t", "nowhere", "a rule of mine", |rule| write::verdict(rule, Verdict::Accept));
        let (object, error) = refusal(batch, socket);
        assert_eq!(object, "rule \"a rule of mine\" of chain nowhere");
        assert_eq!(error.errno, Errno::NOENT);
        assert!(error.offset.is_some(), "{error}");
        assert!(error.to_string().starts_with("No such file or directory"), "{error}");
        assert_eq!(table(socket, "t").expect("the kernel answers"), None, "nothing of it is applied");

        let mut batch = Batch::default();
        batch.add_table("t", 0);
        batch.add_chain("t", "early", Some(Hook { number: 3, priority: -300, kind: "nat" }));
        assert_eq!(refusal(batch, socket).0, "chain early");

        let mut batch = Batch::default();
        batch.add_table("t", 0);
        batch.add_chain("t", "c", Some(Hook { number: 3, priority: 0, kind: "filter" }));
        batch.add_rule("t", "c", "redirect without NAT", |rule| write::redirect(rule, 1));
        let (object, error) = refusal(batch, socket);
        assert_eq!((object.as_str(), error.errno), ("rule \"redirect without NAT\" of chain c", Errno::OPNOTSUPP));

        let mut batch = Batch::default();
        batch.add_table("t", 0xff);
        assert_eq!(refusal(batch, socket).0, "table t");
    });
}

#[test]
fn a_stale_generation_changes_nothing() {
    in_namespace("stale", |socket| {
        let before = generation(socket).expect("the kernel answers");
        let add = |name: &str| {
            let mut batch = Batch::default();
            batch.add_table(name, 0);
            batch
        };
        add("first").send(socket, before).expect("nobody came between");
        assert!(matches!(add("second").send(socket, before), Err(BatchError::Stale)));
        assert_eq!(table(socket, "second").expect("the kernel answers"), None);
        assert!(table(socket, "first").expect("the kernel answers").is_some());
    });
}

#[test]
fn a_set_larger_than_one_attribute_is_sent_in_parts() {
    in_namespace("large", |socket| {
        let elements: Vec<RawElement> =
            (0..20_000_u32).map(|n| RawElement { key: n.to_be_bytes().to_vec(), range_end: false }).collect();
        let mut batch = Batch::default();
        batch.add_table("t", 0);
        batch.add_set("t", "s", SetKind { data_type: 7, key_bytes: 4, flags: 0, host_order: false });
        batch.add_elements("t", "s", &elements);
        batch.send(socket, None).expect("the kernel takes all parts");
        // The kernel grows a hash set in the background, and a dump during that misses elements.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            let mut present = read::elements(socket, "t", "s").expect("the kernel answers");
            present.sort();
            if present == elements {
                break;
            }
            assert!(std::time::Instant::now() < end, "{} of {} elements", present.len(), elements.len());
        }
    });
}

#[test]
fn ownership_is_seen_from_outside() {
    in_namespace("owner", |socket| {
        let mut batch = Batch::default();
        batch.add_table("t", TABLE_OWNER);
        batch.send(socket, None).expect("Linux 5.12 or newer");
        let other = NetlinkSocket::open(NETFILTER).expect("nf_tables is there");
        let seen = table(&other, "t").expect("the kernel answers").expect("it exists");
        assert_eq!((seen.owner, seen.flags & TABLE_OWNER), (socket.port(), TABLE_OWNER));
        let mut batch = Batch::default();
        batch.delete_table("t");
        assert_eq!(refusal(batch, &other).1.errno, Errno::PERM);
    });
}
