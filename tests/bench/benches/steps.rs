//! `cargo bench -p bench`: how long each step takes. Counts of instructions (`make instructions`) are what
//! CI compares; these are for work on one step.

use bench::steps::STEPS;

fn main() {
    divan::main();
}

#[divan::bench(args = STEPS.iter().map(|step| step.0))]
fn step(bencher: divan::Bencher<'_, '_>, name: &str) {
    let Some((_, make)) = STEPS.iter().find(|step| step.0 == name) else { return };
    let mut take = make();
    bencher.bench_local(&mut *take);
}
