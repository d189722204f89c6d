//! The applications of the test hosts, as programs of their own so that each runs in its namespace,
//! under its own user: `testhost http ADDR NAME`, `testhost echo ADDR`, `testhost dns ADDR`,
//! `testhost hold ADDR` (opens a connection and echoes a byte a second until it breaks).

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::{RData, Record, RecordType, rdata::A};

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let argument = |at: usize| arguments.get(at).map(String::as_str).unwrap_or_default();
    match argument(1) {
        "http" => http(argument(2), argument(3)),
        "echo" => echo(argument(2)),
        "dns" => dns(argument(2)),
        "hold" => hold(argument(2)),
        other => Err(std::io::Error::other(format!("unknown application {other:?}"))),
    }
}

/// Answers every request with its own name and the address it sees as the client's.
fn http(address: &str, name: &str) -> std::io::Result<()> {
    let listener = TcpListener::bind(address)?;
    println!("serving {name} on {address}");
    for connection in listener.incoming() {
        let (connection, name) = (connection?, name.to_owned());
        std::thread::spawn(move || answer_requests(connection, &name));
    }
    Ok(())
}

fn answer_requests(connection: TcpStream, name: &str) -> std::io::Result<()> {
    let peer = connection.peer_addr()?;
    let mut reader = BufReader::new(connection.try_clone()?);
    let mut writer = connection;
    loop {
        let mut head = String::new();
        loop {
            let read = reader.read_line(&mut head)?;
            if read == 0 {
                return Ok(());
            }
            if head.ends_with("\r\n\r\n") {
                break;
            }
        }
        let body = format!("hello from {name}, you are {}\n", peer.ip().to_canonical());
        write!(writer, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\ncontent-type: text/plain\r\n\r\n{body}", body.len())?;
    }
}

/// Sends back what it gets, half-close included.
fn echo(address: &str) -> std::io::Result<()> {
    let listener = TcpListener::bind(address)?;
    println!("echoing on {address}");
    for connection in listener.incoming() {
        let mut connection = connection?;
        std::thread::spawn(move || -> std::io::Result<()> {
            std::io::copy(&mut connection.try_clone()?, &mut connection)?;
            connection.shutdown(std::net::Shutdown::Write)
        });
    }
    Ok(())
}

/// An upstream resolver that knows two names, `outside.example` and the control plane's.
fn dns(address: &str) -> std::io::Result<()> {
    let socket = UdpSocket::bind(address)?;
    println!("resolving on {address}");
    let mut buffer = [0; 4096];
    loop {
        let (length, client) = socket.recv_from(&mut buffer)?;
        let Ok(query) = Message::from_vec(&buffer[..length]) else { continue };
        let answer = resolve(&query);
        let bytes = answer.to_vec().map_err(std::io::Error::other)?;
        socket.send_to(&bytes, client)?;
    }
}

fn resolve(query: &Message) -> Message {
    let mut answer = query.clone();
    answer.metadata.message_type = MessageType::Response;
    answer.metadata.recursion_available = true;
    let Some(question) = query.queries.first() else { return answer };
    let address = match question.name().to_ascii().as_str() {
        "outside.example." => A::new(192, 0, 2, 1),
        "controlplane.example." => A::new(10, 88, 0, 1),
        _ => {
            answer.metadata.response_code = ResponseCode::NXDomain;
            return answer;
        }
    };
    if question.query_type() == RecordType::A {
        answer.add_answer(Record::from_rdata(question.name().clone(), 60, RData::A(address)));
    }
    answer
}

/// Keeps one connection busy and says `broken` when it ends.
fn hold(address: &str) -> std::io::Result<()> {
    let address: SocketAddr = address.parse().map_err(std::io::Error::other)?;
    let mut connection = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    connection.set_read_timeout(Some(Duration::from_secs(5)))?;
    for n in 0u32.. {
        let mut byte = [0];
        let echoed = connection.write_all(b"x").and_then(|()| connection.read_exact(&mut byte));
        match echoed {
            Ok(()) => println!("alive {n}"),
            Err(error) => {
                println!("broken {error}");
                return Err(error);
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
