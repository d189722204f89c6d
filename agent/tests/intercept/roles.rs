//! Other processes of these tests: this program again, asked for one role by name.

use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use agent::intercept::{Interception, ruleset};

use crate::lab::{self, Host, mesh};

/// Starts this program in a role, in the host's network namespace.
pub(crate) fn spawn(host: &Host, role: &str, stdin: Stdio) -> Child {
    let program = std::env::current_exe().expect("this program");
    let namespace = format!("--net=/run/netns/{}", host.name);
    let name = format!("roles::{role}");
    Command::new("nsenter")
        .arg(namespace)
        .arg(program)
        .args(["--exact", &name, "--nocapture"])
        .stdin(stdin)
        .stdout(Stdio::null())
        .spawn()
        .expect("nsenter is there")
}

/// Owns the table until it is killed.
#[test]
fn owner() {
    if !asked_for("roles::owner") {
        return;
    }
    let mut interception = Interception::open(None).expect("nf_tables is there");
    interception.apply(&ruleset::build(&mesh())).expect("the rules are taken");
    wait_to_be_killed();
}

/// Takes over the socket on its standard input, adds an element and lives until it is killed.
#[test]
fn heir() {
    if !asked_for("roles::heir") {
        return;
    }
    let parked = std::io::stdin().as_fd().try_clone_to_owned().expect("a copy");
    let mut interception = Interception::open(Some(parked)).expect("the socket is a netlink one");
    assert!(interception.owned());
    let mut wanted = mesh();
    wanted.vips.insert("240.240.9.9".parse().expect("an address"));
    interception.apply(&ruleset::build(&wanted)).expect("the rules are taken");
    wait_to_be_killed();
}

/// Connects from a port that others use too, and lives until it is killed: `PORT ADDRESS`, as further
/// names that no test has.
#[test]
fn client() {
    let mut words = std::env::args().skip_while(|argument| argument != CLIENT).skip(1);
    let (Some(port), Some(to)) = (words.next(), words.next()) else { return };
    let _stream = lab::connect_from_port(port.parse().expect("a port"), to.parse().expect("an address"));
    wait_to_be_killed();
}

/// The name of that role.
pub(crate) const CLIENT: &str = "roles::client";

/// Run by name only: in an ordinary run of all tests a role does nothing.
fn asked_for(name: &str) -> bool {
    std::env::args().any(|argument| argument == name)
}

fn wait_to_be_killed() -> ! {
    loop {
        std::thread::park();
    }
}
