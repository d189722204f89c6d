//! Keeps the certificates of the host and of its workloads fresh.
//!
//! `identity::rotation` says when, without a clock of its own; this file makes the key and the
//! request, asks the control plane over mTLS, checks what comes back before anything uses it,
//! publishes it to [`Credentials`] and keeps it on disk. The old certificate stays in use while it is
//! valid. Each identity's trouble is logged when it begins and when it ends, not at every attempt.
//! Keys never leave the host and are never logged.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use api::wire::ca::IstioCertificateRequest;
use api::wire::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use api::wire::tombolo::RenewHostRequest;
use api::wire::tombolo::enrolment_client::EnrolmentClient;
use api::{Snapshot, SpiffeId};
use futures_util::future::join_all;
use identity::rotation::Rotation;
use identity::{Bundles, Credentials, KeyPair, Svid, VerifyError};
use prost_types::value::Kind;
use proxy::drain::DrainWatch;
use proxy::view::View;
use telemetry::Chain;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::connect::{self, Link};
use crate::state::{HostIdentity, StateDir, StateError};

/// Requests in flight at one time (ztunnel's, `src/identity/manager.rs`).
const PARALLEL: usize = 8;
/// One request's limit.
const LIMIT: Duration = Duration::from_secs(20);
/// What is asked for; the issuer decides (issue: workload certificates live 1 h).
const VALIDITY_S: i64 = 3600;
/// The longest sleep, so that a clock that was set is noticed.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// How often certificates that another process renews are looked for on disk.
const FOLLOW: Duration = Duration::from_secs(30);

/// How each certificate stands, for `status`: identity to state and last problem.
#[derive(Debug, Clone, Default)]
pub struct Standing(Arc<Mutex<BTreeMap<SpiffeId, Stands>>>);

/// One certificate's standing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stands {
    pub renews_at: SystemTime,
    /// Why the last attempt failed; empty when it did not.
    pub problem: String,
}

/// The task and all it needs.
pub struct Issuance {
    link: Link,
    credentials: Credentials,
    state: StateDir,
    view: View,
    identity: HostIdentity,
    rotations: BTreeMap<SpiffeId, Rotation>,
    standing: Standing,
}

