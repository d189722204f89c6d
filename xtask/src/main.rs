//! Maintenance tasks, run as `cargo xtask TASK`. Product builds never need them: what `codegen` makes is
//! checked in, and `package` comes after them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Parser;

mod package;

/// Maintenance tasks of the workspace.
#[derive(Parser)]
enum Task {
    /// Generates `api/src/wire/gen/` from `api/proto/`; with --check, only says whether it is fresh.
    Codegen {
        /// Change nothing; fail when the checked-in files differ from what would be made.
        #[arg(long)]
        check: bool,
    },
    /// Makes debs and rpms of built programs, as packaging/packages.toml describes them.
    Package(package::PackageArgs),
}

fn main() -> Result<()> {
    match Task::parse() {
        Task::Codegen { check } => codegen(check),
        Task::Package(args) => package::run(args),
    }
}

/// protox is a protobuf compiler in Rust, so neither this task nor any build needs `protoc`.
fn codegen(check: bool) -> Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent folder")?;
    let protos = workspace.join("api/proto");
    let target = workspace.join("api/src/wire/gen");
    let out = if check { workspace.join("target/codegen-check") } else { target.clone() };
    std::fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;

    let files = [
        "envoy/service/discovery/v3/discovery.proto",
        "istio/workload.proto",
        "istio/authorization.proto",
        "istio/ca.proto",
        "tombolo/v1/tombolo.proto",
    ];
    let descriptors = protox::compile(files, [&protos])?;
    tonic_prost_build::configure()
        .out_dir(&out)
        .btree_map(".")
        .compile_fds(descriptors)
        .context("cannot generate code")?;

    if check {
        for made in std::fs::read_dir(&out)? {
            let made: PathBuf = made?.path();
            let kept = target.join(made.file_name().context("a generated file has no name")?);
            let same = std::fs::read(&made)? == std::fs::read(&kept).unwrap_or_default();
            anyhow::ensure!(same, "{} is stale: run `cargo xtask codegen` and commit it", kept.display());
        }
    }
    Ok(())
}
