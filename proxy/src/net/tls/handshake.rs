//! The handshake: rustls says what to send and what it read; the socket and the room are ours.

use std::io;
use std::sync::Arc;

use identity::tls::{TrafficKey, TrafficSecret, TrafficSecrets};
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{Accepted, Acceptor, ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError, UnbufferedConnectionCommon, UnbufferedStatus,
};
use rustls::{ClientConfig, ConnectionTrafficSecrets, ExtractedSecrets, HandshakeKind, ServerConfig};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::incoming::Incoming;
use super::{Ended, Tickets, TlsStream, invalid};
use crate::net::records::{Opener, Sealer};

/// What the peer has shown during the handshake.
pub(crate) struct Proof {
    /// The verified chain, the peer's own certificate first.
    pub(crate) certificates: Vec<CertificateDer<'static>>,
    /// The protocol that was agreed on.
    pub(crate) alpn: Option<Vec<u8>>,
    /// The certificates are those of an earlier handshake and have not been verified again.
    pub(crate) resumed: bool,
}

/// The beginning of a client that has dialled us.
pub(crate) struct Hello {
    tcp: TcpStream,
    incoming: Incoming,
    /// `None` if it cannot be read; the handshake says why.
    accepted: Option<Accepted>,
}

/// Shakes hands as the one who dialled. Dropping the future closes the socket.
pub(crate) async fn connect(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    mut tcp: TcpStream,
) -> io::Result<(TlsStream, Proof)> {
    let mut connection = UnbufferedClientConnection::new(config, name).map_err(invalid)?;
    let process = UnbufferedConnectionCommon::<ClientConnectionData>::process_tls_records;
    let (incoming, TrafficSecrets { client, server }) =
        shake_hands(&mut connection, process, &mut tcp, Incoming::default()).await?;
    let proof = Proof::of(&connection);
    let (agreed, session) = connection.dangerous_into_kernel_connection().map_err(invalid)?;
    let tickets = Tickets::Kept(Box::new(session));
    Ok((TlsStream::new(tcp, Secrets { sends: client, receives: server }, &agreed, tickets, incoming)?, proof))
}

/// Reads what a client says first. Dropping the future closes the socket.
pub(crate) async fn hello(tcp: TcpStream) -> io::Result<Hello> {
    let (mut incoming, mut acceptor) = (Incoming::default(), Acceptor::default());
    loop {
        let seen = incoming.raw().len();
        receive(&tcp, &mut incoming).await?;
        let mut unseen = &incoming.raw()[seen..];
        while !unseen.is_empty() {
            let read = acceptor.read_tls(&mut unseen).map(|_| acceptor.accept());
            match read {
                Ok(Ok(None)) => {}
                Ok(Ok(accepted @ Some(_))) => return Ok(Hello { tcp, incoming, accepted }),
                Ok(Err(_)) | Err(_) => return Ok(Hello { tcp, incoming, accepted: None }),
            }
        }
    }
}

impl Hello {
    /// Whether the client offers this protocol.
    pub(crate) fn offers(&self, alpn: &[u8]) -> bool {
        let offered = self.accepted.as_ref().and_then(|accepted| accepted.client_hello().alpn());
        offered.is_some_and(|mut offered| offered.any(|one| one == alpn))
    }
}

/// Shakes hands as the one who was dialled. Dropping the future closes the socket.
pub(crate) async fn accept(config: Arc<ServerConfig>, hello: Hello) -> io::Result<(TlsStream, Proof)> {
    let Hello { mut tcp, incoming, accepted } = hello;
    drop(accepted);
    let mut connection = UnbufferedServerConnection::new(config).map_err(invalid)?;
    let process = UnbufferedConnectionCommon::<ServerConnectionData>::process_tls_records;
    let (incoming, TrafficSecrets { client, server }) =
        shake_hands(&mut connection, process, &mut tcp, incoming).await?;
    let proof = Proof::of(&connection);
    let (agreed, _) = connection.dangerous_into_kernel_connection().map_err(invalid)?;
    Ok((TlsStream::new(tcp, Secrets { sends: server, receives: client }, &agreed, Tickets::Refused, incoming)?, proof))
}

impl Proof {
    fn of<Data>(connection: &UnbufferedConnectionCommon<Data>) -> Self {
        let certificates = connection.peer_certificates().unwrap_or_default();
        let certificates = certificates.iter().map(|certificate| certificate.clone().into_owned()).collect();
        let alpn = connection.alpn_protocol().map(<[u8]>::to_vec);
        Self { certificates, alpn, resumed: connection.handshake_kind() == Some(HandshakeKind::Resumed) }
    }
}

/// The secrets of the two directions, as one side sees them.
struct Secrets {
    sends: TrafficSecret,
    receives: TrafficSecret,
}

impl TlsStream {
    fn new(
        tcp: TcpStream,
        Secrets { sends, receives }: Secrets,
        agreed: &ExtractedSecrets,
        tickets: Tickets,
        incoming: Incoming,
    ) -> io::Result<Self> {
        let opener = Opener::new(agreed.rx.0, &agreed_key(&receives, &agreed.rx.1)?).map_err(invalid)?;
        let sealer = Sealer::new(agreed.tx.0, &agreed_key(&sends, &agreed.tx.1)?).map_err(invalid)?;
        Ok(Self {
            tcp,
            receives,
            opener,
            sends,
            sealer,
            tickets,
            incoming,
            outgoing: None,
            keys_wanted: false,
            peer_ended: Ended::Not,
            ended: Ended::Not,
            flows: false,
        })
    }
}

