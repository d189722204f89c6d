//! A host of an estate with a system of its own: Debian booted under systemd-nspawn in the host's
//! network namespace, with real systemd, journald, networkd, resolved and its own cgroup tree.
//!
//! The root is an overlay that only the machine's own mount namespace sees, so that nothing is left
//! mounted however it ends; every process of it is in one cgroup, which is killed and removed on
//! drop. Kernel and clock are this machine's. Applications run as units ([`Machine::start_unit`]).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::daemon::Daemon;
use crate::document::workspace;
use crate::estate::{Estate, Host, HostSpec, program};
use crate::netns::{Output, finish};
use crate::wait::{wait_until, within};

mod cgroup;
mod root;

use cgroup::Cgroup;
pub use root::Release;

/// One booted machine, ended and removed on drop.
pub struct Machine {
    root: PathBuf,
    /// `None` while it is switched off.
    running: Option<Running>,
    host: Host,
    /// Nothing of Tombolo is on it; what was built lies ready in [`BUILT`], the sources in [`SOURCES`].
    bare: bool,
}

/// One life of a machine, from boot to power-off.
struct Running {
    nspawn: Daemon,
    /// systemd: the machine's process 1, by its number out here.
    leader: u32,
    cgroup: Cgroup,
}

impl Machine {
    /// Boots Debian 12 with `tombolo` installed, neither joined nor started.
    pub fn boot(estate: &Estate, name: &str) -> Result<Self> {
        Self::boot_release(estate, name, Release::Bookworm)
    }

    pub fn boot_release(estate: &Estate, name: &str, release: Release) -> Result<Self> {
        Self::make(estate, name, release, false)
    }

    /// Boots Debian 12 as it is before anything of Tombolo was installed, with a checkout to install from.
    pub fn boot_bare(estate: &Estate, name: &str) -> Result<Self> {
        Self::boot_bare_release(estate, name, Release::Bookworm)
    }

    pub fn boot_bare_release(estate: &Estate, name: &str, release: Release) -> Result<Self> {
        Self::make(estate, name, release, true)
    }

    fn make(estate: &Estate, name: &str, release: Release, bare: bool) -> Result<Self> {
        let root = root::root(release)?;
        let host = estate.add_host(name, &HostSpec::default())?;
        let mut machine = Self { root, running: None, host, bare };
        for folder in ["upper", "work", "root"] {
            fs::create_dir(machine.host.folder().join(folder))?;
        }
        machine.install()?;
        machine.power_on()?;
        Ok(machine)
    }

    /// What an installer and, unless it is bare, a package would have put there.
    fn install(&self) -> Result<()> {
        let id: String = (0..16).map(|_| format!("{:02x}", rand::random::<u8>())).collect();
        self.write("/etc/machine-id", &format!("{id}\n"))?;
        self.write("/etc/hostname", &format!("{}\n", self.host.name()))?;
        self.write("/etc/systemd/network/eth0.network", NETWORK)?;
        let wants = self.path("/etc/systemd/system/multi-user.target.wants")?;
        fs::create_dir_all(&wants)?;
        let networkd = "systemd-networkd.service";
        std::os::unix::fs::symlink(format!("/lib/systemd/system/{networkd}"), wants.join(networkd))?;
        if self.bare {
            return Ok(());
        }
        let config = workspace().join("packaging/etc/agent.toml");
        if config.exists() {
            self.write("/etc/tombolo/agent.toml", &fs::read_to_string(config)?)?;
        }
        for entry in fs::read_dir(workspace().join("systemd")).into_iter().flatten() {
            let from = entry?.path();
            let name = from.file_name().context("a file has a name")?.to_string_lossy().into_owned();
            self.write(&format!("/usr/lib/systemd/system/{name}"), &fs::read_to_string(&from)?)?;
        }
        Ok(())
    }

    /// A system credential (systemd.exec(5)) that it has from the next boot on.
    pub fn give_credential(&self, name: &str, text: &str) -> Result<()> {
        let folder = self.credentials();
        fs::create_dir_all(&folder)?;
        Ok(fs::write(folder.join(name), text)?)
    }

    fn credentials(&self) -> PathBuf {
        self.host.folder().join("credentials")
    }

    /// Boots, and waits until every unit of the boot has started.
    pub fn power_on(&mut self) -> Result<()> {
        ensure!(self.running.is_none(), "{} is on already", self.host.name());
        let cgroup = Cgroup::create(&format!("tombolo-{}", self.host.namespace().name()))?;
        let nspawn = Daemon::start("systemd-nspawn", self.launch(&cgroup)?, &self.console())?;
        let mut running = Running { nspawn, leader: 0, cgroup };
        running.leader = within(BOOT, "systemd-nspawn has started systemd", || {
            let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", running.nspawn.pid()));
            let first = children.unwrap_or_default().split_whitespace().find_map(|pid| pid.parse().ok());
            let console = || fs::read_to_string(self.console()).unwrap_or_default();
            first.filter(|pid| is_init(*pid)).ok_or_else(console)
        });
        self.running = Some(running);
        within(BOOT, &format!("{} has booted", self.host.name()), || {
            let state = self.run("systemctl", &["is-system-running", "--wait"]).map_err(|error| error.to_string())?;
            match state.stdout.trim() {
                "running" => Ok(()),
                "degraded" => Err(self
                    .shell("systemctl --failed; journalctl -b -p err")
                    .map(|said| said.stdout)
                    .unwrap_or_default()),
                _ => Err(format!("{state:?}")),
            }
        });
        Ok(())
    }

