//! Whoever has shaken hands must also begin to speak. HTTP servers set no limit before the first bytes, so a
//! client that says nothing would keep its connection, and a place among the operators', for ever.

use std::io::{self, Cursor};

use tokio::io::{AsyncReadExt, Chain, Join, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// A connection whose first bytes were read and are read once more.
pub type Greeted = Join<Chain<Cursor<Vec<u8>>, ReadHalf<TlsStream<TcpStream>>>, WriteHalf<TlsStream<TcpStream>>>;

/// Reads until the client has said whether it speaks HTTP/2. Callers set the limit of time.
pub async fn greeting(stream: TlsStream<TcpStream>) -> io::Result<Greeted> {
    let (mut read, write) = tokio::io::split(stream);
    let mut heard = Vec::with_capacity(PREFACE.len());
    while heard.len() < PREFACE.len() && PREFACE.starts_with(&heard) {
        let rest = PREFACE.len() - heard.len();
        if (&mut read).take(rest as u64).read_buf(&mut heard).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(tokio::io::join(Cursor::new(heard).chain(read), write))
}

/// What every HTTP/2 client says first (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
