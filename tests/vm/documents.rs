//! The documents are true: every command in them is run as it is written, on machines that start as bare
//! as a reader's. CONTRIBUTING.md says how a block names its place. A block in a place that nobody set up
//! here, or in a document that no test walks, fails.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tests::census::Census;
use tests::document::{self, Block};
use tests::estate::program;
use tests::machine::{BUILT, SOURCES};
use tests::netns::finish;
use tests::{Estate, Machine, wait_until};

/// Which documents have commands that a test runs: one below, for docs/packages.md and ansible/README.md those of
/// their suites.
const WALKED: &[&str] = &[
    "INSTALL.md",
    "README.md",
    "ansible/README.md",
    "docs/operations.md",
    "docs/packages.md",
    "docs/performance.md",
    "vagrant/README.md",
];

#[test]
fn no_document_has_a_command_that_nothing_runs() -> Result<()> {
    for path in document::documents()? {
        let blocks = document::blocks(&path)?;
        let name = path.display().to_string();
        ensure!(blocks.is_empty() != WALKED.contains(&name.as_str()), "{name} has {} blocks of commands", blocks.len());
    }
    Ok(())
}

#[test]
fn a_mesh_is_installed_operated_and_left_as_the_documents_say() -> Result<()> {
    let mut reader =
        Reader::new(&[("mainland", &["controlplane", "operator"]), ("orders", &["orders"]), ("web", &["web"])])?;
    reader.machine("orders")?.start_unit("shop", "/usr/bin/testhost http [::]:8080 orders")?;
    let bare = reader.machines.iter().map(Census::take).collect::<Result<Vec<_>>>()?;
    let leave = |block: &Block| block.section == "Leave";
    reader.follow("INSTALL.md", |block| !leave(block))?;
    let answers = |reader: &Reader| reader.said.iter().filter(|said| said.contains("hello from orders")).count();
    ensure!(answers(&reader) == 1, "web got no answer: {:?}", reader.said);
    reader.follow("docs/operations.md", |_| true)?;
    ensure!(answers(&reader) == 3, "after the restore or the move of the keys web got no answer: {:?}", reader.said);
    let keys = reader.machine("mainland")?.run_ok("find", &["/var/lib/tombolo-controlplane", "-name", "*.key"])?;
    ensure!(keys.is_empty(), "keys stayed where they were taken away: {keys}");
    reader.follow("INSTALL.md", leave)?;
    for name in ["orders", "web"] {
        crate::shop::ensure_untouched(reader.machine(name)?)?;
    }
    // The checkout, the copy and the root are the reader's; userdel keeps what was before; empty folders and the
    // machine's own secret are systemd's.
    let allowed = [
        "file /root/",
        "file /etc/sysusers.d",
        "file /etc/credstore",
        "file /var/lib/systemd/credential.secret",
        "file /etc/passwd",
        "file /etc/group",
        "file /etc/shadow",
        "file /etc/gshadow",
        "file /etc/.pwd",
    ];
    for (machine, before) in reader.machines.iter().zip(&bare) {
        Census::take(machine)?.ensure_as(before, &allowed).with_context(|| machine.name().to_owned())?;
    }
    Ok(())
}

#[test]
fn the_readme_shows_what_happens() -> Result<()> {
    let mut reader = Reader::new(&[("control-plane", &["controlplane"]), ("orders", &["orders"])])?;
    for name in ["control-plane", "orders"] {
        reader.install(name)?;
    }
    reader.follow("README.md", |_| true)?;
    let status = reader.machine("orders")?.status()?;
    ensure!(status["ready"] == true, "{status}");
    Ok(())
}

#[test]
fn what_developers_are_told_is_there() -> Result<()> {
    for path in ["docs/performance.md", "vagrant/README.md"] {
        document::blocks(Path::new(path))?.iter().try_for_each(developer)?;
    }
    Ok(())
}

/// Somebody who does what a document says.
struct Reader {
    /// By the place that documents name.
    places: BTreeMap<&'static str, usize>,
    machines: Vec<Machine>,
    /// What `tombolo token create` printed last, to be pasted.
    join: Option<String>,
    /// What the commands printed, in order.
    said: Vec<String>,
    _estate: Estate,
}