    /// The whole line that boots it. `--keep-unit --register=no`: this may run where no systemd does.
    fn launch(&self, cgroup: &Cgroup) -> Result<Command> {
        let mut command = Command::new("setpriv");
        // Whatever ends the test switches its machines off: on SIGTERM nspawn does so in order, killed
        // itself it would leave them running.
        command.args(["--pdeathsig", "TERM", "unshare", "--mount", "--propagation", "slave"]);
        command.args(["sh", "-euc", LAUNCH, "launch"]).arg(cgroup.path()).arg(&self.root).arg(self.host.folder());
        command.args(["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--console=pipe"]);
        command.args(["--resolv-conf=off", "--timezone=off", "--link-journal=no", "--capability=CAP_NET_ADMIN"]);
        let name = self.host.namespace().name();
        command.arg(format!("--machine={name}")).arg(format!("--hostname={}", self.host.name()));
        command.arg(format!("--network-namespace-path=/run/netns/{name}"));
        let bind = |from: &Path, to: &str| format!("--bind-ro={}:{to}", from.display());
        command.arg(bind(&program("testhost")?, "/usr/bin/testhost"));
        if self.bare {
            command.arg(bind(&workspace(), SOURCES));
            for ours in ["tombolo", "tombolo-controlplane"] {
                command.arg(bind(&program(ours)?, &format!("{BUILT}/{ours}")));
            }
        } else {
            command.arg(bind(&program("tombolo")?, "/usr/bin/tombolo"));
        }
        for credential in fs::read_dir(self.credentials()).into_iter().flatten().flatten() {
            let (name, path) = (credential.file_name(), credential.path());
            command.arg(format!("--load-credential={}:{}", name.display(), path.display()));
        }
        command.arg("--directory").arg(self.host.folder().join("root")).env_clear().env("PATH", PATH);
        command.env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1").env("SYSTEMD_NSPAWN_API_VFS_WRITABLE", "network");
        // A host has no system call filter around its systemd; units still have their own.
        command.env("SYSTEMD_SECCOMP", "0");
        Ok(command)
    }

    /// Shuts down in order, as its operator would.
    pub fn power_off(&mut self) -> Result<()> {
        self.shut_down("poweroff")
    }

    /// Shuts down in order and boots again: nspawn leaves the second half to whoever started it.
    pub fn reboot(&mut self) -> Result<()> {
        self.shut_down("reboot")?;
        self.power_on()
    }

    fn shut_down(&mut self, verb: &str) -> Result<()> {
        self.run("systemctl", &[verb])?;
        let mut running = self.running.take().context("it is off")?;
        let what = format!("{} has shut down", self.host.name());
        within(BOOT, &what, || if running.nspawn.running() { Err("it runs") } else { Ok(()) });
        Ok(())
    }

    /// The power cord pulled out.
    pub fn cut_power(&mut self) {
        self.running = None;
    }

    pub fn name(&self) -> &str {
        self.host.name()
    }

    /// The host it is: its addresses and its namespace, seen from outside.
    pub fn host(&self) -> &Host {
        &self.host
    }

    fn console(&self) -> PathBuf {
        self.host.folder().join("console.log")
    }

    /// A file of the machine as seen from here. Do not follow the machine's absolute links with it.
    pub fn path(&self, inside: &str) -> Result<PathBuf> {
        let top = match &self.running {
            Some(running) => PathBuf::from(format!("/proc/{}/root", running.leader)),
            None => self.host.folder().join("upper"),
        };
        Ok(top.join(inside.strip_prefix('/').context("say it from the root")?))
    }

    /// Writes a file, for everybody to read, with the folders it needs.
    pub fn write(&self, inside: &str, text: &str) -> Result<()> {
        let path = self.path(inside)?;
        fs::create_dir_all(path.parent().context("a file is in a folder")?)?;
        fs::write(&path, text).with_context(|| format!("cannot write {inside} on {}", self.host.name()))?;
        Ok(fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?)
    }

    /// A command that will run inside as root, as from a shell there.
    pub fn command(&self, program: &str) -> Result<Command> {
        let running = self.running.as_ref().with_context(|| format!("{} is switched off", self.host.name()))?;
        let mut command = Command::new("nsenter");
        command.args(["--target", &running.leader.to_string(), "--all", program]).stdin(Stdio::null());
        command.env_clear().env("PATH", PATH).env("HOME", "/root").env("LANG", "C.UTF-8");
        Ok(command)
    }

