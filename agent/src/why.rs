//! `tombolo why`: the walk of one connection through the mesh, as this host's snapshot decides it.
//!
//! Pure over the snapshot: the same functions as the data plane's (`dns::resolve`, `decide`,
//! `policy::evaluate`), so that what is explained is what happens. Works offline. What only the peer
//! knows (its health at this moment, its own plaintext rules) is not guessed.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use api::admin::{ExplainedStep, Explanation};
use api::policy::{Connection, Verdict, evaluate};
use api::{LocalWorkload, Snapshot, SpiffeId, Workload};
use proxy::dns;
use proxy::outbound::decide::{Candidate, Decision, Path, decide};

/// A question that names nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WhyError {
    #[error("{text:?} is no source: give a workload (NAMESPACE/GROUP), a SPIFFE ID or an address")]
    Source { text: String },
    #[error("this host runs {count} workloads, so say which one asks: {known}")]
    WhichSource { count: usize, known: String },
    #[error("{text:?} is no destination: give NAME[:PORT] or ADDRESS:PORT")]
    Destination { text: String },
    #[error("{name} has several ports ({ports}): say which one, {name}:PORT")]
    WhichPort { name: String, ports: String },
    #[error("say which port of {name}: {name}:PORT")]
    NoPort { name: String },
}

/// At most so many endpoints are told one by one.
const MAX_ENDPOINTS: usize = 10;

/// Who asks, as far as the mesh can tell.
struct Source<'a> {
    label: String,
    identity: Option<SpiffeId>,
    ip: IpAddr,
    own: Option<&'a LocalWorkload>,
}

/// Explains a connection. An empty `src` is this host's only workload.
pub fn explain(snapshot: &Snapshot, own_ports: &BTreeSet<u16>, src: &str, dst: &str) -> Result<Explanation, WhyError> {
    let source = source(snapshot, src.trim())?;
    let mut walk = Walk { snapshot, source, steps: vec![] };
    let question = format!("{} -> {}", walk.source.label, dst.trim());
    let ending = match walk.destination(dst.trim())? {
        Some(dialled) => walk.decided(dialled, own_ports),
        None => Ending::passes("no address of the mesh is involved: the connection is not captured"),
    };
    Ok(Explanation {
        question,
        steps: walk.steps,
        allowed: ending.allowed,
        policy: ending.policy,
        conclusion: ending.conclusion,
    })
}

struct Walk<'a> {
    snapshot: &'a Snapshot,
    source: Source<'a>,
    steps: Vec<ExplainedStep>,
}

/// What it comes to.
struct Ending {
    allowed: bool,
    policy: Option<String>,
    conclusion: String,
}

impl Ending {
    fn passes(conclusion: &str) -> Self {
        Self { allowed: true, policy: None, conclusion: conclusion.to_owned() }
    }
}

