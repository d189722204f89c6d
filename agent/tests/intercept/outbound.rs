//! What local processes connect to: captured precisely, never twice, and never mid-stream.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use agent::intercept::{Applied, Capture, Interception, Wanted, ruleset};

use crate::lab::{A4, B4, B6, LIMIT, Lab, VIP4, VIP6, accept, mesh, original_destination, talk, try_accept};

#[test]
fn a_redirected_connection_knows_where_it_wanted_to_go() {
    let Some(lab) = Lab::new() else { return };
    let (proxy4, proxy6) = (lab.a.listen("127.0.0.1:15001"), lab.a.listen("[::1]:15001"));
    let _rules = lab.a.intercept(&mesh());
    for to in [format!("{VIP4}:80"), format!("{VIP4}:9999"), format!("{B4}:80")] {
        let mut client = lab.a.connect(&to).expect("the proxy answers");
        let (mut taken, peer) = accept(&proxy4);
        assert_eq!(original_destination(&taken).to_string(), to);
        assert_eq!(peer, client.local_addr().expect("connected"));
        talk(&mut client, &mut taken);
    }
    for to in [format!("[{VIP6}]:80"), format!("[{B6}]:80")] {
        let mut client = lab.a.connect(&to).expect("the proxy answers");
        let (mut taken, _) = accept(&proxy6);
        assert_eq!(original_destination(&taken).to_string(), to);
        talk(&mut client, &mut taken);
    }
}

#[test]
fn the_agents_own_connections_pass_so_that_nothing_loops() {
    let Some(lab) = Lab::new() else { return };
    let proxy = lab.a.listen("127.0.0.1:15001");
    let (server4, server6) = (lab.b.listen(format!("{B4}:80")), lab.b.listen(format!("[{B6}]:80")));
    for wanted in [mesh(), Wanted { capture: Capture::All, ..mesh() }] {
        let _rules = lab.a.intercept(&wanted);
        for mark in [proxy::config::OWN_MARK, proxy::config::SOURCE_PRESERVING_MARK] {
            for (to, server) in [(format!("{B4}:80"), &server4), (format!("[{B6}]:80"), &server6)] {
                let mut client = lab.a.connect_marked(to, mark).expect("the server answers");
                talk(&mut client, &mut accept(server).0);
            }
        }
    }
    assert!(try_accept(&proxy, Duration::ZERO).is_none());
}

#[test]
fn other_ports_of_a_captured_address_are_untouched() {
    let Some(lab) = Lab::new() else { return };
    let proxy = lab.a.listen("127.0.0.1:15001");
    let (ssh4, ssh6) = (lab.b.listen(format!("{B4}:22")), lab.b.listen(format!("[{B6}]:22")));
    let _rules = lab.a.intercept(&mesh());
    for (to, server) in [(format!("{B4}:22"), ssh4), (format!("[{B6}]:22"), ssh6)] {
        let mut client = lab.a.connect(to).expect("the server answers");
        talk(&mut client, &mut accept(&server).0);
    }
    assert!(try_accept(&proxy, Duration::ZERO).is_none());
}

#[test]
fn open_connections_flow_through_apply_changes_and_removal() {
    let Some(lab) = Lab::new() else { return };
    let _proxy = lab.a.listen("127.0.0.1:15001");
    let server = lab.b.listen(format!("{B4}:80"));
    // No rule has been in this namespace, so conntrack has not seen the handshake: to it the next
    // packet is a new connection in the middle of its stream.
    let mut client = lab.a.connect(format!("{B4}:80")).expect("the server answers");
    let (mut served, _) = accept(&server);
    talk(&mut client, &mut served);
    let mut rules = lab.a.intercept(&mesh());
    talk(&mut client, &mut served);
    talk(&mut served, &mut client);
    for wanted in [
        Wanted { capture: Capture::All, source_preservation: true, ..mesh() },
        Wanted { inbound: [(80, api::InboundMode::Strict)].into(), ..mesh() },
        mesh().quiet(),
        mesh(),
    ] {
        assert_eq!(rules.apply(&ruleset::build(&wanted)).expect("the rules are taken"), Applied::Whole);
        talk(&mut client, &mut served);
    }
    rules.remove().expect("the rules go");
    talk(&mut client, &mut served);
}