/// The key of `secret`, which must be the one that rustls uses. It is not where the peer has changed its keys before
/// the handshake was over here, which nobody has a reason to.
fn agreed_key(secret: &TrafficSecret, agreed: &ConnectionTrafficSecrets) -> io::Result<TrafficKey> {
    let key = secret.key().map_err(invalid)?;
    let same = match agreed {
        ConnectionTrafficSecrets::Aes128Gcm { key: agreed, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key: agreed, iv } => {
            agreed.as_ref() == &key.key[..] && iv.as_ref() == key.iv
        }
        _ => false,
    };
    if same {
        Ok(key)
    } else {
        Err(invalid("the peer changed its TLS keys during the handshake, or chose a suite that was not offered"))
    }
}

/// One look of rustls at what has arrived; the same for both sides but for its type.
type Process<Data> =
    for<'c, 'i> fn(&'c mut UnbufferedConnectionCommon<Data>, &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Data>;

/// What rustls wants next.
enum Next {
    Look,
    Read,
    Write,
    Established,
}

/// Returns what arrived behind the handshake, and what the connection's keys are made from.
async fn shake_hands<Data>(
    connection: &mut UnbufferedConnectionCommon<Data>,
    process: Process<Data>,
    tcp: &mut TcpStream,
    mut incoming: Incoming,
) -> io::Result<(Incoming, TrafficSecrets)> {
    let mut outgoing = Vec::new();
    // A peer may send data right behind its handshake, before it has seen the end of ours.
    let mut early = Vec::new();
    let mut secrets = None;
    loop {
        let handshaking = connection.is_handshaking();
        let UnbufferedStatus { mut discard, state, .. } = process(connection, incoming.raw_mut());
        secrets = TrafficSecrets::take().or(secrets);
        let next = match state {
            Ok(ConnectionState::EncodeTlsData(mut data)) => encode(&mut data, &mut outgoing).map(|()| Next::Look),
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Ok(Next::Write)
            }
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                let mut taken = Ok(Next::Look);
                while let Some(record) = traffic.next_record() {
                    match record {
                        Ok(record) => {
                            discard += record.discard;
                            early.extend_from_slice(record.payload);
                        }
                        Err(error) => taken = Err(invalid(error)),
                    }
                }
                taken
            }
            Ok(ConnectionState::WriteTraffic(_)) if !handshaking => Ok(Next::Established),
            Ok(ConnectionState::WriteTraffic(_) | ConnectionState::BlockedHandshake) => Ok(Next::Read),
            Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => Err(invalid(error)),
        };
        incoming.discard(discard);
        match next {
            Ok(Next::Look) => {}
            Ok(Next::Write) => write(tcp, &mut outgoing).await?,
            Ok(Next::Read) => {
                write(tcp, &mut outgoing).await?;
                receive(tcp, &mut incoming).await?;
            }
            Ok(Next::Established) => {
                write(tcp, &mut outgoing).await?;
                incoming.hold(&early)?;
                let secrets = secrets.ok_or_else(|| invalid("the TLS configuration does not keep its secrets"))?;
                return Ok((incoming, secrets));
            }
            Err(error) => {
                tell(connection, process, &mut incoming, tcp).await;
                return Err(error);
            }
        }
    }
}

async fn write(tcp: &mut TcpStream, outgoing: &mut Vec<u8>) -> io::Result<()> {
    tcp.write_all(outgoing).await?;
    outgoing.clear();
    Ok(())
}

async fn receive(tcp: &TcpStream, incoming: &mut Incoming) -> io::Result<()> {
    loop {
        tcp.readable().await?;
        match incoming.read(tcp) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Tells the peer why the handshake failed, as far as rustls has an alert for it.
async fn tell<Data>(
    connection: &mut UnbufferedConnectionCommon<Data>,
    process: Process<Data>,
    incoming: &mut Incoming,
    tcp: &mut TcpStream,
) {
    let mut alert = Vec::new();
    // It is the only thing left to send, and rustls may not be asked for more after it.
    if let Ok(ConnectionState::EncodeTlsData(mut data)) = process(connection, incoming.raw_mut()).state
        && encode(&mut data, &mut alert).is_err()
    {
        alert.clear();
    }
    // The peer may be gone, and then nobody needs to know.
    let _ = tcp.write_all(&alert).await;
}

fn encode<Data>(data: &mut EncodeTlsData<'_, Data>, outgoing: &mut Vec<u8>) -> io::Result<()> {
    let start = outgoing.len();
    let needed = match data.encode(&mut []) {
        Ok(n) => return if n == 0 { Ok(()) } else { Err(invalid("rustls wrote into no room")) },
        Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => required_size,
        Err(error) => return Err(invalid(error)),
    };
    outgoing.resize(start + needed, 0);
    let n = data.encode(&mut outgoing[start..]).map_err(invalid)?;
    outgoing.truncate(start + n);
    Ok(())
}