impl Walk<'_> {
    fn say(&mut self, step: &str, answer: impl Into<String>) {
        self.steps.push(ExplainedStep { step: step.to_owned(), answer: answer.into() });
    }

    /// The address that a process would dial; `None` when the name is not of the mesh.
    fn destination(&mut self, text: &str) -> Result<Option<SocketAddr>, WhyError> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Some(SocketAddr::new(address.ip().to_canonical(), address.port())));
        }
        let bad = || WhyError::Destination { text: text.to_owned() };
        if let Ok(address) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
            let ports = self.snapshot.service_by_vip(address).map(|service| service.ports.clone()).unwrap_or_default();
            let [port] = ports.as_slice() else { return Err(WhyError::NoPort { name: text.to_owned() }) };
            return Ok(Some(SocketAddr::new(address, port.service_port)));
        }
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => (name, Some(port.parse::<u16>().map_err(|_| bad())?)),
            None => (text, None),
        };
        if name.is_empty() || name.contains([' ', '/', ':']) {
            return Err(bad());
        }
        let namespace = self.source.own.map(|own| own.namespace.as_str());
        let namespace = namespace.or_else(|| dns::asking_namespace(self.snapshot));
        let Some(service) = dns::resolve(self.snapshot, name, namespace) else {
            self.say("name", format!("{name} is not a name of the mesh: the host's own resolvers are asked"));
            return Ok(None);
        };
        let addresses: Vec<String> = service.vips.iter().map(ToString::to_string).collect();
        self.say("name", format!("{name} is service {}, {}", service.key(), addresses.join(" and ")));
        let Some(vip) = service.vips.first() else {
            self.say("service", format!("service {} has no address yet", service.key()));
            return Ok(None);
        };
        let port = match (port, service.ports.as_slice()) {
            (Some(port), _) => port,
            (None, [only]) => only.service_port,
            (None, ports) => {
                let ports: Vec<String> = ports.iter().map(|port| port.service_port.to_string()).collect();
                return Err(WhyError::WhichPort { name: name.to_owned(), ports: ports.join(", ") });
            }
        };
        Ok(Some(SocketAddr::new(*vip, port)))
    }

    fn decided(&mut self, dialled: SocketAddr, own_ports: &BTreeSet<u16>) -> Ending {
        match decide(self.snapshot, dialled, self.source.own, own_ports) {
            Decision::Refuse(refusal) => {
                self.say("service", refusal.to_string());
                Ending { allowed: false, policy: None, conclusion: format!("refused: {refusal}") }
            }
            Decision::Passthrough { workload } => {
                let whom = workload.map_or("nobody the mesh knows".to_owned(), |it| format!("workload {}", it.uid));
                self.say(
                    "endpoint",
                    format!("{dialled} is {whom}, dialled on a port that no service of the mesh exposes"),
                );
                self.say("tunnel", "none: plain TCP");
                Ending::passes("the connection passes as it is; no policy of the mesh applies on this side")
            }
            Decision::Workload(candidate) => {
                self.say("service", format!("none: {dialled} is a workload's own address"));
                self.judged(vec![candidate])
            }
            Decision::Service { service, port, mut candidates } => {
                let target = match port.target_port {
                    0 => "as each workload says".to_owned(),
                    port => port.to_string(),
                };
                self.say("service", format!("{} port {}, target port {target}", service.key(), port.service_port));
                candidates.sort_by_key(|candidate| (candidate.tier, candidate.target));
                self.judged(candidates)
            }
        }
    }

    /// Each endpoint with its tunnel and its policy. It is allowed when none refuses.
    fn judged(&mut self, candidates: Vec<Candidate>) -> Ending {
        let total = candidates.len();
        let mut refused: Vec<(String, Verdict)> = vec![];
        let mut reasons: BTreeSet<String> = BTreeSet::new();
        for candidate in candidates.iter().take(MAX_ENDPOINTS) {
            let workload = &candidate.workload;
            let health = if candidate.tier.unhealthy { ", unhealthy" } else { "" };
            self.say("endpoint", format!("{} at {}{health}", workload.uid, candidate.target));
            let proved = match &candidate.path {
                Path::Plain => {
                    self.say("tunnel", "none: it is not meshed, plain TCP without an identity");
                    None
                }
                Path::Hbone { expected } => {
                    let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
                    let port = api::ports::INBOUND_TUNNEL;
                    let at = SocketAddr::new(candidate.target.ip(), port);
                    self.say("tunnel", format!("mTLS to {at} (HBONE); it must prove {}", expected.join(" or ")));
                    self.source.identity.clone()
                }
            };
            let verdict = self.verdict(workload, proved, candidate.target);
            self.say("policy", policy_sentence(&verdict));
            match verdict.allowed() {
                true => drop(reasons.insert(verdict.reason())),
                false => refused.push((workload.uid.to_string(), verdict)),
            }
        }
        if total > MAX_ENDPOINTS {
            self.say("endpoint", format!("and {} more", total - MAX_ENDPOINTS));
        }
        match refused.first() {
            None => {
                let reasons: Vec<String> = reasons.into_iter().collect();
                Ending {
                    allowed: true,
                    policy: self.deciding(&candidates),
                    conclusion: format!("allowed: {}", reasons.join("; ")),
                }
            }
            Some((uid, verdict)) => {
                let some = if refused.len() < total.min(MAX_ENDPOINTS) { " (by some of its endpoints)" } else { "" };
                let conclusion = format!("refused{some}: {} at {uid}", verdict.reason());
                Ending { allowed: false, policy: verdict.policy().map(str::to_owned), conclusion }
            }
        }
    }

    fn verdict(&self, workload: &Workload, source: Option<SpiffeId>, destination: SocketAddr) -> Verdict {
        let connection = Connection { source, source_ip: self.source.ip, destination };
        evaluate(self.snapshot.policies_for(workload).into_iter(), &connection)
    }

    fn deciding(&self, candidates: &[Candidate]) -> Option<String> {
        let candidate = candidates.first()?;
        let source = matches!(candidate.path, Path::Hbone { .. }).then(|| self.source.identity.clone()).flatten();
        self.verdict(&candidate.workload, source, candidate.target).policy().map(str::to_owned)
    }
}

