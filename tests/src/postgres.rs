//! A real Postgres of the test's own: Debian's programs, a throw-away folder, a free port.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::netns::{finish, tool};
use crate::wait::wait_until;

/// One running server; stopped and removed on drop.
pub struct Postgres {
    daemon: Daemon,
    folder: TempDir,
    programs: PathBuf,
    port: u16,
}

impl Postgres {
    /// Makes a cluster and starts it on 127.0.0.1 of the machine (or of `inside`, a namespace).
    pub fn start(inside: Option<&crate::Namespace>) -> Result<Self> {
        let programs = programs()?;
        let folder = tempfile::Builder::new().prefix("tombolo-pg-").tempdir()?;
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755))?;
        let data = folder.path().join("data");
        std::fs::create_dir(&data)?;
        let (data, home) = (data.display().to_string(), folder.path().display().to_string());
        tool(&["chown", "postgres", &data, &home])?;
        let initdb = programs.join("initdb").display().to_string();
        tool(&["runuser", "-u", "postgres", "--", &initdb, "-D", &data, "-A", "trust", "-U", "tombolo", "--no-sync"])?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut server = Self { daemon: launch(&programs, &folder, port, inside)?, folder, programs, port };
        server.wait_ready();
        Ok(server)
    }

    fn wait_ready(&mut self) {
        let (programs, host) = (self.programs.clone(), self.folder.path().display().to_string());
        wait_until("Postgres accepts connections", || {
            let mut command = Command::new(programs.join("pg_isready"));
            command.args(["-h", &host, "-p", &self.port.to_string(), "-U", "tombolo"]);
            let output = finish(command, Duration::from_secs(5)).map_err(|error| error.to_string())?;
            if output.ok() { Ok(()) } else { Err(format!("{} {}", output.stdout, self.daemon.log())) }
        });
    }

    /// A fresh database and its URL.
    pub fn database(&self, name: &str) -> Result<String> {
        let createdb = self.programs.join("createdb").display().to_string();
        let host = self.folder.path().display().to_string();
        tool(&[&createdb, "-h", &host, "-p", &self.port.to_string(), "-U", "tombolo", name])?;
        Ok(format!("postgres://tombolo@127.0.0.1:{}/{name}", self.port))
    }

    /// Where its unix socket is, for clients in other network namespaces.
    pub fn socket_folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Ends the server as a crash would.
    pub fn crash(&mut self) -> Result<()> {
        self.daemon.signal(rustix::process::Signal::QUIT)?;
        wait_until("Postgres is gone", || if self.daemon.running() { Err("it still runs") } else { Ok(()) });
        Ok(())
    }

    /// Starts it again on the same data and port.
    pub fn restart(&mut self, inside: Option<&crate::Namespace>) -> Result<()> {
        self.daemon = launch(&self.programs, &self.folder, self.port, inside)?;
        self.wait_ready();
        Ok(())
    }
}

fn launch(
    programs: &std::path::Path,
    folder: &TempDir,
    port: u16,
    inside: Option<&crate::Namespace>,
) -> Result<Daemon> {
    let mut command = match inside {
        Some(namespace) => namespace.command("setpriv"),
        None => Command::new("setpriv"),
    };
    // setpriv replaces itself by the server, so that the process we signal is Postgres itself.
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(programs.join("postgres"));
    command.arg("-D").arg(folder.path().join("data")).args(["-p", &port.to_string(), "-h", "127.0.0.1", "-F"]);
    command.arg("-k").arg(folder.path());
    Daemon::start("postgres", command, &folder.path().join("log"))
}

/// Debian keeps the server's programs out of PATH, by major version.
fn programs() -> Result<PathBuf> {
    let versions =
        std::fs::read_dir("/usr/lib/postgresql").context("Postgres is missing: apt-get install postgresql")?;
    let mut found: Vec<PathBuf> = versions.flatten().map(|entry| entry.path().join("bin")).collect();
    found.retain(|path| path.join("initdb").exists());
    found.sort();
    found.pop().context("Postgres is missing: apt-get install postgresql")
}
