//! End-to-end: real programs on hosts that are network namespaces, asked by real curl, nc and dig.
//! Needs root; without it every test says so and fails, so that nothing passes by not running.

mod bad_input;
mod connect;
mod enrolment;
mod hand_over;
mod hostile;
mod intercept;
mod metrics;
mod names;
mod operator;
mod outage;
mod policy;
mod shop;
mod soak;
mod tunnel;
