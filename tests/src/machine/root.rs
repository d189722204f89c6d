//! The Debian that machines boot from: made once by debootstrap, kept in /var/cache, never changed.
//!
//! Machines put an overlay of their own on it. Making one takes about two minutes and needs a Debian
//! mirror; a lock lets several suites ask at once, and a root appears whole or not at all.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::netns::finish;

/// Which Debian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// Debian 12: systemd 252, glibc 2.36.
    Bookworm,
    /// Debian 13: systemd 257, glibc 2.41.
    Trixie,
    /// Debian 12 whose package manager for us is dnf.
    BookwormWithDnf,
    /// Debian 12 as Ansible finds servers: sshd and Python; and Postgres, for which there is no mirror inside.
    BookwormManaged,
    /// The same with dnf, and without Postgres.
    ManagedWithDnf,
}

impl Release {
    fn codename(self) -> &'static str {
        match self {
            Self::Bookworm | Self::BookwormWithDnf | Self::BookwormManaged | Self::ManagedWithDnf => "bookworm",
            Self::Trixie => "trixie",
        }
    }

    /// Part of its folder's name.
    fn name(self) -> &'static str {
        match self {
            Self::Bookworm | Self::Trixie => self.codename(),
            Self::BookwormWithDnf => "bookworm-dnf",
            Self::BookwormManaged => "bookworm-managed",
            Self::ManagedWithDnf => "bookworm-dnf-managed",
        }
    }

    /// The root that it is made of, and what it has besides.
    fn managed(self) -> Option<(Self, &'static [&'static str])> {
        match self {
            Self::Bookworm | Self::Trixie | Self::BookwormWithDnf => None,
            Self::BookwormManaged => Some((Self::Bookworm, SERVICES)),
            Self::ManagedWithDnf => Some((Self::BookwormWithDnf, &["openssh-server"])),
        }
    }

    fn packages(self) -> Vec<&'static str> {
        let more: &[&str] = if self == Self::BookwormWithDnf { &["rpm", "dnf"] } else { &[] };
        PACKAGES.iter().chain(more).copied().collect()
    }
}

/// The folder of a release's root, made first where it is missing.
pub fn root(release: Release) -> Result<PathBuf> {
    fs::create_dir_all(CACHE).with_context(|| format!("cannot make {CACHE}"))?;
    let path = Path::new(CACHE).join(format!("machine-{}-{RECIPE}", release.name()));
    if path.exists() {
        return Ok(path);
    }
    let managed = match release.managed() {
        Some((base, services)) => Some((root(base)?, services)),
        None => None,
    };
    let lock = File::create(path.with_extension("lock"))?;
    lock.lock().context("cannot lock the root")?;
    if path.exists() {
        return Ok(path);
    }
    let partial = path.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).context("cannot remove a root that was not finished")?;
    }
    eprintln!("making Debian {} in {} once: about two minutes", release.codename(), path.display());
    match managed {
        Some((base, services)) => {
            crate::repository::run(Command::new("cp").arg("-a").arg(&base).arg(&partial))?;
            install_services(&partial, services)?;
        }
        None => debootstrap(release, &partial)?,
    }
    tidy_up(&partial)?;
    fs::rename(&partial, &path)?;
    Ok(path)
}

fn debootstrap(release: Release, folder: &Path) -> Result<()> {
    let mut command = Command::new("debootstrap");
    command.args(["--variant=minbase", &format!("--include={}", release.packages().join(",")), release.codename()]);
    command.arg(folder).arg(MIRROR);
    let output = finish(command, LIMIT).context("debootstrap is missing: run tests/tools.sh")?;
    let said = crate::estate::last_lines(&output.stdout, 5);
    ensure!(output.ok(), "debootstrap ended with {}: {} {said}", output.code, output.stderr.trim());
    Ok(())
}

/// Packages whose services must not start here: policy-rc.d(8) says so to their scripts.
fn install_services(folder: &Path, services: &[&str]) -> Result<()> {
    let policy = folder.join("usr/sbin/policy-rc.d");
    fs::write(&policy, "#!/bin/sh\nexit 101\n")?;
    fs::set_permissions(&policy, fs::Permissions::from_mode(0o755))?;
    // Where systemd-resolved would write it once the machine runs.
    let resolver = folder.join("run/systemd/resolve/stub-resolv.conf");
    fs::create_dir_all(resolver.parent().context("a file is in a folder")?)?;
    fs::copy("/etc/resolv.conf", &resolver)?;
    let install = ["-y", "--no-install-recommends", "install"].iter().chain(services).copied().collect();
    for line in [vec!["update"], install] {
        let mut command = Command::new("chroot");
        command.arg(folder).args(["apt-get", "-q"]).args(line);
        command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C.UTF-8");
        let output = finish(command, LIMIT)?;
        ensure!(output.ok(), "apt-get ended with {}: {}", output.code, output.stderr.trim());
    }
    fs::remove_dir_all(folder.join("run/systemd"))?;
    Ok(fs::remove_file(policy)?)
}

/// What every machine has of its own, and what only takes room.
fn tidy_up(folder: &Path) -> Result<()> {
    for file in ["etc/machine-id", "etc/hostname", "var/lib/dbus/machine-id"] {
        match fs::remove_file(folder.join(file)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    for drawer in ["var/cache/apt/archives", "var/lib/apt/lists"] {
        for entry in fs::read_dir(folder.join(drawer))? {
            let path = entry?.path();
            if path.is_file() {
                fs::remove_file(path)?
            }
        }
    }
    Ok(())
}

/// Kept between runs, so that only the first one pays.
const CACHE: &str = "/var/cache/tombolo-tests";

/// Part of the folder's name: a new recipe makes a new root and touches none that is in use.
const RECIPE: u32 = 2;

const MIRROR: &str = "http://deb.debian.org/debian";

/// A slow mirror and a busy machine.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// What a server has, and what the tests ask it with. libnss-resolve and libnss-myhostname give it
/// the nsswitch.conf on which a static program that asks NSS would die.
const PACKAGES: &[&str] = &[
    "systemd",
    "systemd-sysv",
    "systemd-resolved",
    "libnss-resolve",
    "libnss-myhostname",
    "dbus",
    "procps",
    "iproute2",
    "nftables",
    "curl",
    "netcat-openbsd",
    "bind9-dnsutils",
];

/// What only managed machines have, besides Debian.
const SERVICES: &[&str] = &["openssh-server", "python3", "python3-apt", "postgresql"];
