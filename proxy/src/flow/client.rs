//! One connection to a peer that takes flows, one after the other. Used by the pool only.
//!
//! TCP and TLS 1.3 as for HBONE, offering `tombolo/1` first; the peer chooses. It keeps nothing.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::SystemTime;

use identity::{VerifyError, tls};
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};

use crate::config::SocketConfig;
use crate::flow::Answer;
use crate::hbone::client::{Key, TunnelError, broken_tls, not_after};
use crate::net::copy::End;
use crate::net::tls::TlsStream;
use crate::net::{self, socket};
use crate::standing::Proven;

/// A connection whose TLS stands.
pub(crate) struct Established {
    pub(crate) stream: Box<TlsStream>,
    /// The peer chose `tombolo/1`, else HBONE.
    pub(crate) flow: bool,
    /// When the certificates end that the peer has shown.
    pub(crate) not_after: SystemTime,
    pub(crate) resumed: bool,
}

/// A connection of `tombolo/1` without a flow.
pub(crate) struct Connection {
    stream: Box<TlsStream>,
    proven: Proven,
}

/// Connects and proves who both sides are. Dropping the future abandons the connection.
pub(crate) async fn establish(
    key: &Key,
    config: Arc<ClientConfig>,
    sockets: &SocketConfig,
) -> Result<Established, TunnelError> {
    let to = key.to;
    let tcp = socket::connect_tunnel(to, sockets).await.map_err(|source| TunnelError::Tcp { to, source })?;
    // A host with several workloads shows the certificate that is asked for by name.
    let name = tls::server_name(key.expected.get(..1).unwrap_or_default());
    let (stream, proof) = net::tls::connect(config, name, tcp).await.map_err(|error| broken_tls(to, error))?;
    let (not_after, now) = (not_after(&proof.certificates, to)?, SystemTime::now());
    // A session is resumed without a look at the certificate.
    if not_after < now {
        return Err(TunnelError::Tls { to, reason: VerifyError::Expired { not_after, now }.to_string() });
    }
    let flow = proof.alpn.as_deref() == Some(tls::FLOW_ALPN);
    Ok(Established { stream: Box::new(stream), flow, not_after, resumed: proof.resumed })
}

impl Connection {
    pub(crate) fn new(mut stream: Box<TlsStream>, proven: Proven) -> Self {
        stream.carry_flows();
        Self { stream, proven }
    }

    /// Whether it may take a flow at `now`: its certificates last, and the peer has said nothing. Before
    /// a flow whatever it says ends the connection; session tickets are below that, and are read.
    pub(crate) fn is_ready(&mut self, now: SystemTime) -> bool {
        now <= self.proven.fresh_until && self.is_quiet()
    }

    fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let mut context = Context::from_waker(Waker::noop());
        let read = Pin::new(&mut self.stream).poll_read(&mut context, &mut ReadBuf::new(&mut byte));
        read.is_pending()
    }

    /// Sends the header and waits for the answer.
    pub(crate) async fn ask(&mut self, header: &[u8]) -> io::Result<Answer> {
        self.stream.write_all(header).await?;
        self.stream.flush().await?;
        let byte = self.stream.read_u8().await?;
        Answer::of(byte).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("the answer {byte} to a flow header is not known here"))
        })
    }

    /// The flow's end, after [`Answer::Accepted`], and its peer.
    pub(crate) fn into_end(self) -> (End, Proven) {
        (End::Tls(self.stream), self.proven)
    }

    /// The connection again, after a flow that ended in order; `None` if it can take no other.
    pub(crate) fn again(end: End, proven: Proven) -> Option<Self> {
        Some(Self { stream: end.next_flow()?, proven })
    }
}
