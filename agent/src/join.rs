//! Becoming a host of the mesh, and leaving it.
//!
//! [`join`] makes the host key here, trusts the control plane by the token's pin and nothing else,
//! checks what it gets and stores it; it starts nothing. [`leave`] tells the control plane and
//! forgets. Every refusal is one sentence with its cure; `cli` prints it and takes the exit code.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use api::token::{JoinToken, TokenError};
use api::wire::tombolo::enrolment_client::EnrolmentClient;
use api::wire::tombolo::{JoinRequest, JoinResponse, LeaveRequest};
use api::{SpiffeId, TrustDomain};
use identity::certificate::fingerprint;
use identity::tls::{Pins, refusal};
use identity::{Bundles, Credentials, KeyPair, Svid, VerifyError};
use telemetry::Chain;
use tonic::{Code, Status};

use crate::config::Config;
use crate::connect::{self, Dial, DialError, Link};
use crate::machine;
use crate::state::{HostIdentity, StateDir, StateError};

/// What `tombolo join` was told.
#[derive(Debug, Clone, Default)]
pub struct JoinOptions {
    pub url: String,
    pub token: String,
    /// `sha256:HEX` of the root certificate.
    pub ca_pin: Option<String>,
    /// Default: the host's own name, up to its first dot.
    pub name: Option<String>,
    /// `NAMESPACE/WORKLOADGROUP`; empty means every group the token is bound to.
    pub groups: Vec<String>,
    /// Where peers reach this host. Default: the address that reaches the control plane.
    pub advertise: Vec<IpAddr>,
    /// Join although this host has joined before.
    pub force: bool,
}

/// Why a host did not join, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("{0}")]
    Usage(String),
    #[error(
        "this host has joined already, as {host} at {control_plane}: run `tombolo leave` first, or join with --force"
    )]
    AlreadyJoined { host: String, control_plane: String },
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("{}: check the address, and that this host may open connections to that port", Chain(.0))]
    Unreachable(DialError),
    #[error(
        "{url} is not the control plane that was pinned ({found}): use the address and the token of the same control \
         plane; nothing was sent to it"
    )]
    WrongPin { url: String, found: VerifyError },
    #[error("{problem}: set the clocks right (timedatectl set-ntp true) and join again")]
    Clock { problem: String },
    #[error("{}", refused(*code, message))]
    Refused { code: Code, message: String },
    #[error("the control plane's answer cannot be used: {problem}; nothing was stored")]
    Answer { problem: String },
    #[error("no key can be made")]
    Key(#[source] identity::KeyError),
    #[error(transparent)]
    State(#[from] StateError),
}

/// Why a host did not leave.
#[derive(Debug, thiserror::Error)]
pub enum LeaveError {
    #[error("this host has not joined")]
    NotJoined,
    #[error("the control plane was not told ({problem}); run `tombolo leave --force` to forget it here all the same")]
    NotTold { problem: String },
    #[error(transparent)]
    State(#[from] StateError),
}

impl JoinError {
    /// 2 for what was typed wrongly, 4 for a token that is refused, 1 for what another time may go well.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Token(_) => 2,
            Self::Refused {
                code: Code::Unauthenticated | Code::PermissionDenied | Code::AlreadyExists | Code::InvalidArgument,
                ..
            } => 4,
            Self::AlreadyJoined { .. }
            | Self::Unreachable(_)
            | Self::WrongPin { .. }
            | Self::Clock { .. }
            | Self::Refused { .. }
            | Self::Answer { .. }
            | Self::Key(_)
            | Self::State(_) => 1,
        }
    }
}

