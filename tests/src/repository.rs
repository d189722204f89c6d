//! Two versions of every package, made once for all tests of a suite, and a repository of them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use crate::daemon::Daemon;
use crate::document::workspace;
use crate::estate::{Estate, program};
use crate::machine::Machine;
use crate::netns::finish;
use crate::wait::wait_until;
use anyhow::{Context, Result, ensure};

/// What hosts upgrade from and to. The programs in them are the same.
pub const OLD: &str = "0.9.0";
pub const NEW: &str = "0.9.1";

/// Packages of both versions, the key that signs them and the repository, in one folder of the target
/// folder, made anew by each run.
pub struct Repository {
    folder: PathBuf,
    pub key: String,
}

impl Repository {
    /// Makes it at the first call.
    pub fn made() -> Result<&'static Self> {
        static MADE: OnceLock<Result<Repository, String>> = OnceLock::new();
        let made = MADE.get_or_init(|| Self::make().map_err(|error| format!("{error:#}")));
        made.as_ref().map_err(|error| anyhow::anyhow!("no packages: {error}"))
    }

    fn make() -> Result<Self> {
        // Suites may run side by side: each has its own.
        let suite = std::env::current_exe()?;
        let suite = suite.file_name().context("a program has a name")?.to_string_lossy().into_owned();
        let suite = suite.split('-').next().unwrap_or_default();
        let folder = program("tombolo")?.with_file_name(format!("packages-of-{suite}"));
        if folder.exists() {
            end_gpg_agent(&folder)?;
            std::fs::remove_dir_all(&folder)?;
        }
        let made = Self { key: make_key(&folder, "Tombolo test archive", None)?, folder };
        let public = made.path("key.gpg");
        run(made.gpg().args(["--output"]).arg(&public).args(["--export", &made.key]))?;
        for version in [OLD, NEW] {
            make_packages(version, &made.path("packages"), Some(&public), None)?;
        }
        made.publish("repository", 30)?;
        Ok(made)
    }

    /// Signs and lists the packages in a folder of that name.
    pub fn publish(&self, name: &str, valid_days: i32) -> Result<PathBuf> {
        let out = self.path(name);
        let mut command = Command::new(workspace().join("packaging/repo.sh"));
        command.env("GNUPGHOME", self.path("gnupg")).args(["--key", &self.key, "--url", URL]);
        command.arg("--packages").arg(self.path("packages")).arg("--out").arg(&out);
        let signed = run(command.args(["--valid-days", &valid_days.to_string()]));
        end_gpg_agent(&self.folder)?;
        signed.map(|_| out)
    }

    /// A file server of a published folder where every host of the estate reaches it.
    pub fn serve(estate: &Estate, folder: &Path) -> Result<Daemon> {
        let mut command = estate.switch().command("python3");
        command.args(["-m", "http.server", "--bind", "10.88.0.1", "80", "--directory"]).arg(folder);
        let daemon = Daemon::start("python3", command, &estate.folder().join("repository.log"))?;
        wait_until("the repository is served", || {
            let asked = estate.switch().run("curl", &["-sSf", &format!("{URL}/tombolo.sources")]);
            match asked.map_err(|error| error.to_string())? {
                output if output.ok() => Ok(()),
                output => Err(format!("{output:?} {}", daemon.log())),
            }
        });
        Ok(daemon)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn gpg(&self) -> Command {
        let mut command = Command::new("gpg");
        command.args(["--batch", "--yes"]).env("GNUPGHOME", self.path("gnupg"));
        command
    }
}

/// A key pair in `folder`/gnupg without a passphrase; answers its fingerprint.
pub fn make_key(folder: &Path, name: &str, faked_time: Option<&str>) -> Result<String> {
    use std::os::unix::fs::DirBuilderExt;
    let home = folder.join("gnupg");
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&home)?;
    let mut command = Command::new("gpg");
    command.env("GNUPGHOME", &home).args(["--batch", "--passphrase", "", "--status-fd", "1"]);
    command.args(faked_time.map(|time| format!("--faked-system-time={time}")));
    // RSA: rpm before 4.18 knows no elliptic curves.
    let said = run(command.args(["--quick-generate-key", name, "rsa3072", "sign", "1d"]))?;
    let line = said.lines().find(|line| line.contains("KEY_CREATED")).context("gpg made no key")?;
    Ok(line.split_whitespace().last().context("gpg names the key")?.to_owned())
}

/// gpg starts an agent for each of its folders, which would stay.
pub fn end_gpg_agent(folder: &Path) -> Result<()> {
    let mut command = Command::new("gpgconf");
    run(command.env("GNUPGHOME", folder.join("gnupg")).args(["--kill", "gpg-agent"])).map(|_| ())
}

/// `cargo xtask package`, with little compression; of other programs than those under test where `instead` says so.
pub fn make_packages(version: &str, out: &Path, key: Option<&Path>, instead: Option<&Path>) -> Result<()> {
    let mut command = Command::new(program("xtask")?);
    command.args(["package", "--quick", "--version", version, "--out"]).arg(out);
    let programs = programs()?;
    command.arg("--programs").arg(instead.unwrap_or(&programs)).arg("--native-programs").arg(&programs);
    command.env("SOURCE_DATE_EPOCH", "1767225600");
    if let Some(key) = key {
        command.arg("--archive-key").arg(key);
    }
    run(&mut command).map(|_| ())
}

/// The programs to be packaged. Debugging information would make packages of 130 MB.
pub fn programs() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("TOMBOLO_PROGRAMS") {
        return Ok(PathBuf::from(folder));
    }
    static STRIPPED: OnceLock<PathBuf> = OnceLock::new();
    if let Some(folder) = STRIPPED.get() {
        return Ok(folder.clone());
    }
    let folder = program("tombolo")?.with_file_name("stripped");
    std::fs::create_dir_all(&folder)?;
    for name in ["tombolo", "tombolo-controlplane"] {
        // Written aside and moved: another suite may be reading.
        let partial = folder.join(format!("{name}.{}", std::process::id()));
        run(Command::new("strip").arg("-o").arg(&partial).arg(program(name)?))?;
        std::fs::rename(partial, folder.join(name))?;
    }
    Ok(STRIPPED.get_or_init(|| folder).clone())
}

/// A Debian with dnf has no packages for rpm but ours: one that holds nothing provides what ours ask for.
pub fn provide_the_distribution(machine: &Machine) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let spec = folder.path().join("distribution.spec");
    std::fs::write(&spec, include_str!("machine/distribution.spec"))?;
    let top = folder.path().display().to_string();
    run(Command::new("rpmbuild").args(["-bb", "--quiet", "--define", &format!("_topdir {top}")]).arg(&spec))?;
    let made = folder.path().join("RPMS/noarch/distribution-12-1.noarch.rpm");
    std::fs::copy(made, machine.path("/root/distribution.rpm")?)?;
    machine.run_ok("rpm", &["-i", "/root/distribution.rpm"]).map(|_| ())
}

/// Runs a tool of this machine, which must succeed; answers its standard output.
pub fn run(command: &mut Command) -> Result<String> {
    let line = format!("{command:?}");
    let mut taken = Command::new(command.get_program());
    taken.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => taken.env(name, value),
            None => taken.env_remove(name),
        };
    }
    let output = finish(taken, Duration::from_secs(300))?;
    ensure!(output.ok(), "{line} ended with {}: {} {}", output.code, output.stdout.trim(), output.stderr.trim());
    Ok(output.stdout)
}

/// Where the estate's hosts find it.
pub const URL: &str = "http://10.88.0.1";
