//! A Debian package: control files beside the tree, packed by dpkg-deb.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::{Build, Package, Tree, output};

pub(super) fn pack(build: &Build, package: &Package) -> Result<PathBuf> {
    let mut tree = build.stage(package, "deb")?;
    documents(build, package, &mut tree)?;
    let arch = package.architecture.as_deref().unwrap_or(&build.arch);
    let control = tree.root.join("DEBIAN");
    fs::create_dir_all(&control)?;
    fs::write(control.join("control"), describe(build, package, &tree, arch)?)?;
    fs::write(control.join("md5sums"), sums(&tree)?)?;
    let settings: String = tree.settings().map(|file| format!("{file}\n")).collect();
    if !settings.is_empty() {
        fs::write(control.join("conffiles"), settings)?;
    }
    if let Some(functions) = build.functions(package, "deb")? {
        for (name, call) in SCRIPTS {
            let path = control.join(name);
            fs::write(&path, format!("#!/bin/sh\nset -e\n\n{functions}\n{call}\nexit 0\n"))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
    }
    tree.finish(build, &package.folders)?;
    let file = build.out.join(format!("{}_{}-1_{arch}.deb", package.name, build.version));
    let how = if build.quick { ["-Zgzip", "-z1"] } else { ["-Zxz", "-z6"] };
    let mut command = Command::new("dpkg-deb");
    command.args(["--root-owner-group", "--threads-max=1"]).args(how).arg("--build").arg(&tree.root).arg(&file);
    build.tool(&mut command)?;
    Ok(file)
}

/// What Debian wants in /usr/share/doc, and manual pages compressed.
fn documents(build: &Build, package: &Package, tree: &mut Tree) -> Result<()> {
    let doc = format!("/usr/share/doc/{}", package.name);
    let date = build.date("+%a, %d %b %Y %H:%M:%S +0000")?;
    let (name, version, maintainer) = (&package.name, &build.version, &build.origin.maintainer);
    let changes = format!(
        "{name} ({version}-1) stable; urgency=medium\n\n  * Version {version}: see changelog.gz.\n\n -- {maintainer}  {date}\n"
    );
    tree.write(&format!("{doc}/changelog.Debian"), &changes, 0o644)?;
    tree.add(&build.sources.join("CHANGELOG.md"), &format!("{doc}/changelog"), 0o644)?;
    tree.write(&format!("{doc}/copyright"), &copyright(build), 0o644)?;
    compress(package, tree)
}

/// Manual pages, change logs and long texts, as both formats keep them.
pub(super) fn compress(package: &Package, tree: &mut Tree) -> Result<()> {
    let doc = format!("/usr/share/doc/{}/", package.name);
    let long = |file: &&String| {
        let document = file.strip_prefix(&doc);
        file.starts_with("/usr/share/man/") || document.is_some_and(|name| name != "copyright")
    };
    let long: Vec<String> = tree.files.keys().filter(long).cloned().collect();
    long.iter().try_for_each(|file| tree.compress(file))
}

fn copyright(build: &Build) -> String {
    format!(
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: Tombolo\n\
         Source: {}\n\nFiles: *\nCopyright: 2026, the Tombolo authors\nLicense: Apache-2.0\nComment:\n The program is \
         static: the crates that are linked into it are listed, with\n their licences, in the CycloneDX file beside \
         this one; the texts of those\n licences are in third-party-licences.gz.\n\nLicense: Apache-2.0\n The text is \
         in /usr/share/common-licenses/Apache-2.0.\n",
        build.origin.homepage
    )
}

fn describe(build: &Build, package: &Package, tree: &Tree, arch: &str) -> Result<String> {
    let size: u64 = tree.files.keys().map(|file| fs::metadata(tree.path(file)).map_or(0, |data| data.len())).sum();
    let mut lines = vec![
        format!("Package: {}", package.name),
        format!("Version: {}-1", build.version),
        format!("Architecture: {arch}"),
        format!("Maintainer: {}", build.origin.maintainer),
        format!("Installed-Size: {}", size.div_ceil(1024)),
    ];
    for (field, names) in [("Depends", &package.depends), ("Recommends", &package.recommends)] {
        if !names.is_empty() {
            let names: Vec<String> = names.iter().map(|name| related(name, build)).collect();
            lines.push(format!("{field}: {}", names.join(", ")));
        }
    }
    lines.push(format!("Section: {}\nPriority: optional", package.section));
    lines.push("Multi-Arch: foreign".to_owned());
    lines.push(format!("Homepage: {}", build.origin.homepage));
    lines.push(format!("Description: {}", package.summary));
    lines.extend(package.description.trim().lines().map(|line| match line {
        "" => " .".to_owned(),
        line => format!(" {line}"),
    }));
    Ok(lines.join("\n") + "\n")
}

/// `NAME = @version` in dpkg's words.
fn related(name: &str, build: &Build) -> String {
    match name.split_once(" = ") {
        Some((name, _)) => format!("{name} (= {}-1)", build.version),
        None => name.to_owned(),
    }
}

fn sums(tree: &Tree) -> Result<String> {
    let settings: Vec<&String> = tree.settings().collect();
    let files = tree.files.keys().filter(|file| !settings.contains(file)).map(|file| file.trim_start_matches('/'));
    let said = output(Command::new("md5sum").args(files).current_dir(&tree.root));
    said.context("cannot sum the package's files")
}

/// dpkg's occasions (Debian policy 6.5) and the function each is.
const SCRIPTS: [(&str, &str); 3] = [
    ("postinst", "case \"$1\" in configure) installed \"$2\" ;; abort-*) reload_units ;; esac"),
    ("prerm", "case \"$1\" in remove) removing ;; esac"),
    ("postrm", "case \"$1\" in remove) removed ;; purge) purged ;; esac"),
];
