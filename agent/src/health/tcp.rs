//! Probes by TCP, and the connections that HTTP probes use.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpSocket, TcpStream};

/// Connects to the first address of the host that accepts. No host, or `localhost`, is this host.
pub(super) async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let addresses: Vec<IpAddr> = match host {
        "" | "localhost" => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        host => match host.trim_matches(['[', ']']).parse() {
            Ok(address) => vec![address],
            Err(_) => return Err(format!("the probe's host {host:?} is neither an address nor localhost")),
        },
    };
    let mut refused = Vec::new();
    for address in addresses {
        let address = SocketAddr::new(address, port);
        match marked(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => refused.push(format!("{address}: {error}")),
        }
    }
    Err(format!("cannot connect to {}", refused.join(", ")))
}

async fn marked(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    // Without CAP_NET_ADMIN there is no interception either, from which the mark would exempt.
    let _ = socket.set_mark(proxy::config::OWN_MARK);
    TcpSocket::from_std_stream(socket.into()).connect(address).await
}
