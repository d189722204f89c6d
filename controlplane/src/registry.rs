//! Hosts: how they join, stay and leave, and what they may claim to be.
//!
//! The enrolment service and the issuer call it with what they have proved (peer address, host
//! certificate); the REST API calls it for operators. Every answer is decided in one transaction, so
//! that several replicas and racing hosts agree. Times come in as `now`.

mod claims;
mod hosts;
mod join;
mod leases;
mod renewal;
mod tokens;

pub use claims::{CertificateRecord, ClaimError, may_claim, record_certificate};
pub use hosts::{HostActionError, HostRecord, approve, delete, list, lock, revoke, unlock};
pub use join::{JoinAttempt, JoinError, JoinGrant, join};
pub use leases::{LeaveError, Report, ReportError, WorkloadReport, expire, keep_leases, leave, report};
pub use renewal::{RenewError, renew};
pub use tokens::{TokenCreateError, TokenRecord, create_token, list_tokens, revoke_token};

/// The uid of the workload that a host runs for a group.
pub fn workload_uid(namespace: &str, group: &str, host: &str) -> String {
    format!("tombolo/{namespace}/{group}/{host}")
}

/// Namespace and name of `NAMESPACE/NAME`.
pub(crate) fn parse_group(text: &str) -> Option<(String, String)> {
    let (namespace, name) = text.split_once('/')?;
    let usable = |part: &str| !part.is_empty() && !part.contains('/');
    (usable(namespace) && usable(name)).then(|| (namespace.to_owned(), name.to_owned()))
}

#[cfg(test)]
mod tests;
