//! Probes against real sockets and real commands.
use super::*;
use std::net::SocketAddr;
use std::time::Instant;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn probe(check: Check) -> Probe {
    Probe {
        check,
        initial_delay: Duration::ZERO,
        timeout: Duration::from_millis(300),
        period: Duration::from_millis(100),
        success_threshold: 1,
        failure_threshold: 2,
    }
}

fn get(address: SocketAddr, path: &str) -> Check {
    Check::Http {
        scheme: "HTTP".into(),
        host: "127.0.0.1".into(),
        port: address.port(),
        path: path.into(),
        headers: [("x-probe".to_owned(), "yes".to_owned())].into(),
    }
}

/// Answers every connection with these bytes after reading the head; what it read is checked.
async fn server(answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = vec![0; 4096];
            let read = stream.read(&mut head).await.unwrap_or_default();
            let head = String::from_utf8_lossy(&head[..read]).to_ascii_lowercase();
            let asked = head.contains("x-probe: yes") && head.contains("host: 127.0.0.1");
            let _ = stream.write_all(if asked { answer } else { "HTTP/1.1 400 x\r\n\r\n" }.as_bytes()).await;
        }
    });
    address
}

async fn check(check: Check, expect: Result<(), &str>) {
    let answer = ask(&probe(check.clone()), true).await;
    match (&answer, expect) {
        (Ok(()), Ok(())) => {}
        (Err(found), Err(expected)) if found.contains(expected) => {}
        _ => panic!("{check:?}: {answer:?}, expected {expect:?}"),
    }
}

#[tokio::test]
async fn tcp_probes_connect() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let port = listener.local_addr().expect("bound").port();
    let to = |host: &str| Check::Tcp { host: host.into(), port };
    check(to(""), Ok(())).await;
    check(to("localhost"), Ok(())).await;
    check(to("127.0.0.1"), Ok(())).await;
    check(to("db.corp.example"), Err("neither an address nor localhost")).await;
    drop(listener);
    check(to(""), Err("cannot connect to 127.0.0.1")).await;
}

#[tokio::test]
async fn http_probes_want_a_status_below_400() {
    let good = server("HTTP/1.1 204 No Content\r\n\r\n").await;
    let moved = server("HTTP/1.1 302 Found\r\nlocation: /x\r\n\r\n").await;
    let bad = server("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await;
    let nonsense = server("SSH-2.0-OpenSSH\r\n").await;
    check(get(good, "/healthz"), Ok(())).await;
    check(get(good, "healthz"), Ok(())).await;
    check(get(moved, "/"), Ok(())).await;
    check(get(bad, "/healthz"), Err("GET /healthz answered 503")).await;
    check(get(nonsense, "/"), Err("no")).await;
    check(get(good, "/a b"), Err("cannot be made")).await;
}

#[tokio::test]
async fn a_server_that_says_nothing_costs_no_more_than_the_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    let began = Instant::now();
    check(get(address, "/"), Err("no answer within 300ms")).await;
    assert!(began.elapsed() < Duration::from_secs(2));
    drop(listener);
}

#[tokio::test]
async fn exec_probes_want_exit_code_0_and_are_killed_whole_at_the_timeout() {
    let run = |words: &[&str]| Check::Exec { command: words.iter().map(|word| (*word).to_owned()).collect() };
    check(run(&["true"]), Ok(())).await;
    check(run(&["sh", "-c", "exit 3"]), Err("exit status: 3")).await;
    check(run(&["/nonexistent/probe"]), Err("cannot run /nonexistent/probe")).await;
    check(run(&[]), Err("no command")).await;

    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("pid");
    let script = format!("sleep 600 & echo $! > {}; wait", file.display());
    check(run(&["sh", "-c", &script]), Err("no answer within")).await;
    let child = std::fs::read_to_string(&file).expect("the command ran").trim().to_owned();
    crate::testing::eventually("what it started is gone", || {
        let status = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        let gone = status.is_empty() || status.contains(") Z ");
        if gone { Ok(()) } else { Err(status) }
    })
    .await;
}

#[tokio::test]
async fn exec_probes_can_be_forbidden() {
    let answer = ask(&probe(Check::Exec { command: vec!["true".into()] }), false).await;
    assert!(answer.is_err_and(|reason| reason.contains("forbidden on this host")));
}

#[test]
fn verdicts_follow_the_thresholds_and_the_first_answer_counts_at_once() {
    let hear = |verdict: &mut Verdict, good: bool| {
        verdict.hear(if good { Ok(()) } else { Err("closed".into()) }).map(|health| health.healthy)
    };
    let mut verdict = Verdict::new(2, 3);
    assert_eq!(hear(&mut verdict, true), Some(true), "the first answer");
    assert_eq!(hear(&mut verdict, true), None, "no news");
    assert_eq!(hear(&mut verdict, false), None);
    assert_eq!(hear(&mut verdict, false), None);
    assert_eq!(hear(&mut verdict, true), None, "failures must follow each other");
    assert_eq!(hear(&mut verdict, false), None);
    assert_eq!(hear(&mut verdict, false), None);
    assert_eq!(hear(&mut verdict, false), Some(false));
    assert_eq!(hear(&mut verdict, true), None);
    assert_eq!(hear(&mut verdict, true), Some(true));
    assert_eq!(hear(&mut Verdict::new(0, 0), false), Some(false));
}

#[tokio::test]
async fn the_loop_follows_the_snapshot() {
    use api::snapshot::Change;
    use api::{Delta, HostConfig, Selector, Snapshot};
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let port = listener.local_addr().expect("bound").port();
    let snapshot = |probed: bool| {
        let workload = LocalWorkload {
            uid: "u".into(),
            namespace: "shop".into(),
            group: "web".into(),
            service_account: "web".into(),
            ports: [].into(),
            selector: Selector::default(),
            probe: probed.then(|| probe(Check::Tcp { host: String::new(), port })),
        };
        let host = HostConfig { host: "h".into(), workloads: vec![workload], lease: Duration::from_secs(30) };
        Snapshot::default().apply(Delta { revision: 1, changes: vec![Change::Host(host)] })
    };
    let view = View::new(snapshot(true));
    let verdicts = Verdicts::new(BTreeMap::new());
    let (_trigger, watch) = proxy::drain::channel();
    tokio::spawn(run(view.clone(), verdicts.clone(), true, watch));
    let healthy = |seen: &BTreeMap<WorkloadUid, Health>| seen.get("u").map(|health| health.healthy);
    let expect = async |wanted: Option<bool>| {
        crate::testing::eventually("the verdict", || {
            let seen = healthy(&verdicts.borrow());
            if seen == wanted { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
    };
    expect(Some(true)).await;
    drop(listener);
    expect(Some(false)).await;
    view.publish(snapshot(false));
    expect(None).await;
}