fn policy_sentence(verdict: &Verdict) -> String {
    match verdict.audits.as_slice() {
        [] => verdict.reason(),
        audits => format!("{}; audited by {}", verdict.reason(), audits.join(", ")),
    }
}

fn source<'a>(snapshot: &'a Snapshot, text: &str) -> Result<Source<'a>, WhyError> {
    let locals = snapshot.host().map(|host| host.workloads.as_slice()).unwrap_or_default();
    if text.is_empty() {
        return match locals {
            [one] => Ok(local(snapshot, one)),
            [] => Ok(Source { label: "this host".to_owned(), identity: None, ip: NOWHERE, own: None }),
            many => {
                let known: Vec<String> = many.iter().map(|it| format!("{}/{}", it.namespace, it.group)).collect();
                Err(WhyError::WhichSource { count: many.len(), known: known.join(", ") })
            }
        };
    }
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        let ip = ip.to_canonical();
        let mut there = snapshot.workloads_at(ip);
        let identity = match (there.next(), there.next()) {
            (Some(only), None) => only.identity().ok(),
            _ => None,
        };
        let label = identity.as_ref().map_or(ip.to_string(), |identity| format!("{ip} ({identity})"));
        return Ok(Source { label, identity, ip, own: None });
    }
    if let Ok(identity) = text.parse::<SpiffeId>() {
        let own = locals.iter().find(|it| it.identity(identity.trust_domain()).is_ok_and(|id| id == identity));
        let running = snapshot.workloads().find(|workload| workload.identity().is_ok_and(|id| id == identity));
        let ip = running.and_then(|workload| workload.addresses.first().copied()).unwrap_or(NOWHERE);
        return Ok(Source { label: identity.to_string(), identity: Some(identity), ip, own });
    }
    let is_named = |namespace: &str, group: &str| text.split_once('/') == Some((namespace, group)) || text == group;
    if let Some(own) = locals.iter().find(|it| *it.uid == *text || is_named(&it.namespace, &it.group)) {
        return Ok(local(snapshot, own));
    }
    let mut others: Vec<&std::sync::Arc<Workload>> = snapshot
        .workloads()
        .filter(|it| *it.uid == *text || it.name == text || is_named(&it.namespace, &it.workload_name))
        .collect();
    others.sort_by(|a, b| a.uid.cmp(&b.uid));
    let Some(workload) = others.first() else { return Err(WhyError::Source { text: text.to_owned() }) };
    Ok(Source {
        label: workload.uid.to_string(),
        identity: workload.identity().ok(),
        ip: workload.addresses.first().copied().unwrap_or(NOWHERE),
        own: None,
    })
}

fn local<'a>(snapshot: &'a Snapshot, own: &'a LocalWorkload) -> Source<'a> {
    let known = snapshot.workload(&own.uid);
    Source {
        label: own.uid.to_string(),
        identity: known.and_then(|workload| workload.identity().ok()),
        ip: known.and_then(|workload| workload.addresses.first().copied()).unwrap_or(NOWHERE),
        own: Some(own),
    }
}

/// An address that no policy names.
const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

#[cfg(test)]
mod tests;
