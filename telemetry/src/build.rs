//! Which build this is: for `--version`, the `tombolo_build_info` metric and the first log line.

/// Version of the workspace, such as `0.1.0`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit that was built, as the release build says in `TOMBOLO_COMMIT`; else `unknown`.
pub const COMMIT: &str = match option_env!("TOMBOLO_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};
