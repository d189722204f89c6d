//! `make demo`: three hosts, one control plane, and every promise of the first screen checked on
//! real traffic. Prints a line a check, fails when one does, leaves nothing behind unless KEEP=1.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use tests::capture::{self, Capture};
use tests::{Daemon, Estate, Host, HostSpec, wait_until};

const SHOP: &str = include_str!("../../demo/shop.yaml");

fn main() -> ExitCode {
    let asked = |word: &str| std::env::args().any(|argument| argument == word);
    let began = Instant::now();
    if asked("--clean") {
        return clean();
    }
    match demo(asked("--keep")) {
        Ok(()) => {
            println!("\nall of it seen in {:.0} s", began.elapsed().as_secs_f64());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\nfailed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Where a demonstration that was kept up says what to take down: its folder, then its namespaces.
const KEPT: &str = "/run/tombolo-demo.kept";

/// Takes down what `KEEP=1` left up. Every process in its namespaces is one that it started.
fn clean() -> ExitCode {
    let Ok(kept) = std::fs::read_to_string(KEPT) else {
        println!("nothing was kept up");
        return ExitCode::SUCCESS;
    };
    let mut lines = kept.lines();
    let folder = lines.next().unwrap_or_default();
    let script =
        r#"for ns; do ip netns pids "$ns" | xargs -r kill -9; ip netns del "$ns"; rm -rf "/etc/netns/$ns"; done"#;
    let status = std::process::Command::new("sh").args(["-c", script, "clean"]).args(lines).status();
    let removed = std::fs::remove_dir_all(folder).and_then(|()| std::fs::remove_file(KEPT));
    match (status, removed) {
        (Ok(status), Ok(())) if status.success() => ExitCode::SUCCESS,
        (status, removed) => {
            eprintln!("something is left: {status:?} {removed:?}; see {KEPT}");
            ExitCode::FAILURE
        }
    }
}

/// The hosts of the demonstration, and the applications on them.
struct Demo {
    web: Host,
    orders: Host,
    legacy: Host,
    _applications: [Daemon; 2],
    estate: Estate,
}

fn demo(keep: bool) -> Result<()> {
    println!("one control plane, two hosts of the mesh (web, orders), one outside of it (legacy)\n");
    let mut demo = set_up()?;
    check("curl from web to http://orders.shop.mesh/ answers", || demo.answers())?;
    check("between them the wire holds TLS on 15008 and none of the request", || demo.wire_is_opaque())?;
    check("a denied identity is refused, and the log names the policy", || demo.denied())?;
    check("legacy reaches the permissive port and is refused on the strict one", || demo.legacy())?;
    check("kill -9 of web's agent: the next requests go through untouched", || demo.agent_killed())?;
    check("control plane stopped, both agents restarted: traffic still flows", || demo.control_plane_away())?;
    if keep {
        look_around(demo);
    }
    Ok(())
}

/// Runs one check and prints its line.
fn check(claim: &str, run: impl FnOnce() -> Result<String>) -> Result<()> {
    match run() {
        Ok(seen) => {
            println!("  ok      {claim}\n          {seen}");
            Ok(())
        }
        Err(error) => {
            println!("  FAILED  {claim}");
            Err(error.context(claim.to_owned()))
        }
    }
}

fn set_up() -> Result<Demo> {
    let estate = Estate::start()?;
    estate.apply(SHOP)?;
    let meshed = |group: &str| HostSpec {
        groups: vec![format!("shop/{group}")],
        config: "[log]\nfilter = \"info,agent=debug,h2=debug,tonic=debug,hyper=debug\"\n".into(),
    };
    let orders = estate.add_meshed_host("orders", &meshed("orders"))?;
    let applications = [orders.serve_http(8080, "orders")?, orders.serve_http(9090, "the admin page")?];
    let web = estate.add_meshed_host("web", &meshed("web"))?;
    let legacy = estate.add_host("legacy", &HostSpec::default())?;
    Ok(Demo { web, orders, legacy, _applications: applications, estate })
}

impl Demo {
    fn answers(&self) -> Result<String> {
        let answer = wait_until("web's curl answers", || {
            let output = self.web.curl("http://orders.shop.mesh/").map_err(|error| error.to_string())?;
            if output.ok() { Ok(output.stdout) } else { Err(output.stderr) }
        });
        ensure!(answer.starts_with("hello from orders"), "the answer is {answer:?}");
        Ok(answer.trim().to_owned())
    }

    fn wire_is_opaque(&self) -> Result<String> {
        let folder = self.estate.folder();
        let between = format!("host {} and host {}", self.web.address(), self.orders.address());
        let capture = Capture::start(self.estate.switch(), folder, "demo", &between)?;
        let needle = "a-secret-in-the-request";
        let output = self.web.curl(&format!("http://orders.shop.mesh/{needle}"))?;
        ensure!(output.ok(), "curl said {}", output.stderr);
        let bytes = wait_for_packets(capture, folder)?;
        for clear in [needle, "GET /", "hello from orders", "orders.shop.mesh"] {
            ensure!(!capture::holds(&bytes, clear.as_bytes()), "{clear:?} is on the wire in clear");
        }
        let tunnelled = capture::count(folder, "demo", "tcp port 15008 and tcp[((tcp[12] & 0xf0) >> 2)] = 23")?;
        ensure!(tunnelled > 0, "no TLS record on port 15008 was captured");
        Ok(format!("{tunnelled} packets with TLS records to or from port 15008, {} bytes in all", bytes.len()))
    }

    fn denied(&self) -> Result<String> {
        let output = self.web.curl("http://orders.shop.mesh:9090/")?;
        ensure!(!output.ok(), "the admin page answered: {}", output.stdout);
        let line = wait_until("the log of orders names the policy", || {
            let lines = self.orders.agent_log();
            let found = lines.lines().find(|line| line.contains("shop/no-web-on-admin")).map(str::to_owned);
            found.ok_or_else(|| tests::estate::last_lines(&lines, 5))
        });
        let logged: serde_json::Value = serde_json::from_str(&line).context("the log line is not JSON")?;
        let (policy, from) = (&logged["policy"], &logged["src.identity"]);
        ensure!(policy == "shop/no-web-on-admin", "the line names {policy}: {line}");
        Ok(format!("curl: {}; log: policy={policy} src.identity={from}", output.stderr.trim()))
    }

    fn legacy(&self) -> Result<String> {
        let orders = self.orders.address();
        let open = self.legacy.curl(&format!("http://{orders}:8080/"))?;
        ensure!(open.ok(), "port 8080 did not answer: {}", open.stderr);
        let closed = self.legacy.curl(&format!("http://{orders}:9090/"))?;
        ensure!(!closed.ok(), "port 9090 answered plaintext: {}", closed.stdout);
        Ok(format!("8080: {}; 9090: {}", open.stdout.trim(), closed.stderr.trim()))
    }

    fn agent_killed(&mut self) -> Result<String> {
        let url = format!("http://{}:8080/", self.orders.address());
        let results = self.web.folder().join("loop.txt");
        let mut command = self.web.namespace().command("sh");
        let line =
            r#"while :; do curl -sS --max-time 5 -o /dev/null "$1" 2>>"$2.err" && echo ok || echo lost; done >>"$2""#;
        command.args(["-c", line, "loop", &url]).arg(&results);
        let log = self.web.folder().join("loop.log");
        let mut requests = Daemon::start("curl loop", command, &log)?;
        let count = |word: &str| {
            let said = std::fs::read_to_string(&results).unwrap_or_default();
            said.lines().filter(|line| *line == word).count()
        };
        let reach = |wanted: usize| {
            wait_until("the curl loop goes on", || if count("ok") >= wanted { Ok(()) } else { Err(count("ok")) });
        };
        reach(20);
        ensure!(self.web.access_log().iter().any(|line| line["direction"] == "outbound"), "the loop bypassed the mesh");
        let before = count("ok");
        self.web.agent_mut().context("web has an agent")?.kill()?;
        reach(before + 50);
        requests.stop()?;
        let lost = count("lost");
        ensure!(lost <= 1, "{lost} requests were lost, of {}", count("ok"));
        let tables = self.web.namespace().run("nft", &["list", "tables"])?;
        ensure!(!tables.stdout.contains("tombolo"), "a table is left: {}", tables.stdout);
        Ok(format!("{} requests answered, {lost} lost at the kill, no nft table left", count("ok")))
    }

    fn control_plane_away(&mut self) -> Result<String> {
        self.estate.stop_control_plane()?;
        self.orders.stop_agent()?;
        self.web.stop_agent()?;
        self.orders.start_agent()?;
        self.web.start_agent()?;
        let answer = self.answers()?;
        wait_until("the new agent logs a request through the mesh", || {
            let log = self.web.agent_log();
            let since = log.rsplit("the agent starts").next().unwrap_or_default();
            if since.contains(r#""dst.service":"orders.shop.mesh""#) { Ok(()) } else { Err(log.len()) }
        });
        Ok(format!("{answer} (through the mesh, from the snapshot on disk)"))
    }
}

/// The capture's bytes, once the answer's last packets have been written.
fn wait_for_packets(capture: Capture, folder: &std::path::Path) -> Result<Vec<u8>> {
    let file = folder.join("demo.pcap");
    wait_until("the capture holds packets", || {
        let length = std::fs::metadata(&file).map_or(0, |metadata| metadata.len());
        if length > 1000 { Ok(()) } else { Err(length) }
    });
    let bytes = capture.finish()?;
    if bytes.is_empty() {
        bail!("the capture is empty");
    }
    Ok(bytes)
}

/// Leaves everything running and says how to look at it.
fn look_around(mut demo: Demo) {
    if let Err(error) = demo.estate.start_control_plane() {
        eprintln!("the control plane did not come back: {error:#}");
    }
    let cli = tests::estate::program("tombolo").unwrap_or_default();
    let cli = cli.display();
    println!("\nIt stays up. Look around:");
    for host in [&demo.web, &demo.orders] {
        let (name, config) = (host.namespace().name(), host.config_file());
        println!("  nsenter --net=/run/netns/{name} {cli} status --config {}", config.display());
    }
    println!("  ip netns exec {} curl http://orders.shop.mesh/", demo.web.namespace().name());
    println!("  ip netns exec {} nft list ruleset", demo.web.namespace().name());
    println!("  tail -f {}", demo.orders.folder().join("agent.log").display());
    println!("and when done: make demo-clean");
    let Demo { web, orders, legacy, _applications, estate } = demo;
    let mut names = vec![estate.switch().name().to_owned()];
    for host in [web, orders, legacy] {
        names.push(host.namespace().name().to_owned());
        std::mem::forget(host);
    }
    std::mem::forget(_applications);
    let folder = estate.leave_up();
    if let Err(error) = std::fs::write(KEPT, format!("{}\n{}\n", folder.display(), names.join("\n"))) {
        eprintln!("cannot write {KEPT}: {error}");
    }
}
