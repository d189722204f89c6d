//! Interception in real network namespaces, with the kernel's own `nft`, `ip` and sockets.
//!
//! Each test makes two hosts joined by a cable: `a` has the agent's rules, `b` is somebody else. All
//! of it needs root; without it the tests say so and pass.

mod exclusions;
mod inbound;
mod lab;
mod life;
mod outbound;
mod roles;
mod rules;
mod source;
mod speed;
