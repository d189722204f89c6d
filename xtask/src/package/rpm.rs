//! An rpm: a spec file for the tree, packed by rpmbuild.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::{Build, Package, Tree, deb};

pub(super) fn pack(build: &Build, package: &Package) -> Result<PathBuf> {
    let mut tree = build.stage(package, "rpm")?;
    let licence = format!("/usr/share/licenses/{}/LICENSE", package.name);
    tree.add(&build.sources.join("LICENSE"), &licence, 0o644)?;
    let changes = format!("/usr/share/doc/{}/CHANGELOG.md", package.name);
    tree.add(&build.sources.join("CHANGELOG.md"), &changes, 0o644)?;
    deb::compress(package, &mut tree)?;
    tree.finish(build, &package.folders)?;
    let arch = match package.architecture.as_deref().unwrap_or(&build.arch) {
        "all" => "noarch",
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        other => anyhow::bail!("{other} is not packaged"),
    };
    let top = build.work.join(format!("{}.rpmbuild", package.name));
    fs::create_dir_all(&top)?;
    let spec = top.join(format!("{}.spec", package.name));
    fs::write(&spec, describe(build, package, &tree, arch)?)?;
    let mut command = Command::new("rpmbuild");
    command.args(["-bb", "--quiet", "--target", arch]);
    let payload = if build.quick { "w1.gzdio" } else { "w6.xzdio" };
    let top = top.display().to_string();
    for (name, value) in [
        ("_topdir", top.as_str()),
        ("_rpmdir", top.as_str()),
        ("_rpmfilename", "%{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm"),
        ("_binary_payload", payload),
        // The same bytes from the same input, wherever and whenever.
        ("_buildhost", "reproducible"),
        ("use_source_date_epoch_as_buildtime", "1"),
        ("clamp_mtime_to_source_date_epoch", "1"),
        // The programs are packed as they were built.
        ("__os_install_post", "%{nil}"),
        ("_build_id_links", "none"),
        ("debug_package", "%{nil}"),
    ] {
        command.arg("--define").arg(format!("{name} {value}"));
    }
    build.tool(command.arg(&spec))?;
    let name = format!("{}-{}-1.{arch}.rpm", package.name, build.version);
    let file = build.out.join(&name);
    fs::rename(PathBuf::from(top).join(&name), &file).context("rpmbuild made another file")?;
    Ok(file)
}

fn describe(build: &Build, package: &Package, tree: &Tree, arch: &str) -> Result<String> {
    let mut lines = vec![
        format!("Name: {}", package.name),
        format!("Version: {}\nRelease: 1", build.version),
        format!("Summary: {}", capitalized(&package.summary)),
        format!("License: {}", build.origin.license),
        format!("URL: {}", build.origin.homepage),
        format!("Packager: {}", build.origin.maintainer),
        format!("Vendor: {}", build.origin.maintainer),
        "Group: System Environment/Daemons".to_owned(),
        // Static programs: what would be found in them is not needed.
        "AutoReqProv: no".to_owned(),
    ];
    if arch == "noarch" {
        lines.push("BuildArch: noarch".to_owned());
    }
    for (tag, names) in [("Requires", &package.depends), ("Recommends", &package.recommends)] {
        for name in names {
            lines.push(format!("{tag}: {}", name.replace("@version", &format!("{}-1", build.version))));
        }
    }
    lines.push(format!("\n%description\n{}", package.description.trim()));
    lines.push(format!("\n%install\ncp -a {}/. %{{buildroot}}", tree.root.display()));
    if let Some(functions) = build.functions(package, "rpm")? {
        for (section, call) in SCRIPTS {
            // A failure in here would end the whole transaction halfway; every step speaks for itself.
            lines.push(format!("\n{section}\n{}\n{call}\nexit 0", functions.replace('%', "%%")));
        }
    }
    lines.push("\n%files".to_owned());
    for folder in &package.folders {
        lines.push(format!("%dir %attr({},root,root) {}", folder.mode, folder.path));
    }
    for folder in own_folders(tree) {
        if !package.folders.iter().any(|known| known.path == folder) {
            lines.push(format!("%dir %attr(0755,root,root) {folder}"));
        }
    }
    let settings: Vec<&String> = tree.settings().collect();
    for (file, mode) in &tree.files {
        let kind = match file {
            file if settings.contains(&file) => "%config(noreplace) ",
            file if file.starts_with("/usr/share/doc/") => "%doc ",
            file if file.starts_with("/usr/share/licenses/") => "%license ",
            _ => "",
        };
        lines.push(format!("{kind}%attr({mode:04o},root,root) {file}"));
    }
    let date = build.date("+%a %b %d %Y")?;
    let (maintainer, version) = (&build.origin.maintainer, &build.version);
    lines.push(format!("\n%changelog\n* {date} {maintainer} - {version}-1\n- Version {version}: see CHANGELOG.md."));
    Ok(lines.join("\n") + "\n")
}

/// Folders that would stay behind if nobody owned them.
fn own_folders(tree: &Tree) -> BTreeSet<&str> {
    let parents = tree.files.keys().flat_map(|file| file.match_indices('/').map(|(at, _)| &file[..at]));
    parents.filter(|folder| !FILESYSTEM.contains(folder)).collect()
}

/// As rpm wants a summary; Debian wants it otherwise.
fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(chars).collect()
}

/// rpm's occasions: `$1` is how many of the package there will be. What rpm has no occasion for
/// (`purged`) INSTALL.md says.
const SCRIPTS: [(&str, &str); 3] = [
    ("%post", "if [ \"$1\" -gt 1 ]; then installed earlier; else installed ''; fi"),
    ("%preun", "if [ \"$1\" -eq 0 ]; then removing; fi"),
    ("%postun", "if [ \"$1\" -eq 0 ]; then removed; else reload_units; fi"),
];

/// What the distributions' `filesystem` and `systemd` packages own. Others' folders (firewalld, ufw, fish)
/// may be missing on a host and are owned by whoever puts something there.
const FILESYSTEM: [&str; 21] = [
    "",
    "/etc",
    "/etc/pki",
    "/etc/pki/rpm-gpg",
    "/usr",
    "/usr/bin",
    "/usr/lib",
    "/usr/lib/modules-load.d",
    "/usr/lib/sysctl.d",
    "/usr/lib/systemd",
    "/usr/lib/systemd/network",
    "/usr/lib/systemd/system",
    "/usr/lib/sysusers.d",
    "/usr/lib/tmpfiles.d",
    "/usr/share",
    "/usr/share/bash-completion",
    "/usr/share/bash-completion/completions",
    "/usr/share/doc",
    "/usr/share/man",
    "/usr/share/man/man1",
    "/usr/share/zsh",
];