impl Reader {
    /// Machines, and the places that each of them is; the first is also `cp.corp.example`.
    fn new(machines: &[(&str, &[&'static str])]) -> Result<Self> {
        let estate = Estate::prepare(|_| "sqlite::memory:".to_owned())?;
        let mut reader =
            Self { places: BTreeMap::new(), machines: Vec::new(), join: None, said: Vec::new(), _estate: estate };
        for (name, places) in machines {
            let machine = Machine::boot_bare(&reader._estate, name)?;
            machine.shell(&format!("mkdir -p {CHECKOUT} && ln -s {SOURCES}/* {CHECKOUT}/ && rm {CHECKOUT}/target"))?;
            machine.write("/usr/bin/make", MAKE)?;
            machine.run_ok("chmod", &["+x", "/usr/bin/make"])?;
            reader.places.extend(places.iter().map(|place| (*place, reader.machines.len())));
            reader.machines.push(machine);
        }
        let mut hosts = "127.0.0.1 localhost\n".to_owned();
        for machine in &reader.machines {
            let alias = if machine.name() == machines[0].0 { "cp.corp.example" } else { "" };
            hosts.push_str(&format!("{} {} {alias}\n", machine.host().address(), machine.name()));
        }
        for machine in &reader.machines {
            machine.write("/etc/hosts", &hosts)?;
        }
        Ok(reader)
    }

    fn machine(&self, name: &str) -> Result<&Machine> {
        self.machines.iter().find(|machine| machine.name() == name).with_context(|| format!("no machine {name}"))
    }

    /// What INSTALL.md says under "Build", for documents that begin after it.
    fn install(&self, name: &str) -> Result<()> {
        let line =
            format!("install {BUILT}/* /usr/bin/ && install -m 0644 {SOURCES}/systemd/*.service /etc/systemd/system/");
        let line = format!("{line} && install -D {SOURCES}/packaging/etc/agent.toml /etc/tombolo/agent.toml");
        self.machine(name)?.run_ok("sh", &["-c", &format!("{line} && systemctl daemon-reload")]).map(|_| ())
    }

    fn follow(&mut self, document: &str, is_meant: impl Fn(&Block) -> bool) -> Result<()> {
        for block in document::blocks(Path::new(document))?.into_iter().filter(is_meant) {
            for place in &block.places {
                self.block(&block, place).with_context(|| format!("{} on {place}", block.at))?;
            }
        }
        Ok(())
    }

    fn block(&mut self, block: &Block, place: &str) -> Result<()> {
        if place == "developer" {
            return developer(block);
        }
        let (place, machine) = self.places.get_key_value(place).with_context(|| format!("nobody set up {place:?}"))?;
        for command in &block.commands {
            let machine = &self.machines[*machine];
            let said = if is_daemon(command) {
                serve(machine, place, command)?
            } else if command.starts_with("tombolo join ") {
                type_in(machine, place, &self.paste(command)?)?
            } else {
                type_in(machine, place, command)?
            };
            if command.starts_with("tombolo token create ") {
                self.join = Some(said.clone());
            }
            println!("{place}: {command}\n{said}");
            self.said.push(said);
        }
        Ok(())
    }

    /// The line that `token create` printed, which must be the one that is shown where it has no `…`.
    fn paste(&self, shown: &str) -> Result<String> {
        let said = self.join.as_deref().context("no token was made before")?;
        let line = said.lines().find(|line| line.trim_start().starts_with("tombolo join ")).context("no join line")?;
        let fits = |(shown, printed): (&str, &str)| match shown.split_once('…') {
            Some((before, _)) => printed.starts_with(before) && printed.len() > before.len(),
            None => shown == printed,
        };
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let (a, b) = (words(shown), words(line));
        let same = a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| fits((a.as_str(), b.as_str())));
        ensure!(same, "shown is    {shown}\nprinted was {line}");
        Ok(line.trim().to_owned())
    }
}

/// Types a command into the shell of a place; what a block exports stays for the next one.
fn type_in(machine: &Machine, place: &str, command: &str) -> Result<String> {
    let kept = format!("/root/.{place}");
    let shell = format!("set -e\ncd {CHECKOUT}\ntouch {kept}\n. {kept}\n{command}\nexport -p > {kept}\n");
    machine.run_ok("sh", &["-c", &shell]).with_context(|| format!("`{command}`"))
}

/// Programs that run until they are stopped, and where each answers when it serves.
const DAEMONS: &[(&str, &str)] = &[
    ("tombolo-controlplane serve", "https://127.0.0.1:15014/healthz"),
    ("tombolo agent", "http://127.0.0.1:15021/healthz/ready"),
];

fn is_daemon(command: &str) -> bool {
    DAEMONS.iter().any(|(daemon, _)| command.starts_with(daemon))
}

/// As in a terminal that stays open; comes back when it serves.
fn serve(machine: &Machine, place: &str, command: &str) -> Result<String> {
    let (_, ready) = DAEMONS.iter().find(|(daemon, _)| command.starts_with(daemon)).context("a daemon")?;
    let unit = format!("typed-{place}");
    machine.run_ok(
        "systemd-run",
        &["--quiet", "--collect", "--unit", &unit, "--working-directory", CHECKOUT, "sh", "-c", command],
    )?;
    let answered = wait_until(&format!("`{command}` serves"), || {
        let output =
            machine.run("curl", &["-ksS", "--max-time", "5", "--fail", ready]).map_err(|error| error.to_string())?;
        if output.ok() { Ok(output.stdout) } else { Err(format!("{} {:?}", output.stderr, machine.journal(&unit))) }
    });
    Ok(answered)
}

/// What is done in a checkout on the machine of a developer, which is this one: each by name.
fn developer(block: &Block) -> Result<()> {
    for command in &block.commands {
        match command.as_str() {
            "make demo" => {
                let mut demo = std::process::Command::new(program("demo")?);
                demo.stdin(std::process::Stdio::null());
                let output = finish(demo, Duration::from_secs(300))?;
                ensure!(output.ok(), "{}{}", output.stdout, output.stderr);
                let missing: Vec<&String> = block
                    .printed
                    .iter()
                    .filter(|line| !output.stdout.lines().any(|said| said == line.as_str()))
                    .collect();
                ensure!(missing.is_empty(), "the demonstration does not print {missing:#?}, but:\n{}", output.stdout);
            }
            // Minutes of measuring, and a record that is kept: what it would do must expand, its flags exist.
            bench if bench.starts_with("make bench") => ensure_target(bench, "/bench ")?,
            // `make vagrant-check` does all of these; here, too, they must exist.
            estate if estate.starts_with("make vagrant-") => ensure_target(estate, "vagrant/")?,
            bench if bench.starts_with("target/x86_64-unknown-linux-gnu/debug/bench ") => {
                let mut help = std::process::Command::new(program("bench")?);
                help.arg("--help");
                let help = finish(help, Duration::from_secs(60))?.stdout;
                for flag in bench.split_whitespace().filter(|word| word.starts_with("--")) {
                    ensure!(help.contains(&format!("{flag} ")), "`{bench}`: {flag} is not in {help}");
                }
            }
            other => bail!("`{other}`: nobody wrote down how a test does this"),
        }
    }
    Ok(())
}

/// `make …` is a target, and what it would run says `what`.
fn ensure_target(command: &str, what: &str) -> Result<()> {
    let mut make = std::process::Command::new("sh");
    make.args(["-c", &command.replacen("make", "make -n", 1)]).current_dir(document::workspace());
    let output = finish(make, Duration::from_secs(60))?;
    ensure!(output.ok() && output.stdout.contains(what), "`{command}` is no target: {output:?}");
    Ok(())
}

/// Where a machine has the sources, as a reader who cloned them.
const CHECKOUT: &str = "/root/tombolo";

/// Stands in for a compiler: what `make release` would make was made before the test.
const MAKE: &str = "#!/bin/sh -e\n[ \"$*\" = release ]\nfolder=target/x86_64-unknown-linux-gnu/release\n\
                    mkdir -p $folder\nln -sf /opt/built/* $folder/\n";
