//! Source preservation: a local server sees the client's address, and its answers come back.

use std::io::{ErrorKind, Read, Write};
use std::net::IpAddr;
use std::time::Duration;

use agent::intercept::Wanted;

use crate::lab::{A4, A6, B4, B6, Host, Lab, accept, mesh, run, talk};

fn preserving() -> Wanted {
    Wanted { source_preservation: true, ..mesh() }
}

#[test]
fn a_local_server_sees_the_client_and_answers_it() {
    let Some(lab) = Lab::new() else { return };
    for interface in ["all", "default", "eth0", "lo"] {
        lab.a.write_sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "1");
    }
    let _rules = lab.a.intercept(&preserving());
    for (server, client) in [(format!("{A4}:9000"), B4), (format!("[{A6}]:9000"), B6)] {
        let client: IpAddr = client.parse().expect("an address");
        let listener = lab.a.listen(&server);
        let mut upstream = lab.a.connect_from(client, &server).expect("the answer comes back");
        let (mut served, peer) = accept(&listener);
        assert_eq!(peer.ip(), client);
        talk(&mut upstream, &mut served);
        talk(&mut served, &mut upstream);
    }
}

#[test]
fn a_reset_reaches_the_server_though_a_packet_before_it_was_lost() {
    let Some(lab) = Lab::new() else { return };
    let _rules = lab.a.intercept(&preserving());
    lab.a.run("nft add table inet loss");
    lab.a.run("nft add chain inet loss input '{ type filter hook input priority 0; }'");
    for (server, client) in [(format!("{A4}:9000"), B4), (format!("[{A6}]:9000"), B6)] {
        let listener = lab.a.listen(&server);
        let client: IpAddr = client.parse().expect("an address");
        let mut upstream = lab.a.connect_from(client, &server).expect("the answer comes back");
        let (mut served, _) = accept(&listener);
        talk(&mut upstream, &mut served);
        lab.a.run("nft add rule inet loss input tcp dport 9000 meta length '>' 500 drop");
        upstream.write_all(&[7; 1000]).expect("the kernel takes it");
        socket2::SockRef::from(&upstream).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
        drop(upstream);
        let end = served.read(&mut [0; 8]).map_err(|error| error.kind());
        assert_eq!(end, Err(ErrorKind::ConnectionReset));
        lab.a.run("nft flush chain inet loss input");
    }
}

#[test]
fn a_client_can_be_forwarded_end_to_end_with_its_own_address() {
    let Some(lab) = Lab::new() else { return };
    let wanted = Wanted { inbound: [(9000, api::InboundMode::Observe)].into(), ..preserving() };
    let _rules = lab.a.intercept(&wanted);
    let server = lab.a.listen(format!("{A4}:9000"));
    let agent = lab.a.listen_transparent("0.0.0.0:15006");
    let mut client = lab.b.connect(format!("{A4}:9000")).expect("the agent answers");
    let (mut downstream, peer) = accept(&agent);
    let mut upstream = lab.a.connect_from(peer.ip(), format!("{A4}:9000")).expect("the answer comes back");
    let (mut served, seen) = accept(&server);
    assert_eq!(seen.ip(), peer.ip());
    // The agent's part: what the client says goes up, what the server says comes down.
    talk(&mut client, &mut downstream);
    talk(&mut upstream, &mut served);
    // A plain connection of the same server to the same client is not looped back.
    let elsewhere = lab.b.listen(format!("{B4}:7000"));
    let mut plain = lab.a.connect(format!("{B4}:7000")).expect("the client's host answers");
    talk(&mut plain, &mut accept(&elsewhere).0);
}

#[test]
fn a_server_in_a_container_sees_the_client_and_answers_it() {
    let Some(lab) = Lab::new() else { return };
    let container = Host::new("c");
    run(&format!("ip link add docker0 netns {} type veth peer name eth0 netns {}", lab.a.name, container.name));
    lab.a.run("ip address add 172.17.0.1/24 dev docker0");
    lab.a.run("ip link set docker0 up");
    container.run("ip address add 172.17.0.2/24 dev eth0");
    container.run("ip link set eth0 up");
    container.run("ip route add default via 172.17.0.1");
    lab.a.write_sysctl("net/ipv4/ip_forward", "1");
    lab.a.run("nft add table ip docker");
    lab.a.run("nft add chain ip docker out '{ type nat hook output priority -100; }'");
    lab.a.run("nft add rule ip docker out tcp dport 9001 fib daddr type local dnat to 172.17.0.2:9000");
    let _rules = lab.a.intercept(&preserving());
    let server = container.listen("172.17.0.2:9000");
    let client: IpAddr = B4.parse().expect("an address");
    let mut upstream = lab.a.connect_from(client, format!("{A4}:9001")).expect("the answer comes back");
    let (mut served, peer) = accept(&server);
    assert_eq!(peer.ip(), client);
    talk(&mut upstream, &mut served);
    talk(&mut served, &mut upstream);
}
