//! `cargo xtask package`: deb and rpm from packaging/packages.toml and the built programs.
//!
//! Reads the description, makes what is made from the programs (`made`), puts each package's tree
//! together and has dpkg-deb and rpmbuild pack it. The same sources, programs and `SOURCE_DATE_EPOCH`
//! give the same bytes.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

mod deb;
mod made;
mod rpm;
mod sbom;

/// Debs and rpms from built programs
#[derive(clap::Args)]
pub struct PackageArgs {
    /// The folder with the built programs
    #[arg(long, value_name = "DIR")]
    programs: PathBuf,
    /// Where the packages go
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The version of the packages [default: the workspace's]
    #[arg(long)]
    version: Option<String>,
    /// What the programs were built for, as Debian says it
    #[arg(long, default_value = "amd64")]
    arch: String,
    /// Programs of this machine that describe themselves, when those to be packaged cannot run here
    #[arg(long, value_name = "DIR")]
    native_programs: Option<PathBuf>,
    /// A public key (binary, as `gpg --export` gives it): makes tombolo-archive-keyring too
    #[arg(long, value_name = "FILE")]
    archive_key: Option<PathBuf>,
    /// Seconds since 1970 of every date in the packages [default: of the last commit]
    #[arg(long, value_name = "SECONDS", env = "SOURCE_DATE_EPOCH")]
    date: Option<u64>,
    /// Compress little: for tests
    #[arg(long)]
    quick: bool,
}

/// packaging/packages.toml.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    common: Origin,
    package: Vec<Package>,
}

/// What all packages say of themselves.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Origin {
    maintainer: String,
    homepage: String,
    license: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Package {
    name: String,
    section: String,
    /// `all` for packages without programs; else what was asked for.
    architecture: Option<String>,
    summary: String,
    description: String,
    #[serde(default)]
    depends: Vec<String>,
    #[serde(default)]
    recommends: Vec<String>,
    scripts: Option<String>,
    purge: Option<String>,
    #[serde(default)]
    folders: Vec<Folder>,
    files: Vec<File>,
}

/// An empty folder that belongs to the package.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Folder {
    path: String,
    mode: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    from: String,
    to: String,
    mode: Option<String>,
    /// `deb` or `rpm`, where the other has no use for it.
    only: Option<String>,
}

/// One run: everything that is the same for all packages.
struct Build {
    origin: Origin,
    version: String,
    arch: String,
    /// Seconds since 1970 of every date in the packages.
    epoch: u64,
    quick: bool,
    sources: PathBuf,
    programs: PathBuf,
    native_programs: PathBuf,
    /// Folders of this run, removed at its end.
    work: PathBuf,
    out: PathBuf,
}

/// One package's files, put together for one format.
struct Tree {
    root: PathBuf,
    /// Absolute paths of files as installed, with their modes, in order.
    files: BTreeMap<String, u32>,
}

pub fn run(args: PackageArgs) -> Result<()> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has a parent folder")?.to_owned();
    let path = sources.join("packaging/packages.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let description: Description = toml::from_str(&text).with_context(|| path.display().to_string())?;
    fs::create_dir_all(&args.out)?;
    let out = fs::canonicalize(&args.out)?;
    let work = out.join(".work");
    if work.exists() {
        fs::remove_dir_all(&work)?;
    }
    let programs = fs::canonicalize(&args.programs).context("no such folder of programs")?;
    let build = Build {
        origin: description.common,
        version: args.version.unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned()),
        arch: args.arch,
        epoch: args.date.map_or_else(|| last_commit(&sources), Ok)?,
        quick: args.quick,
        native_programs: args.native_programs.unwrap_or_else(|| programs.clone()),
        sources,
        programs,
        work,
        out,
    };
    build.check_version()?;
    build.check_programs()?;
    build.make(args.archive_key.as_deref())?;
    for package in &description.package {
        if package.name == "tombolo-archive-keyring" && args.archive_key.is_none() {
            continue;
        }
        println!("{}", deb::pack(&build, package)?.display());
        println!("{}", rpm::pack(&build, package)?.display());
    }
    fs::remove_dir_all(&build.work)?;
    Ok(())
}

/// When the last commit was made.
fn last_commit(sources: &Path) -> Result<u64> {
    let said = output(Command::new("git").arg("-C").arg(sources).args(["log", "-1", "--format=%ct"]));
    let said = said.context("set SOURCE_DATE_EPOCH: these sources have no history to take a date from")?;
    Ok(said.trim().parse()?)
}