    /// Runs to the end.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<Output> {
        let mut command = self.command(program)?;
        command.args(args);
        finish(command, COMMAND_LIMIT)
    }

    /// The same, and it must succeed; answers its standard output.
    pub fn run_ok(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self.run(program, args)?;
        let (line, code) = (format!("{program} {}", args.join(" ")), output.code);
        let said = format!("{}{}", output.stdout, output.stderr);
        ensure!(output.ok(), "`{line}` on {} ended with {code}: {}", self.host.name(), said.trim());
        Ok(output.stdout)
    }

    /// Runs a line of shell.
    pub fn shell(&self, line: &str) -> Result<Output> {
        self.run("sh", &["-c", line])
    }

    /// `tombolo` there, which must succeed.
    pub fn tombolo_ok(&self, args: &[&str]) -> Result<String> {
        self.run_ok("tombolo", args)
    }

    /// `curl` there.
    pub fn curl(&self, url: &str) -> Result<Output> {
        self.run("curl", &["-sS", "--max-time", "10", url])
    }

    /// Joins with a fresh token.
    pub fn join(&self, estate: &Estate, groups: &[&str]) -> Result<()> {
        let groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
        let words = estate.join_arguments(&groups)?;
        let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
        let address = self.host.address().to_string();
        words.extend(["--name", self.host.name(), "--advertise", &address]);
        self.tombolo_ok(&words).map(|_| ())
    }

    /// Starts the agent as its package says; systemd comes back when it is ready.
    pub fn start_agent(&self) -> Result<()> {
        self.run_ok("systemctl", &["start", AGENT]).map(|_| ()).map_err(|error| {
            let journal = self.journal(AGENT).unwrap_or_default();
            error.context(crate::estate::last_lines(&journal, 30))
        })
    }

    /// The agent's status as JSON.
    pub fn status(&self) -> Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.tombolo_ok(&["status", "-o", "json"])?)?)
    }

    /// Writes a unit that runs `exec` and starts it.
    pub fn start_unit(&self, name: &str, exec: &str) -> Result<()> {
        self.write(&format!("/etc/systemd/system/{name}.service"), &format!("[Service]\nExecStart={exec}\n"))?;
        self.run_ok("systemctl", &["daemon-reload"])?;
        self.run_ok("systemctl", &["start", name]).map(|_| ())
    }

    /// Settings over a unit's own, as `systemctl edit` makes them.
    pub fn override_unit(&self, unit: &str, text: &str) -> Result<()> {
        self.write(&format!("/etc/systemd/system/{unit}.d/50-test.conf"), text)?;
        self.run_ok("systemctl", &["daemon-reload"]).map(|_| ())
    }

    /// One property of a unit, as `systemctl show` says it.
    pub fn property(&self, unit: &str, property: &str) -> Result<String> {
        let said = self.run_ok("systemctl", &["show", "--value", "-p", property, unit])?;
        Ok(said.trim().to_owned())
    }

    /// The messages of a unit since the boot, oldest first.
    pub fn journal(&self, unit: &str) -> Result<String> {
        self.run_ok("journalctl", &["-b", "-o", "cat", "--no-pager", "-u", unit])
    }

    /// Waits until curl there gets an answer; answers the body.
    pub fn wait_answers(&self, url: &str) -> String {
        wait_until(&format!("{url} answers {}", self.host.name()), || {
            let output = self.curl(url).map_err(|error| error.to_string())?;
            if output.ok() { Ok(output.stdout) } else { Err(output.stderr) }
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.cgroup.kill() {
            eprintln!("left behind: a machine in {}: {error:#}", self.cgroup.path().display());
        }
    }
}

/// Whether a process is process 1 of a process namespace below ours (proc(5), NSpid).
fn is_init(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    let numbers: Vec<&str> = numbers.split_whitespace().collect();
    numbers.len() > 1 && numbers.last() == Some(&"1") && status.starts_with("Name:\tsystemd\n")
}

/// The agent's unit.
pub const AGENT: &str = "tombolo-agent.service";

/// Where a bare machine has the sources, to read.
pub const SOURCES: &str = "/opt/sources";

/// Where a bare machine has the built programs.
pub const BUILT: &str = "/opt/built";

const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// A boot takes less than a second, on a busy machine five.
const BOOT: Duration = Duration::from_secs(60);

/// systemd's own limit for a start is 90 s.
const COMMAND_LIMIT: Duration = Duration::from_secs(100);

/// networkd manages the link and knows its resolver, but keeps the addresses it finds: systemd 252 on a
/// kernel of 2026 asks for an IPv4 address of its own some 48000 times and then gives the link up.
const NETWORK: &str = "[Match]\nName=eth0\n\n[Network]\nDNS=10.88.0.1\nKeepConfiguration=yes\n\
                       IPv6AcceptRA=no\nLinkLocalAddressing=no\n";

/// Runs in a mount namespace of its own: into the cgroup, put the root together, become the rest of
/// the line. nspawn removes its folder only from a tmpfs, and two machines must not share it.
const LAUNCH: &str = r#"
cgroup=$1 base=$2 folder=$3
shift 3
echo $$ > "$cgroup/cgroup.procs"
mkdir -p /run/systemd/nspawn
mount -t tmpfs tmpfs /run/systemd/nspawn
mount -t overlay overlay -o "lowerdir=$base,upperdir=$folder/upper,workdir=$folder/work" "$folder/root"
exec "$@"
"#;
