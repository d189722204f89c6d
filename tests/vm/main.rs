//! Machines: Debian with its real systemd, on which the agent is a service as any other.
//! Needs root and a Debian mirror for the first run; without them every test says so and fails, so
//! that nothing passes by not running.

mod copied;
mod credential;
mod documents;
mod hand_over;
mod loss;
mod machine;
mod names;
mod nss;
mod reboot;
mod service;
mod shop;
mod units;
