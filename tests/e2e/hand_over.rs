//! A new agent takes over from one that runs, and nobody notices: under load, through both tunnels, both
//! hosts; or it cannot, and the one that runs goes on.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use tests::manager::{Manager, Process};
use tests::{Daemon, Estate, Host, HostSpec, wait_until};

use crate::shop::{SHOP, ensure_untouched};

/// Two meshed hosts whose agents have a service manager and a program file that can be replaced.
struct Upgraded {
    web: Host,
    orders: Host,
    managers: [Manager; 2],
    _applications: Vec<Daemon>,
    estate: Estate,
}

impl Upgraded {
    fn open(settings: &str) -> Result<Self> {
        let mut estate = Estate::start()?;
        let programs = estate.folder().join("programs");
        std::fs::create_dir(&programs)?;
        install(&programs)?;
        estate.use_programs_in(&programs);
        estate.apply(SHOP)?;
        estate.apply(ECHO)?;
        let (orders, first) = Self::add(&estate, "orders", settings)?;
        let (web, second) = Self::add(&estate, "web", settings)?;
        let _applications = vec![orders.serve_http(8080, "orders")?, orders.serve_echo(8081)?];
        let shop = Self { web, orders, managers: [second, first], _applications, estate };
        wait_until("web is answered", || {
            let output = shop.web.curl("http://orders.shop.mesh/").map_err(|error| error.to_string())?;
            if output.ok() { Ok(()) } else { Err(output.stderr) }
        });
        Ok(shop)
    }

    fn add(estate: &Estate, name: &str, settings: &str) -> Result<(Host, Manager)> {
        let spec = HostSpec { groups: vec![format!("shop/{name}")], config: settings.to_owned() };
        let mut host = estate.add_host(name, &spec)?;
        let manager = Manager::start(host.folder())?;
        host.join(estate, &spec.groups)?;
        host.notify(manager.socket());
        host.start_agent()?;
        host.intercept_on()?;
        Ok((host, manager))
    }

    fn programs(&self) -> PathBuf {
        self.estate.folder().join("programs")
    }

    /// What `dpkg` does: another file under the same name.
    fn upgrade(&self) -> Result<()> {
        install(&self.programs())
    }

    /// A script as the agent's next program.
    fn install_script(&self, text: &str) -> Result<()> {
        let (file, fresh) = (self.programs().join("tombolo"), self.programs().join("tombolo.new"));
        std::fs::write(&fresh, text)?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o755))?;
        Ok(std::fs::rename(fresh, file)?)
    }

    fn address_of(&self, name: &str) -> Result<String> {
        let found = self.web.namespace().run("dig", &["+short", "@10.88.0.1", name])?;
        Ok(found.stdout.lines().next().context("no address")?.to_owned())
    }
}

fn install(folder: &std::path::Path) -> Result<()> {
    let fresh = folder.join("tombolo.new");
    std::fs::copy(tests::estate::program("tombolo")?, &fresh)?;
    Ok(std::fs::rename(fresh, folder.join("tombolo"))?)
}

/// What nobody must notice anything of.
struct Load(Vec<Daemon>);

impl Load {
    fn start(shop: &Upgraded) -> Result<Self> {
        let (orders, echo) = (shop.address_of("orders.shop.mesh")?, shop.address_of("echo.shop.mesh")?);
        let web = &shop.web;
        let load = Self(vec![
            web.load(&["ask", &format!("{orders}:80")])?,
            web.load(&["stream", &format!("{echo}:7")])?,
            web.load(&["resolve", "10.88.0.1:53", "orders.shop.mesh"])?,
        ]);
        load.go_on("before");
        Ok(load)
    }

    fn counts(&self) -> Vec<u64> {
        let last = |log: String| log.lines().rev().find_map(|line| line.split_whitespace().nth(1)?.parse().ok());
        self.0.iter().map(|load| last(load.log()).unwrap_or_default()).collect()
    }

    /// Each of them goes on for a good while.
    fn go_on(&self, when: &str) {
        let before = self.counts();
        wait_until(&format!("the load goes on {when}"), || {
            let now = self.counts();
            let more = now.iter().zip(&before).all(|(now, before)| now > &(before + 60));
            if more { Ok(()) } else { Err(format!("{before:?}, then {now:?}")) }
        });
    }

    /// Not one failure. The numbers of answers.
    fn end(mut self) -> Result<Vec<u64>> {
        let counts = self.counts();
        for load in &mut self.0 {
            let log = load.log();
            let bad: Vec<&str> = log.lines().filter(|l| l.starts_with("failed") || l.starts_with("broken")).collect();
            ensure!(bad.is_empty(), "{} failures, the first: {:?}", bad.len(), bad.first());
            load.stop()?;
        }
        Ok(counts)
    }
}

