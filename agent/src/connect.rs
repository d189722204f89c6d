//! The way to the control plane: names by hickory, TCP marked as ours, mTLS by the host's SVID, gRPC
//! on top.
//!
//! `join` dials once without a certificate; discovery, issuance and registration share a [`Link`],
//! which makes a fresh channel whenever the host certificate was renewed. libc's resolver is never
//! asked: a static program that does may die of the host's nsswitch.conf.

use std::error::Error;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use api::SpiffeId;
use hickory_resolver::TokioResolver;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hyper_util::rt::TokioIo;
use identity::Credentials;
use identity::tls::TlsError;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use socket2::{Domain, Protocol, Socket, Type};
use telemetry::Chain;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::config::{Config, check};

/// One control plane, and how it is dialled.
#[derive(Debug, Clone)]
pub struct Dial {
    host: String,
    port: u16,
    resolv_conf: PathBuf,
    limit: Duration,
}

/// The control plane could not be reached, or was not the one we trust.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    #[error("the host's resolvers cannot be read from {}", path.display())]
    Resolvers {
        path: PathBuf,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    #[error("the name {name} cannot be resolved")]
    Unresolved {
        name: String,
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
    #[error("cannot reach {address}")]
    Refused {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("no answer from {address} within {limit:?}")]
    TimedOut { address: SocketAddr, limit: Duration },
    #[error("{}", identity::tls::explain(source).unwrap_or_else(|| format!("no TLS with {address}: {source}")))]
    Tls { address: SocketAddr, source: io::Error },
    #[error("no TLS configuration can be made")]
    Config(#[source] TlsError),
}

impl Dial {
    /// `url` is `https://HOST[:PORT]`; the error says what is wrong with it.
    pub fn new(config: &Config, url: &str) -> Result<Self, String> {
        let (host, port) = check::control_plane_url(url)?;
        let resolv_conf = config.dns.resolv_conf.clone();
        Ok(Self { host, port, resolv_conf, limit: config.control_plane.connect_timeout })
    }

    /// TCP and TLS to the first address that answers.
    pub async fn tls(&self, config: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, DialError> {
        let (stream, address) = self.tcp().await?;
        let unnamed = ServerName::IpAddress(address.ip().into());
        let name = ServerName::try_from(self.host.clone()).unwrap_or(unnamed);
        let handshake = TlsConnector::from(config).connect(name, stream);
        match tokio::time::timeout(self.limit, handshake).await {
            Ok(done) => done.map_err(|source| DialError::Tls { address, source }),
            Err(_) => Err(DialError::TimedOut { address, limit: self.limit }),
        }
    }

    async fn tcp(&self) -> Result<(TcpStream, SocketAddr), DialError> {
        let addresses = self.addresses().await?;
        let share = self.limit / u32::try_from(addresses.len()).unwrap_or(1).max(1);
        let limit = share.max(Duration::from_secs(1)).min(self.limit);
        let mut last = None;
        for address in addresses {
            match tokio::time::timeout(limit, tcp(address)).await {
                Ok(Ok(stream)) => return Ok((stream, address)),
                Ok(Err(source)) => last = Some(DialError::Refused { address, source }),
                Err(_) => last = Some(DialError::TimedOut { address, limit }),
            }
        }
        let source = "it has no address".into();
        Err(last.unwrap_or(DialError::Unresolved { name: self.host.clone(), source }))
    }

    async fn addresses(&self) -> Result<Vec<SocketAddr>, DialError> {
        if let Ok(address) = self.host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, self.port)]);
        }
        // Read at each dial: networks come and go, and dials are rare.
        let path = &self.resolv_conf;
        let failed = |source: Box<dyn Error + Send + Sync>| DialError::Resolvers { path: path.clone(), source };
        let text = std::fs::read(path).map_err(|source| failed(source.into()))?;
        let parsed = hickory_resolver::system_conf::parse_resolv_conf(text).map_err(|source| failed(source.into()))?;
        let builder = TokioResolver::builder_with_config(parsed.0, TokioRuntimeProvider::default());
        let resolver = builder.with_options(parsed.1).build().map_err(|source| failed(source.into()))?;
        let unresolved =
            |source: Box<dyn Error + Send + Sync>| DialError::Unresolved { name: self.host.clone(), source };
        match tokio::time::timeout(self.limit, resolver.lookup_ip(self.host.as_str())).await {
            Ok(Ok(found)) => Ok(found.iter().map(|address| SocketAddr::new(address, self.port)).collect()),
            Ok(Err(source)) => Err(unresolved(source.into())),
            Err(_) => Err(unresolved(format!("no resolver answered within {:?}", self.limit).into())),
        }
    }
}

impl std::fmt::Display for Dial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "https://[{}]:{}", self.host, self.port),
            false => write!(f, "https://{}:{}", self.host, self.port),
        }
    }
}

/// Our own connections carry our mark, so that they are never intercepted.
async fn tcp(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    if let Err(error) = socket.set_mark(proxy::config::OWN_MARK) {
        tracing::debug!(%error, "the connection to the control plane goes without our mark");
    }
    socket.set_tcp_nodelay(true)?;
    TcpSocket::from_std_stream(socket.into()).connect(address).await
}

/// The agent's connection to its control plane. Clones share it.
#[derive(Clone)]
pub struct Link {
    shared: Arc<Shared>,
}

/// Whether the control plane is there, for `status`.
#[derive(Debug, Clone)]
pub struct LinkState {
    pub connected: bool,
    pub since: SystemTime,
    /// Why not.
    pub error: String,
}

