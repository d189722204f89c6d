//! The table lives as long as somebody holds its socket, and leaves nothing behind.

use std::os::fd::AsFd;
use std::process::Stdio;

use agent::intercept::{self, Applied, ApplyError, Destination, Interception, OpenError, Wanted, ruleset};

use crate::lab::{B4, Lab, VIP4, accept, mesh, talk, wait_until};
use crate::roles;

fn everything() -> Wanted {
    Wanted {
        inbound: [(81, api::InboundMode::Strict), (82, api::InboundMode::Observe)].into(),
        dns: Some(vec!["10.0.0.53".parse().expect("an address")]),
        source_preservation: true,
        ..mesh()
    }
}

/// What `ip` knows of us in this host.
fn routes(lab: &Lab) -> String {
    let rules = lab.a.run("ip rule") + &lab.a.run("ip -6 rule");
    let routes = lab.a.run("ip route show table all") + &lab.a.run("ip -6 route show table all");
    (rules + &routes).lines().filter(|line| line.contains("29805") || line.contains("240.240")).collect()
}

#[test]
fn the_table_ends_with_a_killed_owner_and_traffic_goes_on() {
    let Some(lab) = Lab::new() else { return };
    let server = lab.b.listen(format!("{B4}:80"));
    let mut owner = roles::spawn(&lab.a, "owner", Stdio::null());
    wait_until("the owner has applied its rules", || lab.a.has_table());
    assert!(lab.a.connect(format!("{B4}:80")).is_err(), "no proxy listens, so what is captured is refused");
    owner.kill().expect("it runs");
    owner.wait().expect("it ends");
    lab.a.wait_for_no_table();
    let mut client = lab.a.connect(format!("{B4}:80")).expect("the server answers");
    talk(&mut client, &mut accept(&server).0);
}

#[test]
fn nobody_else_can_flush_change_or_delete_the_table() {
    let Some(lab) = Lab::new() else { return };
    let rules = lab.a.intercept(&everything());
    assert!(rules.owned());
    lab.a.run("nft flush ruleset");
    assert!(lab.a.has_table());
    for attempt in [
        "nft add rule inet tombolo output accept",
        "nft add element inet tombolo vip4 '{ 1.2.3.4 }'",
        "nft flush table inet tombolo",
        "nft delete table inet tombolo",
    ] {
        assert!(lab.a.attempt(attempt).is_err(), "{attempt}");
    }
    assert_eq!(rules.verify().expect("the kernel answers"), Vec::<String>::new());
}

#[test]
fn a_second_agent_is_told_who_owns_the_table() {
    let Some(lab) = Lab::new() else { return };
    let first = lab.a.intercept(&mesh());
    lab.a.within(|| {
        let mut second = Interception::open(None).expect("nf_tables is there");
        let error = second.apply(&ruleset::build(&mesh())).expect_err("the table is taken");
        assert!(matches!(error, ApplyError::OwnedByOther { .. }), "{error}");
        assert!(matches!(second.remove(), Err(ApplyError::OwnedByOther { .. })));
        assert!(intercept::is_owned().expect("the kernel answers"));
    });
    assert_eq!(first.verify().expect("the kernel answers"), Vec::<String>::new());
}

#[test]
fn without_the_capability_the_error_says_so() {
    let Some(lab) = Lab::new() else { return };
    lab.a.within(|| {
        rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(65534)).expect("root may");
        let error = Interception::open(None).expect_err("no privilege");
        assert!(matches!(error, OpenError::NotPermitted), "{error}");
    });
}

#[test]
fn a_parked_socket_keeps_the_table_for_the_next_agent() {
    let Some(lab) = Lab::new() else { return };
    let first = lab.a.intercept(&mesh());
    let parked = first.as_fd().try_clone_to_owned().expect("a copy");
    drop(first);
    assert!(lab.a.has_table());
    let mut second = lab.a.within(|| Interception::open(Some(parked)).expect("the socket is ours"));
    assert!(second.owned());
    assert!(second.applied().is_none());
    assert_eq!(second.apply(&ruleset::build(&everything())).expect("the rules are taken"), Applied::Whole);
    drop(second);
    lab.a.wait_for_no_table();
}

#[test]
fn another_process_takes_the_table_over_by_its_socket() {
    let Some(lab) = Lab::new() else { return };
    let first = lab.a.intercept(&mesh());
    let parked = first.as_fd().try_clone_to_owned().expect("a copy");
    let mut heir = roles::spawn(&lab.a, "heir", Stdio::from(parked));
    wait_until("the heir has added its element", || lab.a.run("nft list table inet tombolo").contains("240.240.9.9"));
    drop(first);
    assert!(lab.a.has_table());
    heir.kill().expect("it runs");
    heir.wait().expect("it ends");
    lab.a.wait_for_no_table();
}

#[test]
fn a_foreign_descriptor_is_refused() {
    let file = std::fs::File::open("/dev/null").expect("a file");
    assert!(Interception::open(Some(file.into())).is_err());
}

