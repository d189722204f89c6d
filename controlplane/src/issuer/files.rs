//! The authority's files below DIR/ca, and how they come to be. Where it is given as credentials instead
//! (`credentials.rs`), of these only `ca.pem` is written.
//!
//! | file | mode | |
//! |---|---|---|
//! | `root.key`, `issuing.key` | 0600 | P-256, PKCS#8 |
//! | `root.pem` | 0644 | root certificate, 10 years |
//! | `issuing.pem` | 0644 | issuing certificate, 1 year, signs leaves only |
//! | `../ca.pem` | 0644 | the root, for curl and the CLI |
//!
//! Keys are written before the certificates made from them, each file appears whole (temporary name,
//! fsync, rename), and what is missing is made from what is there: a start that died at any point is
//! healed by the next.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use api::TrustDomain;
use identity::certificate::{Facts, ReadError};
use identity::{KeyError, KeyPair};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyUsagePurpose, SanType};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::FromDer;

use super::credentials::CredentialProblem;

const DAY: Duration = Duration::from_secs(86_400);
const ROOT_LIFETIME: Duration = Duration::from_secs(3652 * 86_400);
const ISSUING_LIFETIME: Duration = Duration::from_secs(365 * 86_400);
/// CA certificates begin a day in the past, for peers whose clock is behind.
const CA_BACKDATE: Duration = DAY;

