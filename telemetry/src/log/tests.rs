//! What a log line looks like and which are let through.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tracing_subscriber::layer::SubscriberExt;

use super::writer::{Lines, Writer};
use super::{ACCESS, Format, LogError, line_layer, lines_dropped, parse};

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no writer panicked").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is written while `work` runs.
fn logged(format: Format, filter: &str, work: impl FnOnce()) -> String {
    let sink = Sink::default();
    let writer = Arc::new(Writer::spawn(sink.clone()).expect("a thread"));
    let filter = parse(filter).expect("a filter");
    let subscriber = tracing_subscriber::registry().with(filter).with(line_layer(format, Lines(writer.clone())));
    tracing::subscriber::with_default(subscriber, work);
    writer.flush(Duration::from_secs(5));
    let written = sink.0.lock().expect("no writer panicked").clone();
    String::from_utf8(written).expect("text")
}

fn events() {
    tracing::info!(revision = 7, "snapshot {} applied", 7);
    tracing::debug!("a detail");
    tracing::info!(target: ACCESS, bytes_sent = 3, src.addr = "10.0.0.1:1", "connection closed");
}

#[test]
fn text_is_one_line_an_event_with_an_rfc3339_time() {
    let text = logged(Format::Text, "info", events);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    let time = lines[0].split_whitespace().next().expect("a time");
    assert!(time.len() == "2026-01-01T00:00:00.000000Z".len() && time.ends_with('Z') && &time[10..11] == "T", "{time}");
    assert!(lines[0].contains(" INFO ") && lines[0].ends_with("snapshot 7 applied revision=7"), "{text}");
    assert!(!text.contains('\u{1b}'), "no colour codes in files");
}

#[test]
fn json_has_the_fields_at_the_top() {
    let text = logged(Format::Json, "info", || {
        let span = tracing::info_span!("connection", workload.id = "shop/orders");
        let _entered = span.enter();
        events();
    });
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines[0]["message"], "snapshot 7 applied");
    assert_eq!(lines[0]["revision"], 7);
    assert_eq!(lines[0]["level"], "INFO");
    assert_eq!(lines[0]["span"]["workload.id"], "shop/orders");
    assert_eq!(lines[1]["target"], ACCESS);
    assert_eq!(lines[1]["src.addr"], "10.0.0.1:1");
    assert_eq!(lines[1]["bytes_sent"], 3);
}

#[test]
fn filters_let_through_what_they_say() {
    let count = |filter: &str| logged(Format::Text, filter, events).lines().count();
    assert_eq!(count("info"), 2);
    assert_eq!(count("debug"), 3);
    assert_eq!(count("info,access=off"), 1);
    assert_eq!(count("off,access=info"), 1);
    assert_eq!(count(""), 2);
    for mistake in ["info,=,][", "wran", "info,proxy", "proxy=loud"] {
        assert!(matches!(parse(mistake), Err(LogError::Filter { .. })), "{mistake}");
    }
}

#[test]
fn a_stalled_reader_costs_lines_and_not_time() {
    struct Stalled(std::sync::mpsc::Receiver<()>);
    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (go_on, stalled) = std::sync::mpsc::channel();
    let writer = Arc::new(Writer::spawn(Stalled(stalled)).expect("a thread"));
    let layer = line_layer(Format::Text, Lines(writer.clone()));
    let before = lines_dropped();
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
        for line in 0..20_000 {
            tracing::info!(line, "goes on");
        }
    });
    assert!(lines_dropped() - before > 10_000, "{}", lines_dropped() - before);
    drop(go_on);
    writer.flush(Duration::from_secs(5));
}

#[test]
fn lines_that_wait_are_written_together() {
    struct Counted(std::sync::mpsc::Receiver<()>, Arc<Mutex<Vec<usize>>>);
    impl Write for Counted {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            self.1.lock().expect("no writer panicked").push(bytes.iter().filter(|byte| **byte == b'\n').count());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (go_on, waits) = std::sync::mpsc::channel();
    let writes = Arc::new(Mutex::new(Vec::new()));
    let writer = Arc::new(Writer::spawn(Counted(waits, writes.clone())).expect("a thread"));
    let layer = line_layer(Format::Text, Lines(writer.clone()));
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
        for line in 0..100 {
            tracing::info!(line, "goes on");
        }
    });
    drop(go_on);
    writer.flush(Duration::from_secs(5));
    let writes = writes.lock().expect("no writer panicked").clone();
    assert_eq!(writes.iter().sum::<usize>(), 100, "{writes:?}");
    // The first of them could not know of the others.
    assert!(writes.len() <= 2, "{writes:?}");
}
