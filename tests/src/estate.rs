//! A whole small mesh: a switch, a control plane, hosts with and without an agent.
//!
//! `Estate::start` gives a running control plane; `add_host` a host in its own namespace; the host
//! then joins, starts its agent and switches interception on by the same commands as a user's.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::netns::{Namespace, Output, finish, require_root};
use crate::wait::wait_until;

/// The control plane's address on the estate's network, also its resolver's.
pub const CONTROL_PLANE: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
/// The trust domain of every estate.
pub const TRUST_DOMAIN: &str = "corp.example";

/// Several estates of one test process get different names.
static ESTATES: AtomicU32 = AtomicU32::new(0);

/// One mesh, gone when dropped.
pub struct Estate {
    hosts_made: AtomicU32,
    prefix: String,
    control_plane: Option<Daemon>,
    _resolver: Daemon,
    switch: Namespace,
    store: String,
    /// Where hosts take `tombolo` from; the folder of the running test unless said otherwise.
    programs: Option<PathBuf>,
    folder: TempDir,
}

/// What a new host should be.
#[derive(Debug, Clone, Default)]
pub struct HostSpec {
    /// `NAMESPACE/WORKLOADGROUP`s it joins; none makes a host outside the mesh.
    pub groups: Vec<String>,
    /// Appended to its agent.toml.
    pub config: String,
}

/// One host of an estate.
pub struct Host {
    name: String,
    address: Ipv4Addr,
    address6: Ipv6Addr,
    agent: Option<Daemon>,
    namespace: Namespace,
    programs: Option<PathBuf>,
    /// `NOTIFY_SOCKET` of its agent.
    notify: Option<PathBuf>,
    folder: PathBuf,
}

/// The built program of this workspace, beside the running test.
pub fn program(name: &str) -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    let folder = exe.parent().context("a program has a folder")?;
    let folder = if folder.ends_with("deps") { folder.parent().context("deps has a parent")? } else { folder };
    let path = folder.join(name);
    ensure!(path.exists(), "{} is missing: run `cargo build --workspace` first", path.display());
    Ok(path)
}

impl Estate {
    /// A running control plane on SQLite.
    pub fn start() -> Result<Self> {
        Self::start_on(|folder| format!("sqlite://{}/state.db", folder.join("cp").display()))
    }

    /// A running control plane on the store whose URL `store` makes of the estate's folder.
    pub fn start_on(store: impl FnOnce(&Path) -> String) -> Result<Self> {
        let mut estate = Self::prepare(store)?;
        estate.start_control_plane()?;
        Ok(estate)
    }

    /// The network and its resolver; the control plane is started later.
    pub fn prepare(store: impl FnOnce(&Path) -> String) -> Result<Self> {
        require_root()?;
        let folder = tempfile::Builder::new().prefix("tombolo-estate-").tempdir()?;
        let prefix = format!("tmb{}-{}", std::process::id(), ESTATES.fetch_add(1, Ordering::Relaxed));
        let switch = Namespace::create(&format!("{prefix}-cp"), None)?;
        // A bridge takes the least address of its ports unless it has its own: it would change under open
        // connections whenever a host is plugged in.
        switch.ip(&["link", "add", "br0", "address", "02:00:0a:58:00:01", "type", "bridge"])?;
        switch.ip(&["addr", "add", &format!("{CONTROL_PLANE}/24"), "dev", "br0"])?;
        switch.ip(&["addr", "add", "fd88::1/64", "dev", "br0", "nodad"])?;
        switch.ip(&["link", "set", "br0", "up"])?;
        let resolver = crate::resolver::start(&switch, &CONTROL_PLANE.to_string(), folder.path())?;
        std::fs::create_dir(folder.path().join("cp"))?;
        let store = store(folder.path());
        let hosts_made = AtomicU32::new(0);
        let (control_plane, programs) = (None, None);
        Ok(Self { hosts_made, prefix, control_plane, _resolver: resolver, switch, store, programs, folder })
    }

    /// Hosts made from here on run `tombolo` from another folder, such as the release build's.
    pub fn use_programs_in(&mut self, folder: &Path) {
        self.programs = Some(folder.to_owned());
    }

    /// Starts the control plane, which may never answer.
    pub fn launch_control_plane(&mut self) -> Result<()> {
        let mut command = self.switch.command(&program("tombolo-controlplane")?.display().to_string());
        command.arg("serve").arg("--data-dir").arg(self.data_dir());
        command.args(["--store", &self.store, "--trust-domain", TRUST_DOMAIN]);
        command.args([
            "--listen",
            &format!("{CONTROL_PLANE}:15012"),
            "--api-listen",
            &format!("{CONTROL_PLANE}:15014"),
        ]);
        // After a start nobody is withdrawn for a minute; tests of silent hosts cannot wait that long.
        command
            .env("TOMBOLO__REGISTRY__GRACE", "5s")
            .env("TOMBOLO__LOG__FILTER", "info,controlplane=debug,h2=debug,sqlx=debug");
        let log = self.folder.path().join("cp.log");
        self.control_plane = Some(Daemon::start("tombolo-controlplane", command, &log)?);
        Ok(())
    }