#[test]
fn removal_leaves_no_table_rule_or_route() {
    let Some(lab) = Lab::without_default_routes() else { return };
    let before = lab.a.run("nft list ruleset") + &routes(&lab);
    let mut rules = lab.a.intercept(&everything());
    let with_rules = routes(&lab);
    for part in ["fwmark 0x106f lookup 29805", "local default dev lo table 29805", "240.240.0.0/16"] {
        assert!(with_rules.contains(part), "{part} is not in {with_rules}");
    }
    assert_eq!(rules.verify().expect("the kernel answers"), Vec::<String>::new());
    rules.apply(&ruleset::build(&Wanted::default())).expect("the rules are taken");
    assert_eq!(routes(&lab), "", "routes that are not needed any more go");
    rules.apply(&ruleset::build(&everything())).expect("the rules are taken");
    rules.remove().expect("the rules go");
    rules.remove().expect("removing nothing is fine");
    assert_eq!(lab.a.run("nft list ruleset") + &routes(&lab), before);
    assert_eq!(lab.a.within(|| intercept::leftovers().expect("the kernel answers")), []);
}

#[test]
fn what_a_dead_agent_leaves_is_found_and_cleaned() {
    let Some(lab) = Lab::without_default_routes() else { return };
    drop(lab.a.intercept(&everything()));
    lab.a.wait_for_no_table();
    let left = lab.a.within(|| intercept::leftovers().expect("the kernel answers"));
    assert_eq!(left.len(), 6, "{left:?}");
    assert_eq!(lab.a.within(|| intercept::clean().expect("the kernel answers")), left);
    assert_eq!(routes(&lab), "");
    // Kernels without owned tables leave the table as well.
    lab.a.within(|| {
        let mut rules = Interception::open_ordinary().expect("nf_tables is there");
        rules.apply(&ruleset::build(&everything())).expect("the rules are taken");
        assert!(!rules.owned());
    });
    assert!(lab.a.has_table());
    assert_eq!(lab.a.within(|| intercept::clean().expect("the kernel answers")).len(), 7);
    assert!(!lab.a.has_table());
    assert_eq!(lab.a.within(|| intercept::clean().expect("the kernel answers")), []);
}

#[test]
fn a_destination_that_others_removed_can_go_and_all_is_written_again() {
    let Some(lab) = Lab::new() else { return };
    lab.a.within(|| {
        let mut rules = Interception::open_ordinary().expect("nf_tables is there");
        rules.apply(&ruleset::build(&everything())).expect("the rules are taken");
        let gone = Destination::Service(VIP4.parse().expect("an address"));
        lab.a.run(&format!("nft delete element inet tombolo vip4 '{{ {VIP4} }}'"));
        lab.a.run("nft flush chain inet tombolo replies");
        assert_eq!(rules.change(&[], &[gone]).expect("the rules are taken"), Applied::Whole);
        assert_eq!(rules.verify().expect("the kernel answers"), Vec::<String>::new());
        assert_eq!(rules.change(&[gone], &[]).expect("the rules are taken"), Applied::Elements(1));
        assert_eq!(rules.apply(&ruleset::build(&everything())).expect("the rules are taken"), Applied::Unchanged);
    });
}

#[test]
fn an_ordinary_table_that_others_changed_is_noticed_and_repaired() {
    let Some(lab) = Lab::new() else { return };
    let mut rules = lab.a.within(|| {
        let mut rules = Interception::open_ordinary().expect("nf_tables is there");
        rules.apply(&ruleset::build(&everything())).expect("the rules are taken");
        rules
    });
    for (change, expect) in [
        ("nft add rule inet tombolo output accept", "the rules of chain output were changed"),
        ("nft flush chain inet tombolo replies", "the rules of chain replies were changed"),
        ("nft add chain inet tombolo stranger", "chain stranger is not ours"),
        ("nft add element inet tombolo vip4 '{ 1.2.3.4 }'", "set vip4 lacks 0 elements and has 1 that are not ours"),
        (
            &format!("nft delete element inet tombolo vip4 '{{ {VIP4} }}'"),
            "set vip4 lacks 1 elements and has 0 that are not ours",
        ),
        ("ip rule del fwmark 0x106f", "ip rule: fwmark 0x106f lookup 29805 is missing"),
        ("ip -6 rule del fwmark 0x106f", "ip -6 rule: fwmark 0x106f lookup 29805 is missing"),
        ("ip route flush table 29805", "ip route: local 0.0.0.0/0 dev lo table 29805 is missing"),
        ("nft flush ruleset", "table inet tombolo is missing"),
    ] {
        assert_eq!(rules.verify().expect("the kernel answers"), Vec::<String>::new());
        lab.a.run(change);
        assert_eq!(rules.verify().expect("the kernel answers"), [expect], "{change}");
        rules.repair().expect("the rules are taken");
    }
}
