//! The authority as systemd credentials: given to this service alone by its manager, and nowhere in the
//! data directory.
//!
//! | credential | is |
//! |---|---|
//! | `ca-root-cert` | root certificate |
//! | `ca-issuing-cert` | issuing certificate, signed by the root |
//! | `ca-issuing-key` | its key |
//!
//! Each may be there as `tombolo-controlplane.NAME.cred` instead: what the unit calls those that it decrypts,
//! as systemd wants for them another name than for the plain ones. All three are there or none. The root's key is
//! not among them: it stays where it is used, once a year, by `tombolo-controlplane ca renew`.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use api::TrustDomain;
use identity::KeyPair;

use super::files::{CaError, Certificate, Loaded, check_ca, check_signed_by, parse_key, read, read_certificate};

/// What is given is no authority. Every text names the credential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialProblem {
    #[error(
        "the credential {} is given and {missing} is not: the authority is ca-root-cert, ca-issuing-cert and \
         ca-issuing-key, all or none (/etc/credstore/tombolo-controlplane.{missing})",
        given.display()
    )]
    Missing { given: PathBuf, missing: &'static str },
    #[error("{} is given twice, also as {}: remove one of them from the credential store", plain.display(), encrypted.display())]
    Twice { plain: PathBuf, encrypted: PathBuf },
}

/// Where each of the three is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaCredentials {
    root_cert: PathBuf,
    issuing_cert: PathBuf,
    issuing_key: PathBuf,
}

impl CaCredentials {
    /// Looks into systemd's `$CREDENTIALS_DIRECTORY`; `None` when nothing of an authority is there.
    pub fn find(folder: &Path) -> Result<Option<Self>, CredentialProblem> {
        let [root_cert, issuing_cert, issuing_key] = NAMES;
        match [find(folder, root_cert)?, find(folder, issuing_cert)?, find(folder, issuing_key)?] {
            [None, None, None] => Ok(None),
            [Some(root_cert), Some(issuing_cert), Some(issuing_key)] => {
                Ok(Some(Self { root_cert, issuing_cert, issuing_key }))
            }
            some => {
                let missing = NAMES.into_iter().zip(&some).find(|(_, path)| path.is_none());
                let missing = missing.map(|(name, _)| name).unwrap_or_default();
                let given = some.into_iter().flatten().next().unwrap_or_default();
                Err(CredentialProblem::Missing { given, missing })
            }
        }
    }

    pub(super) fn load(&self, trust_domain: &TrustDomain, now: SystemTime) -> Result<Loaded, CaError> {
        let root = certificate(&self.root_cert)?;
        check_ca(&root, &self.root_cert, trust_domain, now)?;
        let certificate = certificate(&self.issuing_cert)?;
        let key = self.key(&certificate)?;
        check_signed_by(&certificate, &self.issuing_cert, &root, &self.root_cert)?;
        check_ca(&certificate, &self.issuing_cert, trust_domain, now)?;
        let issuing = certificate.issuing(key)?;
        Ok(Loaded { root_not_after: root.facts.not_after, root: root.der, roots_pem: root.pem, issuing })
    }

    /// The certificate's. Who may read it is systemd's affair: what `stat` shows is the mask of an ACL.
    fn key(&self, certificate: &Certificate) -> Result<KeyPair, CaError> {
        let path = &self.issuing_key;
        let text = zeroize::Zeroizing::new(read(path)?.ok_or_else(|| gone(path))?);
        let key = parse_key(&text, path)?;
        if key.public_key() != certificate.facts.public_key {
            return Err(CaError::Mismatch { key: path.clone(), certificate: self.issuing_cert.clone() });
        }
        Ok(key)
    }
}

fn find(folder: &Path, name: &str) -> Result<Option<PathBuf>, CredentialProblem> {
    let (plain, encrypted) = (folder.join(name), folder.join(format!("tombolo-controlplane.{name}.cred")));
    match (plain.exists(), encrypted.exists()) {
        (true, true) => Err(CredentialProblem::Twice { plain, encrypted }),
        (true, false) => Ok(Some(plain)),
        (false, true) => Ok(Some(encrypted)),
        (false, false) => Ok(None),
    }
}

fn certificate(path: &Path) -> Result<Certificate, CaError> {
    read_certificate(path)?.ok_or_else(|| gone(path))
}

/// It was there a moment ago.
fn gone(path: &Path) -> CaError {
    CaError::Missing { missing: path.to_owned(), needed: path.to_owned() }
}

const NAMES: [&str; 3] = ["ca-root-cert", "ca-issuing-cert", "ca-issuing-key"];
