//! Tables for policy evaluation.
use super::*;

fn policy(name: &str, action: Action, matches: Vec<Match>) -> AuthorizationPolicy {
    let rules = matches.into_iter().map(|m| Rule { clauses: vec![Clause { matches: vec![m] }] }).collect();
    AuthorizationPolicy {
        name: name.into(),
        namespace: "shop".into(),
        scope: Scope::Namespace,
        action,
        rules,
        dry_run: false,
    }
}

fn from(account: &str) -> Match {
    let service_account = ServiceAccountMatch { namespace: "shop".into(), service_account: account.into() };
    Match { service_accounts: vec![service_account], ..Match::default() }
}

fn connection(source: Option<&str>) -> Connection {
    let source = source.map(|account| format!("spiffe://td/ns/shop/sa/{account}").parse().expect("valid"));
    Connection { source, source_ip: [10, 0, 0, 1].into(), destination: ([10, 0, 0, 2], 8080).into() }
}

#[test]
fn deny_beats_allow_and_allow_lists_close_the_rest() {
    let allow_web = policy("allow-web", Action::Allow, vec![from("web")]);
    let deny_web = policy("deny-web", Action::Deny, vec![from("web")]);
    let audit_all = AuthorizationPolicy { rules: vec![Rule::default()], ..policy("audit", Action::Audit, vec![]) };
    let dry = AuthorizationPolicy { dry_run: true, ..policy("dry", Action::Deny, vec![from("web")]) };
    let nothing = policy("allow-nothing", Action::Allow, vec![]);
    let cases: &[(&[&AuthorizationPolicy], Option<&str>, bool, &str)] = &[
        (&[], None, true, "no policy applies"),
        (&[&allow_web], Some("web"), true, "allowed by shop/allow-web"),
        (&[&allow_web], Some("cron"), false, "no rule of shop/allow-web allows it"),
        (&[&allow_web], None, false, "no rule of shop/allow-web allows it"),
        (&[&allow_web, &deny_web], Some("web"), false, "denied by shop/deny-web"),
        (&[&deny_web], Some("cron"), true, "no policy applies"),
        (&[&dry, &audit_all], Some("web"), true, "no policy applies"),
        (&[&nothing], Some("web"), false, "no rule of shop/allow-nothing allows it"),
    ];
    for (policies, source, allowed, reason) in cases {
        let verdict = evaluate(policies.iter().copied(), &connection(*source));
        assert_eq!((verdict.allowed(), verdict.reason().as_str()), (*allowed, *reason), "{source:?} {policies:?}");
    }
    let verdict = evaluate([&dry, &audit_all].into_iter(), &connection(Some("web")));
    assert_eq!(verdict.audits, ["shop/dry", "shop/audit"]);
}

#[test]
fn every_field_of_a_match_counts() {
    let net = |text: &str| vec![text.parse().expect("a network")];
    let text = |m: StringMatch| vec![m];
    let cases = [
        (Match::default(), false),
        (Match { source_ips: net("10.0.0.0/24"), ..Match::default() }, true),
        (Match { source_ips: net("10.0.1.0/24"), ..Match::default() }, false),
        (Match { not_source_ips: net("10.0.0.0/24"), ..Match::default() }, false),
        (Match { destination_ips: net("10.0.0.2/32"), ..Match::default() }, true),
        (Match { destination_ports: vec![80], ..Match::default() }, false),
        (Match { destination_ports: vec![80, 8080], ..Match::default() }, true),
        (Match { not_destination_ports: vec![8080], ..Match::default() }, false),
        (Match { namespaces: text(StringMatch::Exact("shop".into())), ..Match::default() }, true),
        (Match { not_namespaces: text(StringMatch::Exact("shop".into())), ..Match::default() }, false),
        (Match { principals: text(StringMatch::Exact("td/ns/shop/sa/web".into())), ..Match::default() }, true),
        (Match { principals: text(StringMatch::Prefix("td/ns/shop/".into())), ..Match::default() }, true),
        (Match { principals: text(StringMatch::Suffix("/sa/web".into())), ..Match::default() }, true),
        (Match { principals: text(StringMatch::Presence), ..Match::default() }, true),
        (Match { not_principals: text(StringMatch::Presence), ..Match::default() }, false),
        (Match { destination_ports: vec![80], ..from("web") }, false),
    ];
    for (m, expected) in cases {
        assert_eq!(m.matches(&connection(Some("web"))), expected, "{m:?}");
    }
    let presence = Match { not_principals: text(StringMatch::Presence), ..Match::default() };
    assert!(presence.matches(&connection(None)), "strict mode as Istio converts it must match plaintext");
}

#[test]
fn an_ipv4_network_in_ipv6_dress_is_an_ipv4_network() {
    let net = |text: &str| canonical(text.parse().expect("a network"));
    assert_eq!(net("::ffff:10.0.0.0/104"), net("10.0.0.0/8"));
    assert_eq!(net("::ffff:10.0.0.1/128"), net("10.0.0.1/32"));
    for unchanged in ["::/0", "::ffff:0:0/95", "fd00::/8", "10.0.0.0/8"] {
        assert_eq!(Ok(net(unchanged)), unchanged.parse());
    }
}