struct Shared {
    dial: Dial,
    host: SpiffeId,
    credentials: Credentials,
    keepalive_interval: Duration,
    keepalive_timeout: Duration,
    /// Made for the host certificate of this serial.
    channel: Mutex<Option<(String, Channel)>>,
    local_address: Mutex<Option<IpAddr>>,
    state: watch::Sender<LinkState>,
    connected: watch::Sender<bool>,
}

impl Link {
    pub fn new(config: &Config, dial: Dial, host: SpiffeId, credentials: Credentials) -> Self {
        let state = LinkState { connected: false, since: SystemTime::now(), error: "not tried yet".to_owned() };
        let shared = Shared {
            dial,
            host,
            credentials,
            keepalive_interval: config.control_plane.keepalive_interval,
            keepalive_timeout: config.control_plane.keepalive_timeout,
            channel: Mutex::new(None),
            local_address: Mutex::new(None),
            state: watch::Sender::new(state),
            connected: watch::Sender::new(false),
        };
        Self { shared: Arc::new(shared) }
    }

    /// A channel that proves the host certificate of now. It connects when it is first used.
    pub fn channel(&self) -> Channel {
        let serial = self.serial();
        let mut kept = self.shared.channel.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some((made_for, channel)) if *made_for == serial => channel.clone(),
            _ => {
                let limit = self.shared.dial.limit * 3;
                let channel = Endpoint::from_static("http://control-plane.tombolo")
                    .http2_keep_alive_interval(self.shared.keepalive_interval)
                    .keep_alive_timeout(self.shared.keepalive_timeout)
                    .keep_alive_while_idle(true)
                    .connect_timeout(limit)
                    .connect_with_connector_lazy(Connector(self.shared.clone()));
                *kept = Some((serial, channel.clone()));
                channel
            }
        }
    }

    /// Whether the control plane can be reached now, on a connection of its own.
    pub async fn dial(&self, limit: Duration) -> Result<(), DialError> {
        let dial = Dial { limit: limit.min(self.shared.dial.limit), ..self.shared.dial.clone() };
        dial.tls(self.shared.tls()?).await.map(drop)
    }

    /// As [`Link::dial`], in words.
    pub async fn probe(&self, limit: Duration) -> Result<(), String> {
        self.dial(limit).await.map_err(|error| Chain(&error).to_string())
    }

    /// Of the certificate that new connections prove; empty without one.
    pub fn serial(&self) -> String {
        self.shared.credentials.svid(&self.shared.host).map(|svid| svid.serial().to_owned()).unwrap_or_default()
    }

    pub fn host(&self) -> &SpiffeId {
        &self.shared.host
    }

    pub fn url(&self) -> String {
        self.shared.dial.to_string()
    }

    /// This host's address on the way to the control plane, once there was one.
    pub fn local_address(&self) -> Option<IpAddr> {
        *self.shared.local_address.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn state(&self) -> LinkState {
        self.shared.state.borrow().clone()
    }

    /// Follows whether the stream stands.
    pub fn connected(&self) -> watch::Receiver<bool> {
        self.shared.connected.subscribe()
    }

    /// Says that the stream stands, or why it does not. Answers whether that is news.
    pub fn set(&self, now: SystemTime, result: Result<(), String>) -> bool {
        let (connected, error) = match result {
            Ok(()) => (true, String::new()),
            Err(error) => (false, error),
        };
        self.shared.connected.send_if_modified(|known| std::mem::replace(known, connected) != connected);
        self.shared.state.send_if_modified(|state| {
            let changed = state.connected != connected || state.error != error;
            if state.connected != connected {
                state.since = now;
            }
            (state.connected, state.error) = (connected, error);
            changed
        })
    }
}

impl Shared {
    fn tls(&self) -> Result<Arc<ClientConfig>, DialError> {
        let (own, trust_domain) = (self.credentials.svid(&self.host), self.credentials.trust_domain());
        identity::tls::control_plane_client_config(&self.credentials.bundles(), own, trust_domain)
            .map_err(DialError::Config)
    }
}

/// What tonic asks for a new connection.
struct Connector(Arc<Shared>);

impl tower_service::Service<http::Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Uri) -> Self::Future {
        let shared = self.0.clone();
        Box::pin(async move {
            let stream = shared.dial.tls(shared.tls()?).await?;
            let address = stream.get_ref().0.local_addr().ok().map(|address| address.ip().to_canonical());
            *shared.local_address.lock().unwrap_or_else(PoisonError::into_inner) = address;
            Ok(TokioIo::new(stream))
        })
    }
}

/// A channel over a connection that stands already, for the one call of `join`.
pub(crate) async fn channel_over(stream: TlsStream<TcpStream>) -> Result<Channel, tonic::transport::Error> {
    let mut stream = Some(TokioIo::new(stream));
    let once = tower::service_fn(move |_: http::Uri| {
        let stream = stream.take().ok_or(io::ErrorKind::NotConnected);
        async move { stream.map_err(io::Error::from) }
    });
    Endpoint::from_static("http://control-plane.tombolo").connect_with_connector(once).await
}

/// What a failed call means, in one sentence: the dialling's own words where that failed.
pub fn explain(status: &Status) -> String {
    let mut cause = status.source();
    while let Some(error) = cause {
        if let Some(dial) = error.downcast_ref::<DialError>() {
            return Chain(dial).to_string();
        }
        cause = error.source();
    }
    match (status.code(), status.message()) {
        (Code::Unimplemented, _) => "it does not offer this call: is it a Tombolo control plane?".to_owned(),
        (code, "") => format!("the control plane answered {code}"),
        (Code::Unknown | Code::Unavailable, _) => Chain(status.source().unwrap_or(status)).to_string(),
        (_, message) => message.to_owned(),
    }
}
