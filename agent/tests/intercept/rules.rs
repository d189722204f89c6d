//! The printed rule set is exactly what the kernel has, in nft's words and in nft's JSON.

use std::collections::BTreeSet;

use agent::cgroup::CgroupTree;
use agent::intercept::{Applied, Capture, Exclusions, Interception, Wanted, ruleset};
use api::InboundMode;
use serde_json::Value;

use crate::lab::{Lab, mesh};

fn everything() -> Wanted {
    let exclusions = Exclusions {
        uids: [0, 988].into(),
        units: ["nobody-has-this.service".to_owned()].into(),
        cgroups: ["nor/this".to_owned()].into(),
        cidrs: [
            "10.1.0.0/24",
            "10.1.1.0/25",
            "10.2.0.0/16",
            "192.0.2.1/32",
            "255.255.255.0/24",
            "fe80::/10",
            "::1/128",
        ]
        .map(|net| net.parse().expect("a network"))
        .into(),
        ports: [22, 5433, 1, 2, 3, 4, 5].into(),
        interfaces: ["docker0".to_owned(), "eth1".to_owned()].into(),
    };
    let inbound = [(80, InboundMode::Observe), (81, InboundMode::Strict), (82, InboundMode::Permissive)];
    Wanted {
        capture: Capture::All,
        inbound: inbound.into(),
        exclusions,
        dns: Some(["10.0.0.53", "127.0.0.53", "fd77::53"].map(|server| server.parse().expect("an address")).into()),
        source_preservation: true,
        ..mesh()
    }
}

fn variants() -> [Wanted; 6] {
    [
        Wanted::default(),
        mesh(),
        everything(),
        everything().quiet(),
        Wanted { inbound: [(81, InboundMode::Strict)].into(), ..mesh() },
        Wanted { dns: Some(vec![]), inbound: [(80, InboundMode::Observe)].into(), ..mesh() },
    ]
}

#[test]
fn the_text_is_what_nft_lists() {
    let Some(lab) = Lab::new() else { return };
    for wanted in variants() {
        let rules = lab.a.intercept(&wanted);
        let listed = lab.a.run("nft list table inet tombolo");
        let printed = rules.applied().expect("applied").to_string();
        assert_eq!(normal(&printed), normal(&strip_owner(&listed)), "printed:\n{printed}\nlisted:\n{listed}");
    }
}

#[test]
fn the_json_is_what_nft_lists() {
    let Some(lab) = Lab::new() else { return };
    for wanted in variants() {
        let rules = lab.a.intercept(&wanted);
        let listed: Value =
            serde_json::from_str(&lab.a.run("nft -j list table inet tombolo")).expect("nft prints JSON");
        let printed = rules.applied().expect("applied").to_json();
        let (printed, listed) = (objects(printed), objects(listed));
        for object in &printed {
            assert!(listed.contains(object), "nft does not list {object}\nbut {}", Value::from(listed));
        }
        assert_eq!(printed.len(), listed.len());
    }
}

#[test]
fn applying_is_idempotent_and_changes_only_what_differs() {
    let Some(lab) = Lab::new() else { return };
    let mut rules = lab.a.intercept(&everything());
    let mut apply = |wanted: &Wanted| rules.apply(&ruleset::build(wanted)).expect("the rules are taken");
    assert_eq!(apply(&everything()), Applied::Unchanged);
    let mut wanted = everything();
    wanted.vips.insert("240.240.0.8".parse().expect("an address"));
    wanted.endpoints.remove(&"10.77.0.2:80".parse().expect("an endpoint"));
    wanted.inbound.insert(83, InboundMode::Strict);
    wanted.exclusions.uids.insert(77);
    assert_eq!(apply(&wanted), Applied::Elements(4));
    assert_eq!(apply(&wanted), Applied::Unchanged);
    wanted.exclusions.cidrs.clear();
    assert_eq!(apply(&wanted), Applied::Whole);
    wanted.vips = (0..5000_u32).map(|n| std::net::Ipv4Addr::from(0xf0f0_0000 + n).into()).collect();
    assert!(matches!(apply(&wanted), Applied::Elements(4999)));
    wanted.vips.clear();
    assert_eq!(apply(&wanted), Applied::Elements(5000));
    let listed = lab.a.run("nft list table inet tombolo");
    assert_eq!(normal(&rules.applied().expect("applied").to_string()), normal(&strip_owner(&listed)));
    assert_eq!(rules.verify().expect("the kernel answers"), Vec::<String>::new());
}

#[test]
fn rules_count_what_they_take() {
    let Some(lab) = Lab::new() else { return };
    let rules = lab.a.intercept(&mesh());
    for _ in 0..3 {
        assert!(lab.a.connect("10.77.0.2:80").is_err(), "no proxy listens");
    }
    let hits = rules.hits().expect("the kernel answers");
    assert_eq!(hits.iter().map(|hit| hit.packets).sum::<u64>(), 3, "{hits:?}");
    assert!(hits.iter().any(|hit| hit.rule == "workloads' ports" && hit.packets == 3), "{hits:?}");
}

#[test]
fn a_refused_rule_set_names_its_part_and_leaves_the_old_one() {
    let Some(lab) = Lab::new() else { return };
    let rules = lab.a.intercept(&mesh());
    let before = lab.a.run("nft list table inet tombolo");
    lab.a.within(|| {
        let mut second = Interception::open(None).expect("nf_tables is there");
        assert!(second.apply(&ruleset::build(&everything())).is_err());
    });
    assert_eq!(lab.a.run("nft list table inet tombolo"), before);
    drop(rules);
}

#[test]
fn plan_shows_the_cgroups_that_exist() {
    let Ok(tree) = CgroupTree::load() else { return };
    let text = ruleset::build(&everything()).with_cgroups(&tree).to_string();
    assert!(text.contains("set excluded_cgroup2 {\n\t\ttype cgroupsv2\n\t}"), "{text}");
}

/// Without the flags that say who owns the table.
fn strip_owner(listed: &str) -> String {
    let kept = |line: &&str| !line.trim().starts_with("flags owner");
    listed
        .lines()
        .filter(kept)
        .map(|line| line.split(" # progname").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// White space, and the kernel's order of elements, mean nothing; counters count.
fn normal(text: &str) -> Vec<String> {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut parts = words.split("elements = { ");
    let mut found = vec![parts.next().unwrap_or_default().to_owned()];
    for part in parts {
        let (elements, rest) = part.split_once(" }").expect("elements end");
        let sorted: BTreeSet<&str> = elements.split(", ").collect();
        found.push(format!("{sorted:?}"));
        found.push(rest.to_owned());
    }
    found
}

/// The objects without what only the kernel knows, and with elements in one order.
fn objects(document: Value) -> Vec<Value> {
    let list = document["nftables"].as_array().expect("a list").clone();
    let mut objects: Vec<Value> = list.into_iter().filter(|object| object.get("metainfo").is_none()).collect();
    for object in &mut objects {
        for kind in ["table", "set", "chain", "rule"] {
            let Some(fields) = object.get_mut(kind).and_then(Value::as_object_mut) else { continue };
            fields.remove("handle");
            if kind == "table" {
                fields.remove("flags");
            }
            if let Some(Value::Array(elements)) = fields.get_mut("elem") {
                elements.sort_by_key(ToString::to_string);
            }
        }
    }
    objects
}