/// The authority cannot be used. Every text names the file.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("cannot {doing} {}", path.display())]
    Io { doing: IoProblem, path: PathBuf, source: io::Error },
    #[error("{} can be read by others (mode {mode:04o}): chmod 600 it, or make a new authority if it leaked", path.display())]
    LooseKey { path: PathBuf, mode: u32 },
    #[error("{} is not a usable private key", path.display())]
    Key { path: PathBuf, source: KeyError },
    #[error("{} is not a usable certificate", path.display())]
    Certificate { path: PathBuf, source: ReadError },
    #[error("{} holds no certificate in PEM", path.display())]
    NotPem { path: PathBuf },
    #[error("{} and {} do not belong together: restore both from one backup", key.display(), certificate.display())]
    Mismatch { key: PathBuf, certificate: PathBuf },
    #[error("{} is not a CA certificate", path.display())]
    NotACa { path: PathBuf },
    #[error("{} was not signed by {}: restore both from one backup", issuing.display(), root.display())]
    NotSignedByRoot { issuing: PathBuf, root: PathBuf },
    #[error(
        "{} ended at {ended}: if this machine's clock, {now}, is wrong, set it (timedatectl set-ntp true); if not, \
         renew it where the root's key is (tombolo-controlplane ca renew)",
        path.display()
    )]
    Expired { path: PathBuf, ended: String, now: String },
    #[error(
        "{} begins at {begins}, and it is only {now} on this machine's clock: set the clock (timedatectl set-ntp true), \
         or make a new authority if it was right when that file was made",
        path.display()
    )]
    NotYetValid { path: PathBuf, begins: String, now: String },
    #[error("{} is missing and cannot be made without {}: restore them from a backup", missing.display(), needed.display())]
    Missing { missing: PathBuf, needed: PathBuf },
    #[error(transparent)]
    Credentials(#[from] CredentialProblem),
    #[error("{} names no trust domain, so it was not made here: renew what it signs with the tools that made it", path.display())]
    NoTrustDomain { path: PathBuf },
    #[error("{} is the authority of {found}, not of {wanted}: give the trust domain or the data directory it belongs to", path.display())]
    OtherTrustDomain { path: PathBuf, found: String, wanted: TrustDomain },
    #[error("a certificate of the authority could not be signed")]
    Sign(#[source] rcgen::Error),
    #[error("a key of the authority could not be made")]
    Generate(#[source] KeyError),
}

/// What was tried with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoProblem {
    Read,
    Write,
    MakeDirectory,
}

pub(super) struct CaFiles {
    dir: PathBuf,
    bundle: PathBuf,
}

pub(super) struct Loaded {
    pub(super) root: CertificateDer<'static>,
    pub(super) root_not_after: SystemTime,
    pub(super) roots_pem: String,
    pub(super) issuing: Issuing,
}

/// What signs leaves.
pub(super) struct Issuing {
    pub(super) issuer: rcgen::Issuer<'static, KeyPair>,
    pub(super) pem: String,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

pub(super) struct Certificate {
    pub(super) der: CertificateDer<'static>,
    pub(super) pem: String,
    pub(super) facts: Facts,
}

impl Issuing {
    /// A third of its life is left.
    pub(super) fn is_due(&self, now: SystemTime) -> bool {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        now + life / 3 >= self.not_after
    }
}

impl CaFiles {
    pub(super) fn new(data_dir: &Path) -> Self {
        Self { dir: data_dir.join("ca"), bundle: data_dir.join("ca.pem") }
    }

    /// The folder itself, wherever its operator keeps it.
    pub(super) fn of_folder(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), bundle: dir.join("ca.pem") }
    }

    pub(super) fn load_or_create(&self, trust_domain: &TrustDomain, now: SystemTime) -> Result<Loaded, CaError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.dir);
        made.map_err(|source| CaError::Io { doing: IoProblem::MakeDirectory, path: self.dir.clone(), source })?;
        let root_key = self.root_key()?;
        let root = self.root(root_key.as_ref(), trust_domain, now)?;
        let issuing = self.issuing(root_key.as_ref(), &root, trust_domain, now)?;
        let loaded = Loaded { root: root.der, root_not_after: root.facts.not_after, roots_pem: root.pem, issuing };
        self.write_bundle(&loaded)?;
        Ok(loaded)
    }

    pub(super) fn write_bundle(&self, loaded: &Loaded) -> Result<(), CaError> {
        if read(&self.bundle)?.as_deref() == Some(loaded.roots_pem.as_str()) {
            return Ok(());
        }
        write(&self.bundle, &loaded.roots_pem, 0o644)
    }

    /// Keys that are here although the authority is given as credentials.
    pub(super) fn left_keys(&self) -> Vec<PathBuf> {
        ["root.key", "issuing.key"].map(|name| self.path(name)).into_iter().filter(|path| path.exists()).collect()
    }

    /// A new issuing certificate, due or not, and a key for it where there is none; answers its end.
    pub(super) fn renew(&self, now: SystemTime) -> Result<SystemTime, CaError> {
        let root_key = read_key(&self.path("root.key"))?.ok_or_else(|| self.missing("root.key", "root.key"))?;
        let path = self.path("root.pem");
        let root = read_certificate(&path)?.ok_or_else(|| self.missing("root.pem", "root.pem"))?;
        let named = root.facts.uris.iter().find_map(|uri| uri.strip_prefix("spiffe://")?.parse().ok());
        let trust_domain: TrustDomain = named.ok_or(CaError::NoTrustDomain { path })?;
        let root = self.root(Some(&root_key), &trust_domain, now)?;
        let key = match read_key(&self.path("issuing.key"))? {
            Some(key) => key,
            None => self.make_key("issuing.key")?,
        };
        Ok(self.make_issuing(&key, &root_key, &root, &trust_domain, now)?.facts.not_after)
    }

    /// A new issuing certificate for the same key; `None` when the root's key is not here. Agents
    /// notice nothing: they trust the root and receive the intermediate with each leaf.
    pub(super) fn renew_issuing(
        &self,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Option<Issuing>, CaError> {
        let Some(root_key) = read_key(&self.path("root.key"))? else { return Ok(None) };
        let root = self.root(Some(&root_key), trust_domain, now)?;
        let key = read_key(&self.path("issuing.key"))?.ok_or_else(|| self.missing("issuing.key", "root.key"))?;
        let certificate = self.make_issuing(&key, &root_key, &root, trust_domain, now)?;
        Ok(Some(certificate.issuing(key)?))
    }

    /// The root's key; a new one where nothing exists yet.
    fn root_key(&self) -> Result<Option<KeyPair>, CaError> {
        let found = read_key(&self.path("root.key"))?;
        let begun = ["root.pem", "issuing.key", "issuing.pem"].iter().any(|name| self.path(name).exists());
        if found.is_some() || begun {
            return Ok(found);
        }
        self.make_key("root.key").map(Some)
    }

    fn root(&self, key: Option<&KeyPair>, trust_domain: &TrustDomain, now: SystemTime) -> Result<Certificate, CaError> {
        let path = self.path("root.pem");
        let root = match (read_certificate(&path)?, key) {
            (Some(root), _) => root,
            (None, Some(_)) if self.path("issuing.pem").exists() => return Err(self.missing("root.pem", "root.pem")),
            (None, Some(key)) => self.make_root(key, trust_domain, now)?,
            (None, None) => return Err(self.missing("root.pem", "root.key")),
        };
        if key.is_some_and(|key| key.public_key() != root.facts.public_key) {
            return Err(CaError::Mismatch { key: self.path("root.key"), certificate: path });
        }
        check_ca(&root, &path, trust_domain, now)?;
        Ok(root)
    }

    fn issuing(
        &self,
        root_key: Option<&KeyPair>,
        root: &Certificate,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Issuing, CaError> {
        let (key_path, path) = (self.path("issuing.key"), self.path("issuing.pem"));
        let found = read_certificate(&path)?;
        let key = match (read_key(&key_path)?, &found) {
            (Some(key), _) => key,
            (None, Some(_)) => return Err(self.missing("issuing.key", "issuing.key")),
            (None, None) if root_key.is_some() => self.make_key("issuing.key")?,
            (None, None) => return Err(self.missing("issuing.key", "root.key")),
        };
        let certificate = match (found, root_key) {
            (Some(found), _) if found.facts.public_key != key.public_key() => {
                return Err(CaError::Mismatch { key: key_path, certificate: path });
            }
            (Some(found), _) => {
                check_signed_by(&found, &path, root, &self.path("root.pem"))?;
                let due = found.issuing(key.clone())?.is_due(now);
                match root_key.filter(|_| due) {
                    Some(root_key) => self.make_issuing(&key, root_key, root, trust_domain, now)?,
                    None => found,
                }
            }
            (None, Some(root_key)) => self.make_issuing(&key, root_key, root, trust_domain, now)?,
            (None, None) => return Err(self.missing("issuing.pem", "root.key")),
        };
        check_ca(&certificate, &path, trust_domain, now)?;
        certificate.issuing(key)
    }

    fn make_key(&self, name: &str) -> Result<KeyPair, CaError> {
        let key = KeyPair::generate().map_err(CaError::Generate)?;
        write(&self.path(name), &key.to_pem(), 0o600)?;
        Ok(key)
    }

    fn make_root(&self, key: &KeyPair, td: &TrustDomain, now: SystemTime) -> Result<Certificate, CaError> {
        let name = format!("Tombolo root of {td}");
        let mut params = ca_params(&name, key, td, now, ROOT_LIFETIME)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        let made = params.self_signed(key).map_err(CaError::Sign)?;
        self.keep("root.pem", &made)
    }

    fn make_issuing(
        &self,
        key: &KeyPair,
        root_key: &KeyPair,
        root: &Certificate,
        td: &TrustDomain,
        now: SystemTime,
    ) -> Result<Certificate, CaError> {
        let name = format!("Tombolo issuing CA of {td}");
        let mut params = ca_params(&name, key, td, now, ISSUING_LIFETIME)?;
        let root_end = time::OffsetDateTime::from(root.facts.not_after);
        let root_begin = time::OffsetDateTime::from(root.facts.not_before);
        params.not_after = params.not_after.min(root_end);
        params.not_before = params.not_before.max(root_begin);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let issuer = rcgen::Issuer::from_ca_cert_der(&root.der, root_key.clone()).map_err(CaError::Sign)?;
        let made = params.signed_by(key, &issuer).map_err(CaError::Sign)?;
        self.keep("issuing.pem", &made)
    }

    fn keep(&self, name: &str, made: &rcgen::Certificate) -> Result<Certificate, CaError> {
        let path = self.path(name);
        write(&path, &made.pem(), 0o644)?;
        read_certificate(&path)?.ok_or(CaError::NotPem { path })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn missing(&self, missing: &str, needed: &str) -> CaError {
        CaError::Missing { missing: self.path(missing), needed: self.path(needed) }
    }
}

impl Certificate {
    pub(super) fn issuing(&self, key: KeyPair) -> Result<Issuing, CaError> {
        let issuer = rcgen::Issuer::from_ca_cert_der(&self.der, key).map_err(CaError::Sign)?;
        let (not_before, not_after) = (self.facts.not_before, self.facts.not_after);
        Ok(Issuing { issuer, pem: self.pem.clone(), not_before, not_after })
    }
}

fn ca_params(
    name: &str,
    key: &KeyPair,
    trust_domain: &TrustDomain,
    now: SystemTime,
    lifetime: Duration,
) -> Result<CertificateParams, CaError> {
    use sha2::Digest;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Tombolo");
    // A common name has 64 characters at most (RFC 5280 appendix A.1); the URI below has the whole.
    params.distinguished_name.push(DnType::CommonName, name.chars().take(64).collect::<String>());
    // The name of a CA that was made anew must differ: verifiers look issuers up by it.
    let key_hash = data_encoding::HEXLOWER.encode(&sha2::Sha256::digest(key.public_key())[..8]);
    params.distinguished_name.push(DnType::OrganizationalUnitName, key_hash);
    let uri = format!("spiffe://{trust_domain}");
    params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().map_err(CaError::Sign)?)];
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(super::random_serial().map_err(|_| CaError::Generate(KeyError::Random))?);
    params.not_before = (now - CA_BACKDATE).into();
    params.not_after = (now + lifetime).into();
    Ok(params)
}

