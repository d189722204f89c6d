//! Who is at the other end of a connection, and whether that is a host that may ask.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use api::{Revision, SpiffeId};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use tonic::{Extensions, Status};

use crate::app::App;
use crate::greeting::{Greeted, greeting};
use crate::snapshot::Published;
use crate::store::HostRowState;

/// How long a request waits for a host that joined a moment ago, perhaps at another replica, to
/// appear in this one's snapshot.
const APPEARS_WITHIN: Duration = Duration::from_secs(2);

/// What the connection proved.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    /// `None`: it presented no certificate.
    pub(super) identity: Option<SpiffeId>,
}

/// A host that proved its identity.
#[derive(Debug, Clone)]
pub(super) struct Host {
    pub(super) name: String,
    pub(super) address: SocketAddr,
}

/// One accepted TLS connection.
pub(super) struct Connection {
    stream: Greeted,
    peer: Peer,
}

pub(super) fn peer(extensions: &Extensions) -> Result<&Peer, Status> {
    extensions.get::<Peer>().ok_or_else(|| Status::internal("the connection is not known"))
}

/// The host whose certificate the connection proved. Whether it may do anything is not said.
pub(super) fn host(extensions: &Extensions) -> Result<Host, Status> {
    let peer = peer(extensions)?;
    let identity = peer.identity.as_ref().ok_or_else(|| {
        Status::unauthenticated("this call needs the host's certificate, and none was presented: join first")
    })?;
    let name = identity.host_name().ok_or_else(|| {
        Status::permission_denied(format!("{identity} is not a host: this call needs the certificate of the host"))
    })?;
    Ok(Host { name: name.to_owned(), address: peer.address })
}

/// The same, if it is neither locked nor revoked nor forgotten.
pub(super) async fn standing_host(extensions: &Extensions, app: &App) -> Result<Host, Status> {
    let host = host(extensions)?;
    let mut published = app.published.clone();
    let known = |published: &Published, at_least: Revision| {
        published.host_state(&host.name).is_some() && published.revision >= at_least
    };
    let wanted = app.store.revision();
    let appears = published.wait_for(|published| known(published, wanted));
    // Whether it appeared or not is looked at below.
    let _ = tokio::time::timeout(APPEARS_WITHIN, appears).await.map(|found| found.map(drop));
    let latest: watch::Ref<'_, _> = app.published.borrow();
    check_standing(&latest, &host.name)?;
    drop(latest);
    Ok(host)
}

pub(super) fn check_standing(published: &Published, host: &str) -> Result<(), Status> {
    match published.host_state(host) {
        Some(HostRowState::Active | HostRowState::Pending) => Ok(()),
        Some(HostRowState::Locked) => Err(Status::permission_denied(format!(
            "the host {host} is locked; an operator can release it with `tombolo host unlock {host}`"
        ))),
        Some(HostRowState::Revoked) => Err(Status::permission_denied(format!(
            "the host {host} is revoked; delete it and join again with a new token"
        ))),
        None => Err(Status::not_found(format!("there is no host {host} here; join again with a new token"))),
    }
}

impl Connection {
    /// Waits for the first words of the client.
    pub(super) async fn greet(stream: TlsStream<TcpStream>, address: SocketAddr) -> std::io::Result<Self> {
        let chain = stream.get_ref().1.peer_certificates();
        // The verifier has read it already; what it could not read never came here.
        let identity = chain.and_then(|chain| identity::tls::peer_identity(chain).ok());
        Ok(Self { stream: greeting(stream).await?, peer: Peer { address, identity } })
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