/// Why one certificate was not obtained.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    #[error("no key or request can be made: {problem}")]
    Request { problem: String },
    #[error("{problem}")]
    Refused { problem: String },
    #[error("no answer within {LIMIT:?}")]
    TimedOut,
    #[error("the answer holds no certificate that can be used")]
    Unusable(#[source] identity::SvidError),
    #[error("the answer certifies {found}")]
    OtherIdentity { found: SpiffeId },
    #[error("the certificate of the answer is not valid here")]
    Invalid(#[source] VerifyError),
}

impl Standing {
    pub fn of(&self, identity: &SpiffeId) -> Option<Stands> {
        self.lock().get(identity).cloned()
    }

    /// Those whose last attempt failed, and why.
    pub fn failing(&self) -> Vec<(SpiffeId, String)> {
        let failing = |(identity, stands): (&SpiffeId, &Stands)| (identity.clone(), stands.problem.clone());
        self.lock().iter().filter(|(_, stands)| !stands.problem.is_empty()).map(failing).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<SpiffeId, Stands>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Issuance {
    /// Takes what is on disk for the host's workloads, so that they serve before anything is asked.
    pub fn new(link: Link, credentials: Credentials, state: StateDir, view: View, identity: HostIdentity) -> Self {
        let standing = Standing::default();
        let mut made = Self { link, credentials, state, view, identity, rotations: BTreeMap::new(), standing };
        made.follow(SystemTime::now());
        made
    }

    pub fn standing(&self) -> Standing {
        self.standing.clone()
    }

    /// Renews until the drain.
    pub async fn run(mut self, mut connected: watch::Receiver<bool>, drain: DrainWatch) {
        let mut changed = self.view.subscribe();
        // An agent that this one took over from may have counted on.
        if let Ok(Some(identity)) = self.state.identity() {
            self.identity = identity;
        }
        loop {
            let now = SystemTime::now();
            self.follow(now);
            let due: Vec<SpiffeId> = self.due(now);
            let attempts = due.chunks(PARALLEL).next().unwrap_or_default().to_vec();
            if !attempts.is_empty() {
                tokio::select! {
                    () = self.renew(attempts) => {}
                    () = drain.signaled() => return,
                }
                continue;
            }
            let now = SystemTime::now();
            let sleep = self.rotations.values().map(|rotation| rotation.wait(now)).min().unwrap_or(LONGEST_SLEEP);
            tokio::select! {
                () = tokio::time::sleep(sleep.min(LONGEST_SLEEP)) => {}
                _ = changed.changed() => {}
                _ = connected.changed() => self.retry_now(*connected.borrow_and_update()),
                () = drain.signaled() => return,
            }
        }
    }

    /// Whom this host must be able to prove, as the snapshot says; new ones begin from disk.
    fn follow(&mut self, now: SystemTime) {
        let wanted = wanted(&self.view.load(), &self.credentials, self.link.host());
        let gone: Vec<SpiffeId> = self.rotations.keys().filter(|id| !wanted.contains(id)).cloned().collect();
        for identity in &gone {
            info!(identity = %identity, "this host does not run {identity} any more: its certificate is withdrawn");
            self.rotations.remove(identity);
            self.standing.lock().remove(identity);
            self.credentials.withdraw(identity);
        }
        let knows_its_workloads = self.view.load().host().is_some();
        if knows_its_workloads
            && (!gone.is_empty() || self.rotations.is_empty())
            && let Err(error) = self.state.keep_workload_svids(&wanted)
        {
            warn!(error = %Chain(&error), "certificates of workloads that are gone stay on disk");
        }
        for identity in wanted {
            if !self.rotations.contains_key(&identity) {
                let rotation = self.begin(&identity, now);
                self.rotations.insert(identity.clone(), rotation);
                self.tell(&identity, now, String::new());
            }
        }
    }

    fn begin(&self, identity: &SpiffeId, now: SystemTime) -> Rotation {
        let mut rotation = Rotation::new(seed(self.link.host(), identity));
        let held = self.credentials.svid(identity).or_else(|| {
            let svid = stored(&self.state, &self.credentials, identity, now)?;
            self.credentials.publish(svid);
            self.credentials.svid(identity)
        });
        if let Some(svid) = held {
            rotation.renewed(svid.not_before(), svid.not_after(), now);
        }
        rotation
    }

    /// Due ones, the host's own first: the others are asked for with it.
    fn due(&self, now: SystemTime) -> Vec<SpiffeId> {
        let due = self.rotations.iter().filter(|(_, rotation)| rotation.wait(now).is_zero());
        let mut due: Vec<SpiffeId> = due.map(|(identity, _)| identity.clone()).collect();
        due.sort_by_key(|identity| identity.host_name().is_none());
        due
    }

    /// The control plane is back: what failed while it was away need not wait longer.
    fn retry_now(&mut self, connected: bool) {
        let host = self.link.host().clone();
        for (identity, rotation) in
            self.rotations.iter_mut().filter(|(_, rotation)| connected && rotation.failures() > 0)
        {
            let mut fresh = Rotation::new(seed(&host, identity));
            if let Some(svid) = self.credentials.svid(identity) {
                fresh.renewed(svid.not_before(), svid.not_after(), SystemTime::now());
            }
            *rotation = fresh;
        }
    }

    async fn renew(&mut self, identities: Vec<SpiffeId>) {
        let host = self.link.host().clone();
        if identities.contains(&host) {
            let obtained = limited(self.renew_host()).await;
            self.settle(host.clone(), obtained);
        }
        let others: Vec<SpiffeId> = identities.into_iter().filter(|identity| *identity != host).collect();
        let obtained = join_all(others.iter().map(|identity| limited(self.issue(identity)))).await;
        for (identity, obtained) in others.into_iter().zip(obtained) {
            self.settle(identity, obtained);
        }
    }

    /// Publishes and keeps what was obtained, or says once why it was not.
    fn settle(&mut self, identity: SpiffeId, obtained: Result<Svid, IssueError>) {
        let now = SystemTime::now();
        let problem = match obtained {
            Ok(svid) => {
                if let Some(rotation) = self.rotations.get_mut(&identity) {
                    rotation.renewed(svid.not_before(), svid.not_after(), now);
                }
                if let Err(error) = self.keep(&svid) {
                    warn!(identity = %identity, error = %Chain(&error), "the certificate for {identity} is in use but not on disk");
                }
                info!(identity = %identity, serial = svid.serial(), "certificate for {identity} obtained, valid until {}", rfc3339(svid.not_after()));
                self.credentials.publish(svid);
                String::new()
            }
            Err(error) => {
                if let Some(rotation) = self.rotations.get_mut(&identity) {
                    rotation.failed(now);
                }
                Chain(&error).to_string()
            }
        };
        let news = self.tell(&identity, now, problem.clone());
        if news && !problem.is_empty() {
            let standing = match self.credentials.svid(&identity) {
                Some(svid) if svid.is_valid_at(now) => {
                    format!("the old one is valid until {}", rfc3339(svid.not_after()))
                }
                Some(svid) => format!("the old one ended at {}", rfc3339(svid.not_after())),
                None => "there is none".to_owned(),
            };
            warn!(identity = %identity, error = problem, "certificate for {identity} not renewed, {standing}");
        }
    }

    /// Answers whether the problem is news.
    fn tell(&self, identity: &SpiffeId, now: SystemTime, problem: String) -> bool {
        let renews_at = now + self.rotations.get(identity).map_or(Duration::ZERO, |rotation| rotation.wait(now));
        let before = self.standing.lock().insert(identity.clone(), Stands { renews_at, problem: problem.clone() });
        before.is_none_or(|before| before.problem != problem)
    }

    fn keep(&self, svid: &Svid) -> Result<(), StateError> {
        match svid.identity().host_name() {
            Some(_) => self.state.set_host_chain(&svid.chain_pem()),
            None => self.state.set_workload_svid(svid.identity(), &svid.key_pem(), &svid.chain_pem()),
        }
    }

    /// Over mTLS with the certificate that is renewed; the host keeps its key.
    async fn renew_host(&mut self) -> Result<Svid, IssueError> {
        let host = self.link.host().clone();
        let key = self.credentials.svid(&host).map(|svid| svid.key().clone());
        let key = key.ok_or_else(|| IssueError::Request { problem: "the host's key is not loaded".to_owned() })?;
        let csr = key.csr(Some(&host)).map_err(|error| IssueError::Request { problem: Chain(&error).to_string() })?;
        let request = RenewHostRequest { csr, join_sequence: self.identity.join_sequence };
        let answer = EnrolmentClient::new(self.link.channel()).renew_host(request).await;
        let answer = answer.map_err(|status| IssueError::Refused { problem: connect::explain(&status) })?.into_inner();
        // Counted from here on, whatever the certificate is worth: an old number would look like a clone.
        self.identity.join_sequence = answer.join_sequence;
        if let Err(error) = self.state.set_identity(&self.identity) {
            warn!(error = %Chain(&error), "the join sequence is not on disk: a crash before it is makes this host look like a clone");
        }
        self.accept(&host, &answer.cert_chain, &answer.roots, &key)
    }

    async fn issue(&self, identity: &SpiffeId) -> Result<Svid, IssueError> {
        let failed = |problem: String| IssueError::Request { problem };
        let key = KeyPair::generate().map_err(|error| failed(Chain(&error).to_string()))?;
        let csr = key.csr(Some(identity)).map_err(|error| failed(Chain(&error).to_string()))?;
        let wanted = prost_types::Value { kind: Some(Kind::StringValue(identity.to_string())) };
        let metadata = prost_types::Struct { fields: [("ImpersonatedIdentity".to_owned(), wanted)].into() };
        let request = IstioCertificateRequest { csr, validity_duration: VALIDITY_S, metadata: Some(metadata) };
        let answer = IstioCertificateServiceClient::new(self.link.channel()).create_certificate(request).await;
        let answer = answer.map_err(|status| IssueError::Refused { problem: connect::explain(&status) })?.into_inner();
        // The last element is the trust bundle, as in ztunnel's `src/identity/caclient.rs`.
        let (roots, chain) = match answer.cert_chain.split_last() {
            Some((roots, chain)) => (roots.as_str(), chain),
            None => ("", &[] as &[String]),
        };
        self.accept(identity, chain, roots, &key)
    }

    /// Nothing is used that does not prove just this identity, now.
    fn accept(&self, identity: &SpiffeId, chain: &[String], roots: &str, key: &KeyPair) -> Result<Svid, IssueError> {
        let svid = Svid::from_pem(&chain.concat(), key).map_err(IssueError::Unusable)?;
        if svid.identity() != identity {
            return Err(IssueError::OtherIdentity { found: svid.identity().clone() });
        }
        let (now, known) = (SystemTime::now(), self.credentials.bundles());
        match svid.verify(&known, now) {
            Ok(()) => Ok(svid),
            // A root that is newer than our bundle: the control plane vouches for it on this connection.
            Err(VerifyError::UnknownIssuer) => {
                let with_new = self.with_roots(&known, roots).ok_or(IssueError::Invalid(VerifyError::UnknownIssuer))?;
                svid.verify(&with_new, now).map_err(IssueError::Invalid)?;
                self.credentials.set_bundles(with_new);
                Ok(svid)
            }
            Err(error) => Err(IssueError::Invalid(error)),
        }
    }

    fn with_roots(&self, known: &Bundles, pem: &str) -> Option<Bundles> {
        let own = self.credentials.trust_domain();
        let new = Bundles::from_pem(own, pem).ok()?;
        let mut roots = known.roots(own).to_vec();
        roots.extend(new.roots(own).iter().filter(|root| !known.roots(own).contains(root)).cloned());
        let mut all = known.clone();
        all.insert(own.clone(), roots).ok()?;
        Some(all)
    }
}

/// Uses what another process of this host renews, as it comes to disk, until the drain.
pub async fn follow(credentials: Credentials, state: StateDir, host: SpiffeId, drain: DrainWatch) {
    loop {
        let now = SystemTime::now();
        for identity in credentials.identities() {
            let Some(held) = credentials.svid(&identity) else { continue };
            let found = match identity == host {
                true => stored_host(&state, held.key()),
                false => stored(&state, &credentials, &identity, now),
            };
            if let Some(svid) = found.filter(|svid| *svid.identity() == identity && svid.not_after() > held.not_after())
            {
                credentials.publish(svid);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(FOLLOW) => {}
            () = drain.signaled() => return,
        }
    }
}

/// The host keeps its key.
fn stored_host(state: &StateDir, key: &KeyPair) -> Option<Svid> {
    Svid::from_pem(&state.host_chain().ok()??, key).ok()
}

/// A stored certificate that still proves the identity; anything else is as good as none.
fn stored(state: &StateDir, credentials: &Credentials, identity: &SpiffeId, now: SystemTime) -> Option<Svid> {
    let stored = match state.workload_svid(identity) {
        Ok(stored) => stored?,
        Err(error) => {
            warn!(identity = %identity, error = %Chain(&error), "the stored certificate cannot be read");
            return None;
        }
    };
    let key = KeyPair::from_pem(&stored.key_pem).ok()?;
    let svid = Svid::from_pem(&stored.chain_pem, &key).ok()?;
    (svid.identity() == identity && svid.verify(&credentials.bundles(), now).is_ok()).then_some(svid)
}

/// The host's own identity and those of its workloads.
fn wanted(snapshot: &Snapshot, credentials: &Credentials, host: &SpiffeId) -> Vec<SpiffeId> {
    let workloads = snapshot.host().into_iter().flat_map(|config| &config.workloads);
    let identities = workloads.filter_map(|workload| workload.identity(credentials.trust_domain()).ok());
    let mut wanted: Vec<SpiffeId> = std::iter::once(host.clone()).chain(identities).collect();
    wanted.sort();
    wanted.dedup();
    wanted
}

async fn limited<T>(attempt: impl Future<Output = Result<T, IssueError>>) -> Result<T, IssueError> {
    tokio::time::timeout(LIMIT, attempt).await.unwrap_or(Err(IssueError::TimedOut))
}

/// Differs between hosts and identities, and is the same at every start.
fn seed(host: &SpiffeId, identity: &SpiffeId) -> u64 {
    let mut hasher = DefaultHasher::new();
    (host, identity).hash(&mut hasher);
    hasher.finish()
}

fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests;
