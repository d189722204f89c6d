//! Databases for tests: a SQLite file in a fresh directory, and a fresh database of one Postgres that
//! the test program starts itself from Debian's binaries and that ends with it, however it ends.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::config::{Config, Sources};
use crate::run::ControlPlane;
use crate::store::{Store, StoreUrl};

/// One fresh database and a store on it.
pub(crate) struct Database {
    pub(crate) store: Store,
    pub(crate) store_url: StoreUrl,
    /// For the files of a control plane; the SQLite file is in it.
    pub(crate) directory: tempfile::TempDir,
}

/// Runs a test on every kind of store.
pub(crate) async fn on_each_store(test: impl AsyncFn(Database)) {
    eprintln!("on SQLite");
    test(sqlite().await).await;
    if let Some(database) = postgres().await {
        eprintln!("on Postgres");
        test(database).await;
    }
}

pub(crate) async fn sqlite() -> Database {
    let directory = tempfile::tempdir().expect("a directory for the test");
    let store_url = StoreUrl::sqlite(directory.path().join("state.db"));
    let store = Store::open(&store_url).await.expect("SQLite opens");
    Database { store, store_url, directory }
}

/// `None` (and a loud line) where Postgres is not installed; in CI that is a failure.
pub(crate) async fn postgres() -> Option<Database> {
    let server = SERVER.as_ref()?;
    let name = format!("test_{}", N_DATABASES.fetch_add(1, Ordering::Relaxed));
    let admin = format!("postgres://tombolo@127.0.0.1:{}/postgres", server.port);
    let mut connection = PgConnection::connect(&admin).await.expect("the test's Postgres answers");
    let create = AssertSqlSafe(format!("CREATE DATABASE {name}"));
    sqlx::query(create).execute(&mut connection).await.expect("a fresh database");
    let text = format!("postgres://tombolo@127.0.0.1:{}/{name}", server.port);
    let store_url: StoreUrl = text.parse().expect("a valid URL");
    let store = Store::open(&store_url).await.expect("Postgres opens");
    Some(Database { store, store_url, directory: tempfile::tempdir().expect("a directory for the test") })
}

/// Where the test's Postgres listens.
pub(crate) fn postgres_address() -> Option<SocketAddr> {
    SERVER.as_ref().map(|server| SocketAddr::from(([127, 0, 0, 1], server.port)))
}

