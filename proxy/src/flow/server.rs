//! The server's side of one connection of `tombolo/1`: the header in, the answer out.
//!
//! `inbound/flow.rs` walks a flow with it. What a peer can cost before it is known to have a flow is
//! bounded here: time, bytes, and an end that does not destroy the answer.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::flow::{Answer, HeaderError, START_BYTES, body_length};
use crate::net::tls::TlsStream;

/// Waits for the first byte of a header. An error is the end of a connection that was never used.
pub(crate) async fn first_byte(stream: &mut TlsStream) -> io::Result<u8> {
    stream.read_u8().await
}

/// Reads the rest of the header: its body, undecoded. The flow's own bytes stay where they are.
pub(crate) async fn read_body(stream: &mut TlsStream, first: u8) -> io::Result<Result<Vec<u8>, HeaderError>> {
    let mut start = [first; START_BYTES];
    stream.read_exact(&mut start[1..]).await?;
    let length = match body_length(start) {
        Ok(length) => length,
        Err(error) => return Ok(Err(error)),
    };
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Ok(body))
}

/// Answers and, if that is the connection's end, ends it.
pub(crate) async fn answer(stream: &mut TlsStream, answer: Answer) -> io::Result<()> {
    stream.write_all(&[answer.byte()]).await?;
    stream.flush().await?;
    if answer != Answer::Accepted {
        // The kernel resets a connection that is closed with unread bytes, and the reset may overtake
        // the answer: so they are read, but not for long.
        let end = async {
            stream.shutdown().await?;
            tokio::io::copy(&mut stream.take(LINGER_BYTES), &mut tokio::io::sink()).await
        };
        // However that ends, nothing is owed to the peer any more.
        let _ = timeout(LINGER, end).await;
    }
    Ok(())
}

/// How long a peer may take to see that it was refused.
const LINGER: Duration = Duration::from_secs(1);
/// What it may have sent meanwhile.
const LINGER_BYTES: u64 = 1 << 20;
