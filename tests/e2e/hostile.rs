//! Peers that died or mean no good, over the real wire: what they hold ends, what they send is bounded, and
//! the others are served meanwhile. Raw bytes through openssl and nc, so that no library is polite for them.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::wait::ended;
use tests::{Host, HostSpec, Namespace, wait_until};

use crate::shop::{self, Shop};

/// The slowest of the limits, HTTP/2 keepalive and a request's head, is 30 s; twice that on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn peers_that_say_nothing_are_dropped_and_hold_nothing() -> Result<()> {
    let shop = shop::open()?;
    // A host that has nothing else open, so that every connection with it is one of these.
    let stranger = shop.estate.add_host("stranger", &HostSpec::default())?;
    let (orders, cp) = (shop.orders.address().to_string(), tests::estate::CONTROL_PLANE.to_string());
    let held = || -> Result<usize> {
        let mut held = 0;
        for namespace in [shop.orders.namespace(), shop.estate.switch()] {
            let with = format!("dst {}", stranger.address());
            let said = namespace.run("ss", &["-Htn", "state", "established", "state", "close-wait", &with])?;
            ensure!(said.ok(), "{said:?}");
            held += said.stdout.lines().count();
        }
        Ok(held)
    };

    // After TCP, and after TLS: at the tunnels' port, and where agents and operators connect.
    let mut silent: Vec<(String, Child)> = Vec::new();
    for (address, port) in [(&orders, "15008"), (&cp, "15012"), (&cp, "15014")] {
        let mut nc = stranger.namespace().command("nc");
        nc.args(["-d", address, port]).stdout(Stdio::null());
        silent.push((format!("nc {address} {port}"), nc.spawn()?));
        let mut tls = openssl(&shop.web, stranger.namespace(), &format!("{address}:{port}"))?;
        // Its end stays open as long as the child is not waited for: it says nothing, not even goodbye.
        tls.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        silent.push((format!("openssl {address}:{port}"), tls.spawn()?));
    }
    wait_until("all are connected", || match held() {
        Ok(6) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    ensure!(shop.web.curl("http://orders.shop.mesh/")?.ok());
    let mut kept = Vec::new();
    let end = Instant::now() + LIMIT;
    for (line, mut child) in silent {
        if ended(&mut child, end.saturating_duration_since(Instant::now()))?.is_none() {
            child.kill()?;
            child.wait()?;
            kept.push(line);
        }
    }
    ensure!(kept.is_empty(), "still connected after {LIMIT:?} of silence: {kept:?}");
    wait_until("nothing is held for them", || match held() {
        Ok(0) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    ensure!(shop.web.curl("http://orders.shop.mesh/")?.ok());
    Ok(())
}

#[test]
fn a_connect_with_oversized_headers_is_refused_and_the_others_are_served() -> Result<()> {
    let shop = shop::open()?;
    let pid = shop.orders.agent().context("it runs")?.pid();
    let said = connect(&shop, 100)?;
    ensure!(said.contains("hello from orders"), "the same with a header of usual size must work: {said:?}");
    for bytes in [100 << 10, 4 << 20] {
        let said = connect(&shop, bytes)?;
        ensure!(!said.contains("hello from"), "{bytes} bytes of header were taken: {said:?}");
        ensure!(shop.web.curl("http://orders.shop.mesh/")?.ok(), "after {bytes} bytes nobody is served");
    }
    let agent = shop.orders.agent().context("it runs")?;
    ensure!(agent.pid() == pid && std::fs::exists(format!("/proc/{pid}"))?, "the agent did not survive");
    ensure!(agent.rss_kib()? < 100 << 10, "it keeps {} KiB", agent.rss_kib()?);
    Ok(())
}

/// `web` asks `orders` for its page through a CONNECT whose baggage has so many bytes; what came back.
fn connect(shop: &Shop, baggage_bytes: usize) -> Result<String> {
    let target = format!("{}:8080", shop.orders.address());
    let frames = shop.web.folder().join("frames");
    std::fs::write(&frames, http2(&target, baggage_bytes))?;
    let mut command = openssl(&shop.web, shop.web.namespace(), &format!("{}:15008", shop.orders.address()))?;
    command.args(["-quiet"]).stdin(std::fs::File::open(&frames)?);
    let out = shop.web.folder().join("answer");
    let file = std::fs::File::create(&out)?;
    let mut child = command.stdout(file).stderr(Stdio::null()).spawn()?;
    // Who answers keeps the connection: the page or the refusal is there long before.
    let read = || String::from_utf8_lossy(&std::fs::read(&out).unwrap_or_default()).into_owned();
    let mut closed = false;
    wait_until("an answer or the end", || {
        closed = closed || matches!(child.try_wait(), Ok(Some(_)));
        let refused = http2_ends(&std::fs::read(&out).unwrap_or_default());
        if closed || refused || read().contains("hello from") { Ok(()) } else { Err(read()) }
    });
    if !closed {
        child.kill()?;
        child.wait()?;
    }
    Ok(read())
}

/// A client in a namespace, with the certificate of `host`'s workload `web`.
fn openssl(host: &Host, inside: &Namespace, to: &str) -> Result<Command> {
    let svid = host.folder().join("state/workloads/shop~web.pem").display().to_string();
    ensure!(std::fs::exists(&svid)?, "no certificate in {svid}");
    let mut command = inside.command("openssl");
    command.args(["s_client", "-connect", to, "-alpn", "h2", "-noservername"]);
    command.args(["-cert", &svid, "-key", &svid, "-cert_chain", &svid]);
    Ok(command)
}

/// A connection's whole client side (RFC 9113): preface, SETTINGS, a CONNECT in one HEADERS and many
/// CONTINUATION frames, and a request of HTTP/1.0 as its data.
fn http2(target: &str, baggage_bytes: usize) -> Vec<u8> {
    // Literals without indexing (RFC 7541 §6.2.2): `:method` is entry 2, `:authority` entry 1.
    let mut head = vec![0x02, 7];
    head.extend(b"CONNECT");
    head.extend([0x01, target.len() as u8]);
    head.extend(target.as_bytes());
    head.extend([0x00, 7]);
    head.extend(b"baggage");
    let mut length = baggage_bytes;
    if length < 0x7f {
        head.push(length as u8);
    } else {
        head.push(0x7f);
        length -= 0x7f;
        while length >= 0x80 {
            head.push((length % 0x80) as u8 | 0x80);
            length /= 0x80;
        }
        head.push(length as u8);
    }
    head.extend(std::iter::repeat_n(b'x', baggage_bytes));

    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    frame(&mut bytes, SETTINGS, 0, 0, &[]);
    let chunks: Vec<&[u8]> = head.chunks(16 << 10).collect();
    for (n, chunk) in chunks.iter().enumerate() {
        let end_headers = if n + 1 == chunks.len() { 0x4 } else { 0 };
        frame(&mut bytes, if n == 0 { HEADERS } else { CONTINUATION }, end_headers, 1, chunk);
    }
    frame(&mut bytes, DATA, 0, 1, b"GET / HTTP/1.0\r\n\r\n");
    bytes
}

fn frame(into: &mut Vec<u8>, kind: u8, flags: u8, stream: u8, payload: &[u8]) {
    into.extend(&(payload.len() as u32).to_be_bytes()[1..]);
    into.extend([kind, flags, 0, 0, 0, stream]);
    into.extend(payload);
}

/// Whether stream 1 or the connection was ended by the other side: an answer without a body, a reset, or
/// GOAWAY.
fn http2_ends(mut bytes: &[u8]) -> bool {
    while let Some((head, rest)) = bytes.split_at_checked(9) {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let ends_stream = head[3] == HEADERS && head[4] & 0x1 != 0;
        if ends_stream || head[3] == RST_STREAM || head[3] == GOAWAY {
            return true;
        }
        bytes = rest.get(length..).unwrap_or_default();
    }
    false
}

/// Frame types (RFC 9113 §6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
