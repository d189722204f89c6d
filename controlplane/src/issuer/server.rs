//! The control plane's own server certificate, for 15012 and 15014.
//!
//! Its key is made at start and never leaves memory. A handshake after half of the certificate's
//! life signs a new one first, so there is no task that could die and let it run out.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use identity::{KeyPair, Svid, control_plane_id};
use rcgen::SanType;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::{HOST_LIFETIME, Issuer, SignError, spki};

pub(super) struct ServerCertificate {
    issuer: Issuer,
    names: Vec<SanType>,
    key: KeyPair,
    current: Mutex<Current>,
}

struct Current {
    svid: Svid,
    renew_at: SystemTime,
}

impl ServerCertificate {
    pub(super) fn new(issuer: Issuer, names: &[String]) -> Result<Self, SignError> {
        let names = names.iter().map(|name| alternative_name(name)).collect::<Result<Vec<_>, _>>()?;
        let key = KeyPair::generate().map_err(|_| SignError::Random)?;
        let current = Mutex::new(issue(&issuer, &names, &key, SystemTime::now())?);
        Ok(Self { issuer, names, key, current })
    }

    pub(super) fn certified(&self, now: SystemTime) -> Arc<CertifiedKey> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if now >= current.renew_at {
            match issue(&self.issuer, &self.names, &self.key, now) {
                Ok(renewed) => *current = renewed,
                Err(error) => tracing::error!(
                    error = %telemetry::Chain(&error),
                    "the control plane's server certificate could not be renewed"
                ),
            }
        }
        current.svid.certified()
    }
}

/// Presents leaf, intermediate and root: a joining host finds its pin in the chain.
fn issue(issuer: &Issuer, names: &[SanType], key: &KeyPair, now: SystemTime) -> Result<Current, SignError> {
    let identity = control_plane_id(issuer.trust_domain());
    let signed = issuer.sign_key(&spki(key)?, &identity, names, HOST_LIFETIME, now)?;
    let chain = signed.chain_pem.concat() + &signed.roots_pem;
    let svid = Svid::from_pem(&chain, key).map_err(SignError::Unusable)?;
    Ok(Current { svid, renew_at: now + HOST_LIFETIME / 2 })
}

fn alternative_name(name: &str) -> Result<SanType, SignError> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let refused = || SignError::ServerName { name: name.to_owned() };
    rustls::pki_types::DnsName::try_from(name).map_err(|_| refused())?;
    name.try_into().map(SanType::DnsName).map_err(|_| refused())
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.certified(SystemTime::now()))
    }
}

impl std::fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ServerCertificate({:?})", self.names)
    }
}