impl Build {
    /// Both formats order `1.2~rc1` before `1.2` and use `-` for themselves.
    fn check_version(&self) -> Result<()> {
        let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '~' | '+');
        let digit = self.version.starts_with(|c: char| c.is_ascii_digit());
        ensure!(digit && self.version.chars().all(sound), "{} is no version: digits, letters, . ~ +", self.version);
        Ok(())
    }

    /// Whether they are for the machine that the packages will be for; a script is for any.
    fn check_programs(&self) -> Result<()> {
        // elf(5), e_machine: EM_X86_64, EM_AARCH64.
        let machine: u16 = if self.arch == "arm64" { 183 } else { 62 };
        for name in ["tombolo", "tombolo-controlplane"] {
            let path = self.programs.join(name);
            let mut head = [0; 20];
            let read = fs::File::open(&path).and_then(|mut file| file.read(&mut head));
            read.with_context(|| format!("cannot read {}", path.display()))?;
            let is_other = head.starts_with(b"\x7fELF") && u16::from_le_bytes([head[18], head[19]]) != machine;
            ensure!(!is_other, "{} was not built for {}: build it for that, or say --arch", path.display(), self.arch);
        }
        Ok(())
    }

    /// Where a `from` of the description is.
    fn find(&self, from: &str) -> PathBuf {
        match from.split_once('/') {
            Some(("@programs", rest)) => self.programs.join(rest),
            Some(("@made", rest)) => self.work.join("made").join(rest),
            _ => self.sources.join(from),
        }
    }

    /// Puts a package's files together below a root of their own.
    fn stage(&self, package: &Package, format: &str) -> Result<Tree> {
        let root = self.work.join(format!("{}.{format}", package.name));
        let mut tree = Tree { root, files: BTreeMap::new() };
        for file in &package.files {
            if file.only.as_deref().is_some_and(|only| only != format) {
                continue;
            }
            let mode = mode(file.mode.as_deref().unwrap_or("0644"))?;
            let from = self.find(&file.from);
            let name = from.file_name().context("a file has a name")?.to_string_lossy().into_owned();
            if from.is_dir() {
                for entry in fs::read_dir(&from)? {
                    let entry = entry?;
                    tree.add(&entry.path(), &format!("{}{}", file.to, entry.file_name().to_string_lossy()), mode)?;
                }
            } else if file.to.ends_with('/') {
                tree.add(&from, &format!("{}{name}", file.to), mode)?;
            } else {
                tree.add(&from, &file.to, mode)?;
            }
        }
        for folder in &package.folders {
            let path = tree.path(&folder.path);
            fs::create_dir_all(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode(&folder.mode)?))?;
        }
        Ok(tree)
    }

    /// Runs a tool of the build with this run's date.
    fn tool(&self, command: &mut Command) -> Result<String> {
        output(command.env("SOURCE_DATE_EPOCH", self.epoch.to_string()).env("LC_ALL", "C").env("TZ", "UTC"))
    }

    /// As `date` says it.
    fn date(&self, format: &str) -> Result<String> {
        let said = self.tool(Command::new("date").args(["-u", &format!("-d@{}", self.epoch), format]))?;
        Ok(said.trim().to_owned())
    }

    /// The functions of a package's scripts with the format's own half before them.
    fn functions(&self, package: &Package, format: &str) -> Result<Option<String>> {
        let Some(name) = &package.scripts else { return Ok(None) };
        let folder = self.sources.join("packaging/scripts");
        let purge = package.purge.as_ref().filter(|_| format == "deb");
        let mut text = fs::read_to_string(folder.join(format!("prelude.{format}")))?;
        for name in [Some(name), purge].into_iter().flatten() {
            text += "\n";
            text += &fs::read_to_string(folder.join(name)).with_context(|| format!("cannot read {name}"))?;
        }
        Ok(Some(text))
    }
}

impl Tree {
    fn path(&self, inside: &str) -> PathBuf {
        self.root.join(inside.trim_start_matches('/'))
    }

    fn add(&mut self, from: &Path, to: &str, mode: u32) -> Result<()> {
        let path = self.path(to);
        fs::create_dir_all(path.parent().context("a file is in a folder")?)?;
        fs::copy(from, &path).with_context(|| format!("{} is missing, it is to become {to}", from.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        self.files.insert(to.to_owned(), mode);
        Ok(())
    }

    fn write(&mut self, to: &str, text: &str, mode: u32) -> Result<()> {
        let path = self.path(to);
        fs::create_dir_all(path.parent().context("a file is in a folder")?)?;
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        self.files.insert(to.to_owned(), mode);
        Ok(())
    }

    /// Replaces a file by its compressed form, without a name and a date in it.
    fn compress(&mut self, file: &str) -> Result<()> {
        output(Command::new("gzip").arg("-9n").arg(self.path(file)))?;
        let mode = self.files.remove(file).context("a file of the package")?;
        self.files.insert(format!("{file}.gz"), mode);
        Ok(())
    }

    /// What belongs to the administrator.
    fn settings(&self) -> impl Iterator<Item = &String> {
        self.files.keys().filter(|file| file.starts_with("/etc/") && !file.starts_with("/etc/pki/"))
    }

    /// Gives every file and folder the same date and folders their mode.
    fn finish(&self, build: &Build, folders_of_package: &[Folder]) -> Result<()> {
        let when = SystemTime::UNIX_EPOCH + Duration::from_secs(build.epoch);
        let mut open = vec![self.root.clone()];
        while let Some(folder) = open.pop() {
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                match path.is_dir() {
                    true => open.push(path),
                    false => fs::File::open(&path)?.set_modified(when)?,
                }
            }
            let inside = format!("/{}", folder.strip_prefix(&self.root)?.display());
            if !folders_of_package.iter().any(|ours| ours.path == inside) {
                fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
            }
        }
        Ok(())
    }
}

fn mode(text: &str) -> Result<u32> {
    u32::from_str_radix(text, 8).with_context(|| format!("{text} is no mode, such as 0644"))
}

/// Runs a tool to its end, which must be a good one; answers what it printed.
fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("{name} is missing: run tests/tools.sh"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{name} ended with {}: {}{}", output.status, String::from_utf8_lossy(&output.stdout), said.trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}
