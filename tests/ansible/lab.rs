//! Three machines with nothing but sshd and Python, the packages' repository beside them, and a controller.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::census::Census;
use tests::document::workspace;
use tests::machine::Release;
use tests::netns::finish;
use tests::repository::{NEW, OLD, Repository, URL, make_packages, programs, provide_the_distribution, run};
use tests::{Daemon, Estate, Machine, wait_until};

use crate::recap::Recap;

pub struct Lab {
    pub cp1: Machine,
    pub orders: Machine,
    pub web: Machine,
    pub before: Vec<Census>,
    server: Daemon,
    /// The folder in which the operator works.
    folder: PathBuf,
    pub estate: Estate,
}

impl Lab {
    /// The machines are bare; the collection is installed for the operator.
    pub fn open() -> Result<Self> {
        let repository = Repository::made()?;
        let estate = Estate::prepare(|_| "sqlite::memory:".to_owned())?;
        let folder = estate.folder().join("operator");
        std::fs::create_dir_all(folder.join("ssh"))?;
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(folder.join("ssh/key")))?;
        let server = Repository::serve(&estate, &repository.path("repository"))?;
        let boot = |name| managed(&estate, name, &folder, Release::BookwormManaged);
        let (cp1, orders, web) = (boot("cp1")?, boot("orders")?, boot("web")?);
        orders.start_unit("shop", "/usr/bin/testhost http [::]:8080 orders")?;
        let before = [&cp1, &orders, &web].map(Census::take).into_iter().collect::<Result<Vec<_>>>()?;
        let lab = Self { cp1, orders, web, before, server, folder, estate };
        lab.write_inventory("")?;
        lab.install_collection()?;
        Ok(lab)
    }

    pub fn machines(&self) -> [&Machine; 3] {
        [&self.cp1, &self.orders, &self.web]
    }

    /// The inventory of ansible/README.md, for the repository and the machines of this lab. Lines of `hosts` go to
    /// the variables of all hosts.
    pub fn write_inventory(&self, hosts: &str) -> Result<()> {
        let readme = std::fs::read_to_string(workspace().join("ansible/README.md"))?;
        let mut blocks = readme.split("```yaml\n").skip(1).filter_map(|block| block.split("```").next());
        let shown = blocks.next().context("README.md shows no inventory")?;
        let text = shown.replace("https://packages.tombolo.example", URL);
        ensure!(text != shown, "README.md names no repository: {shown}");
        let plugin = blocks.next().context("README.md shows no inventory of the plugin")?;
        let plugin = plugin.replace("//cp1:", &format!("//{}:", self.cp1.host().address()));
        std::fs::write(self.path("mesh.tombolo.yml"), plugin)?;
        let mut lab = "all:\n  vars:\n    ansible_user: root\n".to_owned();
        lab.push_str(&format!(
            "    ansible_ssh_private_key_file: {}\n{hosts}  hosts:\n",
            self.path("ssh/key").display()
        ));
        for machine in self.machines() {
            lab.push_str(&format!("    {}: {{ansible_host: {}}}\n", machine.name(), machine.host().address()));
        }
        std::fs::create_dir_all(self.path("inventory"))?;
        std::fs::write(self.path("inventory/hosts.yml"), text)?;
        std::fs::write(self.path("inventory/lab.yml"), lab)?;
        let shop = std::fs::read_to_string(workspace().join("tests/demo/shop.yaml"))?;
        Ok(std::fs::write(self.path("shop.yaml"), shop)?)
    }

    fn install_collection(&self) -> Result<()> {
        let source = workspace().join("ansible");
        let built = self.shell(&format!("ansible-galaxy collection build {} --output-path built", source.display()))?;
        ensure!(built.ok(), "{}", built.said);
        let installed = self.shell("ansible-galaxy collection install built/*.tar.gz --offline")?;
        ensure!(installed.ok(), "{}", installed.said);
        Ok(())
    }

    /// A fourth machine, in no inventory yet, whose only package manager is dnf.
    pub fn boot_with_dnf(&self, name: &str) -> Result<Machine> {
        let machine = managed(&self.estate, name, &self.folder, Release::ManagedWithDnf)?;
        provide_the_distribution(&machine)?;
        // Where dnf is at home these are there. Ansible takes apt for the package manager of whatever is a Debian.
        machine.run_ok("mkdir", &["-p", "/etc/yum.repos.d"])?;
        machine.write("/etc/dnf/vars/releasever", "12\n")?;
        machine.run_ok("rm", &["/usr/bin/apt-get", "/usr/bin/apt", "/etc/debian_version"])?;
        machine.write("/usr/lib/os-release", "NAME=\"Fedora Linux\"\nID=fedora\nVERSION_ID=12\n")?;
        machine.write("/etc/redhat-release", "Fedora release 12 (Test)\n")?;
        Ok(machine)
    }

    /// Lines beside the inventory of ansible/README.md.
    pub fn write_more(&self, lines: &str) -> Result<()> {
        Ok(std::fs::write(self.path("inventory/more.yml"), lines)?)
    }

    /// A file of the operator's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A line of the operator's shell.
    pub fn shell(&self, line: &str) -> Result<Recap> {
        let venv = workspace().join("target/ansible/venv/bin").canonicalize();
        let venv =
            venv.context("there is no Ansible in target/ansible/venv: run `make test-ansible`, which makes it")?;
        let mut command = self.estate.switch().command("sh");
        command.args(["-c", &format!("cd {} && {line}", self.folder.display())]);
        command.env("PATH", format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", venv.display())).env("HOME", &self.folder);
        command.env("ANSIBLE_COLLECTIONS_PATH", self.path("collections")).env("ANSIBLE_NOCOLOR", "1");
        command.env("ANSIBLE_HOME", self.path(".ansible")).env("ANSIBLE_LOCAL_TEMP", self.path("tmp"));
        command.env("ANSIBLE_HOST_KEY_CHECKING", "False").env("ANSIBLE_SSH_CONTROL_PATH_DIR", self.path("ssh"));
        let known = self.path("ssh/known_hosts");
        let ssh = format!("-o ControlMaster=auto -o ControlPersist=60s -o UserKnownHostsFile={}", known.display());
        command.env("ANSIBLE_SSH_ARGS", ssh).env("ANSIBLE_PIPELINING", "True").env("LC_ALL", "C.UTF-8");
        command.env("PYTHONUNBUFFERED", "1");
        command.env_remove("VIRTUAL_ENV").env_remove("PYTHONPATH");
        let started = Instant::now();
        let recap = Recap::of(finish(command, PLAY_LIMIT)?);
        println!("`{line}` ended with {} after {:?}", recap.code, started.elapsed());
        Ok(recap)
    }

    /// `ansible-playbook -i inventory tombolo.mesh.ARGS`.
    pub fn play(&self, args: &str) -> Result<Recap> {
        self.shell(&format!("ansible-playbook -i inventory tombolo.mesh.{args}"))
    }

    /// The same, and it must succeed.
    pub fn play_ok(&self, args: &str) -> Result<Recap> {
        let recap = self.play(args)?;
        ensure!(recap.ok(), "`{args}` ended with {}: {}", recap.code, recap.said);
        Ok(recap)
    }

    /// `web` reaches `orders` by its mesh name.
    pub fn ensure_served(&self) -> Result<()> {
        let answer = self.web.wait_answers("http://orders.shop.mesh/");
        ensure!(answer.starts_with("hello from orders"), "{answer}");
        Ok(())
    }

    /// A third version whose agent does not start joins the repository.
    pub fn publish_broken(&mut self) -> Result<()> {
        let repository = Repository::made()?;
        let folder = self.path("broken");
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("tombolo"), BROKEN_PROGRAM)?;
        std::fs::copy(programs()?.join("tombolo-controlplane"), folder.join("tombolo-controlplane"))?;
        make_packages(BROKEN, &repository.path("packages"), None, Some(&folder))?;
        let published = repository.publish("with-broken", 30)?;
        self.server.stop()?;
        self.server = Repository::serve(&self.estate, &published)?;
        Ok(())
    }
}

