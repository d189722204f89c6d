//! One conversation of the soak. The caller opens a connection and says in a header what will happen;
//! then both send bytes that follow from the seed and their position, and check what they get.
//!
//! What is exact: the end of a stream comes after its last byte and never before, and a reset arrives as
//! a reset. Nothing here knows that there is a mesh.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// What the header takes on the wire.
pub const HEADER_BYTES: usize = 26;
/// Nothing moves for this long: it hangs.
const STALL_LIMIT: Duration = Duration::from_secs(60);
/// How many reads of a slow reader are slow.
const SLOW_READS: u32 = 100;

/// In which order the two sides speak and how it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Both at the same time.
    Together,
    /// The server begins when the client's stream has ended.
    ClientFirst,
    /// The client begins when the server's stream has ended.
    ServerFirst,
    /// Both at the same time, and the client resets the connection in the middle.
    ClientResets,
    ServerResets,
    /// Asks for the server's counts.
    Report,
}

const SHAPES: [Shape; 6] =
    [Shape::Together, Shape::ClientFirst, Shape::ServerFirst, Shape::ClientResets, Shape::ServerResets, Shape::Report];

/// What is going to happen on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub seed: u64,
    /// From client to server.
    pub up: u64,
    pub down: u64,
    pub shape: Shape,
    pub slow_client: bool,
    pub slow_server: bool,
}

impl Header {
    /// The conversation that follows from a seed.
    pub fn from_seed(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let shape = SHAPES[random.random_range(0..5)];
        let (up, down) = (length(&mut random), length(&mut random));
        let (slow_client, slow_server) = (random.random_ratio(1, 8), random.random_ratio(1, 8));
        Self { seed, up, down, shape, slow_client, slow_server }
    }

    pub fn resets(&self) -> bool {
        matches!(self.shape, Shape::ClientResets | Shape::ServerResets)
    }

    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&self.seed.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.up.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.down.to_be_bytes());
        bytes[24] = SHAPES.iter().position(|shape| *shape == self.shape).unwrap_or_default() as u8;
        bytes[25] = u8::from(self.slow_client) | u8::from(self.slow_server) << 1;
        bytes
    }

    pub fn from_bytes(bytes: [u8; HEADER_BYTES]) -> Result<Self> {
        let number = |at: usize| u64::from_be_bytes(std::array::from_fn(|n| bytes[at + n]));
        let shape = *SHAPES.get(usize::from(bytes[24])).with_context(|| format!("a foreign header: {bytes:?}"))?;
        let (slow_client, slow_server) = (bytes[25] & 1 != 0, bytes[25] & 2 != 0);
        Ok(Self { seed: number(0), up: number(8), down: number(16), shape, slow_client, slow_server })
    }
}

/// From nothing to 16 MiB, small ones more often.
fn length(random: &mut StdRng) -> u64 {
    match random.random_range(0..20) {
        0..2 => 0,
        2..8 => random.random_range(1..=1 << 10),
        8..14 => random.random_range(1..=1 << 16),
        14..19 => random.random_range(1..=1 << 20),
        _ => random.random_range(1..=1 << 24),
    }
}

/// What one side sends and expects.
struct Side {
    sends: u64,
    send_seed: u64,
    expects: u64,
    expect_seed: u64,
    slow: bool,
    /// Speaks only when the other has ended.
    second: bool,
    /// Ends by a reset after what it sends.
    resets: bool,
}

/// The caller's part; answers how many bytes it got.
pub fn call(connection: &TcpStream, header: Header) -> Result<u64> {
    let mut connection = connection;
    connection.write_all(&header.to_bytes())?;
    talk(
        connection,
        header,
        &Side {
            sends: header.up,
            send_seed: header.seed,
            // The last byte of a stream that is reset is never sent.
            expects: header.down + u64::from(header.shape == Shape::ServerResets),
            expect_seed: !header.seed,
            slow: header.slow_client,
            second: header.shape == Shape::ServerFirst,
            resets: header.shape == Shape::ClientResets,
        },
    )
}

/// The server's part, after it has read the header; answers how many bytes it got.
pub fn answer(connection: &TcpStream, header: Header) -> Result<u64> {
    talk(
        connection,
        header,
        &Side {
            sends: header.down,
            send_seed: !header.seed,
            expects: header.up + u64::from(header.shape == Shape::ClientResets),
            expect_seed: header.seed,
            slow: header.slow_server,
            second: header.shape == Shape::ClientFirst,
            resets: header.shape == Shape::ServerResets,
        },
    )
}

