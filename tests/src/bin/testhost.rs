//! The applications of the test hosts, as programs of their own so that each runs in its namespace,
//! under its own user: `testhost http ADDR NAME`, `testhost echo ADDR`, `testhost dns ADDR`,
//! `testhost hold ADDR` (opens a connection and echoes a byte a second until it breaks), and as load
//! `testhost ask ADDR` (a connection for each request), `testhost stream ADDR` (bytes both ways without a
//! pause, each one checked) and `testhost resolve RESOLVER NAME`.

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
        "ask" => ask(argument(2)),
        "stream" => stream(argument(2)),
        "resolve" => resolve_often(argument(2), argument(3)),
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

/// Load has a rhythm.
fn pause(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
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
        pause(100);
    }
    Ok(())
}

/// Asks over and over on several threads, and says how often it was answered, and every failure.
fn ask(address: &str) -> std::io::Result<()> {
    let address: SocketAddr = address.parse().map_err(std::io::Error::other)?;
    repeat(4, move || {
        let mut connection = TcpStream::connect_timeout(&address, PATIENCE)?;
        connection.set_read_timeout(Some(PATIENCE))?;
        connection.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")?;
        let mut answer = String::new();
        let mut reader = BufReader::new(connection);
        while !answer.contains("hello from") {
            if reader.read_line(&mut answer)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    })
}

fn resolve_often(resolver: &str, name: &str) -> std::io::Result<()> {
    let resolver: SocketAddr = resolver.parse().map_err(std::io::Error::other)?;
    let name = hickory_proto::rr::Name::from_ascii(name).map_err(std::io::Error::other)?;
    repeat(1, move || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut query = Message::query();
        query.add_query(hickory_proto::op::Query::query(name.clone(), RecordType::A));
        query.metadata.recursion_desired = true;
        socket.send_to(&query.to_vec().map_err(std::io::Error::other)?, resolver)?;
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer)?;
        let answer = Message::from_vec(&buffer[..length]).map_err(std::io::Error::other)?;
        if answer.answers.is_empty() { Err(std::io::Error::other("no address")) } else { Ok(()) }
    })
}

/// Does it over and over, each thread with a short pause in between.
fn repeat(threads: usize, once: impl Fn() -> std::io::Result<()> + Send + Clone + 'static) -> std::io::Result<()> {
    let (say, heard) = std::sync::mpsc::channel();
    for _ in 0..threads {
        let (once, say) = (once.clone(), say.clone());
        std::thread::spawn(move || {
            while say.send(once()).is_ok() {
                pause(3);
            }
        });
    }
    let mut answered = 0u64;
    for result in heard {
        match result {
            Ok(()) => answered += 1,
            Err(error) => println!("failed {error}"),
        }
        if answered % 20 == 1 {
            println!("answered {answered}");
        }
    }
    Ok(())
}

/// To an echo server and back: says how many bytes came back as they were sent, and `broken` at the first
/// that did not.
fn stream(address: &str) -> std::io::Result<()> {
    let address: SocketAddr = address.parse().map_err(std::io::Error::other)?;
    let mut connection = TcpStream::connect_timeout(&address, PATIENCE)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    let mut writer = connection.try_clone()?;
    std::thread::spawn(move || {
        let mut at = 0u64;
        // Ends with the connection, which the reader tells of.
        while writer.write_all(&pattern(at)).is_ok() {
            at += PIECE as u64;
            pause(2);
        }
    });
    let (mut at, mut piece) = (0u64, [0; PIECE]);
    loop {
        let read = connection.read_exact(&mut piece);
        if let Err(error) = read {
            println!("broken after {at}: {error}");
            return Err(error);
        }
        if piece != pattern(at) {
            println!("broken after {at}: other bytes came back");
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        at += PIECE as u64;
        if at % (16 * PIECE as u64) == 0 {
            println!("alive {at}");
        }
    }
}

/// Bytes that say where in the stream they are.
fn pattern(at: u64) -> [u8; PIECE] {
    std::array::from_fn(|offset| {
        let place = at + offset as u64;
        place.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[offset % 3]
    })
}

const PIECE: usize = 4096;
/// Longer than anything takes that works.
const PATIENCE: Duration = Duration::from_secs(5);
