//! The whole data plane with real sockets on loopback: two hosts in one process, and peers made of a
//! bare HTTP/2 library in place of ztunnel.

mod abuse;
mod certificates;
mod flow;
mod hand_over;
mod kernel;
mod lifetime;
mod mesh;
mod outbound;
mod peers;
mod policy;
mod size;
mod traffic;
