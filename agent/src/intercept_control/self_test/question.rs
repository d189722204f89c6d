//! One DNS question over UDP, as any process of the host asks it. Not a resolver: any answer counts,
//! because the question is whether questions are answered.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_resolver::proto::op::{Message, Query};
use hickory_resolver::proto::rr::{Name, RecordType};
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// Datagrams are lost now and then.
const TRIES: u32 = 2;

/// What was answered, in short.
pub(super) async fn ask(resolver: SocketAddr, name: &str, limit: Duration) -> Result<String, String> {
    let name =
        Name::from_utf8(format!("{}.", name.trim_end_matches('.'))).map_err(|_| format!("{name:?} is no name"))?;
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(name.clone(), RecordType::A));
    let id = question.metadata.id;
    let bytes = question.to_vec().map_err(|error| error.to_string())?;
    let any = if resolver.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))
    };
    let socket = UdpSocket::bind(any).await.map_err(|error| format!("no UDP socket: {error}"))?;
    socket.connect(resolver).await.map_err(|error| format!("{resolver}: {error}"))?;
    let mut last = format!("no answer from {resolver} within {limit:?}");
    for _ in 0..TRIES {
        if let Err(error) = socket.send(&bytes).await {
            last = format!("{resolver}: {error}");
            continue;
        }
        match timeout(limit / TRIES, answer(&socket, id)).await {
            Ok(Ok(message)) => {
                return Ok(format!("{name} ({}, {} records)", message.metadata.response_code, message.answers.len()));
            }
            Ok(Err(error)) => last = format!("{resolver}: {error}"),
            Err(_) => {}
        }
    }
    Err(last)
}

/// The answer to this question; what else arrives is passed over.
async fn answer(socket: &UdpSocket, id: u16) -> std::io::Result<Message> {
    let mut bytes = vec![0; 4096];
    loop {
        let length = socket.recv(&mut bytes).await?;
        if let Ok(message) = Message::from_vec(&bytes[..length])
            && message.metadata.id == id
        {
            return Ok(message);
        }
    }
}
