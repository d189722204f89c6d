//! A path: two hosts joined by a veth pair of their own, with meshbench's servers on the second, and
//! between them an agent on each, or nothing. All paths stand at the same time, so that rounds interleave.

use std::path::Path as FilePath;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::estate::program;
use tests::netns::{finish, tool};
use tests::wait::within;
use tests::{Daemon, Estate, Host, HostSpec, wait_until};

pub struct Path {
    pub name: String,
    client: Host,
    server: Host,
    /// The server's address on the link of these two.
    address: String,
    _servers: Vec<Daemon>,
}

/// Resident and proportional memory of one agent, in MiB.
#[derive(Clone, Copy)]
pub struct Memory {
    pub rss_mib: f64,
    pub pss_mib: f64,
}

impl Path {
    /// The `number`-th pair of hosts; `agents` is the folder of their program and their settings.
    pub fn start(estate: &mut Estate, number: u8, name: &str, agents: Option<(&FilePath, &str)>) -> Result<Self> {
        let config = agents.map(|(_, config)| config.to_owned()).unwrap_or_default();
        if let Some((folder, _)) = agents {
            estate.use_programs_in(folder);
        }
        let spec = |group: &str| HostSpec { groups: vec![format!("bench/{group}")], config: config.clone() };
        let mut client = estate.add_host(&format!("c{number}"), &spec("client"))?;
        let mut server = estate.add_host(&format!("s{number}"), &spec("server"))?;
        link(&client, &server, number)?;
        let address = format!("10.77.{number}.2");
        let ports = [("sink", 9901), ("echo", 9902), ("source", 9903)];
        let servers = ports.iter().map(|(what, port)| serve(&server, what, &format!("{address}:{port}")));
        let _servers = servers.collect::<Result<Vec<_>>>()?;
        if agents.is_some() {
            mesh(estate, &mut server, "server", &address)?;
            mesh(estate, &mut client, "client", &format!("10.77.{number}.1"))?;
            wait_until("the client's connections to the server are captured", || captured(&client, &address));
        }
        Ok(Self { name: name.to_owned(), client, server, address, _servers })
    }

    /// Both agents' CPU so far, in ms (proc(5): utime and stime, in ticks of 10 ms); none on a path without.
    pub fn cpu_ms(&self) -> Result<Option<f64>> {
        let mut total = None;
        for agent in [&self.client, &self.server].into_iter().filter_map(Host::agent) {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", agent.pid()))?;
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
    let wanted = [9901, 9902, 9903].map(|port| format!("{address} . {port}"));
    if wanted.iter().all(|element| rules.contains(element)) { Ok(()) } else { Err(rules) }
}

fn serve(host: &Host, what: &str, address: &str) -> Result<Daemon> {
    let mut command = host.namespace().command(&program("meshbench")?.display().to_string());
    command.args([what, address]);
    let daemon = Daemon::start(what, command, &host.folder().join(format!("{what}.log")))?;
    wait_until(&format!("{what} listens"), || {
        let listening = host.namespace().shell("ss -Hltn").map_err(|error| error.to_string())?.stdout;
        if listening.contains(address) { Ok(()) } else { Err(listening) }
    });
    Ok(daemon)
}

fn memory(agent: &Daemon) -> Result<Memory> {
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", agent.pid()))?;
    let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss in smaps_rollup")?;
    let pss_kib: f64 = pss.trim().trim_end_matches(" kB").parse()?;
    Ok(Memory { rss_mib: agent.rss_kib()? as f64 / 1024.0, pss_mib: pss_kib / 1024.0 })
}
