//! What goes wrong on real hosts: full disks, loops, strangers. One clear error each, nothing hangs.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use tests::estate::TRUST_DOMAIN;
use tests::netns::tool;
use tests::{Estate, Host, wait_until};

use crate::shop;

/// A small file system for an agent's state, unmounted on drop.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf, size: &str) -> Result<Self> {
        std::fs::create_dir_all(&at)?;
        tool(&["mount", "-t", "tmpfs", "-o", &format!("size={size},mode=0700"), "tombolo", &at.display().to_string()])?;
        Ok(Self(at))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazy: the agent may still hold a file for the moment it takes to end.
        let _ = tool(&["umount", "-l", &self.0.display().to_string()]);
    }
}

#[test]
fn a_full_disk_is_told_and_the_agent_goes_on_from_memory() -> Result<()> {
    let estate = Estate::start()?;
    estate.apply(shop::SHOP)?;
    let orders = estate.add_meshed_host("orders", &shop::member("orders"))?;
    let _page = orders.serve_http(8080, "orders")?;
    let mut web = estate.add_host("web", &shop::member("web"))?;
    let disk = SmallDisk::mount(web.folder().join("state"), "256k")?;
    web.join(&estate, &["shop/web".to_owned()])?;
    web.start_agent()?;
    web.intercept_on()?;
    let filled = web.namespace().shell(&format!("cat /dev/zero > {}/filler", disk.0.display()))?;
    ensure!(!filled.ok(), "the disk is not full");
    estate.apply(
        "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: closed, namespace: shop}, spec: {}}",
    )?;
    wait_until("the agent says that the disk is full, and of which file", || {
        let log = web.agent_log();
        let line = log.lines().find(|line| line.contains("no space left") && line.contains("state/snapshot"));
        line.map(|_| ()).ok_or_else(|| tests::estate::last_lines(&log, 3))
    });
    wait_until("the policy that could not be stored is obeyed", || {
        let output = web.curl("http://orders.shop.mesh/").map_err(|error| error.to_string())?;
        if output.ok() { Err(output.stdout) } else { Ok(()) }
    });
    let status = web.tombolo(&["status"])?;
    ensure!(status.stdout.contains("no space left"), "status hides it: {status:?}");
    Ok(())
}

/// A certificate of the host that begins tomorrow: to it its own clock is a day behind.
fn postdate(estate: &Estate, host: &Host) -> Result<()> {
    let (ca, state) = (estate.data_dir().join("ca"), host.folder().join("state"));
    let read = |path: PathBuf| std::fs::read_to_string(&path).with_context(|| path.display().to_string());
    let issuing = read(ca.join("issuing.pem"))?;
    let issuer = rcgen::Issuer::from_ca_cert_pem(&issuing, rcgen::KeyPair::from_pem(&read(ca.join("issuing.key"))?)?)?;
    let key = rcgen::KeyPair::from_pem(&read(state.join("host.key"))?)?;
    let identity = format!("spiffe://{TRUST_DOMAIN}/host/{}", host.name());
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = vec![rcgen::SanType::URI(identity.as_str().try_into()?)];
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let day = Duration::from_secs(86_400);
    params.not_before = (SystemTime::now() + day).into();
    params.not_after = (SystemTime::now() + 2 * day).into();
    Ok(std::fs::write(state.join("host.pem"), params.signed_by(&key, &issuer)?.pem() + &issuing)?)
}

#[test]
fn a_host_whose_clock_is_behind_says_that_it_is_the_clock() -> Result<()> {
    let estate = Estate::start()?;
    estate.apply(shop::SHOP)?;
    let mut web = estate.add_host("web", &shop::member("web"))?;
    web.join(&estate, &["shop/web".to_owned()])?;
    postdate(&estate, &web)?;
    let doctor = web.tombolo(&["doctor"])?;
    let told = "by this host's clock its certificate is valid only from";
    ensure!(doctor.code == 1 && doctor.stdout.contains(told), "{doctor:?}");
    ensure!(doctor.stdout.contains("set the clock: timedatectl set-ntp true"), "{doctor:?}");
    web.launch_agent()?;
    wait_until("status names the clock", || {
        let status = web.tombolo(&["status"]).map_err(|error| error.to_string())?;
        let told = "by this host's clock the certificate for spiffe://corp.example/host/web is valid only from";
        if status.stdout.contains(told) { Ok(()) } else { Err(format!("{status:?}")) }
    });
    ensure!(web.stop_agent()? == 0, "it ends as ever");
    Ok(())
}

#[test]
fn a_control_plane_whose_clock_is_behind_does_not_start() -> Result<()> {
    let mut estate = Estate::start()?;
    estate.stop_control_plane()?;
    let ca = estate.data_dir().join("ca");
    let key = rcgen::KeyPair::from_pem(&std::fs::read_to_string(ca.join("root.key"))?)?;
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    params.not_before = (SystemTime::now() + Duration::from_secs(86_400)).into();
    std::fs::write(ca.join("root.pem"), params.self_signed(&key)?.pem())?;
    estate.launch_control_plane()?;
    wait_until("it says that it is the clock", || {
        let log = estate.control_plane_log();
        let told = log.contains("root.pem begins at") && log.contains("set the clock (timedatectl set-ntp true)");
        if told { Ok(()) } else { Err(tests::estate::last_lines(&log, 3)) }
    });
    Ok(())
}

/// Of curl: `--max-time` came first.
const TIMED_OUT: i32 = 28;

#[test]
fn connections_to_the_agents_own_ports_end_at_once() -> Result<()> {
    let shop = shop::open()?;
    let own = shop.web.address();
    for url in ["http://127.0.0.1:15001/".to_owned(), format!("http://{own}:15008/"), format!("http://{own}:15006/")] {
        let output = shop.web.curl(&url)?;
        ensure!(!output.ok(), "{url} answered {output:?}");
        ensure!(output.code != TIMED_OUT, "{url} hung: {output:?}");
    }
    let output = shop.web.curl("http://orders.shop.mesh:15008/")?;
    ensure!(!output.ok(), "{output:?}");
    shop.wait_answers("http://orders.shop.mesh/");
    Ok(())
}
