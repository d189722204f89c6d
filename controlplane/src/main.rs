//! `tombolo-controlplane`: see `cli.rs` for what it takes and `run.rs` for what it does.

use std::process::ExitCode;

fn main() -> ExitCode {
    telemetry::nss::pin();
    // A second call would be an error; this is the first.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    controlplane::cli::run()
}
