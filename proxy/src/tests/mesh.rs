//! The harness: an authority, hosts that run a proxy, applications, and the log that an operator reads.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use api::snapshot::Change;
use api::{Delta, Service, Snapshot, SpiffeId, Workload, WorkloadUid};
use identity::{Bundles, Credentials, KeyPair, Svid};
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::config::{Config, Tunnel};
use crate::drain::{self, DrainTrigger, Drained};
use crate::net::socket::OriginalDestination;
use crate::testing::{endpoint_of, host, ip, local, service, workload};
use crate::{Attribution, Handle, Proxy, View};

/// How long anything in these tests may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Signs certificates of trust domain `td`.
pub(super) struct Ca {
    root: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Ca {
    pub(super) fn new() -> Self {
        let key = rcgen::KeyPair::generate().expect("generates");
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "test root");
        let root = params.self_signed(&key).expect("signs");
        Self { root, issuer: rcgen::Issuer::new(params, key) }
    }

    pub(super) fn svid(&self, identity: &SpiffeId) -> Svid {
        self.svid_for(identity, Duration::from_secs(3600))
    }

    /// One that ends after `life`, give or take a second: certificates know no fractions.
    pub(super) fn svid_for(&self, identity: &SpiffeId, life: Duration) -> Svid {
        let key = KeyPair::generate().expect("generates");
        let now = SystemTime::now();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.not_before = (now - Duration::from_secs(60)).into();
        params.not_after = (now + life).into();
        let uri = identity.to_string().try_into().expect("an identity is ASCII");
        params.subject_alt_names = vec![rcgen::SanType::URI(uri)];
        params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
        params.extended_key_usages = vec![ServerAuth, ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let chain = params.signed_by(&key, &self.issuer).expect("signs").pem();
        Svid::from_pem(&chain, &key).expect("the test authority makes usable certificates")
    }

    pub(super) fn credentials(&self, accounts: &[&str]) -> Credentials {
        let credentials = Credentials::new("td".parse().expect("well-formed"));
        let bundles = Bundles::from_pem(credentials.trust_domain(), &self.root.pem()).expect("a root");
        credentials.set_bundles(bundles);
        for account in accounts {
            credentials.publish(self.svid(&id(account)));
        }
        credentials
    }
}

/// The identity of service account `account` in namespace `shop`.
pub(super) fn id(account: &str) -> SpiffeId {
    format!("spiffe://td/ns/shop/sa/{account}").parse().expect("well-formed")
}

/// What an intercepted client dialled, and which workload it is: kept by the client's own address,
/// in place of the kernel's tables.
#[derive(Default)]
struct Intercepted(Mutex<HashMap<SocketAddr, (SocketAddr, Option<WorkloadUid>)>>);

impl Intercepted {
    fn note(&self, client: SocketAddr, to: SocketAddr, workload: Option<&str>) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.insert(client, (to, workload.map(WorkloadUid::from)));
    }

    fn of(&self, client: SocketAddr) -> Option<(SocketAddr, Option<WorkloadUid>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&client).cloned()
    }
}