/// A captured connection to `to`, both its ends; the rules, which are quiet by now, and the proxy, which still listens.
fn captured_before_quiet(lab: &Lab, to: &str) -> (TcpStream, TcpStream, (Interception, TcpListener)) {
    let proxy = lab.a.listen("127.0.0.1:15001");
    let mut rules = lab.a.intercept(&mesh());
    let mut captured = lab.a.connect(to).expect("the proxy answers");
    let (mut taken, _) = accept(&proxy);
    talk(&mut captured, &mut taken);
    rules.apply(&ruleset::build(&mesh().quiet())).expect("the rules are taken");
    talk(&mut captured, &mut taken);
    (captured, taken, (rules, proxy))
}

#[test]
fn captured_connections_outlive_quiet_rules_and_new_ones_pass() {
    let Some(lab) = Lab::new() else { return };
    let server = lab.b.listen(format!("{B4}:80"));
    let (mut captured, mut taken, _there) = captured_before_quiet(&lab, &format!("{B4}:80"));
    let mut direct = lab.a.connect(format!("{B4}:80")).expect("the server answers");
    talk(&mut direct, &mut accept(&server).0);
    talk(&mut taken, &mut captured);
}

#[test]
fn captured_connections_to_services_outlive_quiet_rules_on_a_host_without_default_routes() {
    let Some(lab) = Lab::without_default_routes() else { return };
    let (mut captured, mut taken, _there) = captured_before_quiet(&lab, &format!("{VIP4}:80"));
    talk(&mut taken, &mut captured);
    assert!(lab.a.connect(format!("{VIP4}:80")).is_err(), "there is nobody but the agent");
}

#[test]
fn two_connections_from_one_source_port_are_both_captured() {
    let Some(lab) = Lab::new() else { return };
    let proxy = lab.a.listen("127.0.0.1:15001");
    let _rules = lab.a.intercept(&mesh());
    let mut clients = Vec::new();
    for to in [format!("{VIP4}:80"), format!("{VIP4}:81"), format!("{B4}:80")] {
        let mut client = lab.a.connect_from_port(41_234, &to).expect("the proxy answers");
        let (mut taken, _) = accept(&proxy);
        assert_eq!(original_destination(&taken).to_string(), to);
        talk(&mut client, &mut taken);
        clients.push((client, taken));
    }
    for (client, taken) in &mut clients {
        talk(client, taken);
    }
}

#[test]
fn everything_that_leaves_the_host_can_be_captured() {
    let Some(lab) = Lab::new() else { return };
    let proxy = lab.a.listen("127.0.0.1:15001");
    let local = lab.a.listen(format!("{A4}:7000"));
    let loopback = lab.a.listen("127.0.0.1:7001");
    let _rules = lab.a.intercept(&Wanted { capture: Capture::All, ..mesh() });
    let _elsewhere = lab.a.connect(format!("{B4}:4242")).expect("the proxy answers");
    assert_eq!(original_destination(&accept(&proxy).0).to_string(), format!("{B4}:4242"));
    let _local = lab.a.connect(format!("{A4}:7000")).expect("the local server answers");
    accept(&local);
    let _loopback = lab.a.connect("127.0.0.1:7001").expect("the local server answers");
    accept(&loopback);
    assert!(try_accept(&proxy, Duration::ZERO).is_none());
}

