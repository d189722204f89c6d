//! The least that something in the path can do: one thread that waits for bytes and passes them on. No TLS, no
//! policy, no log. What two of these cost is the system's share of any proxy's cost, on this machine at this time.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Result, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::net::sockopt::set_tcp_congestion;
use rustix::net::{AddressFamily, SocketType, connect, socket};

/// What is read at a time: as much as an agent reads.
const READ_BYTES: usize = 128 * 1024;
/// Sockets that one wait may find ready.
const EVENTS: usize = 64;
/// Stands for the listening socket; pairs are numbered from zero.
const LISTENER: u64 = u64::MAX;

/// A connection that came in and the one that goes on, and for each of them what was read from it.
struct Pair {
    sockets: [TcpStream; 2],
    /// Read and not yet written to the other.
    rest: [Vec<u8>; 2],
    ended: [bool; 2],
    watched: [EventFlags; 2],
}

/// Passes every connection to `listen` on to `to`, until killed.
pub fn run(listen: &str, to: &str) -> Result<()> {
    let listener = TcpListener::bind(listen)?;
    // As the agents do: where BBR is the default it is no part of the least.
    set_tcp_congestion(&listener, "cubic")?;
    listener.set_nonblocking(true)?;
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
    let (mut pairs, mut next) = (HashMap::new(), 0);
    let (mut events, mut buffer) = (Vec::with_capacity(EVENTS), vec![0; READ_BYTES]);
    loop {
        events.clear();
        epoll::wait(&epoll, spare_capacity(&mut events), None)?;
        for event in &events {
            let key = event.data.u64();
            if key == LISTENER {
                while let Ok((near, _)) = listener.accept() {
                    pairs.insert(next, Pair::begin(&epoll, next, near, to)?);
                    next += 1;
                }
                continue;
            }
            let (number, side) = (key / 2, key as usize % 2);
            // Both sockets of a pair that has just ended may be among the events.
            let Some(pair) = pairs.get_mut(&number) else { continue };
            if !pair.step(&epoll, number, side, &mut buffer).unwrap_or(false) {
                pairs.remove(&number);
            }
        }
    }
}

impl Pair {
    fn begin(epoll: &OwnedFd, number: u64, near: TcpStream, to: &str) -> Result<Self> {
        let far = socket(AddressFamily::INET, SocketType::STREAM, None)?;
        set_tcp_congestion(&far, "cubic")?;
        connect(&far, &to.parse::<std::net::SocketAddr>().map_err(std::io::Error::other)?)?;
        let sockets = [near, far.into()];
        for (side, socket) in sockets.iter().enumerate() {
            socket.set_nonblocking(true)?;
            socket.set_nodelay(true)?;
            epoll::add(epoll, socket, EventData::new_u64(number * 2 + side as u64), EventFlags::IN)?;
        }
        Ok(Self { sockets, rest: [Vec::new(), Vec::new()], ended: [false; 2], watched: [EventFlags::IN; 2] })
    }

    /// What an event at `side` allows; answers whether there is more to come.
    fn step(&mut self, epoll: &OwnedFd, number: u64, side: usize, buffer: &mut [u8]) -> Result<bool> {
        let other = 1 - side;
        if !self.rest[other].is_empty() {
            let rest = std::mem::take(&mut self.rest[other]);
            self.pass(other, &rest)?;
        }
        if self.rest[side].is_empty() && !self.ended[side] {
            match self.sockets[side].read(buffer) {
                Ok(0) => {
                    self.ended[side] = true;
                    self.sockets[other].shutdown(Shutdown::Write)?;
                }
                Ok(length) => self.pass(side, &buffer[..length])?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        for (side, other) in [(0, 1), (1, 0)] {
            let mut wanted = EventFlags::empty();
            wanted.set(EventFlags::IN, !self.ended[side] && self.rest[side].is_empty());
            wanted.set(EventFlags::OUT, !self.rest[other].is_empty());
            if wanted != self.watched[side] {
                let data = EventData::new_u64(number * 2 + side as u64);
                epoll::modify(epoll, &self.sockets[side], data, wanted)?;
                self.watched[side] = wanted;
            }
        }
        Ok(self.ended != [true; 2])
    }

    /// Writes what came from `side` to the other; what does not fit waits.
    fn pass(&mut self, side: usize, bytes: &[u8]) -> Result<()> {
        let written = match self.sockets[1 - side].write(bytes) {
            Ok(written) => written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        self.rest[side] = bytes[written..].to_vec();
        Ok(())
    }
}