/// Waits until `condition` holds; says what it waited for when it does not.
pub(crate) async fn wait_until(what: &str, limit: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + limit;
    while !condition().await {
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Forwards to Postgres, and can be cut.
pub(crate) struct Relay {
    pub(crate) port: u16,
    connections: tokio::task::JoinHandle<()>,
}

impl Relay {
    pub(crate) async fn start(port: u16, to: SocketAddr) -> Self {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await.expect("the relay's port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let connections = tokio::spawn(async move {
            let mut open = tokio::task::JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                open.spawn(async move {
                    let mut server = tokio::net::TcpStream::connect(to).await?;
                    tokio::io::copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
        Self { port, connections }
    }

    pub(crate) async fn cut(self) -> u16 {
        self.connections.abort();
        assert!(self.connections.await.is_err());
        self.port
    }
}

/// A control plane that serves on loopback until this is dropped or [`Plane::stop`]ped.
pub(crate) struct Plane {
    pub(crate) url: String,
    pub(crate) app: std::sync::Arc<crate::app::App>,
    client: reqwest::Client,
    token: String,
    stop: tokio::sync::oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Result<(), crate::run::RunError>>,
}

/// Settings for a control plane on free ports.
pub(crate) fn settings(store_url: &StoreUrl, data_dir: &Path) -> Config {
    let flags = [
        ("mesh.trust_domain", "corp.example"),
        ("grpc.listen", "127.0.0.1:0"),
        ("api.listen", "127.0.0.1:0"),
        ("paths.data_dir", &data_dir.display().to_string()),
    ];
    let flags = flags.map(|(key, value)| (key, value.to_owned())).to_vec();
    let (file, environment) = (Some("/dev/null".into()), Some(Vec::new()));
    let sources = Sources { file, environment, flags, credentials: None };
    Config { store: store_url.clone(), ..Config::load(&sources).expect("the settings are right") }
}

impl Plane {
    pub(crate) async fn start(store_url: &StoreUrl, data_dir: &Path) -> Self {
        // Another test of this program may have installed it.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let started = ControlPlane::start(&settings(store_url, data_dir)).await;
        let control_plane = started.unwrap_or_else(|error| panic!("{}", telemetry::Chain(&error)));
        let address = control_plane.api_address().expect("it listens");
        let token = std::fs::read_to_string(data_dir.join("admin.token")).expect("it was made").trim().to_owned();
        let ca = std::fs::read(data_dir.join("ca.pem")).expect("it was made");
        let ca = reqwest::Certificate::from_pem(&ca).expect("a certificate");
        let client = reqwest::Client::builder().tls_certs_only([ca]).build().expect("a client");
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let app = control_plane.app().clone();
        let task = tokio::spawn(control_plane.run(async { drop(stopped.await) }));
        Self { url: format!("https://{address}"), app, client, token, stop, task }
    }

    /// As the administrator; status and JSON of the answer.
    pub(crate) async fn send(&self, method: &str, path: &str, body: &serde_json::Value) -> (u16, serde_json::Value) {
        let request = self.request(method, path).bearer_auth(&self.token);
        let request = if body.is_null() { request } else { request.body(body.to_string()) };
        Self::answer(request).await
    }

    /// Without a token.
    pub(crate) fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let method = method.parse().expect("a method");
        self.client.request(method, format!("{}{path}", self.url))
    }

    pub(crate) async fn answer(request: reqwest::RequestBuilder) -> (u16, serde_json::Value) {
        let response = request.send().await.expect("an answer");
        let status = response.status().as_u16();
        let text = response.text().await.expect("a body");
        (status, serde_json::from_str(&text).unwrap_or(serde_json::Value::String(text)))
    }

    /// As SIGTERM does.
    pub(crate) async fn stop(self) {
        drop(self.stop);
        self.task.await.expect("no panic").expect("it ends in order");
    }
}

static N_DATABASES: AtomicU32 = AtomicU32::new(0);
static SERVER: LazyLock<Option<Server>> = LazyLock::new(Server::start);

struct Server {
    port: u16,
    /// A shell that waits for the end of its input, which is the end of this process, and then stops
    /// Postgres and removes its files.
    _guard: Child,
}

impl Server {
    fn start() -> Option<Self> {
        let Some(programs) = programs() else {
            let loud = "skipped: Postgres is not installed, so the store was tested on SQLite only; install postgresql";
            assert!(std::env::var_os("CI").is_none(), "{loud}");
            eprintln!("\n*** {loud} ***\n");
            return None;
        };
        // Not a TempDir: the guard removes it.
        let directory = tempfile::Builder::new().prefix("tombolo-pg-").tempdir().expect("a directory").keep();
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
        let mut guard = Command::new("sh")
            .args(["-c", GUARD, "guard"])
            .arg(&programs)
            .arg(&directory)
            .arg(port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh runs");
        let mut said = [0; 6];
        let out = guard.stdout.as_mut().expect("piped");
        out.read_exact(&mut said).unwrap_or_else(|_| panic!("Postgres did not start: {}", log(&directory)));
        assert_eq!(&said, b"ready\n", "Postgres did not start: {}", log(&directory));
        guard.stdin.as_mut().expect("piped").flush().expect("the guard listens");
        Some(Self { port, _guard: guard })
    }
}

fn log(directory: &Path) -> String {
    std::fs::read_to_string(directory.join("log")).unwrap_or_default()
}

/// The newest installed version's directory.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut found: Vec<PathBuf> = versions.flatten().map(|version| version.path().join("bin")).collect();
    found.retain(|directory| directory.join("initdb").exists() && directory.join("postgres").exists());
    found.sort();
    found.pop()
}

/// Postgres refuses to run as root, so root becomes the user that Debian's package made.
const GUARD: &str = r#"
bin=$1 dir=$2 port=$3 as=
if [ "$(id -u)" = 0 ]; then chown postgres "$dir"; as="setpriv --reuid postgres --regid postgres --clear-groups"; fi
cd "$dir"
$as "$bin/initdb" -D "$dir/data" -U tombolo -A trust -E UTF8 --locale=C --no-sync >"$dir/log" 2>&1 || exit 1
$as "$bin/postgres" -D "$dir/data" -k "$dir" -p "$port" -c listen_addresses=127.0.0.1 -c fsync=off \
    -c max_connections=300 -c shared_buffers=32MB >>"$dir/log" 2>&1 </dev/null &
pid=$!
n=0
until "$bin/pg_isready" -q -h 127.0.0.1 -p "$port" -U tombolo -d postgres; do
    n=$((n + 1))
    if [ $n -gt 300 ] || ! kill -0 $pid 2>/dev/null; then kill -KILL $pid; exit 1; fi
    sleep 0.1
done
echo ready
exec >/dev/null
cat >/dev/null
kill -QUIT $pid
wait $pid
rm -rf "$dir"
"#;
