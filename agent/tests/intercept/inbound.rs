//! Plaintext from other hosts: refused at strict ports, observed through the agent, else untouched.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use agent::intercept::{BlockTable, Exclusions, Wanted};
use api::InboundMode;

use crate::lab::{A4, A6, B4, Lab, accept, mesh, talk, try_accept};

fn inbound(port: u16, mode: InboundMode) -> Wanted {
    Wanted { inbound: [(port, mode)].into(), ..mesh() }
}

#[test]
fn a_strict_port_refuses_other_hosts_at_once_and_nobody_else() {
    let Some(lab) = Lab::new() else { return };
    let server = lab.a.listen("0.0.0.0:81");
    let server6 = lab.a.listen(format!("[{A6}]:81"));
    let untouched = lab.a.listen("0.0.0.0:82");
    let mut before = lab.b.connect(format!("{A4}:81")).expect("the server answers");
    let (mut served, _) = accept(&server);
    let _rules = lab.a.intercept(&inbound(81, InboundMode::Strict));
    for to in [format!("{A4}:81"), format!("[{A6}]:81")] {
        let started = Instant::now();
        let refused = lab.b.connect(to).expect_err("plaintext is refused");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    }
    talk(&mut before, &mut served);
    for to in ["127.0.0.1:81".to_owned(), format!("{A4}:81")] {
        let mut local = lab.a.connect(to).expect("the server answers");
        talk(&mut local, &mut accept(&server).0);
    }
    let mut other = lab.b.connect(format!("{A4}:82")).expect("the server answers");
    talk(&mut other, &mut accept(&untouched).0);
    assert!(try_accept(&server6, Duration::ZERO).is_none());
}

#[test]
fn a_strict_port_that_docker_publishes_is_refused_too() {
    let Some(lab) = Lab::new() else { return };
    let elsewhere = lab.a.listen("127.0.0.1:9000");
    lab.a.write_sysctl("net/ipv4/conf/all/route_localnet", "1");
    lab.a.run("nft add table ip docker");
    lab.a.run("nft add chain ip docker pre '{ type nat hook prerouting priority -100; }'");
    lab.a.run("nft add rule ip docker pre iifname eth0 tcp dport 81 dnat to 127.0.0.1:9000");
    lab.b.connect(format!("{A4}:81")).expect("published");
    accept(&elsewhere);
    let _rules = lab.a.intercept(&inbound(81, InboundMode::Strict));
    let refused = lab.b.connect(format!("{A4}:81")).expect_err("plaintext is refused");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn an_excluded_interface_is_neither_observed_nor_refused() {
    let Some(lab) = Lab::new() else { return };
    let server = lab.a.listen("0.0.0.0:81");
    let exclusions = Exclusions { interfaces: ["eth0".to_owned()].into(), ..Exclusions::default() };
    let _rules = lab.a.intercept(&Wanted { exclusions, ..inbound(81, InboundMode::Strict) });
    let mut client = lab.b.connect(format!("{A4}:81")).expect("the server answers");
    talk(&mut client, &mut accept(&server).0);
}

#[test]
fn observed_plaintext_keeps_both_addresses() {
    let Some(lab) = Lab::new() else { return };
    let server = lab.a.listen("0.0.0.0:8080");
    let agent4 = lab.a.listen_transparent("0.0.0.0:15006");
    let agent6 = lab.a.listen_transparent("[::]:15006");
    let mut before = lab.b.connect(format!("{A4}:8080")).expect("the server answers");
    let (mut served, _) = accept(&server);
    let _rules = lab.a.intercept(&inbound(8080, InboundMode::Observe));
    for (to, agent) in [(format!("{A4}:8080"), &agent4), (format!("[{A6}]:8080"), &agent6)] {
        let mut client = lab.b.connect(&to).expect("the agent answers");
        let (mut taken, peer) = accept(agent);
        assert_eq!(taken.local_addr().expect("connected").to_string(), to);
        assert_eq!(peer, client.local_addr().expect("connected"));
        talk(&mut client, &mut taken);
    }
    talk(&mut before, &mut served);
    let mut local = lab.a.connect(format!("{A4}:8080")).expect("the server answers");
    talk(&mut local, &mut accept(&server).0);
}

#[test]
fn observed_ports_survive_docker_and_a_strict_reverse_path() {
    let Some(lab) = Lab::new() else { return };
    for interface in ["all", "eth0", "lo"] {
        lab.a.write_sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "1");
    }
    lab.a.run("nft add table ip docker");
    lab.a.run("nft add chain ip docker pre '{ type nat hook prerouting priority -100; }'");
    lab.a.run("nft add rule ip docker pre tcp dport 8080 dnat to 172.17.0.2:80");
    let agent = lab.a.listen_transparent("0.0.0.0:15006");
    let _rules = lab.a.intercept(&inbound(8080, InboundMode::Observe));
    let mut client = lab.b.connect(format!("{A4}:8080")).expect("the agent answers");
    let (mut taken, peer) = accept(&agent);
    assert_eq!(taken.local_addr().expect("connected").to_string(), format!("{A4}:8080"));
    assert_eq!(peer.ip().to_string(), B4);
    talk(&mut client, &mut taken);
    talk(&mut taken, &mut client);
}

#[test]
fn the_block_table_outlives_the_agent_and_refuses_strict_ports_only() {
    let Some(lab) = Lab::new() else { return };
    let strict = lab.a.listen("0.0.0.0:81");
    let observed = lab.a.listen("0.0.0.0:82");
    let mut before = lab.b.connect(format!("{A4}:81")).expect("the server answers");
    let (mut served, _) = accept(&strict);
    let wanted = Wanted { inbound: [(81, InboundMode::Strict), (82, InboundMode::Observe)].into(), ..mesh() };
    lab.a.within(|| {
        let table = BlockTable::open().expect("nf_tables is there");
        table.apply(&wanted).expect("the rules are taken");
        table.apply(&wanted).expect("applying again is fine");
    });
    let refused = lab.b.connect(format!("{A4}:81")).expect_err("plaintext is refused");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    talk(&mut before, &mut served);
    let mut other = lab.b.connect(format!("{A4}:82")).expect("the server answers");
    talk(&mut other, &mut accept(&observed).0);
    lab.a.within(|| {
        let table = BlockTable::open().expect("nf_tables is there");
        assert!(table.present().expect("the kernel answers"));
        table.apply(&mesh()).expect("without strict ports there is no table");
        assert!(!table.present().expect("the kernel answers"));
        table.remove().expect("removing nothing is fine");
    });
}