fn talk(connection: &TcpStream, header: Header, side: &Side) -> Result<u64> {
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(STALL_LIMIT))?;
    connection.set_write_timeout(Some(STALL_LIMIT))?;
    let received = thread::scope(|scope| {
        if side.second {
            let received = receive(connection, side)?;
            send(connection, side)?;
            return Ok(received);
        }
        let sending = scope.spawn(|| send(connection, side));
        let received = receive(connection, side);
        let sent = sending.join().map_err(|_| anyhow::anyhow!("the sender panicked"))?;
        // The kernel tells a reset once, to whichever of the two asks first; the other sees an end.
        sent.and(received)
    });
    match received {
        Err(error) if header.resets() && is_reset(&error) => Ok(0),
        Ok(_) if header.resets() && !side.resets => bail!("{header:?}: a reset arrived as an end"),
        other => other.with_context(|| format!("{header:?}")),
    }
}

fn is_reset(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    matches!(kind, Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::NotConnected))
}

fn send(mut connection: &TcpStream, side: &Side) -> Result<()> {
    let mut random = StdRng::seed_from_u64(side.send_seed);
    let mut block = vec![0; 1 << 17];
    let mut position = 0;
    while position < side.sends {
        let most = if random.random_ratio(1, 4) { 16 } else { block.len() as u64 };
        let length = random.random_range(1..=most).min(side.sends - position) as usize;
        fill(&mut block[..length], side.send_seed, position);
        connection.write_all(&block[..length])?;
        position += length as u64;
    }
    if side.resets {
        // SO_LINGER of nothing turns the close, when the last owner lets go, into a reset (socket(7)).
        rustix::net::sockopt::set_socket_linger(connection, Some(Duration::ZERO))?;
        connection.shutdown(Shutdown::Read)?;
    } else {
        connection.shutdown(Shutdown::Write)?;
    }
    Ok(())
}

/// Reads to the end, checks every byte; answers how many there were.
fn receive(mut connection: &TcpStream, side: &Side) -> Result<u64> {
    let mut random = StdRng::seed_from_u64(side.expect_seed.wrapping_add(1));
    let (mut block, mut expected) = (vec![0; 1 << 17], vec![0; 1 << 17]);
    let (mut position, mut n_reads) = (0, 0);
    loop {
        let slow = side.slow && n_reads < SLOW_READS;
        if slow {
            // The one place of the soak that waits for time: a reader that does not keep up.
            thread::sleep(Duration::from_millis(random.random_range(0..10)));
        }
        let most = if slow { 4096 } else { block.len() };
        let length = connection.read(&mut block[..most])?;
        n_reads += 1;
        if length == 0 {
            break;
        }
        fill(&mut expected[..length], side.expect_seed, position);
        if block[..length] != expected[..length] {
            let at = (0..length).find(|at| block[*at] != expected[*at]).unwrap_or_default();
            bail!("byte {} is {:#04x}, not {:#04x}", position + at as u64, block[at], expected[at]);
        }
        position += length as u64;
        ensure!(position <= side.expects, "{position} bytes where {} were sent", side.expects);
    }
    ensure!(side.resets || position == side.expects, "an end after {position} of {} bytes", side.expects);
    Ok(position)
}

/// The bytes of a stream from a position on: SplitMix64 of seed and position, eight at a time.
fn fill(block: &mut [u8], seed: u64, position: u64) {
    let mut at = 0;
    while at < block.len() {
        let from = position + at as u64;
        let word = mix(seed.wrapping_add((from / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15))).to_le_bytes();
        let rest = &word[(from % 8) as usize..];
        let length = rest.len().min(block.len() - at);
        block[at..at + length].copy_from_slice(&rest[..length]);
        at += length;
    }
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    //! The header survives its bytes, and a stream is the same however it is cut.

    use super::*;

    #[test]
    fn headers_survive_their_bytes() {
        for seed in 0..200 {
            let header = Header::from_seed(seed);
            assert_eq!(Header::from_bytes(header.to_bytes()).expect("our own header"), header);
        }
        assert!(Header::from_bytes([0xff; HEADER_BYTES]).is_err());
    }

    #[test]
    fn a_stream_is_the_same_however_it_is_cut() {
        let mut whole = [0; 100];
        fill(&mut whole, 7, 0);
        for cut in 0..100 {
            let mut rest = vec![0; 100 - cut];
            fill(&mut rest, 7, cut as u64);
            assert_eq!(rest, whole[cut..]);
        }
    }
}
