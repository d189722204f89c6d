//! What is on the wire: tcpdump on the bridge, read back as bytes.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::daemon::Daemon;
use crate::netns::Namespace;
use crate::wait::wait_until;

/// A running capture of everything that crosses the bridge.
pub struct Capture {
    daemon: Daemon,
    file: PathBuf,
}

impl Capture {
    pub fn start(switch: &Namespace, folder: &std::path::Path, name: &str, filter: &str) -> Result<Self> {
        let file = folder.join(format!("{name}.pcap"));
        let mut command = switch.command("tcpdump");
        command.args(["-i", "br0", "-s", "0", "-U", "-Z", "root", "-w"]).arg(&file).arg(filter);
        let log = folder.join(format!("{name}.tcpdump.log"));
        let daemon = Daemon::start("tcpdump", command, &log)?;
        wait_until("tcpdump listens", || {
            let said = daemon.log();
            if said.contains("listening on") { Ok(()) } else { Err(said) }
        });
        Ok(Self { daemon, file })
    }

    /// Ends the capture; answers its raw bytes, headers included.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        self.daemon.stop()?;
        std::fs::read(&self.file).with_context(|| format!("no capture in {}", self.file.display()))
    }
}

/// Whether `needle` occurs in the capture. Search for what fits one packet.
pub fn holds(capture: &[u8], needle: &[u8]) -> bool {
    capture.windows(needle.len()).any(|window| window == needle)
}

/// How many packets a tcpdump filter finds in a finished capture.
pub fn count(folder: &std::path::Path, name: &str, filter: &str) -> Result<usize> {
    let mut command = std::process::Command::new("tcpdump");
    command.args(["-n", "-r"]).arg(folder.join(format!("{name}.pcap"))).arg(filter);
    let output = crate::netns::finish(command, std::time::Duration::from_secs(20))?;
    Ok(output.stdout.lines().count())
}
