//! What keeps the agent from serving, one sentence each: the truth behind `/healthz/ready`, `status`
//! and READY=1.
//!
//! A control plane that is away is no reason: the last snapshot is obeyed. An expired certificate is,
//! and so are rules that are not as wanted.

use std::time::SystemTime;

use api::admin::InterceptState;
use api::{Snapshot, SpiffeId};
use identity::Credentials;

use super::Parts;
use crate::intercept_control::ControlState;
use crate::issuance::Standing;

impl Parts {
    /// Why the agent does not serve; empty when it does.
    pub fn problems(&self) -> Vec<String> {
        if *self.stopping.borrow() {
            return vec!["the agent is stopping".to_owned()];
        }
        let snapshot = self.view.load();
        let mut problems = unserving(&snapshot, &self.credentials, self.link.host(), &self.standing, SystemTime::now());
        if snapshot.host().is_none() && !self.link.state().error.is_empty() {
            problems.push(format!("no connection to the control plane: {}", self.link.state().error));
        }
        let interception = self.control.state();
        problems.extend(of_rules(&interception));
        if interception.state != InterceptState::Off && !self.names.borrow().is_settled {
            problems.push("mesh names are not asked for yet".to_owned());
        }
        problems
    }

    /// What is not as it should be while the agent serves.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = vec![];
        let link = self.link.state();
        if !link.connected && self.view.load().host().is_some() {
            warnings.push(format!("no connection to the control plane: {}", link.error));
        }
        let discovery = self.discovery.borrow();
        if !discovery.problem.is_empty() {
            warnings.push(format!("not all of the control plane's snapshot is obeyed: {}", discovery.problem));
        }
        let reports = self.reports.borrow().clone();
        if link.connected && !reports.is_empty() {
            warnings.push(format!("the control plane does not hear this host: {reports}"));
        }
        for (identity, problem) in self.standing.failing() {
            // One that has ended is told as what keeps the agent from serving.
            let valid = self.credentials.svid(&identity).is_some_and(|svid| svid.is_valid_at(SystemTime::now()));
            if link.connected && valid {
                warnings.push(format!("the certificate for {identity} is not renewed: {problem}"));
            }
        }
        let unstored = self.unstored.borrow().clone();
        if !unstored.is_empty() {
            warnings.push(format!("after a reboot an older snapshot would be obeyed: {unstored}"));
        }
        let names = self.names.borrow();
        if let Some(problem) = &names.problem {
            warnings.push(format!("mesh names are not asked for through systemd-resolved: {problem}"));
        }
        let config = self.config.borrow().clone();
        for group in crate::workloads::unknown(&self.view.load(), &config.workloads) {
            warnings.push(format!("[[workload]] speaks of {group}, which this host does not run"));
        }
        warnings
    }
}

fn unserving(
    snapshot: &Snapshot,
    credentials: &Credentials,
    host: &SpiffeId,
    standing: &Standing,
    now: SystemTime,
) -> Vec<String> {
    let Some(config) = snapshot.host() else {
        let none = "there is no snapshot yet: the control plane has not said what this host runs".to_owned();
        // Without a certificate that counts it never will.
        return of_certificate(credentials, host, standing, now).into_iter().chain([none]).collect();
    };
    let trust_domain = credentials.trust_domain();
    let workloads = config.workloads.iter().filter_map(|workload| workload.identity(trust_domain).ok());
    let mut identities: Vec<SpiffeId> = std::iter::once(host.clone()).chain(workloads).collect();
    identities.dedup();
    identities.iter().filter_map(|identity| of_certificate(credentials, identity, standing, now)).collect()
}

fn of_certificate(
    credentials: &Credentials,
    identity: &SpiffeId,
    standing: &Standing,
    now: SystemTime,
) -> Option<String> {
    let why = standing.of(identity).map(|stands| stands.problem).filter(|problem| !problem.is_empty());
    let why = why.map_or(String::new(), |problem| format!(": {problem}"));
    match credentials.svid(identity) {
        None => Some(format!("there is no certificate for {identity}{why}")),
        Some(svid) if now > svid.not_after() => {
            let at = humantime::format_rfc3339_seconds(svid.not_after());
            Some(format!("the certificate for {identity} expired at {at}{why}"))
        }
        Some(svid) if now < svid.not_before() => {
            let from = humantime::format_rfc3339_seconds(svid.not_before());
            Some(format!(
                "by this host's clock the certificate for {identity} is valid only from {from}: \
                 set the clock (timedatectl set-ntp true)"
            ))
        }
        Some(_) => None,
    }
}

fn of_rules(state: &ControlState) -> Option<String> {
    if state.state == InterceptState::Off {
        return None;
    }
    match (state.problem.as_str(), &state.asked) {
        ("", Some(_)) => None,
        ("", None) => Some("interception is on, and its rules are not in force yet".to_owned()),
        (problem, _) => Some(format!("the rules are not as wanted: {problem}")),
    }
}