/// Joins; the identity is stored when it answers.
pub async fn join(config: &Config, options: &JoinOptions) -> Result<HostIdentity, JoinError> {
    let dial = Dial::new(config, &options.url).map_err(JoinError::Usage)?;
    let token = JoinToken::parse(&options.token)?;
    let root_sha256 = options.ca_pin.as_deref().map(pin).transpose()?;
    let name = host_name(options.name.as_deref())?;
    options.groups.iter().try_for_each(|group| check_group(group))?;
    let state = StateDir::open(&config.paths.state_dir)?;
    if let Some(joined) = state.identity()?.filter(|_| !options.force) {
        return Err(JoinError::AlreadyJoined { host: joined.host, control_plane: joined.control_plane });
    }

    let pins = Pins { root_sha256, token: Some(token) };
    let tls = identity::tls::join_client_config(pins.clone())
        .map_err(|error| JoinError::Unreachable(DialError::Config(error)))?;
    let stream = dial.tls(tls).await.map_err(|error| dial_failed(&dial, error))?;
    let addresses = match options.advertise.as_slice() {
        [] => vec![own_address(stream.get_ref().0.local_addr().ok())?],
        given => given.to_vec(),
    };
    let key = host_key(&state)?;
    let request = JoinRequest {
        token: options.token.trim().to_owned(),
        csr: key.csr(None).map_err(|error| JoinError::Answer { problem: Chain(&error).to_string() })?,
        name: name.clone(),
        groups: options.groups.clone(),
        addresses: addresses.iter().map(IpAddr::to_string).collect(),
        version: telemetry::build::VERSION.to_owned(),
        now_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64),
    };
    let channel = connect::channel_over(stream)
        .await
        .map_err(|error| JoinError::Answer { problem: Chain(&error).to_string() })?;
    let answer = EnrolmentClient::new(channel).join(request).await.map_err(|status| call_failed(&status))?;
    let identity = HostIdentity {
        control_plane: dial.to_string(),
        advertise: options.advertise.clone(),
        joined_at: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        machine: machine::binding(),
        ..accept(answer.get_ref(), &key, &pins, SystemTime::now())?
    };
    store(&state, answer.get_ref(), &identity)?;
    Ok(identity)
}

/// How a host leaves.
#[derive(Debug, Clone, Copy, Default)]
pub struct LeaveOptions {
    /// Remove the whole state folder.
    pub purge: bool,
    /// Forget the identity also when the control plane cannot be told.
    pub force: bool,
    /// Do not tell the control plane: the identity is another machine's, which stays in the mesh.
    pub local: bool,
}

/// Tells the control plane and forgets the identity; answers whether the control plane was told.
pub async fn leave(config: &Config, options: LeaveOptions) -> Result<bool, LeaveError> {
    let LeaveOptions { purge, force, local } = options;
    let state = StateDir::at(&config.paths.state_dir);
    let told = match state.identity() {
        Ok(None) if purge || force => return Ok(state.purge().map(|()| false)?),
        Ok(None) => return Err(LeaveError::NotJoined),
        Ok(Some(_)) if local => Ok(false),
        // The control plane would forget the other one.
        Err(StateError::OtherMachine { .. }) => Ok(false),
        Ok(Some(identity)) => tell(config, &state, &identity).await.map(|()| true),
        Err(_) if purge && force => return Ok(state.purge().map(|()| false)?),
        Err(error) => return Err(error.into()),
    };
    let told = match told {
        Err(problem) if !force => return Err(LeaveError::NotTold { problem }),
        Err(problem) => {
            tracing::warn!(error = problem, "left without telling the control plane");
            false
        }
        Ok(told) => told,
    };
    if purge {
        state.purge()?
    } else {
        state.forget()?
    }
    Ok(told)
}

async fn tell(config: &Config, state: &StateDir, identity: &HostIdentity) -> Result<(), String> {
    let credentials = load_credentials(state, identity)?;
    let host = SpiffeId::host(&identity.trust_domain, &identity.host).map_err(|error| error.to_string())?;
    let dial = Dial::new(config, config.control_plane.url.as_deref().unwrap_or(&identity.control_plane))?;
    let link = Link::new(config, dial, host, credentials);
    leave_over(&link).await
}

