//! Checks of what `join` stored, of the clock, and of the way to the control plane.

use std::time::{Duration, SystemTime};

use api::SpiffeId;
use api::admin::{Check, CheckOutcome};
use identity::{Credentials, VerifyError};
use telemetry::Chain;

use super::{check, ok};
use crate::config::Config;
use crate::connect::{Dial, DialError, Link};
use crate::discovery::Holdings;
use crate::join;
use crate::state::{HostIdentity, OTHER_MACHINE_CURE, StateDir, StateError};

/// How long the dial may take in all.
const LIMIT: Duration = Duration::from_secs(10);

pub(super) async fn checks(config: &Config, state: &StateDir) -> Vec<Check> {
    let identity = match state.identity() {
        Ok(Some(identity)) => identity,
        Ok(None) => {
            let cure = "join a mesh: tombolo join URL --token TOKEN (the operator makes one: tombolo token create)";
            return vec![check("identity", CheckOutcome::Warn, "this host has not joined", cure)];
        }
        Err(StateError::OtherMachine { host, joined_at, .. }) => {
            let detail = format!("it is another machine's (host {host}, joined {joined_at})");
            return vec![check("identity", CheckOutcome::Fail, detail, OTHER_MACHINE_CURE)];
        }
        Err(error) => {
            let cure = "run `tombolo leave --purge --force` and join again";
            return vec![check("identity", CheckOutcome::Fail, Chain(&error).to_string(), cure)];
        }
    };
    let credentials = match join::load_credentials(state, &identity) {
        Ok(credentials) => credentials,
        Err(problem) => {
            let cure = "join again: tombolo join URL --token TOKEN --force";
            return vec![check("identity", CheckOutcome::Fail, problem, cure)];
        }
    };
    let host = match SpiffeId::host(&identity.trust_domain, &identity.host) {
        Ok(host) => host,
        Err(error) => return vec![check("identity", CheckOutcome::Fail, Chain(&error).to_string(), "join again")],
    };
    let mut checks = vec![certificate(&credentials, &host), snapshot(state)];
    checks.extend(reach(config, &identity, &credentials, &host).await);
    checks
}

fn certificate(credentials: &Credentials, host: &SpiffeId) -> Check {
    let name = "identity";
    let now = SystemTime::now();
    let Some(svid) = credentials.svid(host) else {
        return check(name, CheckOutcome::Fail, "the host certificate is missing", "join again with --force");
    };
    let until = humantime::format_rfc3339_seconds(svid.not_after());
    match svid.verify(&credentials.bundles(), now) {
        Ok(()) => ok(name, format!("{host}, certificate valid until {until}")),
        Err(VerifyError::NotYetValid { .. }) => {
            let from = humantime::format_rfc3339_seconds(svid.not_before());
            let detail = format!("by this host's clock its certificate is valid only from {from}");
            check(name, CheckOutcome::Fail, detail, "set the clock: timedatectl set-ntp true")
        }
        Err(VerifyError::Expired { .. }) => {
            let detail = format!("the certificate of {host} expired at {until}");
            let cure =
                "start the agent and let it reach the control plane: it renews by itself; else join again with --force";
            check(name, CheckOutcome::Warn, detail, cure)
        }
        Err(error) => check(name, CheckOutcome::Fail, Chain(&error).to_string(), "join again with --force"),
    }
}

fn snapshot(state: &StateDir) -> Check {
    let name = "snapshot";
    let holdings = match state.snapshot_bytes() {
        Ok(Some(bytes)) => crate::state::snapshot_file::decode(bytes),
        Ok(None) => {
            return check(name, CheckOutcome::Warn, "none yet", "start the agent: it gets one from the control plane");
        }
        Err(error) => return check(name, CheckOutcome::Fail, Chain(&error).to_string(), "check the disk"),
    };
    match holdings.map(Holdings::from_file) {
        Ok((holdings, _)) => ok(name, format!("revision {} on disk", holdings.snapshot().revision())),
        Err(error) => {
            let cure = "nothing: the agent moves it aside and gets another from the control plane";
            check(name, CheckOutcome::Warn, format!("the file on disk is damaged: {}", Chain(&error)), cure)
        }
    }
}

async fn reach(config: &Config, identity: &HostIdentity, credentials: &Credentials, host: &SpiffeId) -> Vec<Check> {
    let (name, clock) = ("control plane", "clock");
    let url = config.control_plane.url.as_deref().unwrap_or(&identity.control_plane);
    let dial = match Dial::new(config, url) {
        Ok(dial) => dial,
        Err(problem) => return vec![check(name, CheckOutcome::Fail, problem, "mend control_plane.url")],
    };
    let link = Link::new(config, dial, host.clone(), credentials.clone());
    let in_step = "both sides' certificates are valid by this host's clock";
    match link.dial(LIMIT).await {
        Ok(()) => vec![ok(name, format!("{url} is reached and proves to be it")), ok(clock, in_step)],
        Err(DialError::Tls { source, .. }) => {
            let refusal = identity::tls::refusal(&source);
            let detail = identity::tls::explain(&source).unwrap_or_else(|| source.to_string());
            match refusal {
                Some(VerifyError::Expired { .. } | VerifyError::NotYetValid { .. }) => {
                    vec![check(clock, CheckOutcome::Fail, detail, "set the clocks: timedatectl set-ntp true")]
                }
                Some(_) => {
                    let cure =
                        "is it another mesh's control plane, or one that was set up anew? then join again with --force";
                    vec![check(name, CheckOutcome::Fail, detail, cure)]
                }
                None => vec![check(name, CheckOutcome::Fail, detail, "look at the control plane's log")],
            }
        }
        Err(error) => {
            let cure = "check its address, this host's routes and firewalls, and that the control plane runs";
            vec![check(name, CheckOutcome::Fail, Chain(&error).to_string(), cure)]
        }
    }
}
