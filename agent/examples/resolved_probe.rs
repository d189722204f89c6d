//! Serves one mesh name and has systemd-resolved ask for it, to see the two work together.
//!
//! For people who debug names on a host: run it as root, then `resolvectl query orders.shop.mesh`. It
//! goes back to how it was on SIGTERM and on Ctrl-C. Arguments: further names to serve from SIGUSR1 on.
//! SIGUSR2 switches registration off and on.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use agent::names::{Names, NamesConfig, NamesStatus};
use agent::resolv::{Follower, ResolvFiles, Sources};
use api::snapshot::Change;
use api::{Delta, HostConfig, Service, Snapshot};
use proxy::dns::{DnsConfig, DnsServer};
use proxy::view::View;
use telemetry::log::{self, LogConfig};
use telemetry::metrics::{Registry, encode_text};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let _log = log::init(&LogConfig { filter: "info,agent=debug,proxy=debug".to_owned(), ..LogConfig::default() })?;
    let server: SocketAddr = "127.0.0.1:15053".parse()?;
    let follower = Follower::spawn(Sources { files: ResolvFiles::default(), fixed: Vec::new(), own: vec![server] });
    let view = View::new(snapshot(1, &["orders.shop.mesh".to_owned()]));
    let mut registry = Registry::default();
    let dns = DnsServer::bind(DnsConfig::new(follower.upstreams()), vec![], view.clone(), &mut registry).await?;
    let (trigger, drain) = proxy::drain::channel();
    let serving = tokio::spawn(dns.run(drain));
    let config = NamesConfig {
        enabled: true,
        resolved: agent::config::Resolved::Auto,
        server,
        nsswitch: PathBuf::from("/etc/nsswitch.conf"),
    };
    let names = Names::spawn(config, follower.resolvers(), view.clone());
    names.switch().send_replace(Some(true));
    let mut status = names.status();
    let (mut stop, mut more) = (signal(SignalKind::terminate())?, signal(SignalKind::user_defined1())?);
    let mut toggle = signal(SignalKind::user_defined2())?;
    let mut revision = 1;
    loop {
        tokio::select! {
            Ok(()) = status.changed() => tell(&status.borrow_and_update()),
            _ = more.recv() => {
                revision += 1;
                let hosts: Vec<String> = std::env::args().skip(1).chain(["orders.shop.mesh".to_owned()]).collect();
                view.publish(snapshot(revision, &hosts));
            }
            _ = toggle.recv() => names.switch().send_modify(|on| *on = Some(*on != Some(true))),
            _ = stop.recv() => break,
            _ = tokio::signal::ctrl_c() => break,
        }
    }
    names.stop().await;
    trigger.drain(Duration::from_secs(5)).await;
    serving.await?;
    tracing::info!("{}", encode_text(&registry));
    Ok(())
}

fn tell(status: &NamesStatus) {
    tracing::info!(via = ?status.via, problem = ?status.problem, "names");
}

fn snapshot(revision: u64, hosts: &[String]) -> Snapshot {
    let service = |(number, host): (usize, &String)| Service {
        name: host.split('.').next().unwrap_or_default().to_owned(),
        namespace: "shop".to_owned(),
        hostname: host.clone(),
        vips: vec![IpAddr::from([240, 240, 0, u8::try_from(number).unwrap_or(255)])],
        ports: Vec::new(),
        subject_alt_names: Vec::new(),
        allow_unhealthy: false,
    };
    let host = HostConfig { host: "probe".to_owned(), workloads: Vec::new(), lease: Duration::from_secs(60) };
    let services = hosts.iter().enumerate().map(service).map(Change::Service);
    let changes = services.chain([Change::Host(host)]).collect();
    Snapshot::default().apply(Delta { revision, changes })
}