/// The call itself, over the agent's own link.
pub(crate) async fn leave_over(link: &Link) -> Result<(), String> {
    let call = async { EnrolmentClient::new(link.channel()).leave(LeaveRequest { forget: true }).await };
    match tokio::time::timeout(std::time::Duration::from_secs(15), call).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) => Err(connect::explain(&status)),
        Err(_) => Err("no answer within 15 s".to_owned()),
    }
}

/// The host's certificate and roots from disk. A certificate that cannot be read is an error here;
/// one that expired is not: renewal decides about it.
pub(crate) fn load_credentials(state: &StateDir, identity: &HostIdentity) -> Result<Credentials, String> {
    let text = |error: StateError| Chain(&error).to_string();
    let missing =
        |name: &str| format!("{} is missing: run `tombolo join` with --force", state.root().join(name).display());
    let credentials = Credentials::new(identity.trust_domain.clone());
    let roots = state.roots().map_err(text)?.ok_or_else(|| missing("roots.pem"))?;
    let bundles = Bundles::from_pem(&identity.trust_domain, &roots).map_err(|error| Chain(&error).to_string())?;
    credentials.set_bundles(bundles);
    let key = state.host_key().map_err(text)?.ok_or_else(|| missing("host.key"))?;
    let key = KeyPair::from_pem(&key).map_err(|error| format!("host.key: {}", Chain(&error)))?;
    let chain = state.host_chain().map_err(text)?.ok_or_else(|| missing("host.pem"))?;
    credentials.publish(Svid::from_pem(&chain, &key).map_err(|error| format!("host.pem: {}", Chain(&error)))?);
    Ok(credentials)
}

/// Checks all of the answer before any of it is kept.
fn accept(answer: &JoinResponse, key: &KeyPair, pins: &Pins, now: SystemTime) -> Result<HostIdentity, JoinError> {
    let unusable = |problem: String| JoinError::Answer { problem };
    let trust_domain: TrustDomain = answer.trust_domain.parse().map_err(|e| unusable(Chain(&e).to_string()))?;
    let expected = SpiffeId::host(&trust_domain, &answer.host).map_err(|e| unusable(Chain(&e).to_string()))?;
    let bundles = Bundles::from_pem(&trust_domain, &answer.roots).map_err(|e| unusable(Chain(&e).to_string()))?;
    let pinned = bundles.roots(&trust_domain).iter().map(fingerprint).any(|hash| {
        let token = pins.token.as_ref().is_none_or(|token| token.pins(&hash));
        token && pins.root_sha256.is_none_or(|pin| pin == hash)
    });
    if !pinned {
        return Err(unusable("its trust bundle does not hold the pinned root".to_owned()));
    }
    let svid = Svid::from_pem(&answer.cert_chain.concat(), key).map_err(|e| unusable(Chain(&e).to_string()))?;
    if *svid.identity() != expected {
        return Err(unusable(format!("it certifies {}, not {expected}", svid.identity())));
    }
    match svid.verify(&bundles, now) {
        Ok(()) => {}
        Err(error @ (VerifyError::NotYetValid { .. } | VerifyError::Expired { .. })) => {
            return Err(JoinError::Clock { problem: error.to_string() });
        }
        Err(error) => return Err(unusable(error.to_string())),
    }
    Ok(HostIdentity {
        host: answer.host.clone(),
        trust_domain,
        control_plane: String::new(),
        join_sequence: answer.join_sequence,
        groups: answer.groups.clone(),
        advertise: vec![],
        joined_at: String::new(),
        machine: None,
    })
}

/// The identity last: until it is there the host has not joined.
fn store(state: &StateDir, answer: &JoinResponse, identity: &HostIdentity) -> Result<(), StateError> {
    state.keep_workload_svids(&[])?;
    state.set_roots(&answer.roots)?;
    state.set_host_chain(&answer.cert_chain.concat())?;
    state.set_identity(identity)
}