/// ssh leaves a master process for each machine.
impl Drop for Lab {
    fn drop(&mut self) {
        for socket in std::fs::read_dir(self.path("ssh")).into_iter().flatten().flatten() {
            if socket.path().extension().is_none() && !socket.file_name().to_string_lossy().starts_with("k") {
                let mut exit = Command::new("ssh");
                exit.arg("-S").arg(socket.path()).args(["-O", "exit", "any"]);
                if let Err(error) = finish(exit, Duration::from_secs(10)) {
                    eprintln!("left behind: an ssh master: {error:#}");
                }
            }
        }
    }
}

/// A machine that the operator's key opens, with nothing to install from.
fn managed(estate: &Estate, name: &str, folder: &Path, release: Release) -> Result<Machine> {
    let machine = Machine::boot_bare_release(estate, name, release)?;
    machine.write("/etc/apt/sources.list", "")?;
    machine.write("/root/.ssh/authorized_keys", &std::fs::read_to_string(folder.join("ssh/key.pub"))?)?;
    wait_until(&format!("sshd of {name} listens"), || match machine.shell("ss -Htln sport = :22") {
        Ok(output) if output.stdout.contains(":22") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    Ok(machine)
}

/// Versions in the repository, and one whose agent ends at once but whose program answers everything else.
pub const VERSIONS: [&str; 2] = [OLD, NEW];
pub const BROKEN: &str = "0.9.2";
const BROKEN_PROGRAM: &str = "#!/bin/sh\n\
    [ \"$*\" = --version ] && exec echo tombolo 0.9.2\n\
    [ \"$*\" = 'agent --config /etc/tombolo/agent.toml' ] && { echo 'this build is broken' >&2; exit 1; }\n\
    exec /opt/built/tombolo \"$@\"\n";

/// The longest play takes four minutes on two busy cores.
const PLAY_LIMIT: Duration = Duration::from_secs(1200);
