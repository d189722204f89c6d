//! What `doctor` says before joining, and how it reads other programs' rules.
use super::*;
use std::borrow::Cow;

fn rules(json: &str) -> nftables::schema::Nftables<'_> {
    serde_json::from_str(json).expect("a list of nft's")
}

#[test]
fn earlier_output_nat_of_others_is_found_and_later_is_not() {
    let chain = |table: &str, kind: &str, hook: &str, priority: i32| {
        format!(
            "{{\"chain\":{{\"family\":\"ip\",\"table\":\"{table}\",\"name\":\"C\",\"handle\":1,\
             \"type\":\"{kind}\",\"hook\":\"{hook}\",\"prio\":{priority},\"policy\":\"accept\"}}}}"
        )
    };
    let check = |table: &str, kind: &str, hook: &str, priority: i32, found: bool| {
        let text = format!("{{\"nftables\":[{}]}}", chain(table, kind, hook, priority));
        let chains = kernel::earlier_chains(&rules(&text));
        assert_eq!(!chains.is_empty(), found, "{table} {kind} {hook} {priority}: {chains:?}");
    };
    check("istio", "nat", "output", -200, true);
    check("istio", "nat", "output", -150, true);
    check("nat", "nat", "output", -100, false);
    check("istio", "filter", "output", -200, false);
    check("istio", "nat", "prerouting", -200, false);
    check("tombolo", "nat", "output", -150, false);
    let none: Cow<'_, str> = "{\"nftables\":[]}".into();
    assert!(kernel::earlier_chains(&rules(&none)).is_empty());
}

#[tokio::test]
async fn before_joining_it_says_how_to_join_and_which_ports_are_taken() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = taken.local_addr().expect("bound");
    let free = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
        listener.local_addr().expect("bound")
    };
    let mut config = Config::defaults();
    config.paths.state_dir = folder.path().join("state");
    config.paths.run_dir = folder.path().to_owned();
    config.outbound.listen = vec![address];
    config.inbound.listen = vec![free];
    config.inbound.plaintext_listen = vec![];
    config.dns.listen = vec![];
    (config.metrics, config.readiness, config.admin) = (vec![], vec![], vec![]);

    let found = diagnose(&config, &Agent::Absent).await.checks;
    let of = |name: &str| found.iter().find(|check| check.name == name).unwrap_or_else(|| panic!("no check {name}"));
    assert_eq!(of("ports").outcome, CheckOutcome::Fail);
    assert!(of("ports").detail.contains(&address.to_string()) && !of("ports").detail.contains(&free.to_string()));
    assert_eq!(of("identity").outcome, CheckOutcome::Warn);
    assert!(of("identity").cure.contains("tombolo join"));
    assert!(of("agent").cure.contains("systemctl start tombolo-agent"));
    assert_eq!(of("state folder").outcome, CheckOutcome::Ok);
    for check in &found {
        let needs_cure = matches!(check.outcome, CheckOutcome::Warn | CheckOutcome::Fail);
        assert_eq!(needs_cure, !check.cure.is_empty() && check.outcome != CheckOutcome::Skipped, "{check:?}");
    }
}

#[test]
fn the_kernel_is_really_asked() {
    let check = kernel::owned_tables();
    if rustix::process::geteuid().is_root() {
        assert_ne!(check.outcome, CheckOutcome::Fail, "{check:?}");
    } else {
        assert_eq!(check.outcome, CheckOutcome::Fail, "{check:?}");
    }
}
