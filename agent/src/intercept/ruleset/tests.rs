//! What is wanted against the rules that come out, as an operator would read them.

use super::*;

fn wanted() -> Wanted {
    Wanted {
        vips: BTreeSet::from(["240.240.0.1", "fd74:6d62:6f6c::1"].map(|ip| ip.parse().expect("an address"))),
        endpoints: BTreeSet::from(["10.0.0.2:5432", "[fd00::2]:80"].map(|at| at.parse().expect("an endpoint"))),
        ..Wanted::default()
    }
}

fn lines(rules: &Ruleset) -> Vec<String> {
    rules.to_string().lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn mesh_capture_takes_vips_and_workload_ports_and_nothing_else() {
    let text = build(&wanted()).to_string();
    assert!(text.contains("elements = { 240.240.0.1 }"), "{text}");
    assert!(text.contains("elements = { 10.0.0.2 . 5432 }"), "{text}");
    assert!(text.contains(
        "tcp flags syn / fin,syn,rst,ack ip daddr . tcp dport @endpoint4 counter packets 0 bytes 0 redirect to :15001"
    ));
    let redirects = lines(&build(&wanted())).iter().filter(|line| line.contains("redirect")).count();
    assert_eq!(redirects, 4, "{text}");
    assert!(!text.contains("chain inbound"), "{text}");
}

#[test]
fn every_redirect_follows_the_own_marks() {
    let everything =
        Wanted { capture: Capture::All, dns: Some(vec!["10.0.0.53".parse().expect("an address")]), ..wanted() };
    let lines = lines(&build(&everything));
    let first_redirect = lines.iter().position(|line| line.contains("redirect")).expect("redirects");
    for mark in ["meta mark 0x0000106d return", "meta mark 0x0000106e return"] {
        let at = lines.iter().position(|line| line.starts_with(mark)).expect("own marks return");
        assert!(at < first_redirect, "{mark}");
    }
}

#[test]
fn addresses_that_are_no_peers_are_never_captured() {
    let mut wanted = wanted();
    wanted.endpoints = BTreeSet::from(
        ["127.0.0.1:80", "[::1]:80", "0.0.0.0:80", "[::ffff:10.0.0.9]:81", "224.0.0.1:5"]
            .map(|at| at.parse().expect("an endpoint")),
    );
    wanted.vips = BTreeSet::from(["127.0.0.1".parse().expect("an address")]);
    let text = build(&wanted).to_string();
    assert!(text.contains("elements = { 10.0.0.9 . 81 }"), "{text}");
    assert!(!text.contains("127.0.0.1") && !text.contains("224.0.0.1") && !text.contains("0.0.0.0"), "{text}");
}

#[test]
fn inbound_modes_have_their_own_sets_and_permissive_has_none() {
    let inbound = [(80, InboundMode::Observe), (81, InboundMode::Strict), (82, InboundMode::Permissive)];
    let text = build(&Wanted { inbound: inbound.into(), ..wanted() }).to_string();
    assert!(
        text.contains("tcp dport @strict_port fib daddr type local counter packets 0 bytes 0 reject with tcp reset")
    );
    assert!(text.contains("tproxy to :15006 meta mark set 0x0000106f accept"));
    assert!(text.contains("set observed_port {\n\t\ttype inet_service\n\t\telements = { 80 }"), "{text}");
    assert!(text.contains("set strict_port {\n\t\ttype inet_service\n\t\telements = { 81 }"), "{text}");
    assert!(!text.contains("82"), "{text}");
}

#[test]
fn only_connections_from_the_agent_are_marked_for_their_answers() {
    let text = build(&Wanted { source_preservation: true, ..wanted() }).to_string();
    assert!(text.contains("meta mark 0x0000106e ct direction original ct mark set 0x0000106f"), "{text}");
    assert!(text.contains("ct direction reply ct mark 0x0000106f meta mark set 0x0000106f"), "{text}");
    assert!(text.contains("type route hook output priority mangle"), "{text}");
}

#[test]
fn quiet_rules_take_nothing_and_keep_translation_and_answers() {
    let everything = Wanted {
        capture: Capture::All,
        dns: Some(vec!["10.0.0.53".parse().expect("an address")]),
        inbound: [(80, InboundMode::Strict)].into(),
        ..wanted()
    };
    let text = build(&everything.quiet()).to_string();
    // Only service addresses are refused, which lead nowhere else, and what is over; no element is one to be taken.
    let refused =
        ["reject", "addresses of no service", "answers to what is over"].map(|word| text.matches(word).count());
    assert_eq!(refused, [3, 2, 1], "{text}");
    assert_eq!((text.matches("elements").count(), text.contains("dport 53")), (2, false), "{text}");
    assert!(text.contains("type nat hook output") && text.contains("chain replies"), "{text}");
}

#[test]
fn the_block_table_refuses_strict_ports_and_nothing_else() {
    let inbound = [(80, InboundMode::Observe), (81, InboundMode::Strict)];
    let text = build_block(&Wanted { inbound: inbound.into(), source_preservation: true, ..wanted() }).to_string();
    assert!(text.starts_with("table inet tombolo_block {"), "{text}");
    assert_eq!(text.matches("comment").count(), 1, "{text}");
    assert!(text.contains("reject with tcp reset") && text.contains("elements = { 81 }"), "{text}");
}

#[test]
fn excluded_networks_are_merged_so_that_ranges_never_overlap() {
    let cidrs = ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/24", "192.168.0.0/25", "192.168.0.128/25", "fe80::1/10"];
    let exclusions =
        Exclusions { cidrs: cidrs.map(|net| net.parse().expect("a network")).into(), ..Exclusions::default() };
    let text = build(&Wanted { exclusions, ..wanted() }).to_string();
    assert!(text.contains("elements = { 10.0.0.0/8, 192.168.0.0/24 }"), "{text}");
    assert!(text.contains("elements = { fe80::/10 }"), "{text}");
}

#[test]
fn excluded_units_are_found_at_their_depth() {
    let exclusions = Exclusions {
        units: ["backup".to_owned(), "web.service".to_owned()].into(),
        cgroups: ["/batch/night/".to_owned()].into(),
        ..Exclusions::default()
    };
    let rules = build(&Wanted { exclusions, ..wanted() });
    assert!(rules.names_cgroups());
    let tree = CgroupTree::of(&[
        (5, "system.slice/backup.service"),
        (6, "user.slice/user-1000.slice/user@1000.service/app.slice/web.service"),
        (7, "batch/night"),
        (8, "system.slice/other.service"),
    ]);
    let text = rules.with_cgroups(&tree).to_string();
    assert!(text.contains("set excluded_cgroup2 {\n\t\ttype cgroupsv2\n\t\telements = { \"batch/night\",\n"), "{text}");
    assert!(text.contains("\"system.slice/backup.service\" }"), "{text}");
    assert!(text.contains("socket cgroupv2 level 5 @excluded_cgroup5 return"), "{text}");
    assert!(!text.contains("other.service"), "{text}");
}

#[test]
fn the_json_has_every_set_chain_and_rule() {
    let json = build(&Wanted { inbound: [(81, InboundMode::Strict)].into(), ..wanted() }).to_json();
    let objects = json["nftables"].as_array().expect("a list");
    let count = |kind: &str| objects.iter().filter(|object| object.get(kind).is_some()).count();
    assert_eq!((count("table"), count("set"), count("chain"), count("rule")), (1, 7, 3, 9));
}