/// The key of an earlier attempt is used again, so that a join whose answer was lost can be repeated.
fn host_key(state: &StateDir) -> Result<KeyPair, JoinError> {
    if let Some(key) = state.host_key()?.and_then(|pem| KeyPair::from_pem(&pem).ok()) {
        return Ok(key);
    }
    let key = KeyPair::generate().map_err(JoinError::Key)?;
    state.set_host_key(&key.to_pem())?;
    Ok(key)
}

fn dial_failed(dial: &Dial, error: DialError) -> JoinError {
    match &error {
        DialError::Tls { source, .. } => match refusal(source) {
            Some(found @ (VerifyError::Expired { .. } | VerifyError::NotYetValid { .. })) => {
                JoinError::Clock { problem: found.to_string() }
            }
            Some(found) => JoinError::WrongPin { url: dial.to_string(), found },
            None => JoinError::Unreachable(error),
        },
        _ => JoinError::Unreachable(error),
    }
}

fn call_failed(status: &Status) -> JoinError {
    let message = connect::explain(status);
    let of_the_clock = message.contains("clock");
    match status.code() {
        Code::FailedPrecondition | Code::OutOfRange if of_the_clock => JoinError::Clock { problem: message },
        code => JoinError::Refused { code, message },
    }
}

/// The control plane's own sentence, and what to do when that does not say it.
fn refused(code: Code, message: &str) -> String {
    let cure = match code {
        Code::Unauthenticated => "ask for a new token (`tombolo token create`)",
        Code::PermissionDenied => "use a token whose groups, name pattern and networks fit this host",
        Code::AlreadyExists => "choose another --name, or remove the old host (`tombolo host revoke`)",
        Code::Unavailable | Code::DeadlineExceeded => "try again; the token is still good",
        _ => "see the control plane's log",
    };
    if message.contains(['`', ';']) { message.to_owned() } else { format!("{message}: {cure}") }
}

fn pin(text: &str) -> Result<[u8; 32], JoinError> {
    let shape = || JoinError::Usage(format!("--ca-pin {text:?} is not sha256: and 64 hex digits"));
    Pins::parse(text).ok_or_else(shape)
}

fn check_group(group: &str) -> Result<(), JoinError> {
    match group.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => Ok(()),
        _ => Err(JoinError::Usage(format!("--group {group:?} is not NAMESPACE/WORKLOADGROUP"))),
    }
}

/// A DNS label (RFC 1123 §2.1): it becomes part of an identity and of names.
fn host_name(given: Option<&str>) -> Result<String, JoinError> {
    let (name, source) = match given {
        Some(name) => (name.to_owned(), "--name"),
        None => {
            let text = std::fs::read_to_string(Path::new("/proc/sys/kernel/hostname")).unwrap_or_default();
            let label = text.trim().split('.').next().unwrap_or_default().to_ascii_lowercase();
            (label, "this host's name")
        }
    };
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let edges = name.starts_with('-') || name.ends_with('-');
    if !(1..=63).contains(&name.len()) || !name.bytes().all(allowed) || edges {
        let shape = "1 to 63 of a-z, 0-9 and -, not at the ends: give another with --name";
        return Err(JoinError::Usage(format!("{source} {name:?} is not {shape}")));
    }
    Ok(name)
}

/// The address that reached the control plane; behind a control plane of this very host, the one that
/// the default route would use.
fn own_address(local: Option<SocketAddr>) -> Result<IpAddr, JoinError> {
    let local = local.map(|address| address.ip().to_canonical()).filter(|address| !address.is_loopback());
    // Connecting a UDP socket sends nothing: the kernel only picks the source (udp(7)). The targets are
    // documentation addresses (RFC 5737, RFC 3849).
    let routed = ["192.0.2.1:9", "[2001:db8::1]:9"].iter().find_map(|target| {
        let any = if target.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect(target).ok()?;
        socket.local_addr().ok().map(|address| address.ip()).filter(|address| !address.is_loopback())
    });
    local.or(routed).ok_or_else(|| {
        JoinError::Usage("no address is found at which peers reach this host: say it with --advertise".to_owned())
    })
}

#[cfg(test)]
mod tests;
