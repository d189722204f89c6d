//! What the micro-benchmarks and the instruction counts share: a made-up mesh, and the steps that matter.

pub mod steps;
pub mod world;
