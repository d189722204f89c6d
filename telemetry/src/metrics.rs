//! The registry that rooms put their metrics in, its text form, and the process's own numbers.
//!
//! Each program makes one [`Registry`], calls [`register_process`] and hands it to its rooms; the
//! admin server's `/metrics` is [`encode_text`]. Names of traffic metrics are Istio's, ours start
//! with `tombolo_`. What a metric means is said where it is registered.

mod process;

pub use prometheus_client;
pub use prometheus_client::registry::Registry;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::info::Info;

use crate::build;

/// `Content-Type` of [`encode_text`]: OpenMetrics, which Prometheus and every collector reads.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Everything registered, as `/metrics` shows it.
pub fn encode_text(registry: &Registry) -> String {
    let mut text = String::new();
    match encode(&mut text, registry) {
        Ok(()) => text,
        // A collector of ours gave up half way: half a scrape is worse than none.
        Err(std::fmt::Error) => "# EOF\n".to_owned(),
    }
}

/// Adds what this process is and uses: `tombolo_build_info`, `tombolo_process_*` (memory,
/// descriptors, threads, CPU, start time; read from `/proc` at each scrape) and
/// `tombolo_log_lines_dropped_total`.
pub fn register_process(registry: &mut Registry) {
    let labels = [("version", build::VERSION), ("commit", build::COMMIT)];
    registry.register("tombolo_build", "Which build runs", Info::new(labels));
    registry.register_collector(Box::new(process::Process));
}

#[cfg(test)]
mod tests;
