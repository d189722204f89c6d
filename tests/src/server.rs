//! Starting the test applications (`testhost`) inside a host.

use anyhow::Result;

use crate::daemon::Daemon;
use crate::estate::{Host, program};
use crate::wait::wait_until;

impl Host {
    /// An HTTP server on every address of the host that answers with its name and the client's address.
    pub fn serve_http(&self, port: u16, name: &str) -> Result<Daemon> {
        self.application(&["http", &format!("[::]:{port}"), name], &format!("http-{port}"), None)
    }

    /// An echo server.
    pub fn serve_echo(&self, port: u16) -> Result<Daemon> {
        self.application(&["echo", &format!("[::]:{port}")], &format!("echo-{port}"), None)
    }

    /// A connection that says `alive` ten times a second, and `broken` when it ends.
    pub fn hold_connection(&self, address: &str) -> Result<Daemon> {
        self.application(&["hold", address], "hold", None)
    }

    /// As [`Host::serve_http`], as another user.
    pub fn serve_http_as(&self, uid: u32, port: u16, name: &str) -> Result<Daemon> {
        self.application(&["http", &format!("[::]:{port}"), name], &format!("http-{port}"), Some(uid))
    }

    /// Puts load on something until it is ended: `ask`, `stream` or `resolve` of `testhost`.
    pub fn load(&self, arguments: &[&str]) -> Result<Daemon> {
        self.application(arguments, &arguments.join("-").replace([':', '/'], "-"), None)
    }

    fn application(&self, arguments: &[&str], name: &str, uid: Option<u32>) -> Result<Daemon> {
        let log = self.folder().join(format!("{name}.log"));
        let program = program("testhost")?.display().to_string();
        let command = match uid {
            None => {
                let mut command = self.namespace().command(&program);
                command.args(arguments);
                command
            }
            Some(uid) => {
                let mut command = self.namespace().command("setpriv");
                command.args([&format!("--reuid={uid}"), "--clear-groups", &program]).args(arguments);
                command
            }
        };
        let mut daemon = Daemon::start(name, command, &log)?;
        wait_until(&format!("{name} on {} says something", self.name()), || {
            if !daemon.log().is_empty() {
                return Ok(());
            }
            if daemon.running() { Err("nothing yet") } else { Err("it ended") }
        });
        Ok(daemon)
    }
}
