//! One connection to a peer that may take one flow. Used by the pool only.
//!
//! TCP and TLS 1.3 as for HBONE, offering `tombolo/1` first; the peer chooses. It keeps nothing.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::SystemTime;

use identity::tls;
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};

use crate::config::SocketConfig;
use crate::flow::Answer;
use crate::hbone::client::{Key, TunnelError, broken_tls};
use crate::net::copy::End;
use crate::net::tls::TlsStream;
use crate::net::{self, socket};

/// What the peer chose.
pub(crate) enum Established {
    Flow(Connection),
    Hbone(Box<TlsStream>),
}

/// A connection without a flow.
pub(crate) struct Connection {
    stream: Box<TlsStream>,
    /// When the peer's certificate ends.
    not_after: SystemTime,
    resumed: bool,
}

/// Connects and proves who both sides are. Dropping the future abandons the connection.
pub(crate) async fn establish(
    key: &Key,
    config: Arc<ClientConfig>,
    sockets: &SocketConfig,
) -> Result<Established, TunnelError> {
    let to = key.to;
    let tcp = socket::connect(to, sockets).await.map_err(|source| TunnelError::Tcp { to, source })?;
    // A host with several workloads shows the certificate that is asked for by name.
    let name = tls::server_name(key.expected.get(..1).unwrap_or_default());
    let (stream, proof) = net::tls::connect(config, name, tcp).await.map_err(|error| broken_tls(to, error))?;
    if proof.alpn.as_deref() != Some(tls::FLOW_ALPN) {
        return Ok(Established::Hbone(Box::new(stream)));
    }
    let not_after = tls::peer_not_after(&proof.certificates).ok();
    let not_after = not_after.filter(|not_after| SystemTime::now() <= *not_after);
    let expired = || TunnelError::Tls { to, reason: "the peer's certificate has expired".to_owned() };
    Ok(Established::Flow(Connection {
        not_after: not_after.ok_or_else(expired)?,
        resumed: proof.resumed,
        stream: Box::new(stream),
    }))
}

impl Connection {
    pub(crate) fn resumed(&self) -> bool {
        self.resumed
    }

    pub(crate) fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether the peer has said nothing: before a flow whatever it says ends the connection. Reads
    /// the session tickets, which are below that.
    pub(crate) fn is_quiet(&mut self) -> bool {
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

    /// The flow's end, after [`Answer::Accepted`].
    pub(crate) fn into_end(self) -> End {
        End::Tls(self.stream)
    }
}
