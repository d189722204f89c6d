//! Which roots are trusted for which trust domain. Pure.
//!
//! One set per trust domain: a root of one domain never vouches for an identity of another
//! (dependencies.md §3.1). Filled from the control plane's answers and from `TrustBundle` resources.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::TrustDomain;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, TrustAnchor};

use crate::pem;

/// The roots of every trust domain that is known.
#[derive(Debug, Clone, Default)]
pub struct Bundles {
    domains: BTreeMap<TrustDomain, Arc<Roots>>,
}

#[derive(Debug, Default)]
struct Roots {
    certificates: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
}

/// A text or set of certificates is not a trust bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("the trust bundle of {trust_domain} is not PEM: certificate {position} cannot be decoded")]
    NotPem { trust_domain: TrustDomain, position: usize },
    #[error("the trust bundle of {trust_domain} holds no certificate")]
    Empty { trust_domain: TrustDomain },
    #[error("certificate {position} of the trust bundle of {trust_domain} is not a root certificate")]
    NotARoot { trust_domain: TrustDomain, position: usize, source: webpki::Error },
}

impl Bundles {
    /// Reads the PEM roots of one trust domain.
    pub fn from_pem(trust_domain: &TrustDomain, text: &str) -> Result<Self, BundleError> {
        let mut roots = Vec::new();
        for (index, der) in CertificateDer::pem_slice_iter(text.as_bytes()).enumerate() {
            let position = index + 1;
            roots.push(der.map_err(|_| BundleError::NotPem { trust_domain: trust_domain.clone(), position })?);
        }
        let mut bundles = Self::default();
        bundles.insert(trust_domain.clone(), roots)?;
        Ok(bundles)
    }

    /// Replaces the roots of one trust domain. Nothing changes when one of them is unusable.
    pub fn insert(
        &mut self,
        trust_domain: TrustDomain,
        certificates: Vec<CertificateDer<'static>>,
    ) -> Result<(), BundleError> {
        if certificates.is_empty() {
            return Err(BundleError::Empty { trust_domain });
        }
        let mut roots = Roots::default();
        for (index, der) in certificates.into_iter().enumerate() {
            let anchor = webpki::anchor_from_trusted_cert(&der).map(|anchor| anchor.to_owned()).map_err(|source| {
                BundleError::NotARoot { trust_domain: trust_domain.clone(), position: index + 1, source }
            })?;
            if !roots.certificates.contains(&der) {
                roots.anchors.push(anchor);
                roots.certificates.push(der);
            }
        }
        self.domains.insert(trust_domain, Arc::new(roots));
        Ok(())
    }

    /// Takes over every trust domain of `other`; where both know one, `other`'s roots count.
    pub fn merge(&mut self, other: Self) {
        self.domains.extend(other.domains);
    }

    pub fn remove(&mut self, trust_domain: &TrustDomain) {
        self.domains.remove(trust_domain);
    }

    pub fn trust_domains(&self) -> impl Iterator<Item = &TrustDomain> {
        self.domains.keys()
    }

    /// The roots of one trust domain, empty when it is not known.
    pub fn roots(&self, trust_domain: &TrustDomain) -> &[CertificateDer<'static>] {
        self.domains.get(trust_domain).map(|roots| roots.certificates.as_slice()).unwrap_or_default()
    }

    pub fn roots_pem(&self, trust_domain: &TrustDomain) -> String {
        pem::certificates(self.roots(trust_domain).iter().map(AsRef::as_ref))
    }

    pub(crate) fn anchors(&self, trust_domain: &TrustDomain) -> &[TrustAnchor<'static>] {
        self.domains.get(trust_domain).map(|roots| roots.anchors.as_slice()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