    /// Starts the control plane (again) and waits until it answers.
    pub fn start_control_plane(&mut self) -> Result<()> {
        self.launch_control_plane()?;
        let mut daemon = self.control_plane.take().context("just launched")?;
        wait_until("the control plane answers", || {
            let output = self.operator(&["status"]).map_err(|error| error.to_string())?;
            if output.ok() {
                return Ok(());
            }
            let state = if daemon.running() { "runs" } else { "ended" };
            Err(format!("it {state}: {} {}", output.stderr, daemon.log()))
        });
        self.control_plane = Some(daemon);
        Ok(())
    }

    /// Ends the control plane as its service manager would.
    pub fn stop_control_plane(&mut self) -> Result<()> {
        match self.control_plane.take() {
            Some(mut daemon) => daemon.stop().map(|_| ()),
            None => Ok(()),
        }
    }

    pub fn control_plane(&self) -> Option<&Daemon> {
        self.control_plane.as_ref()
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("cp")
    }

    pub fn switch(&self) -> &Namespace {
        &self.switch
    }

    /// Everything the control plane has logged.
    pub fn control_plane_log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("cp.log")).unwrap_or_default()
    }

    /// Keeps the folder for a look around; the namespaces stay until `make demo-clean`.
    pub fn leave_up(self) -> PathBuf {
        let path = self.folder.path().to_owned();
        std::mem::forget(self);
        path
    }

    /// A `tombolo` command as the operator types it, talking to this control plane.
    pub fn operator(&self, args: &[&str]) -> Result<Output> {
        finish(self.operator_command(args)?, Duration::from_secs(60))
    }

    /// The same, and it must succeed; answers its standard output.
    pub fn operate(&self, args: &[&str]) -> Result<String> {
        let output = self.operator(args)?;
        ensure!(output.ok(), "`tombolo {}` ended with {}: {}", args.join(" "), output.code, output.stderr.trim());
        Ok(output.stdout)
    }

    pub fn operator_command(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.switch.command(&program("tombolo")?.display().to_string());
        command.args(args).env("TOMBOLO_URL", format!("https://{CONTROL_PLANE}:15014"));
        command.env("TOMBOLO_CA", self.data_dir().join("ca.pem"));
        let token = std::fs::read_to_string(self.data_dir().join("admin.token")).unwrap_or_default();
        command.env("TOMBOLO_TOKEN", token.trim());
        Ok(command)
    }

    /// Applies YAML, which must be taken.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        let file = self.folder.path().join("apply.yaml");
        std::fs::write(&file, yaml)?;
        self.operate(&["apply", "-f", &file.display().to_string()])
    }

    /// A host on the network, with an agent.toml but nothing running.
    pub fn add_host(&self, name: &str, spec: &HostSpec) -> Result<Host> {
        let number = u8::try_from(self.hosts_made.fetch_add(1, Ordering::Relaxed) + 2)?;
        let namespace = Namespace::create(&format!("{}-{name}", self.prefix), Some(CONTROL_PLANE))?;
        let address = Ipv4Addr::new(10, 88, 0, number);
        let address6 = Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, u16::from(number));
        namespace.plug_into(&self.switch, address, address6)?;
        let folder = self.folder.path().join(name);
        std::fs::create_dir(&folder)?;
        let programs = self.programs.clone();
        let host =
            Host { name: name.to_owned(), address, address6, agent: None, namespace, programs, notify: None, folder };
        host.write_config(&spec.config)?;
        Ok(host)
    }

    /// A host that has joined, runs its agent and intercepts.
    pub fn add_meshed_host(&self, name: &str, spec: &HostSpec) -> Result<Host> {
        let mut host = self.add_host(name, spec)?;
        host.join(self, &spec.groups)?;
        host.start_agent()?;
        host.intercept_on()?;
        Ok(host)
    }

    /// A fresh join token's words: what follows `tombolo` on the line that `token create` prints.
    pub fn join_arguments(&self, groups: &[String]) -> Result<Vec<String>> {
        let mut args = vec!["token", "create"];
        for group in groups {
            args.extend(["--group", group]);
        }
        let line = self.operate(&args)?;
        let words = line.split_whitespace().skip_while(|word| *word != "tombolo").skip(1);
        Ok(words.map(str::to_owned).collect())
    }
}