fn both_hand_over(settings: &str) -> Result<()> {
    let mut shop = Upgraded::open(settings)?;
    let load = Load::start(&shop)?;
    shop.upgrade()?;
    let mut taken = Vec::new();
    for (host, manager) in [(&mut shop.web, &shop.managers[0]), (&mut shop.orders, &shop.managers[1])] {
        let old = host.agent().context("it runs")?.pid();
        let told = host.tombolo_ok(&["agent", "--hand-over"])?;
        let new = manager.wait_main_process(old)?;
        load.go_on(&format!("after {} {told}", host.name()));
        ensure!(host.agent_mut().context("it ran")?.running(), "the earlier agent has ended over an open connection");
        ensure_listens(host, new.pid, old)?;
        let ready = manager.said().iter().filter(|said| said.contains("READY=1")).count();
        ensure!(ready == 2, "{:?}", manager.said());
        ensure!(!host.agent_log().contains("\"level\":\"ERROR\""), "{}", host.agent_log());
        taken.push(new);
    }
    // Once more, while the earliest processes still have their connections.
    let second = shop.managers[0].said().len();
    shop.web.tombolo_ok(&["agent", "--hand-over"])?;
    let third = shop.managers[0].wait_main_process(taken[0].pid)?;
    ensure!(shop.managers[0].said().len() > second);
    load.go_on("after the second time");
    let status = shop.web.status()?;
    ensure!(status["draining"].as_u64() > Some(0), "{status}");
    println!("answers, bytes and names without a failure: {:?}", load.end()?);

    for host in [&mut shop.web, &mut shop.orders] {
        let agent = host.agent_mut().context("it ran")?;
        wait_until("the earlier agent ends with its last connection", || {
            if agent.running() { Err("it runs") } else { Ok(()) }
        });
        ensure!(agent.stop()? == 0, "it ended badly: {}", agent.log());
    }
    taken[0].wait_ended("the agent in between ends, too");
    for (host, process) in [(&shop.web, &third), (&shop.orders, &taken[1])] {
        process.signal(Signal::TERM)?;
        process.wait_ended("the new agent stops");
        ensure_untouched(host)?;
    }
    Ok(())
}

/// Only the new process accepts.
fn ensure_listens(host: &Host, new: u32, old: u32) -> Result<()> {
    let listed = host.namespace().run("ss", &["-Hltnp"])?.stdout;
    for port in [":15001 ", ":15008 ", ":15053 ", ":15000 ", ":15020 ", ":15021 "] {
        let line = listed.lines().find(|line| line.contains(port)).with_context(|| format!("{port} {listed}"))?;
        ensure!(line.contains(&format!("pid={new},")) && !line.contains(&format!("pid={old},")), "{line}");
    }
    Ok(())
}

#[test]
fn nobody_notices_that_the_agents_of_flows_are_upgraded() -> Result<()> {
    both_hand_over("[outbound]\ntunnel = \"tombolo/1\"\n")
}

#[test]
fn nobody_notices_that_the_agents_of_hbone_are_upgraded() -> Result<()> {
    both_hand_over("[outbound]\ntunnel = \"hbone\"\n")
}

#[test]
fn a_new_agent_that_does_not_serve_gives_way() -> Result<()> {
    let mut shop = Upgraded::open("")?;
    let load = Load::start(&shop)?;
    let tombolo = tests::estate::program("tombolo")?.display().to_string();
    let ask = |shop: &Upgraded| -> Result<String> {
        // Settings with a mistake do not say where the socket is.
        let socket = shop.web.folder().join("run/admin.sock").display().to_string();
        let output = shop.web.tombolo_from(&tombolo, &["agent", "--hand-over", "--socket", &socket])?;
        ensure!(output.code == 1, "{output:?}");
        ensure!(output.stderr.contains("goes on as it was"), "{output:?}");
        Ok(output.stderr)
    };
    let table = |shop: &Upgraded| shop.web.namespace().run("nft", &["list", "table", "inet", "tombolo"]);
    let before = table(&shop)?.stdout;

    shop.install_script("#!/bin/sh\nexit 7\n")?;
    let said = ask(&shop)?;
    ensure!(said.contains("without a word") && said.contains("journalctl"), "{said}");
    // Its settings were good when it was started.
    shop.upgrade()?;
    let drop_ins = shop.web.config_file().with_extension("d");
    std::fs::create_dir(&drop_ins)?;
    std::fs::write(drop_ins.join("bad.toml"), "[drain]\ndeadlin = \"5s\"\n")?;
    let said = ask(&shop)?;
    ensure!(said.contains("deadlin"), "{said}");
    std::fs::remove_file(drop_ins.join("bad.toml"))?;
    // It never says a thing.
    let number = shop.programs().join("number");
    shop.install_script(&format!("#!/bin/sh\necho $$ >{}\nexec sleep 1000\n", number.display()))?;
    let said = ask(&shop)?;
    ensure!(said.contains("30s"), "{said}");
    let pid = std::fs::read_to_string(&number)?;
    let state = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    ensure!(state.is_empty() || state.contains(") Z "), "it is left behind: {state}");

    // It gets as far as the rules: they are the running one's again.
    shop.install_script(GIVES_UP_LATE)?;
    let said = ask(&shop)?;
    ensure!(said.contains("not to its taste"), "{said}");
    shop.estate.apply(LATE)?;
    let late = wait_until("a later service has an address", || shop.address_of("late.shop.mesh"));
    ensure!(table(&shop)?.stdout.contains(&late), "the rules do not follow any more: {}", table(&shop)?.stdout);
    shop.estate.operate(&["delete", "service", "late", "-n", "shop"])?;
    wait_until("it has no address any more", || match shop.address_of("late.shop.mesh") {
        Ok(address) => Err(address),
        Err(_) => Ok(()),
    });

    load.go_on("after four agents that could not serve");
    ensure!(without_counters(&table(&shop)?.stdout) == without_counters(&before), "the rules changed");
    ensure!(shop.web.tombolo_from(&tombolo, &["intercept", "confirm"])?.ok(), "it takes no commands");
    load.end()?;
    ensure!(shop.web.agent_mut().context("it runs")?.running());
    shop.upgrade()?;
    shop.web.tombolo_ok(&["agent", "--hand-over"])?;
    let old = shop.web.agent().context("it ran")?.pid();
    let new = shop.managers[0].wait_main_process(old)?;
    new.signal(Signal::TERM)?;
    new.wait_ended("the new agent stops");
    ensure_untouched(&shop.web)
}

