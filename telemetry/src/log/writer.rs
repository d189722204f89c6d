//! Writes log lines from a thread of its own.
//!
//! [`super::init`] makes one for standard error. A reader that stalls (a full pipe, a stopped
//! journald) fills the queue; then lines are dropped and counted, and traffic goes on. Warnings and
//! errors wait a moment for their turn, so that the last words of a program that ends are read.

use std::io::{self, Write};
use std::iter;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::thread::{self, Thread};
use std::time::Duration;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait to be written: some 2 MB at the usual 250 bytes.
const QUEUE: usize = 8192;
/// After a line the next ones are collected for so long: who logs a line must wake the thread, which
/// costs more than the line, and a busy program logs thousands a second.
const COLLECT: Duration = Duration::from_millis(5);
/// What is collected is written before it is larger than this.
const BATCH_BYTES: usize = 64 << 10;
/// How long a warning waits to be written. A reader that stalls costs this once per warning.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long the last handle waits for the queue to empty.
const LAST_FLUSH: Duration = Duration::from_secs(1);

static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Log lines lost since the program started because their reader was too slow.
pub fn lines_dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

enum Order {
    Line(Vec<u8>),
    Flush(mpsc::Sender<()>),
}

/// The queue in front of the writing thread.
pub(super) struct Writer {
    orders: SyncSender<Order>,
    thread: Thread,
}

impl Writer {
    pub(super) fn spawn(output: impl Write + Send + 'static) -> io::Result<Self> {
        let (orders, queue) = mpsc::sync_channel(QUEUE);
        let running = thread::Builder::new().name("log".to_owned()).spawn(move || run(&queue, output))?;
        Ok(Self { orders, thread: running.thread().clone() })
    }

    /// Waits until every line queued so far is written, at most this long.
    pub(super) fn flush(&self, limit: Duration) {
        let (done, written) = mpsc::channel();
        if self.orders.try_send(Order::Flush(done)).is_ok() {
            self.thread.unpark();
            let _ = written.recv_timeout(limit);
        }
    }

    fn write(&self, line: Vec<u8>) {
        match self.orders.try_send(Order::Line(line)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                DROPPED.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.flush(LAST_FLUSH);
    }
}

/// Ends when every [`Writer`] is gone. An output that fails is tried again with the next lines.
fn run(queue: &Receiver<Order>, mut output: impl Write) {
    let (mut batch, mut lines) = (Vec::new(), 0);
    while let Ok(first) = queue.recv() {
        for order in iter::once(first).chain(queue.try_iter()) {
            let done = match order {
                Order::Line(line) => {
                    batch.extend(line);
                    lines += 1;
                    None
                }
                Order::Flush(done) => Some(done),
            };
            if done.is_some() || batch.len() >= BATCH_BYTES {
                write_out(&mut output, &mut batch, &mut lines);
            }
            if let Some(done) = done {
                let _ = output.flush();
                let _ = done.send(());
            }
        }
        write_out(&mut output, &mut batch, &mut lines);
        thread::park_timeout(COLLECT);
    }
}

fn write_out(output: &mut impl Write, batch: &mut Vec<u8>, lines: &mut u64) {
    if output.write_all(batch).is_err() {
        DROPPED.fetch_add(*lines, Ordering::Relaxed);
    }
    *batch = Vec::new();
    *lines = 0;
}

/// Collects the line of one event and queues it when the event is complete.
pub(super) struct Line<'a> {
    text: Vec<u8>,
    urgent: bool,
    writer: &'a Writer,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if self.text.is_empty() {
            return;
        }
        self.writer.write(std::mem::take(&mut self.text));
        if self.urgent {
            self.writer.flush(PATIENCE);
        }
    }
}

/// What the subscriber holds of a [`Writer`].
pub(super) struct Lines(pub(super) Arc<Writer>);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { text: Vec::new(), urgent: false, writer: &self.0 }
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line<'a> {
        Line { text: Vec::new(), urgent: *meta.level() <= Level::WARN, writer: &self.0 }
    }
}
