//! A byte-exact soak: random conversations on every way through the mesh, each byte checked by its position.
//!
//! `run` builds the mesh and lets a client on each way talk to its server for a while; `make soak` and the
//! end-to-end suite call it. The two ends are the program `soak`, made of [`conversation`].

pub mod conversation;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::daemon::Daemon;
use crate::estate::{Estate, Host, HostSpec, program};
use crate::wait::{wait_until, within};

/// Of the service whose only workload is outside the mesh.
const PLAIN_SERVICE: &str = "240.240.77.1";

const RESOURCES: &str = "\
{apiVersion: networking.istio.io/v1, kind: WorkloadGroup, metadata: {name: client, namespace: soak}, \
 spec: {template: {serviceAccount: client}}}
---
{apiVersion: networking.istio.io/v1, kind: WorkloadGroup, metadata: {name: server, namespace: soak}, \
 spec: {metadata: {labels: {app: server}, annotations: {tombolo.dev/inbound: observe}}, template: {serviceAccount: server, ports: {soak: 9900}}}}
---
{apiVersion: v1, kind: Service, metadata: {name: server, namespace: soak}, \
 spec: {selector: {app: server}, ports: [{name: tcp, port: 9900, targetPort: 9900}]}}
";

/// How long conversations that have begun may take to end.
const PATIENCE: Duration = Duration::from_secs(90);

/// A way through the mesh: one client host, one server host.
struct Way {
    name: &'static str,
    /// As the agents' access logs call it.
    protocol: &'static str,
    client: Host,
    server: Host,
    serving: Daemon,
    /// What the client dials.
    dialled: String,
}

/// Talks for `length` on every way at the same time, with the programs in `programs` or the built ones.
/// Answers one line of counts for each way; a byte that is not what it should be is an error.
pub fn run(programs: Option<&Path>, length: Duration) -> Result<Vec<String>> {
    let mut estate = Estate::start()?;
    if let Some(folder) = programs {
        estate.use_programs_in(folder);
    }
    estate.apply(RESOURCES)?;
    let mut ways = vec![
        Way::open(&estate, "hbone", "hbone", Some("[outbound]\ntunnel = \"hbone\"\n"), Some(""))?,
        Way::open(&estate, "tombolo", "tombolo/1", Some("[outbound]\ntunnel = \"tombolo/1\"\n"), Some(""))?,
        Way::open(&estate, "to-plain", "tcp", Some(""), None)?,
        Way::open(&estate, "from-plain", "tcp", None, Some(""))?,
    ];
    let mut talking = Vec::new();
    for way in &ways {
        talking.push(way.talk(length)?);
    }
    let limit = length + PATIENCE;
    let mut lines = Vec::new();
    for (way, mut client) in ways.iter_mut().zip(talking) {
        within(limit, "the client has ended", || match client.running() {
            true => Err((way.name, client.log(), way.serving.log())),
            false => Ok(()),
        });
        lines.push(way.verdict(&client.log())?);
    }
    Ok(lines)
}

impl Way {
    /// Hosts with the given agent settings, or none and so outside the mesh.
    fn open(
        estate: &Estate,
        name: &'static str,
        protocol: &'static str,
        client: Option<&str>,
        server: Option<&str>,
    ) -> Result<Self> {
        let host = |role: &str, config: Option<&str>| {
            let spec = |config: &str| HostSpec { groups: vec![format!("soak/{role}")], config: config.to_owned() };
            let host_name = format!("{role}-{name}");
            match config {
                Some(config) => estate.add_meshed_host(&host_name, &spec(config)),
                None => estate.add_host(&host_name, &HostSpec::default()),
            }
        };
        let server_host = host("server", server)?;
        let address = server_host.address();
        let mut command = server_host.namespace().command(&program("soak")?.display().to_string());
        command.args(["serve", &format!("{address}:9900")]);
        let serving = Daemon::start("soak serve", command, &server_host.folder().join("soak.log"))?;
        wait_until(
            "the server listens",
            || if serving.log().contains("serving") { Ok(()) } else { Err(serving.log()) },
        );
        let mut dialled = address.to_string();
        if server.is_none() {
            dialled = PLAIN_SERVICE.to_owned();
            estate.apply(&format!(
                "{{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {{name: plain, namespace: soak}}, \
                 spec: {{address: {address}, labels: {{app: plain}}}}}}\n---\n\
                 {{apiVersion: v1, kind: Service, metadata: {{name: plain, namespace: soak}}, spec: {{selector: {{app: plain}}, \
                 clusterIP: {PLAIN_SERVICE}, ports: [{{name: tcp, port: 9900, targetPort: 9900}}]}}}}"
            ))?;
        }
        let client_host = host("client", client)?;
        if client.is_some() {
            wait_until("the client's connections are captured", || captured(&client_host, &dialled));
        }
        Ok(Self { name, protocol, client: client_host, server: server_host, serving, dialled })
    }

    fn talk(&self, length: Duration) -> Result<Daemon> {
        let mut command = self.client.namespace().command(&program("soak")?.display().to_string());
        command.args(["call", &format!("{}:9900", self.dialled), &length.as_secs().to_string()]);
        Daemon::start("soak call", command, &self.client.folder().join("soak.log"))
    }

    /// Both ends count the same and saw nothing wrong, and the agents carried it.
    fn verdict(&mut self, said: &str) -> Result<String> {
        let name = self.name;
        let server_said = self.serving.log();
        let mistakes: Vec<&str> = said.lines().chain(server_said.lines()).filter(|line| is_mistake(line)).collect();
        ensure!(mistakes.is_empty(), "{name}: {}\n{}", mistakes.join("\n"), self.errors().join("\n"));
        let counts = said.lines().last().unwrap_or_default();
        let counts: Value =
            serde_json::from_str(counts).with_context(|| format!("{name}: the client said {said:?}"))?;
        ensure!(counts["conversations"].as_u64() > Some(0), "{name}: nothing was said: {counts}");
        ensure!(counts["sent"] == counts["server_received"], "{name}: the server counts otherwise: {counts}");
        for host in [&self.client, &self.server] {
            if host.agent().is_some() {
                let used = wait_until("the agent logs", || host.access_log().pop().ok_or("no line yet"));
                ensure!(used["protocol"] == self.protocol, "{name}: {used}");
            }
        }
        Ok(format!("{name}: {counts}"))
    }

    /// What the agents say went wrong: resets that were made are among it.
    fn errors(&self) -> Vec<String> {
        let hosts = [&self.client, &self.server];
        let lines = hosts.iter().flat_map(|host| host.access_log().into_iter().map(|line| (host.name(), line)));
        let wrong = lines.filter(|(_, line)| line["error"].as_str().is_some_and(|error| !error.is_empty()));
        wrong.map(|(host, line)| format!("agent on {host}: {line}")).collect()
    }
}

fn is_mistake(line: &str) -> bool {
    !line.starts_with('{') && !line.starts_with("serving")
}

fn captured(client: &Host, address: &str) -> Result<(), String> {
    let rules = client.namespace().run("nft", &["list", "ruleset"]).map_err(|error| error.to_string())?.stdout;
    if rules.contains(address) { Ok(()) } else { Err(rules) }
}