impl OriginalDestination for Intercepted {
    fn of(&self, accepted: &TcpStream) -> io::Result<SocketAddr> {
        let found = Intercepted::of(self, accepted.peer_addr()?);
        found.map(|(dialled, _)| dialled).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Attribution for Intercepted {
    fn source(&self, client: SocketAddr, _: SocketAddr) -> Option<WorkloadUid> {
        Intercepted::of(self, client)?.1
    }
}

/// One host: a proxy that runs, and what was published to it.
pub(super) struct Host {
    pub(super) view: View,
    pub(super) credentials: Credentials,
    pub(super) handle: Handle,
    registry: Registry,
    intercepted: Arc<Intercepted>,
    trigger: DrainTrigger,
    running: tokio::task::JoinHandle<()>,
}

impl Host {
    pub(super) async fn start(ip: &str, snapshot: Snapshot, credentials: Credentials, config: Config) -> Self {
        Self::start_with(ip, View::new(snapshot), credentials, config, vec![]).await
    }

    /// Another process of the same host, which accepts from the same sockets.
    pub(super) async fn successor(&self, mut config: Config) -> Self {
        let addresses = self.handle.addresses();
        config.inbound.listen.clone_from(&addresses.tunnels);
        let (ip, given) = (self.tunnel_address().ip().to_string(), self.handle.sockets().expect("copied"));
        Self::start_with(&ip, self.view.clone(), self.credentials.clone(), config, given).await
    }

    async fn start_with(
        ip: &str,
        view: View,
        credentials: Credentials,
        config: Config,
        given: Vec<std::os::fd::OwnedFd>,
    ) -> Self {
        watch_log();
        let at = |port: u16| SocketAddr::new(ip.parse().expect("an address"), port);
        let mut config = config;
        config.outbound.listen = vec![at(0)];
        if config.inbound.listen == Config::default().inbound.listen {
            config.inbound.listen = vec![at(0)];
        }
        config.inbound.plaintext_listen = vec![at(0)];
        let intercepted = Arc::new(Intercepted::default());
        let mut registry = Registry::default();
        let proxy = Proxy::bind_with(
            config,
            given,
            view.clone(),
            credentials.clone(),
            intercepted.clone(),
            &mut registry,
            intercepted.clone(),
        );
        let proxy = proxy.expect("loopback has free ports");
        let handle = proxy.handle();
        let (trigger, watch) = drain::channel();
        let running = tokio::spawn(proxy.run(watch));
        Self { view, credentials, handle, registry, intercepted, trigger, running }
    }

    pub(super) fn tunnel_address(&self) -> SocketAddr {
        self.handle.addresses().tunnels[0]
    }

    /// Dials `to` as the process of a local workload would, through the interception.
    pub(super) async fn dial(&self, to: SocketAddr, workload: Option<&str>) -> TcpStream {
        let listener = self.handle.addresses().outbound[0];
        let socket = if listener.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.expect("a socket");
        socket.bind(SocketAddr::new(listener.ip(), 0)).expect("loopback has free ports");
        let client = socket.local_addr().expect("bound");
        self.intercepted.note(client, to, workload);
        socket.connect(listener).await.expect("the proxy listens")
    }

    /// The value of one metric with these labels; the sum if several fit.
    pub(super) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = telemetry::metrics::encode_text(&self.registry);
        let lines = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        let lines = lines.filter(|line| labels.iter().all(|label| line.contains(label)));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Publishes the snapshot of now with `changes`.
    pub(super) fn publish(&self, changes: Vec<Change>) {
        let now = self.view.load();
        self.view.publish(now.apply(Delta { revision: now.revision() + 1, changes }));
    }

    pub(super) async fn drain(self, deadline: Duration) -> Drained {
        let drained = self.trigger.drain(deadline).await;
        self.running.await.expect("the proxy does not panic");
        drained
    }
}

/// Host `a` with workloads `web` and `cron`, host `b` with `orders`, which is a service.
pub(super) struct Mesh {
    pub(super) ca: Ca,
    pub(super) a: Host,
    pub(super) b: Host,
    /// Where `orders` listens.
    pub(super) app: SocketAddr,
    /// The address of its service.
    pub(super) vip: SocketAddr,
}

pub(super) const WEB: &str = "tombolo/shop/web/a";
pub(super) const CRON: &str = "tombolo/shop/cron/a";
pub(super) const ORDERS: &str = "tombolo/shop/orders/b";

/// The defaults, with this tunnel.
pub(super) fn carried_by(tunnel: Tunnel) -> Config {
    let mut config = Config::default();
    config.outbound.tunnel = tunnel;
    config
}

/// For what must be the same whatever carries it.
pub(super) const TUNNELS: [Tunnel; 2] = [Tunnel::Hbone, Tunnel::Flow];

/// What everybody knows of the mesh, with `orders` at `app`.
pub(super) fn world(app: SocketAddr) -> Vec<Change> {
    let a = &client_ip(app);
    let orders_service = orders_service();
    let orders = workload(ORDERS, "shop", "orders", &[&app.ip().to_string()]);
    let orders = endpoint_of(orders, &orders_service, 80, app.port());
    let clients = [workload(WEB, "shop", "web", &[a]), workload(CRON, "shop", "cron", &[a])];
    let workloads = clients.into_iter().chain([orders]).map(Change::Workload);
    [Change::Service(orders_service)].into_iter().chain(workloads).collect()
}

pub(super) fn orders_service() -> Service {
    service("orders", "shop", &["240.240.0.1", "fd74::1"], &[80])
}

/// `changes` as one host sees them that runs `workloads` on `ports`.
pub(super) fn seen_by(changes: Vec<Change>, workloads: &[&str], ports: &[u16]) -> Snapshot {
    let snapshot = Snapshot::default().apply(Delta { revision: 1, changes });
    let find = |uid: &&str| -> Workload { Workload::clone(snapshot.workload(uid).expect("it is in the mesh")) };
    let locals = workloads.iter().map(find).map(|workload| local(&workload, ports)).collect();
    snapshot.apply(Delta { revision: 2, changes: vec![Change::Host(host(locals))] })
}

impl Mesh {
    /// With HBONE, for the tests that count its connections or do not care.
    pub(super) async fn start(app: &TcpListener) -> Self {
        Self::over(app, Tunnel::Hbone).await
    }

    pub(super) async fn over(app: &TcpListener, tunnel: Tunnel) -> Self {
        Self::start_with(app, carried_by(tunnel)).await
    }

    pub(super) async fn start_with(app: &TcpListener, config: Config) -> Self {
        let app = app.local_addr().expect("it is bound");
        let (ip_a, vip) = (client_ip(app), if app.is_ipv4() { "240.240.0.1" } else { "fd74::1" });
        let ca = Ca::new();
        let ip_b = app.ip().to_string();
        let seen = seen_by(world(app), &[ORDERS], &[app.port()]);
        let b = Host::start(&ip_b, seen, ca.credentials(&["orders"]), config.clone()).await;
        let mut config = config;
        config.outbound.tunnel_port = b.tunnel_address().port();
        let seen = seen_by(world(app), &[WEB, CRON], &[3000]);
        let a = Host::start(&ip_a, seen, ca.credentials(&["web", "cron"]), config).await;
        Self { ca, a, b, app, vip: SocketAddr::new(ip(vip), 80) }
    }

    /// `web` dials the service.
    pub(super) async fn dial(&self) -> TcpStream {
        self.a.dial(self.vip, Some(WEB)).await
    }
}

/// A listener for an application on `orders`' host. Each has a loopback network of its own, so that
/// the lines of the tests that share a log can be told apart.
pub(super) async fn app() -> TcpListener {
    static NETWORKS: AtomicU8 = AtomicU8::new(1);
    app_at(&format!("127.77.{}.12", NETWORKS.fetch_add(1, Ordering::Relaxed))).await
}

/// The address of host `a` in the network of `orders`.
pub(super) fn client_ip(app: SocketAddr) -> String {
    match app.ip() {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            Ipv4Addr::new(a, b, c, 11).to_string()
        }
        IpAddr::V6(v6) => v6.to_string(),
    }
}

pub(super) async fn app_at(ip: &str) -> TcpListener {
    let ip: IpAddr = ip.parse().expect("an address");
    TcpListener::bind((ip, 0)).await.expect("loopback has free ports")
}

/// Echoes every connection until it ends.
pub(super) fn echo(listener: TcpListener) {
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                // A client that resets is some tests' point.
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
}

/// Sends `text` and reads as much back.
pub(super) async fn ask(stream: &mut TcpStream, text: &str) -> io::Result<String> {
    stream.write_all(text.as_bytes()).await?;
    let mut answer = vec![0; text.len()];
    within("an answer", stream.read_exact(&mut answer)).await?;
    Ok(String::from_utf8(answer).expect("what was sent"))
}

/// What the client of a refused connection sees.
pub(super) async fn refused(stream: &mut TcpStream) -> io::ErrorKind {
    let mut byte = [0];
    match within("a refusal", stream.read(&mut byte)).await {
        Ok(n) => panic!("the connection gave {n} bytes instead of a reset"),
        Err(error) => error.kind(),
    }
}

pub(super) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} did not come in {PATIENCE:?}"))
}

/// Waits until `seen` is something.
pub(super) async fn until<T>(what: &str, mut seen: impl FnMut() -> Option<T>) -> T {
    let polled = async {
        loop {
            if let Some(seen) = seen() {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(what, polled).await
}

/// Every line of the log of this test process, as JSON.
static LOG: OnceLock<Log> = OnceLock::new();

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn watch_log() {
    LOG.get_or_init(|| {
        let log = Log::default();
        let writer = log.clone();
        let filter = tracing_subscriber::EnvFilter::new("info,proxy=debug");
        let subscriber = tracing_subscriber::fmt().json().flatten_event(true).with_env_filter(filter);
        tracing::subscriber::set_global_default(subscriber.with_writer(move || writer.clone()).finish())
            .expect("only this harness logs");
        log
    });
}

/// The first line that holds all of `words`, waited for.
pub(super) async fn logged(words: &[&str]) -> serde_json::Value {
    let find = || {
        let text = String::from_utf8_lossy(&LOG.get().expect("a host was started").text()).into_owned();
        let line = text.lines().find(|line| words.iter().all(|word| line.contains(word)))?;
        serde_json::from_str(line).ok()
    };
    until(&format!("a log line with {words:?}"), find).await
}
