//! The Debian that machines boot from: made once by debootstrap, kept in /var/cache, never changed.
//!
//! Machines put an overlay of their own on it. Making one takes about two minutes and needs a Debian
//! mirror; a lock lets several suites ask at once, and a root appears whole or not at all.

use std::fs::{self, File};
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
}

impl Release {
    fn codename(self) -> &'static str {
        match self {
            Self::Bookworm | Self::BookwormWithDnf => "bookworm",
            Self::Trixie => "trixie",
        }
    }

    /// Part of its folder's name.
    fn name(self) -> &'static str {
        match self {
            Self::Bookworm | Self::Trixie => self.codename(),
            Self::BookwormWithDnf => "bookworm-dnf",
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
    debootstrap(release, &partial)?;
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
