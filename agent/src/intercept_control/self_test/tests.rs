//! Tables for the judgements; the looks themselves run in tests/e2e.
use super::*;

#[test]
fn only_what_worked_before_can_fail() {
    let check = |before: bool, now: Result<String, String>, passed: bool| {
        assert_eq!(judge("names", before, now.clone()).passed, passed, "{before} {now:?}");
    };
    check(true, Ok("fine".into()), true);
    check(false, Ok("fine".into()), true);
    check(true, Err("silent".into()), false);
    check(false, Err("silent".into()), true);
    assert!(judge("names", false, Err("silent".into())).detail.contains("as before: silent"));
}

#[test]
fn sessions_may_end_but_not_most_of_them_at_once() {
    let session =
        |port: u16| -> (SocketAddr, SocketAddr) { (([10, 0, 0, 1], 22).into(), ([10, 0, 0, 9], port).into()) };
    let set = |ports: &[u16]| ports.iter().copied().map(session).collect::<BTreeSet<_>>();
    let check = |before: &[u16], now: &[u16], passed: bool| {
        assert_eq!(ssh(&set(before), &set(now)).passed, passed, "{before:?} {now:?}");
    };
    check(&[], &[], true);
    check(&[], &[5], true);
    check(&[1], &[1], true);
    check(&[1], &[], false);
    check(&[1, 2], &[2], true);
    check(&[1, 2, 3], &[3], false);
}

#[test]
fn a_ratio_needs_connections_to_be_one() {
    let check = |opened: u64, failed: u64, passed: bool| {
        let before = Counts { opened: 100, failed: 7 };
        let now = Counts { opened: 100 + opened, failed: 7 + failed };
        assert_eq!(errors(before, now).passed, passed, "{opened} {failed}");
    };
    check(0, 0, true);
    check(0, 9, true);
    check(0, 10, false);
    check(5, 5, true);
    check(4, 6, false);
    check(1000, 500, true);
}

#[test]
fn counters_are_summed_over_their_labels() {
    let text = "# HELP istio_tcp_connections_opened x\n\
                istio_tcp_connections_opened_total{reporter=\"source\"} 3\n\
                istio_tcp_connections_opened_total{reporter=\"destination\"} 4\n\
                istio_tcp_connections_failed_total{response_flags=\"a b\"} 2\n\
                istio_tcp_connections_failed_total{reporter=\"source\",response_flags=\"DENY\"} 50\n\
                istio_tcp_connections_failed_totals{x=\"y\"} 90\n# EOF\n";
    assert_eq!(count(text), Counts { opened: 7, failed: 2 });
    assert_eq!(count(""), Counts::default());
}

#[tokio::test]
async fn any_answer_of_a_resolver_counts_and_silence_does_not() {
    let server = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
    let address = server.local_addr().expect("bound");
    tokio::spawn(async move {
        let mut bytes = [0; 512];
        while let Ok((length, peer)) = server.recv_from(&mut bytes).await {
            let _ = server.send_to(b"nonsense first", peer).await;
            let mut answer = bytes[..length].to_vec();
            answer[2] |= 0x80;
            answer[3] |= 3;
            let _ = server.send_to(&answer, peer).await;
        }
    });
    let limit = Duration::from_secs(2);
    let answer = question::ask(address, "orders.shop.mesh", limit).await.expect("answered");
    assert!(answer.contains("orders.shop.mesh") && answer.contains("Non-Existent"), "{answer}");

    let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
    let address = silent.local_addr().expect("bound");
    let why = question::ask(address, "x.mesh", Duration::from_millis(100)).await.expect_err("silence");
    assert!(why.contains(&format!("no answer from {address}")), "{why}");
}
