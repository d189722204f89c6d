//! `soak [SECONDS] [FOLDER-OF-THE-PROGRAMS]`: the byte-exact soak; and its two ends, `soak serve ADDR` and
//! `soak call ADDR SECONDS`, which say each mistake on a line of its own and at last one line of counts.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::soak::conversation::{HEADER_BYTES, Header, Shape, answer, call};

/// Conversations at one time.
const CALLERS: u64 = 16;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", address] => serve(address),
        ["call", address, seconds] => call_for(address, Duration::from_secs(seconds.parse()?)),
        [] => soak("600", None),
        [seconds] => soak(seconds, None),
        [seconds, folder, ..] => soak(seconds, Some(Path::new(folder))),
    }
}

fn soak(seconds: &str, programs: Option<&Path>) -> Result<()> {
    let seconds = seconds.parse().context("usage: soak [SECONDS] [FOLDER-OF-THE-PROGRAMS]")?;
    let programs = programs.map(Path::canonicalize).transpose()?;
    for line in tests::soak::run(programs.as_deref(), Duration::from_secs(seconds))? {
        println!("{line}");
    }
    println!("soak: every byte as sent, every end and every reset as made, for {seconds} s");
    Ok(())
}

/// What one end has seen.
#[derive(Default)]
struct Counts {
    conversations: AtomicU64,
    open: AtomicU64,
    /// Of conversations that no side reset.
    sent: AtomicU64,
    received: AtomicU64,
    half_closes: AtomicU64,
    resets: AtomicU64,
    slow_readers: AtomicU64,
    mistakes: AtomicU64,
}

fn serve(address: &str) -> Result<()> {
    let counts = Arc::new(Counts::default());
    let listener = TcpListener::bind(address)?;
    println!("serving {address}");
    for connection in listener.incoming() {
        let (connection, counts) = (connection?, counts.clone());
        // A connection that is reset already has no peer.
        let Ok(client) = connection.peer_addr() else { continue };
        thread::spawn(move || {
            counts.open.fetch_add(1, SeqCst);
            if let Err(error) = serve_one(connection, &counts) {
                println!("server: from {client}: {error:#}");
            }
            counts.open.fetch_sub(1, SeqCst);
        });
    }
    Ok(())
}

fn serve_one(mut connection: TcpStream, counts: &Counts) -> Result<()> {
    let mut bytes = [0; HEADER_BYTES];
    // A connection that its client resets at once may arrive as nothing at all.
    if connection.read_exact(&mut bytes).is_err() {
        return Ok(());
    }
    let header = Header::from_bytes(bytes)?;
    if header.shape == Shape::Report {
        let others_ended = || counts.open.load(SeqCst) == 1;
        tests::within(Duration::from_secs(60), "the others have ended", || others_ended().then_some(()).ok_or(()));
        let received = counts.received.load(SeqCst);
        connection.write_all(&received.to_be_bytes())?;
        return Ok(());
    }
    let received = answer(&connection, header)?;
    if !header.resets() {
        counts.received.fetch_add(received, SeqCst);
    }
    Ok(())
}

fn call_for(address: &str, length: Duration) -> Result<()> {
    let (counts, end) = (Counts::default(), Instant::now() + length);
    thread::scope(|scope| {
        for caller in 0..CALLERS {
            let counts = &counts;
            scope.spawn(move || {
                for seed in (caller..).step_by(CALLERS as usize).take_while(|_| Instant::now() < end) {
                    call_one(address, Header::from_seed(seed), counts);
                }
            });
        }
    });
    let server_received = report(address)?;
    let count = |counter: &AtomicU64| counter.load(SeqCst);
    println!(
        "{{\"seconds\":{},\"conversations\":{},\"sent\":{},\"server_received\":{server_received},\"received\":{},\
         \"half_closes\":{},\"resets\":{},\"slow_readers\":{},\"mistakes\":{}}}",
        length.as_secs(),
        count(&counts.conversations),
        count(&counts.sent),
        count(&counts.received),
        count(&counts.half_closes),
        count(&counts.resets),
        count(&counts.slow_readers),
        count(&counts.mistakes)
    );
    ensure!(count(&counts.mistakes) == 0, "there were mistakes");
    Ok(())
}

fn call_one(address: &str, header: Header, counts: &Counts) {
    let outcome = TcpStream::connect(address).context("cannot connect").and_then(|connection| {
        let own = connection.local_addr()?;
        call(&connection, header).with_context(|| format!("from {own}"))
    });
    counts.conversations.fetch_add(1, SeqCst);
    match outcome {
        Ok(received) if !header.resets() => {
            counts.sent.fetch_add(header.up, SeqCst);
            counts.received.fetch_add(received, SeqCst);
            counts.half_closes.fetch_add(u64::from(header.shape != Shape::Together), SeqCst);
        }
        Ok(_) => drop(counts.resets.fetch_add(1, SeqCst)),
        Err(error) => {
            counts.mistakes.fetch_add(1, SeqCst);
            println!("client: {error:#}");
        }
    }
    counts.slow_readers.fetch_add(u64::from(header.slow_client) + u64::from(header.slow_server), SeqCst);
}

/// How many bytes the server has received once every conversation but this has ended there.
fn report(address: &str) -> Result<u64> {
    let mut connection = TcpStream::connect(address)?;
    let header = Header { shape: Shape::Report, ..Header::from_seed(0) };
    connection.write_all(&header.to_bytes())?;
    let mut bytes = [0; 8];
    connection.read_exact(&mut bytes)?;
    Ok(u64::from_be_bytes(bytes))
}
