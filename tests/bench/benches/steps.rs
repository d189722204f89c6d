//! `cargo bench -p bench`: how long each step takes. Counts of instructions (`make instructions`) are what
//! CI compares; these are for work on one step.

use bench::steps::{STEPS, move_endpoint_of, take_endpoint_of};

fn main() {
    divan::main();
}

#[divan::bench(args = STEPS.iter().map(|step| step.0))]
fn step(bencher: divan::Bencher<'_, '_>, name: &str) {
    let Some((_, make)) = STEPS.iter().find(|step| step.0 == name) else { return };
    let mut take = make();
    bencher.bench_local(&mut *take);
}

/// Promised: at most a millisecond in a mesh of fifty thousand workloads.
#[divan::bench(args = [50, 50_000])]
fn take_one_changed_endpoint_in_a_mesh_of(bencher: divan::Bencher<'_, '_>, n_workloads: u32) {
    let mut take = take_endpoint_of(n_workloads);
    bencher.bench_local(&mut *take);
}

/// What the kernel needs for it is printed by `cargo test -p agent --test intercept -- --nocapture applying_is_fast`.
#[divan::bench(args = [50, 50_000])]
fn find_what_one_moved_endpoint_changes_in_a_mesh_of(bencher: divan::Bencher<'_, '_>, n_workloads: u32) {
    let mut take = move_endpoint_of(n_workloads);
    bencher.bench_local(&mut *take);
}
