//! Load of the standard work, the servers it talks to, and a relay that does nothing else. Blocking threads and
//! nothing in between, so that what is measured is the network and the proxies; always built optimised (Cargo.toml, profile.dev).
//!
//!   meshbench echo ADDR                         echo server
//!   meshbench sink ADDR                         reads and discards; answers 1 byte at EOF
//!   meshbench source ADDR                       pushes until the client half-closes
//!   meshbench tput ADDR CONNS SECONDS           bytes pushed to a sink, Gbit/s
//!   meshbench pull ADDR CONNS SECONDS           bytes read from a source, Gbit/s
//!   meshbench rr ADDR CONNS SECONDS SIZE [RATE] request/response latency on open connections (RATE req/s in all, 0 = closed loop)
//!   meshbench crr ADDR CONNS SECONDS            connect + 1-byte echo + close, per second
//!   meshbench hold ADDR CONNS                   opens CONNS idle connections (one echo each) and holds them until killed
//!   meshbench relay ADDR TO                     passes connections on to TO: the least that any proxy costs
//!
//! The peers' figures were taken with this client; buffers, socket options and the order of calls stay.

mod relay;

use std::io::{Error, Read, Result, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

/// What a client writes at a time, and a source too.
const PUSH_BYTES: usize = 128 * 1024;
/// What a sink reads at a time, and a pulling client too.
const PULL_BYTES: usize = 256 * 1024;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let text = |at: usize| arguments.get(at).map(String::as_str).unwrap_or_default();
    let number = |at: usize, default: u64| text(at).parse().unwrap_or(default);
    let (address, connections, seconds) = (text(2), number(3, 1), number(4, 5));
    match text(1) {
        "echo" => serve(address, echo),
        "sink" => serve(address, sink),
        "source" => serve(address, source),
        "tput" => throughput("tput", push, address, connections, seconds),
        "pull" => throughput("pull", pull, address, connections, seconds),
        "rr" => request_response(address, connections, seconds, number(5, 64) as usize, number(6, 0)),
        "crr" => connect_request_response(address, connections, seconds),
        "hold" => hold(address, connections),
        "relay" => relay::run(address, text(3)),
        other => Err(Error::other(format!("unknown work {other:?}: see the head of meshbench's main.rs"))),
    }
}

fn serve(address: &str, answer: fn(TcpStream) -> Result<()>) -> Result<()> {
    for connection in TcpListener::bind(address)?.incoming() {
        let Ok(connection) = connection else { continue };
        thread::Builder::new().stack_size(192 * 1024).spawn(move || {
            let _ = connection.set_nodelay(true);
            answer(connection)
        })?;
    }
    Ok(())
}

fn echo(mut connection: TcpStream) -> Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match connection.read(&mut buffer)? {
            0 => return Ok(()),
            length => connection.write_all(&buffer[..length])?,
        }
    }
}

fn sink(mut connection: TcpStream) -> Result<()> {
    let mut buffer = vec![0; PULL_BYTES];
    while connection.read(&mut buffer)? > 0 {}
    connection.write_all(b"k")
}

fn source(mut connection: TcpStream) -> Result<()> {
    let mut other_way = connection.try_clone()?;
    let stop = AtomicBool::new(false);
    let block = vec![7; PUSH_BYTES];
    thread::scope(|scope| {
        let stop = &stop;
        scope.spawn(move || {
            let _ = other_way.read(&mut [0; 1]);
            stop.store(true, Relaxed);
        });
        while !stop.load(Relaxed) {
            connection.write_all(&block)?;
        }
        connection.shutdown(Shutdown::Write)
    })
}

fn connect(address: &str) -> Result<TcpStream> {
    let connection = TcpStream::connect(address)?;
    connection.set_nodelay(true)?;
    connection.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(connection)
}

/// One way of moving bytes on one connection, until `stop` and to its clean end.
type Mover = fn(TcpStream, stop: &AtomicBool, bytes: &AtomicU64) -> Result<()>;

fn throughput(name: &str, mover: Mover, address: &str, connections: u64, seconds: u64) -> Result<()> {
    let (stop, bytes) = (AtomicBool::new(false), AtomicU64::new(0));
    let began = Instant::now();
    thread::scope(|scope| {
        for _ in 0..connections {
            scope.spawn(|| {
                if let Err(error) = connect(address).and_then(|connection| mover(connection, &stop, &bytes)) {
                    eprintln!("{name}: {error}");
                }
            });
        }
        thread::sleep(Duration::from_secs(seconds));
        stop.store(true, Relaxed);
    });
    let (elapsed, bytes) = (began.elapsed().as_secs_f64(), bytes.load(Relaxed));
    println!("{name} conns={connections} gbit_s={:.3} bytes={bytes}", bytes as f64 * 8.0 / elapsed / 1e9);
    Ok(())
}