impl Host {
    fn write_config(&self, extra: &str) -> Result<()> {
        let folder = self.folder.display();
        let resolv_conf = self.namespace.resolv_conf();
        let text = format!(
            "[paths]\nstate_dir = \"{folder}/state\"\nrun_dir = \"{folder}/run\"\n\n\
             [dns]\nresolv_conf = \"{}\"\nresolved = \"off\"\n\n{extra}\n",
            resolv_conf.display()
        );
        std::fs::write(self.config_file(), text).context("cannot write agent.toml")
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    pub fn address6(&self) -> Ipv6Addr {
        self.address6
    }

    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn config_file(&self) -> PathBuf {
        self.folder.join("agent.toml")
    }

    pub fn agent(&self) -> Option<&Daemon> {
        self.agent.as_ref()
    }

    pub fn agent_mut(&mut self) -> Option<&mut Daemon> {
        self.agent.as_mut()
    }

    /// Everything the agent has logged since the host was made.
    pub fn agent_log(&self) -> String {
        std::fs::read_to_string(self.folder.join("agent.log")).unwrap_or_default()
    }

    fn program(&self) -> Result<String> {
        let path = match &self.programs {
            Some(folder) => folder.join("tombolo"),
            None => program("tombolo")?,
        };
        Ok(path.display().to_string())
    }

    /// A `tombolo` command on this host.
    pub fn tombolo(&self, args: &[&str]) -> Result<Output> {
        self.tombolo_from(&self.program()?, args)
    }

    /// The same with another program than its own.
    pub fn tombolo_from(&self, program: &str, args: &[&str]) -> Result<Output> {
        let mut command = self.namespace.command_in_net_only(program);
        command.args(args).arg("--config").arg(self.config_file());
        finish(command, Duration::from_secs(60))
    }

    /// The same, and it must succeed.
    pub fn tombolo_ok(&self, args: &[&str]) -> Result<String> {
        let output = self.tombolo(args)?;
        let (code, said) = (output.code, output.stderr.trim());
        ensure!(output.ok(), "`tombolo {}` on {} ended with {code}: {said}", args.join(" "), self.name);
        Ok(output.stdout)
    }

    /// Joins with a fresh token.
    pub fn join(&self, estate: &Estate, groups: &[String]) -> Result<()> {
        let arguments = estate.join_arguments(groups)?;
        let mut words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let address = self.address.to_string();
        words.extend(["--name", &self.name, "--advertise", &address]);
        self.tombolo_ok(&words).map(|_| ())
    }

    /// Starts the agent, which may never be ready.
    pub fn launch_agent(&mut self) -> Result<()> {
        let mut command = self.namespace.command_in_net_only(&self.program()?);
        command.args(["agent", "--config"]).arg(self.config_file());
        command.envs(self.notify.iter().map(|socket| ("NOTIFY_SOCKET", socket)));
        self.agent = Some(Daemon::start("agent", command, &self.folder.join("agent.log"))?);
        Ok(())
    }

    /// Starts the agent and waits until it is ready.
    pub fn start_agent(&mut self) -> Result<()> {
        self.launch_agent()?;
        let mut daemon = self.agent.take().context("just launched")?;
        wait_until(&format!("the agent on {} is ready", self.name), || {
            let output = self.tombolo(&["status", "-o", "json"]).map_err(|error| error.to_string())?;
            let status: serde_json::Value = serde_json::from_str(&output.stdout).unwrap_or_default();
            if status["ready"] == true {
                return Ok(());
            }
            let state = if daemon.running() { "runs" } else { "ended" };
            Err(format!("it {state}: {status} {} {}", output.stderr, last_lines(&daemon.log(), 15)))
        });
        self.agent = Some(daemon);
        Ok(())
    }

    /// From its next start its agent has a service manager there.
    pub fn notify(&mut self, socket: &Path) {
        self.notify = Some(socket.to_owned());
    }

    /// SIGTERM, and the exit code.
    pub fn stop_agent(&mut self) -> Result<i32> {
        match self.agent.take() {
            Some(mut daemon) => daemon.stop(),
            None => Ok(0),
        }
    }

    /// Switches interception on, confirmed at once.
    pub fn intercept_on(&self) -> Result<()> {
        self.tombolo_ok(&["intercept", "on"]).map(|_| ())
    }

    /// `curl` on this host: answers the body, or what curl said.
    pub fn curl(&self, url: &str) -> Result<Output> {
        self.namespace.run("curl", &["-sS", "--max-time", "10", url])
    }

    /// The agent's status as JSON.
    pub fn status(&self) -> Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.tombolo_ok(&["status", "-o", "json"])?)?)
    }

    /// Access log lines of the agent, oldest first.
    pub fn access_log(&self) -> Vec<serde_json::Value> {
        let lines = self.agent_log();
        let parsed = lines.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        parsed.filter(|line| line["target"] == "access").collect()
    }
}

/// A failed test shows what the programs said, since their files go with the estate.
impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- agent on {}:\n{}", self.name, last_lines(&self.agent_log(), 400));
        }
    }
}

impl Drop for Estate {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- control plane:\n{}", last_lines(&self.control_plane_log(), 900));
        }
    }
}

/// The end of a log, for messages.
pub fn last_lines(log: &str, n: usize) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(n)..].join("\n")
}