pub(super) fn check_ca(
    certificate: &Certificate,
    path: &Path,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<(), CaError> {
    let (facts, path) = (&certificate.facts, path.to_owned());
    if !facts.is_ca || !facts.cert_sign {
        return Err(CaError::NotACa { path });
    }
    if facts.not_after <= now {
        return Err(CaError::Expired { path, ended: show(facts.not_after), now: show(now) });
    }
    if now < facts.not_before {
        return Err(CaError::NotYetValid { path, begins: show(facts.not_before), now: show(now) });
    }
    // An operator's own CA may name no trust domain; one that does must name ours.
    let own = format!("spiffe://{trust_domain}");
    let other = facts.uris.iter().find(|uri| uri.starts_with("spiffe://") && **uri != own);
    if let Some(uri) = other {
        let found = uri.trim_start_matches("spiffe://").to_owned();
        return Err(CaError::OtherTrustDomain { path, found, wanted: trust_domain.clone() });
    }
    Ok(())
}

pub(super) fn check_signed_by(
    issuing: &Certificate,
    issuing_path: &Path,
    root: &Certificate,
    root_path: &Path,
) -> Result<(), CaError> {
    let refused = || CaError::NotSignedByRoot { issuing: issuing_path.to_owned(), root: root_path.to_owned() };
    let (_, issuing) = x509_parser::certificate::X509Certificate::from_der(&issuing.der).map_err(|_| refused())?;
    let (_, root) = x509_parser::certificate::X509Certificate::from_der(&root.der).map_err(|_| refused())?;
    if issuing.issuer() != root.subject() {
        return Err(refused());
    }
    issuing.verify_signature(Some(root.public_key())).map_err(|_| refused())
}

fn read_key(path: &Path) -> Result<Option<KeyPair>, CaError> {
    let Some(text) = read(path)?.map(zeroize::Zeroizing::new) else { return Ok(None) };
    let failed = |source| CaError::Io { doing: IoProblem::Read, path: path.to_owned(), source };
    let mode = fs::metadata(path).map_err(failed)?.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(CaError::LooseKey { path: path.to_owned(), mode });
    }
    parse_key(&text, path).map(Some)
}

