//! One host: a network namespace with a leg on the estate's bridge, its own /etc/resolv.conf, and
//! commands run inside it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::wait::ended;

/// The most a foreground command may take before it is ended.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// A network namespace, removed on drop.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

/// What a finished command said.
#[derive(Debug, Clone)]
pub struct Output {
    /// The exit code; 128 + signal when one ended it, as a shell says it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    pub fn ok(&self) -> bool {
        self.code == 0
    }
}

impl Namespace {
    /// Makes the namespace with its loopback up and `nameserver` in its resolv.conf.
    pub fn create(name: &str, nameserver: Option<Ipv4Addr>) -> Result<Self> {
        tool(&["ip", "netns", "add", name])?;
        let namespace = Self { name: name.to_owned() };
        namespace.ip(&["link", "set", "lo", "up"])?;
        let folder = namespace.etc();
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let lines = nameserver.map(|ip| format!("nameserver {ip}\noptions timeout:2 attempts:2\n")).unwrap_or_default();
        std::fs::write(namespace.resolv_conf(), lines)?;
        Ok(namespace)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that processes of this host see as /etc/resolv.conf (ip-netns(8)).
    pub fn resolv_conf(&self) -> PathBuf {
        self.etc().join("resolv.conf")
    }

    fn etc(&self) -> PathBuf {
        PathBuf::from("/etc/netns").join(&self.name)
    }

    /// `ip -n NAME ARGS`.
    pub fn ip(&self, args: &[&str]) -> Result<()> {
        tool(&[&["ip", "-n", &self.name], args].concat())
    }

    /// A leg `eth0` in this namespace, its other end in `switch` on the bridge `br0`.
    pub fn plug_into(&self, switch: &Namespace, v4: Ipv4Addr, v6: Ipv6Addr) -> Result<()> {
        let port = format!("p{}", v4.octets()[3]);
        let (own, other) = (self.name.as_str(), switch.name.as_str());
        tool(&["ip", "link", "add", "eth0", "netns", own, "type", "veth", "peer", "name", &port, "netns", other])?;
        switch.ip(&["link", "set", &port, "master", "br0", "up"])?;
        self.ip(&["addr", "add", &format!("{v4}/24"), "dev", "eth0"])?;
        self.ip(&["addr", "add", &format!("{v6}/64"), "dev", "eth0", "nodad"])?;
        self.ip(&["link", "set", "eth0", "up"])
    }

    /// A command that will run inside, with the host's resolv.conf.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]).stdin(Stdio::null());
        command
    }

    /// A command that will run inside but keeps the machine's mounts, which a program that looks at
    /// /sys/fs/cgroup needs: `ip netns exec` mounts a fresh /sys.
    pub fn command_in_net_only(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.name)).arg(program).stdin(Stdio::null());
        command
    }

    /// Runs to the end; a command that hangs is ended after a minute and reported as code 124.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<Output> {
        let mut command = self.command(program);
        command.args(args);
        finish(command, COMMAND_LIMIT)
    }

    /// Runs a line of shell.
    pub fn shell(&self, line: &str) -> Result<Output> {
        self.run("sh", &["-c", line])
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let deleted = tool(&["ip", "netns", "del", &self.name]);
        let _ = std::fs::remove_dir_all(self.etc());
        if let Err(error) = deleted {
            eprintln!("left behind: namespace {}: {error:#}", self.name);
        }
    }
}

/// Runs a tool of the machine itself and insists that it worked.
pub fn tool(line: &[&str]) -> Result<()> {
    let (program, args) = line.split_first().context("an empty command")?;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    let output = finish(command, COMMAND_LIMIT)?;
    ensure!(output.ok(), "`{}` ended with {}: {}", line.join(" "), output.code, output.stderr.trim());
    Ok(())
}

/// Runs a command to its end, collecting what it says, and ends it when it takes too long.
pub fn finish(mut command: Command, limit: Duration) -> Result<Output> {
    let name = format!("{command:?}");
    let out = tempfile::tempfile()?;
    let err = tempfile::tempfile()?;
    let mut child = command
        .stdout(out.try_clone()?)
        .stderr(err.try_clone()?)
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let code = if let Some(status) = ended(&mut child, limit)? {
        use std::os::unix::process::ExitStatusExt;
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
    } else {
        child.kill()?;
        child.wait()?;
        124
    };
    Ok(Output { code, stdout: text(out)?, stderr: text(err)? })
}

fn text(mut file: std::fs::File) -> Result<String> {
    use std::io::{Read, Seek};
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Root is needed for namespaces; says so once and plainly.
pub fn require_root() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("this needs root: it makes network namespaces and nftables rules in them");
    }
    Ok(())
}
