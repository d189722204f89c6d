//! The estate's upstream resolver: knows `outside.example`, the control plane's name and nothing else.

use anyhow::Result;

use crate::daemon::Daemon;
use crate::estate::program;
use crate::netns::Namespace;

/// Starts it in a namespace on port 53 of an address.
pub fn start(inside: &Namespace, address: &str, folder: &std::path::Path) -> Result<Daemon> {
    let mut command = inside.command(&program("testhost")?.display().to_string());
    command.args(["dns", &format!("{address}:53")]);
    Daemon::start("dns", command, &folder.join("dns.log"))
}
