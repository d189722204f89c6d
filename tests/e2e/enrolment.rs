//! Becoming a host of the mesh: tokens that are good, and every way in which they are not.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::{Estate, Host, HostSpec, Output, wait_until};

use crate::shop;

fn token(estate: &Estate, extra: &[&str]) -> Result<Vec<String>> {
    let mut args = vec!["token", "create", "--group", "shop/web"];
    args.extend(extra);
    let line = estate.operate(&args)?;
    Ok(line.split_whitespace().skip_while(|word| *word != "tombolo").skip(1).map(str::to_owned).collect())
}

fn join(host: &Host, words: &[String]) -> Result<Output> {
    let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
    let address = host.address().to_string();
    words.extend(["--name", host.name(), "--advertise", &address]);
    host.tombolo(&words)
}

fn value_after<'a>(words: &'a mut [String], flag: &str) -> Result<&'a mut String> {
    let at = words.iter().position(|word| word == flag).with_context(|| format!("no {flag} in {words:?}"))?;
    words.get_mut(at + 1).context("the flag has no value")
}

#[test]
fn each_bad_token_gets_its_own_sentence_and_leaves_nothing() -> Result<()> {
    let estate = Estate::start()?;
    estate.apply(shop::SHOP)?;
    let host = estate.add_host("web", &HostSpec::default())?;

    const TTL: Duration = Duration::from_secs(1);
    let expired = token(&estate, &["--ttl", "1s"])?;
    // Asked once, when it is over: each refusal counts against the host's allowance.
    let made = Instant::now();
    wait_until("the token's second is over", || if made.elapsed() > TTL { Ok(()) } else { Err(made.elapsed()) });
    let output = join(&host, &expired)?;
    ensure!(!output.ok() && output.stderr.contains("expired"), "expired: {output:?}");

    let mut tampered = token(&estate, &[])?;
    let text = value_after(&mut tampered, "--token")?;
    let last = if text.ends_with('a') { 'b' } else { 'a' };
    text.pop();
    text.push(last);
    let output = join(&host, &tampered)?;
    ensure!(!output.ok() && output.stderr.contains("checksum"), "tampered: {output:?}");

    let mut wrong_pin = token(&estate, &[])?;
    wrong_pin.extend(["--ca-pin".to_owned(), format!("sha256:{}", "0".repeat(64))]);
    let output = join(&host, &wrong_pin)?;
    ensure!(!output.ok() && output.stderr.contains("pin"), "wrong pin: {output:?}");

    let other = token(&estate, &["--name-pattern", "db-*"])?;
    let output = join(&host, &other)?;
    ensure!(!output.ok() && output.stderr.contains("db-*"), "name pattern: {output:?}");

    let elsewhere = token(&estate, &["--cidr", "192.0.2.0/24"])?;
    let output = join(&host, &elsewhere)?;
    ensure!(!output.ok() && output.stderr.contains("192.0.2.0/24"), "cidr: {output:?}");

    let unjoined = host.tombolo(&["status"])?;
    ensure!(unjoined.code == 3, "not joined is exit 3: {unjoined:?}");

    let good = token(&estate, &[])?;
    let output = join(&host, &good)?;
    ensure!(output.ok(), "the good one: {output:?}");
    let again = estate.add_host("web2", &HostSpec::default())?;
    let output = join(&again, &good)?;
    ensure!(!output.ok() && output.stderr.contains("spent"), "spent: {output:?}");
    Ok(())
}

#[test]
fn of_two_hosts_racing_for_one_use_exactly_one_wins() -> Result<()> {
    let estate = Estate::start()?;
    estate.apply(shop::SHOP)?;
    let hosts = [estate.add_host("one", &HostSpec::default())?, estate.add_host("two", &HostSpec::default())?];
    let words = token(&estate, &[])?;
    let outputs: Vec<Result<Output>> = std::thread::scope(|scope| {
        let running: Vec<_> = hosts.iter().map(|host| scope.spawn(|| join(host, &words))).collect();
        running.into_iter().map(|thread| thread.join().expect("join does not panic")).collect()
    });
    let outputs = outputs.into_iter().collect::<Result<Vec<_>>>()?;
    ensure!(outputs.iter().filter(|output| output.ok()).count() == 1, "{outputs:?}");
    Ok(())
}

#[test]
fn a_foreign_control_plane_is_not_believed() -> Result<()> {
    let (own, foreign) = (Estate::start()?, Estate::start()?);
    own.apply(shop::SHOP)?;
    foreign.apply(shop::SHOP)?;
    let host = own.add_host("web", &HostSpec::default())?;
    // The token of the other mesh, offered to this one: the pin inside does not fit.
    let words = token(&foreign, &[])?;
    let output = join(&host, &words)?;
    ensure!(!output.ok() && output.stderr.contains("pin"), "{output:?}");
    Ok(())
}

#[test]
fn a_revoked_host_is_cut_off_and_a_left_one_forgotten() -> Result<()> {
    let shop = shop::open()?;
    shop.estate.operate(&["host", "revoke", "orders"])?;
    shop.wait_refused("http://orders.shop.mesh/");
    let hosts = shop.estate.operate(&["host", "list"])?;
    ensure!(hosts.contains("revoked"), "{hosts}");

    shop.web.tombolo_ok(&["leave", "--purge"])?;
    let hosts = shop.estate.operate(&["host", "list", "-o", "json"])?;
    ensure!(!hosts.contains("\"web\""), "{hosts}");
    Ok(())
}

/// With another machine-id it does not even start (tests/vm/copied.rs); hosts of this estate share theirs.
#[test]
fn a_copy_of_a_host_is_told_on_the_host_it_is_a_copy_of() -> Result<()> {
    let shop = shop::open()?;
    let mut copy = shop.estate.add_host("copy", &HostSpec::default())?;
    let copied = copy.folder().join("state");
    let done = std::process::Command::new("cp").arg("-a").arg(shop.web.folder().join("state")).arg(&copied).status()?;
    ensure!(done.success());
    copy.start_agent()?;
    let cure = "On the copy run `tombolo leave --purge --local`";
    wait_until("web says that there is another of it", || match shop.web.tombolo(&["status"]) {
        Ok(said) if said.stdout.contains(cure) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    ensure!(shop.web.agent_log().contains(cure), "its log does not say it");
    let doctor = shop.web.tombolo(&["doctor"])?;
    ensure!(doctor.stdout.contains(cure), "{}", doctor.stdout);

    // The cure, as it is said.
    let left = copy.tombolo_ok(&["leave", "--purge", "--local"])?;
    ensure!(left.contains("the control plane was not told") && !copied.exists(), "{left}");
    let mut web = shop.web;
    web.stop_agent()?;
    web.start_agent()?;
    wait_until("web is heard again", || match web.status() {
        Ok(status) if status["problems"].as_array().is_some_and(Vec::is_empty) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let hosts = shop.estate.operate(&["host", "list"])?;
    ensure!(hosts.contains("web"), "{hosts}");
    Ok(())
}