fn without_counters(table: &str) -> String {
    let numbers = |word: &&str| word.parse::<u64>().is_err();
    let mut words: Vec<&str> = table.split_whitespace().filter(numbers).collect();
    words.sort_unstable();
    words.join(" ")
}

#[test]
fn the_one_that_drains_obeys_what_is_new() -> Result<()> {
    let shop = Upgraded::open("")?;
    let load = Load::start(&shop)?;
    let mut taken = Vec::new();
    for (host, manager) in [(&shop.web, &shop.managers[0]), (&shop.orders, &shop.managers[1])] {
        let old = host.agent().context("it runs")?.pid();
        host.tombolo_ok(&["agent", "--hand-over"])?;
        taken.push(manager.wait_main_process(old)?);
    }
    // Switched off on the new one: the captured connections of the old one go on, and so do the rules for them.
    let tables = || shop.web.namespace().run("nft", &["list", "table", "inet", "tombolo"]).map(|said| said.stdout);
    shop.web.tombolo_ok(&["intercept", "off"])?;
    let captured = shop.web.namespace().run("nft", &["list", "set", "inet", "tombolo", "vip4"])?;
    ensure!(captured.ok() && !captured.stdout.contains("240.240."), "{captured:?}");
    let stream = &load.0[1];
    let before = stream.log().len();
    wait_until("the captured connection goes on", || if stream.log().len() > before + 400 { Ok(()) } else { Err(()) });
    ensure!(!stream.log().contains("broken"), "{}", stream.log());

    // A policy that forbids what the old process of `orders` has open.
    shop.estate.apply(
        "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: closed, namespace: shop}, spec: {}}",
    )?;
    wait_until("the connection that it has open is closed", || {
        if stream.log().contains("broken") { Ok(()) } else { Err("it goes on") }
    });
    wait_until("the rules go with the last captured connection", || match tables() {
        Ok(table) if table.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    });
    for process in taken {
        process.signal(Signal::TERM)?;
        process.wait_ended("the new agent stops");
    }
    ensure_untouched(&shop.web)
}

#[test]
fn stopping_the_new_agent_ends_the_one_that_drains() -> Result<()> {
    let mut shop = Upgraded::open("")?;
    let load = Load::start(&shop)?;
    shop.web.tombolo_ok(&["agent", "--hand-over"])?;
    let old = shop.web.agent().context("it ran")?.pid();
    let new: Process = shop.managers[0].wait_main_process(old)?;
    load.go_on("after the hand-over");
    new.signal(Signal::TERM)?;
    let agent = shop.web.agent_mut().context("it ran")?;
    wait_until("the one that drains ends with it", || if agent.running() { Err("it runs") } else { Ok(()) });
    new.wait_ended("the new agent stops");
    wait_until("the connection is cut, as at the deadline of a stop", || match load.0[1].log() {
        log if log.contains("broken") => Ok(()),
        log => Err(log),
    });
    ensure_untouched(&shop.web)
}

const ECHO: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: echo, namespace: shop}\n\
                    spec: {selector: {app: orders}, ports: [{name: tcp, port: 7, targetPort: 8081}]}\n";
const LATE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: late, namespace: shop}\n\
                    spec: {selector: {app: orders}, ports: [{name: http, port: 80, targetPort: http}]}\n";
const GIVES_UP_LATE: &str = r#"#!/bin/sh
read -r sockets
echo '"prepared"' >&0
read -r word
[ "$word" = '"rules"' ] && echo '{"failed":"the rules are not to its taste"}' >&0
exec sleep 1000
"#;