#[test]
fn names_are_asked_of_the_agent_and_answered_from_the_nameserver() {
    let Some(lab) = Lab::new() else { return };
    let nameservers = [B4, B6, "127.0.0.53"].map(|server| server.parse().expect("an address"));
    let agent4 = lab.a.within(|| UdpSocket::bind("127.0.0.1:15053").expect("the port is free"));
    let agent6 = lab.a.within(|| UdpSocket::bind("[::1]:15053").expect("the port is free"));
    let over_tcp = lab.a.listen("127.0.0.1:15053");
    let _rules = lab.a.intercept(&Wanted { dns: Some(nameservers.to_vec()), ..mesh() });
    for (server, agent, any) in
        [(B4, &agent4, "0.0.0.0:0"), ("127.0.0.53", &agent4, "0.0.0.0:0"), (B6, &agent6, "[::]:0")]
    {
        let client = lab.a.within(|| UdpSocket::bind(any).expect("a free port"));
        let server = std::net::SocketAddr::new(server.parse().expect("an address"), 53);
        client.set_read_timeout(Some(LIMIT)).expect("a timeout");
        agent.set_read_timeout(Some(LIMIT)).expect("a timeout");
        client.send_to(b"question", server).expect("sent");
        let mut buffer = [0; 16];
        let (_, asker) = agent.recv_from(&mut buffer).expect("the question arrives");
        agent.send_to(b"answer", asker).expect("sent");
        let (length, answerer) = client.recv_from(&mut buffer).expect("the answer arrives");
        assert_eq!((&buffer[..length], answerer), (&b"answer"[..], server));
    }
    let mut client = lab.a.connect(format!("{B4}:53")).expect("the agent answers");
    talk(&mut client, &mut accept(&over_tcp).0);

    // The agent's own questions reach the nameserver.
    let upstream = lab.b.within(|| UdpSocket::bind(format!("{B4}:53")).expect("the port is free"));
    upstream.set_read_timeout(Some(LIMIT)).expect("a timeout");
    lab.a.within(|| {
        let own = UdpSocket::bind("0.0.0.0:0").expect("a free port");
        socket2::SockRef::from(&own).set_mark(proxy::config::OWN_MARK).expect("CAP_NET_ADMIN");
        own.send_to(b"own", format!("{B4}:53")).expect("sent");
    });
    let mut buffer = [0; 3];
    upstream.recv_from(&mut buffer).expect("the agent's question arrives");
    assert_eq!(&buffer, b"own");
}

#[test]
fn service_addresses_work_on_a_host_without_a_default_route() {
    let Some(lab) = Lab::without_default_routes() else { return };
    assert!(lab.a.connect(format!("{VIP4}:80")).is_err());
    let (proxy4, proxy6) = (lab.a.listen("127.0.0.1:15001"), lab.a.listen("[::1]:15001"));
    let mut rules = lab.a.intercept(&mesh());
    for (to, proxy) in [(format!("{VIP4}:80"), &proxy4), (format!("[{VIP6}]:80"), &proxy6)] {
        let mut client = lab.a.connect(&to).expect("the proxy answers");
        let (mut taken, _) = accept(proxy);
        assert_eq!(original_destination(&taken).to_string(), to);
        talk(&mut client, &mut taken);
    }
    assert_eq!(rules.verify().expect("the kernel answers"), Vec::<String>::new());
    rules.remove().expect("the rules go");
    assert!(!lab.a.run("ip route").contains("240.240"));
    assert!(!lab.a.run("ip -6 route show table all").contains("fd74:"));
}

#[test]
fn a_host_with_ipv6_switched_off_has_no_difference_and_no_error() {
    let Some(lab) = Lab::without_default_routes() else { return };
    for interface in ["all", "default", "lo", "eth0"] {
        lab.a.write_sysctl(&format!("net/ipv6/conf/{interface}/disable_ipv6"), "1");
    }
    let proxy = lab.a.listen("127.0.0.1:15001");
    let mut rules = lab.a.intercept(&Wanted { source_preservation: true, ..mesh() });
    assert_eq!(rules.verify().expect("the kernel answers"), Vec::<String>::new());
    let mut client = lab.a.connect(format!("{VIP4}:80")).expect("the proxy answers");
    talk(&mut client, &mut accept(&proxy).0);
    rules.remove().expect("the rules go");
}

#[test]
fn a_host_with_loopback_only_reaches_services_too() {
    let Some(lab) = Lab::without_default_routes() else { return };
    lab.a.run("ip link set eth0 down");
    let proxy = lab.a.listen("127.0.0.1:15001");
    let _rules = lab.a.intercept(&mesh());
    let mut client = lab.a.connect(format!("{VIP4}:80")).expect("the proxy answers");
    let (mut taken, _) = accept(&proxy);
    client.write_all(b"x").expect("sent");
    taken.read_exact(&mut [0]).expect("received");
}
