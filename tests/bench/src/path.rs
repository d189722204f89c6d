//! A path: two hosts joined by a veth pair of their own, with meshbench's servers on the second, and between them an
//! agent on each, a relay on each that only passes bytes on, or nothing. All paths stand at the same time, so that rounds interleave.

use std::path::Path as FilePath;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::estate::program;
use tests::netns::{finish, tool};
use tests::wait::within;
use tests::{Daemon, Estate, Host, HostSpec, wait_until};

/// meshbench's servers and their ports.
const SERVERS: [(&str, u16); 3] = [("sink", 9901), ("echo", 9902), ("source", 9903)];

pub struct Path {
    pub name: String,
    client: Host,
    server: Host,
    /// Where the client finds the servers.
    address: String,
    relays: Vec<Daemon>,
    _servers: Vec<Daemon>,
}

/// What stands between the client's and the server's application.
pub enum Between<'a> {
    Nothing,
    Relays,
    /// The folder of their program, and their settings.
    Agents(&'a FilePath, &'a str),
}

/// Resident and proportional memory of one agent, in MiB.
#[derive(Clone, Copy)]
pub struct Memory {
    pub rss_mib: f64,
    pub pss_mib: f64,
}

impl Path {
    /// The `number`-th pair of hosts.
    pub fn start(estate: &mut Estate, number: u8, name: &str, between: Between) -> Result<Self> {
        let mut config = String::new();
        if let Between::Agents(folder, settings) = between {
            estate.use_programs_in(folder);
            settings.clone_into(&mut config);
        }
        let spec = |group: &str| HostSpec { groups: vec![format!("bench/{group}")], config: config.clone() };
        let mut client = estate.add_host(&format!("c{number}"), &spec("client"))?;
        let mut server = estate.add_host(&format!("s{number}"), &spec("server"))?;
        link(&client, &server, number)?;
        let mut address = format!("10.77.{number}.2");
        let servers = SERVERS.map(|(what, port)| serve(&server, what, &[&format!("{address}:{port}")]));
        let _servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
        let mut relays = Vec::new();
        match between {
            Between::Nothing => {}
            Between::Relays => {
                for (_, port) in SERVERS {
                    let (server_port, tunnel) = (format!("{address}:{port}"), format!("{address}:1{port}"));
                    relays.push(serve(&server, "relay", &[&tunnel, &server_port])?);
                    relays.push(serve(&client, "relay", &[&format!("127.0.0.1:{port}"), &tunnel])?);
                }
                "127.0.0.1".clone_into(&mut address);
            }
            Between::Agents(..) => {
                mesh(estate, &mut server, "server", &address)?;
                mesh(estate, &mut client, "client", &format!("10.77.{number}.1"))?;
                wait_until("the client's connections to the server are captured", || captured(&client, &address));
            }
        }
        Ok(Self { name: name.to_owned(), client, server, address, relays, _servers })
    }

    /// CPU of both sides' proxies so far, in ms (proc(5): utime and stime, in ticks of 10 ms); none on a path without.
    pub fn cpu_ms(&self) -> Result<Option<f64>> {
        let mut total = None;
        for proxy in [&self.client, &self.server].into_iter().filter_map(Host::agent).chain(&self.relays) {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", proxy.pid()))?;
            // The name, in parentheses, may hold spaces: fields are counted from its end.
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            for field in [11, 12] {
                let ticks: f64 = fields.get(field).context("a short /proc/PID/stat")?.parse()?;
                *total.get_or_insert(0.0) += ticks * 10.0;
            }
        }
        Ok(total)
    }

    /// How many threads of the client's agent carry traffic; none on a path without.
    pub fn workers(&self) -> Result<usize> {
        let Some(agent) = self.client.agent() else { return Ok(0) };
        let mut workers = 0;
        for thread in std::fs::read_dir(format!("/proc/{}/task", agent.pid()))? {
            workers += usize::from(std::fs::read_to_string(thread?.path().join("comm"))?.trim() == "traffic");
        }
        Ok(workers)
    }

    /// Memory of the client's and the server's agent; none on a path without.
    pub fn memory(&self) -> Result<Option<[Memory; 2]>> {
        let (Some(client), Some(server)) = (self.client.agent(), self.server.agent()) else { return Ok(None) };
        Ok(Some([memory(client)?, memory(server)?]))
    }

