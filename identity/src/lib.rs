//! Proof of who: keys, SVIDs, trust bundles, the TLS verifiers that read them, and when to renew.
//!
//! Called by the proxy (HBONE), the agent (issuance, control plane connection) and the control
//! plane (server side). Does no I/O, starts no task and reads no clock: `now` is passed in.

pub mod bundle;
pub mod certificate;
pub mod credentials;
pub mod key;
mod pem;
pub mod rotation;
pub mod svid;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod verifier;

pub use bundle::{BundleError, Bundles};
pub use credentials::Credentials;
pub use key::{CsrError, KeyError, KeyPair};
pub use svid::{Svid, SvidError};
pub use verifier::VerifyError;

/// Namespace of the mesh's own parts; the control plane's identity is
/// `spiffe://TRUST-DOMAIN/ns/tombolo-system/sa/controlplane`.
pub const SYSTEM_NAMESPACE: &str = "tombolo-system";
/// Service account of the control plane.
pub const CONTROL_PLANE_ACCOUNT: &str = "controlplane";

/// The identity that a control plane of this trust domain proves to its agents.
pub fn control_plane_id(trust_domain: &api::TrustDomain) -> api::SpiffeId {
    api::SpiffeId::workload(trust_domain, SYSTEM_NAMESPACE, CONTROL_PLANE_ACCOUNT)
        .expect("both names above are valid path segments")
}