fn push(mut connection: TcpStream, stop: &AtomicBool, bytes: &AtomicU64) -> Result<()> {
    let block = vec![7; PUSH_BYTES];
    while !stop.load(Relaxed) {
        connection.write_all(&block)?;
        bytes.fetch_add(block.len() as u64, Relaxed);
    }
    connection.shutdown(Shutdown::Write)?;
    connection.read_exact(&mut [0; 1])
}

fn pull(mut connection: TcpStream, stop: &AtomicBool, bytes: &AtomicU64) -> Result<()> {
    let mut buffer = vec![0; PULL_BYTES];
    let mut asked_to_stop = false;
    loop {
        if stop.load(Relaxed) && !asked_to_stop {
            connection.shutdown(Shutdown::Write)?;
            asked_to_stop = true;
        }
        match connection.read(&mut buffer)? {
            0 if asked_to_stop => return Ok(()),
            0 => return Err(Error::other("the source ended early")),
            length => bytes.fetch_add(length as u64, Relaxed),
        };
    }
}

fn request_response(address: &str, connections: u64, seconds: u64, size: usize, rate: u64) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(seconds);
    let gap = (rate > 0).then(|| Duration::from_nanos(1_000_000_000 * connections / rate));
    let one = |number: u64| -> Result<Vec<u64>> {
        let mut connection = connect(address)?;
        let (request, mut response) = (vec![5; size], vec![0; size]);
        let mut latencies = Vec::with_capacity(1 << 16);
        let mut next = Instant::now() + gap.unwrap_or_default() * number as u32 / connections as u32;
        while Instant::now() < end {
            // Latency counts from the planned start, so that a stall is not hidden.
            let began = match gap {
                None => Instant::now(),
                Some(gap) => {
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                    next += gap;
                    next - gap
                }
            };
            connection.write_all(&request)?;
            connection.read_exact(&mut response)?;
            latencies.push(began.elapsed().as_nanos() as u64);
        }
        Ok(latencies)
    };
    let (latencies, errors) = on_threads(connections, one);
    let per_second = latencies.len() as f64 / seconds as f64;
    println!(
        "rr conns={connections} size={size} rate={rate} requests={} req_s={per_second:.0} errors={errors} {}",
        latencies.len(),
        percentiles(&latencies)
    );
    Ok(())
}

fn connect_request_response(address: &str, connections: u64, seconds: u64) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(seconds);
    let failed = AtomicU64::new(0);
    let once = || -> Result<()> {
        let mut connection = TcpStream::connect(address)?;
        connection.set_nodelay(true)?;
        connection.set_read_timeout(Some(Duration::from_secs(5)))?;
        connection.write_all(b"x")?;
        connection.read_exact(&mut [0; 1])
    };
    let many = |_| -> Result<Vec<u64>> {
        let mut latencies = Vec::new();
        while Instant::now() < end {
            let began = Instant::now();
            match once() {
                Ok(()) => latencies.push(began.elapsed().as_nanos() as u64),
                Err(_) => drop(failed.fetch_add(1, Relaxed)),
            }
        }
        Ok(latencies)
    };
    let (latencies, _) = on_threads(connections, many);
    let per_second = latencies.len() as f64 / seconds as f64;
    println!(
        "crr conns={connections} requests={} conn_s={per_second:.0} errors={} {}",
        latencies.len(),
        failed.load(Relaxed),
        percentiles(&latencies)
    );
    Ok(())
}

/// Latencies of all threads together, sorted, and how many threads failed.
fn on_threads(n_threads: u64, work: impl Fn(u64) -> Result<Vec<u64>> + Sync) -> (Vec<u64>, usize) {
    let work = &work;
    let (mut all, mut errors) = (Vec::new(), 0);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..n_threads).map(|number| scope.spawn(move || work(number))).collect();
        for thread in threads {
            match thread.join() {
                Ok(Ok(latencies)) => all.extend(latencies),
                Ok(Err(_)) | Err(_) => errors += 1,
            }
        }
    });
    all.sort_unstable();
    (all, errors)
}

fn percentiles(sorted: &[u64]) -> String {
    if sorted.is_empty() {
        return "no samples".to_owned();
    }
    let at = |q: f64| sorted[((sorted.len() - 1) as f64 * q) as usize] as f64 / 1000.0;
    let (p50, p90, p99, p999, max) = (at(0.5), at(0.9), at(0.99), at(0.999), at(1.0));
    format!("p50_us={p50:.1} p90_us={p90:.1} p99_us={p99:.1} p999_us={p999:.1} max_us={max:.1}")
}

fn hold(address: &str, connections: u64) -> Result<()> {
    let mut held = Vec::new();
    for _ in 0..connections {
        let mut connection = connect(address)?;
        connection.write_all(b"x")?;
        connection.read_exact(&mut [0; 1])?;
        held.push(connection);
    }
    println!("hold open={}", held.len());
    loop {
        thread::park();
    }
}
