//! The container images: what is in them and what their configuration says is run as an engine would, in
//! a root of nothing else, as their user, without a right.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::{Daemon, Estate, wait_until};

use tests::repository::{programs, run};

#[test]
fn the_images_hold_one_program_each_and_it_runs() -> Result<()> {
    let folder = tempfile::tempdir()?;
    run(Command::new(tests::document::workspace().join("packaging/images.sh")).arg(programs()?).arg(folder.path()))?;

    let agent = Image::unpack(folder.path(), "agent")?;
    let said = run(Command::new("chroot").arg(&agent.root).args(agent.line("Entrypoint")).arg("--version"))?;
    ensure!(said.starts_with("tombolo "), "{said}");
    let files = run(Command::new("find").arg(&agent.root).args(["-type", "f"]))?;
    ensure!(files.lines().count() == 1, "more than the program: {files}");
    ensure!(agent.line("Cmd") == ["agent"], "{}", agent.config);

    // Only for its network.
    let estate = Estate::prepare(|_| "sqlite::memory:".to_owned())?;
    let image = Image::unpack(folder.path(), "controlplane")?;
    let user = image.config["User"].as_str().context("a user")?.to_owned();
    ensure!(user.split_once(':').is_some_and(|(user, group)| user != "0" && group != "0"), "it runs as {user}");
    // What every engine puts there, and what it mounts, which the operator gives to that user.
    std::fs::create_dir_all(image.root.join("dev"))?;
    for (name, minor) in [("random", "8"), ("urandom", "9")] {
        run(Command::new("mknod").args(["-m", "666"]).arg(image.root.join("dev").join(name)).args(["c", "1", minor]))?;
    }
    let volume = image.root.join("var/lib/tombolo-controlplane");
    std::fs::create_dir_all(&volume)?;
    run(Command::new("chown").arg(&user).arg(&volume))?;
    let mut command = estate.switch().command("setpriv");
    command.args(["--no-new-privs", "--bounding-set=-all,+sys_chroot,+setuid,+setgid", "chroot", "--userspec", &user]);
    command.arg(&image.root).args(image.line("Entrypoint")).args(image.line("Cmd"));
    command.args(["--trust-domain", "corp.example", "--advertise", "10.88.0.1"]);
    let daemon = Daemon::start("the image", command, &folder.path().join("serve.log"))?;
    wait_until("the control plane of the image answers", || {
        let url = "https://10.88.0.1:15014/openapi.json";
        let ca = volume.join("ca.pem").display().to_string();
        let asked =
            estate.switch().run("curl", &["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", &ca, url]);
        match asked.map_err(|error| error.to_string())? {
            output if output.ok() && output.stdout == "200" => Ok(()),
            output => Err(format!("{output:?} {}", daemon.log())),
        }
    });
    Ok(())
}

/// An image's files and what it says of itself.
struct Image {
    root: PathBuf,
    config: Value,
}

impl Image {
    /// Reads an OCI archive (OCI image-spec, image-layout.md).
    fn unpack(folder: &Path, name: &str) -> Result<Self> {
        let (layout, root) = (folder.join(format!("{name}.oci")), folder.join(name));
        std::fs::create_dir_all(&layout)?;
        std::fs::create_dir_all(&root)?;
        let archive = folder.join(format!("tombolo-{name}.tar"));
        run(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(&layout))?;
        let read = |path: PathBuf| -> Result<Value> { Ok(serde_json::from_slice(&std::fs::read(path)?)?) };
        let blob = |of: &Value| -> Result<PathBuf> {
            let digest = of["digest"].as_str().context("a digest")?;
            Ok(layout.join("blobs").join(digest.replace(':', "/")))
        };
        let manifest = read(blob(&read(layout.join("index.json"))?["manifests"][0])?)?;
        for layer in manifest["layers"].as_array().context("layers")? {
            run(Command::new("tar").arg("-xf").arg(blob(layer)?).arg("-C").arg(&root))?;
        }
        let config = read(blob(&manifest["config"])?)?["config"].take();
        Ok(Self { root, config })
    }

    /// A list of words of its configuration.
    fn line(&self, key: &str) -> Vec<String> {
        let words = self.config[key].as_array().into_iter().flatten();
        words.filter_map(|word| word.as_str().map(str::to_owned)).collect()
    }
}