pub(super) fn parse_key(text: &str, path: &Path) -> Result<KeyPair, CaError> {
    KeyPair::from_pem(text).map_err(|source| CaError::Key { path: path.to_owned(), source })
}

pub(super) fn read_certificate(path: &Path) -> Result<Option<Certificate>, CaError> {
    let Some(pem) = read(path)? else { return Ok(None) };
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| CaError::NotPem { path: path.to_owned() })?;
    let facts = Facts::read(&der).map_err(|source| CaError::Certificate { path: path.to_owned(), source })?;
    Ok(Some(Certificate { der, pem, facts }))
}

/// `None` when there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<String>, CaError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CaError::Io { doing: IoProblem::Read, path: path.to_owned(), source }),
    }
}

/// The file appears whole or not at all, and is on disk when this returns.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), CaError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.new"));
    let written = write_whole(&temporary, text, mode)
        .and_then(|()| fs::rename(&temporary, path))
        .and_then(|()| File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all());
    written.map_err(|source| CaError::Io { doing: IoProblem::Write, path: path.to_owned(), source })
}

fn write_whole(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    // What a start that died left behind, perhaps with another mode.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    // Whatever the umask.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// RFC 3339.
pub(super) fn show(at: SystemTime) -> String {
    use time::format_description::well_known::Rfc3339;
    time::OffsetDateTime::from(at).format(&Rfc3339).unwrap_or_default()
}

impl std::fmt::Display for IoProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::MakeDirectory => "make the directory",
        })
    }
}
