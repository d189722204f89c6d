//! The packages as administrators meet them: made, signed, served over HTTP, installed on booted Debian
//! machines by apt and dnf, upgraded, downgraded, removed and purged.
//!
//! They are made of the programs beside the running test, or of those in `TOMBOLO_PROGRAMS`.

mod authority;
mod bad;
mod controlplane;
mod deb;
mod documents;
mod images;
mod quality;
mod rpm;
mod site;