    pub fn has_agents(&self) -> bool {
        self.client.agent().is_some()
    }

    /// Runs meshbench on the client to its end; answers its line.
    pub fn meshbench(
        &self,
        command: &str,
        port: u16,
        words: impl Iterator<Item = String>,
        seconds: u64,
    ) -> Result<String> {
        let mut line = self.client.namespace().command(&program("meshbench")?.display().to_string());
        line.args([command, &format!("{}:{port}", self.address)]).args(words);
        let output = finish(line, Duration::from_secs(seconds + 60))?;
        ensure!(output.ok() && output.stderr.is_empty(), "{command} on {}: {output:?}", self.name);
        Ok(output.stdout)
    }

    /// Opens so many connections, each proven by an echo; they close when the daemon is dropped.
    pub fn hold(&self, connections: u64) -> Result<Daemon> {
        let mut line = self.client.namespace().command(&program("meshbench")?.display().to_string());
        line.args(["hold", &format!("{}:9902", self.address), &connections.to_string()]);
        let log = self.client.folder().join(format!("hold-{connections}.log"));
        let mut holding = Daemon::start("hold", line, &log)?;
        within(Duration::from_secs(120), &format!("{connections} connections are open"), || {
            let said = holding.log();
            if said.contains("hold open") { Ok(()) } else { Err((said, holding.running())) }
        });
        Ok(holding)
    }
}

/// The two hosts' own link, as in the peers' measurement: no bridge between them.
fn link(client: &Host, server: &Host, number: u8) -> Result<()> {
    let (one, other) = (client.namespace(), server.namespace());
    tool(&[
        "ip",
        "link",
        "add",
        "eth1",
        "netns",
        one.name(),
        "type",
        "veth",
        "peer",
        "name",
        "eth1",
        "netns",
        other.name(),
    ])?;
    for (namespace, last) in [(one, 1), (other, 2)] {
        namespace.ip(&["addr", "add", &format!("10.77.{number}.{last}/24"), "dev", "eth1"])?;
        namespace.ip(&["link", "set", "eth1", "up"])?;
    }
    Ok(())
}

/// Joins with the address of the link, starts the agent, switches interception on.
fn mesh(estate: &Estate, host: &mut Host, group: &str, address: &str) -> Result<()> {
    let arguments = estate.join_arguments(&[format!("bench/{group}")])?;
    let mut words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let name = host.name().to_owned();
    words.extend(["--name", &name, "--advertise", address]);
    host.tombolo_ok(&words)?;
    host.start_agent()?;
    host.intercept_on()
}

fn captured(client: &Host, address: &str) -> Result<(), String> {
    let rules = client.namespace().run("nft", &["list", "ruleset"]).map_err(|error| error.to_string())?.stdout;
    let wanted = SERVERS.map(|(_, port)| format!("{address} . {port}"));
    if wanted.iter().all(|element| rules.contains(element)) { Ok(()) } else { Err(rules) }
}

/// Runs meshbench's `what` with `addresses`, the first of which it listens on.
fn serve(host: &Host, what: &str, addresses: &[&str]) -> Result<Daemon> {
    let mut command = host.namespace().command(&program("meshbench")?.display().to_string());
    command.arg(what).args(addresses);
    let listens = *addresses.first().context("a server listens somewhere")?;
    let daemon = Daemon::start(what, command, &host.folder().join(format!("{what}-{listens}.log")))?;
    wait_until(&format!("{what} listens"), || {
        let listening = host.namespace().shell("ss -Hltn").map_err(|error| error.to_string())?.stdout;
        if listening.contains(listens) { Ok(()) } else { Err(listening) }
    });
    Ok(daemon)
}

fn memory(agent: &Daemon) -> Result<Memory> {
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", agent.pid()))?;
    let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss in smaps_rollup")?;
    let pss_kib: f64 = pss.trim().trim_end_matches(" kB").parse()?;
    Ok(Memory { rss_mib: agent.rss_kib()? as f64 / 1024.0, pss_mib: pss_kib / 1024.0 })
}
