//! What a host runs, and trust bundles, between the domain and `tombolo.v1`. Called by `wire`
//! alone. Pure.
//!
//! A probe's zeroes mean Kubernetes' defaults (core/v1 Probe), as in Istio's ReadinessProbe.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::tombolo as pb;
use super::workloads::DEFAULT_SERVICE_ACCOUNT;
use super::{FieldError, FieldProblem, enumeration, port, required, shorten};
use crate::host::{Check, HostConfig, InboundMode, LocalWorkload, Probe, Selector};
use crate::snapshot::TrustBundle;
use crate::spiffe::TrustDomain;

impl TryFrom<pb::HostConfig> for HostConfig {
    type Error = FieldError;

    fn try_from(message: pb::HostConfig) -> Result<Self, FieldError> {
        let one = |(n, found): (usize, pb::LocalWorkload)| {
            LocalWorkload::try_from(found).map_err(|f| f.below(format_args!("workloads[{n}]")))
        };
        let workloads: Vec<LocalWorkload> =
            message.workloads.into_iter().enumerate().map(one).collect::<Result<_, _>>()?;
        let mut seen = BTreeSet::new();
        for (n, workload) in workloads.iter().enumerate() {
            if !seen.insert(&workload.uid) {
                let problem = FieldProblem::Duplicate { text: shorten(&workload.uid) };
                return Err(problem.at(format!("workloads[{n}].uid")));
            }
        }
        if message.lease_s == 0 {
            return Err(FieldProblem::Missing.at("lease_s"));
        }
        Ok(Self { host: required(message.host, "host")?, workloads, lease: seconds(message.lease_s) })
    }
}

impl TryFrom<pb::LocalWorkload> for LocalWorkload {
    type Error = FieldError;

    fn try_from(message: pb::LocalWorkload) -> Result<Self, FieldError> {
        let account = message.service_account;
        let service_account = if account.is_empty() { DEFAULT_SERVICE_ACCOUNT.to_owned() } else { account };
        let probe = message.probe.map(Probe::try_from).transpose().map_err(|fault| fault.below("probe"))?;
        let workload = Self {
            uid: required(message.uid, "uid")?.into(),
            namespace: required(message.namespace, "namespace")?,
            group: message.group,
            service_account,
            ports: ports(&message.ports)?,
            selector: message.selector.map(Selector::from).unwrap_or_default(),
            probe,
        };
        // Which trust domain it is does not matter to whether an identity can be made.
        let identity = "any".parse::<TrustDomain>().and_then(|any| workload.identity(&any));
        identity.map_err(|reason| FieldProblem::Identity { reason }.at("service_account"))?;
        Ok(workload)
    }
}

fn ports(found: &[pb::InboundPort]) -> Result<BTreeMap<u16, InboundMode>, FieldError> {
    let mut ports = BTreeMap::new();
    for (n, found) in found.iter().enumerate() {
        let number = port(found.port).map_err(|p| p.at(format!("ports[{n}].port")))?;
        let mode = match enumeration(found.mode).map_err(|p| p.at(format!("ports[{n}].mode")))? {
            pb::InboundMode::Permissive => InboundMode::Permissive,
            pb::InboundMode::Observe => InboundMode::Observe,
            pb::InboundMode::Strict => InboundMode::Strict,
        };
        if ports.insert(number, mode).is_some() {
            return Err(FieldProblem::Duplicate { text: number.to_string() }.at(format!("ports[{n}].port")));
        }
    }
    Ok(ports)
}

impl From<pb::Selector> for Selector {
    fn from(message: pb::Selector) -> Self {
        let said = |text: String| (!text.is_empty()).then_some(text);
        Self { unit: said(message.unit), cgroup: said(message.cgroup), uid: message.uid }
    }
}

impl TryFrom<pb::Probe> for Probe {
    type Error = FieldError;

    fn try_from(message: pb::Probe) -> Result<Self, FieldError> {
        let or = |value: u32, default: u32| if value == 0 { default } else { value };
        let check = message.check.ok_or(FieldProblem::Missing.at("check"))?;
        Ok(Self {
            check: Check::try_from(check)?,
            initial_delay: seconds(message.initial_delay_s),
            timeout: seconds(or(message.timeout_s, 1)),
            period: seconds(or(message.period_s, 10)),
            success_threshold: or(message.success_threshold, 1),
            failure_threshold: or(message.failure_threshold, 3),
        })
    }
}

impl TryFrom<pb::probe::Check> for Check {
    type Error = FieldError;

    fn try_from(message: pb::probe::Check) -> Result<Self, FieldError> {
        match message {
            pb::probe::Check::Tcp(tcp) => {
                Ok(Self::Tcp { host: tcp.host, port: port(tcp.port).map_err(|p| p.at("tcp.port"))? })
            }
            pb::probe::Check::Http(http) => {
                if !matches!(http.scheme.as_str(), "http" | "https") {
                    let problem = FieldProblem::Malformed { text: shorten(&http.scheme), expected: "http or https" };
                    return Err(problem.at("http.scheme"));
                }
                let port = port(http.port).map_err(|p| p.at("http.port"))?;
                Ok(Self::Http { scheme: http.scheme, host: http.host, port, path: http.path, headers: http.headers })
            }
            pb::probe::Check::Exec(exec) if exec.command.is_empty() => Err(FieldProblem::Missing.at("exec.command")),
            pb::probe::Check::Exec(exec) => Ok(Self::Exec { command: exec.command }),
        }
    }
}

impl TryFrom<pb::TrustBundle> for TrustBundle {
    type Error = FieldError;

    fn try_from(message: pb::TrustBundle) -> Result<Self, FieldError> {
        let trust_domain = message.trust_domain.parse();
        // An empty bundle would end all trust at once; taking it away is a removal, said as such.
        if message.roots.is_empty() {
            return Err(FieldProblem::Missing.at("roots"));
        }
        if let Some(n) = message.roots.iter().position(Vec::is_empty) {
            return Err(FieldProblem::Missing.at(format!("roots[{n}]")));
        }
        Ok(Self {
            trust_domain: trust_domain.map_err(|reason| FieldProblem::Identity { reason }.at("trust_domain"))?,
            roots: message.roots,
        })
    }
}

fn seconds(value: u32) -> Duration {
    Duration::from_secs(value.into())
}

/// Whole seconds; longer than the wire can say is as long as it can.
fn to_seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

impl From<&HostConfig> for pb::HostConfig {
    fn from(host: &HostConfig) -> Self {
        Self {
            host: host.host.clone(),
            workloads: host.workloads.iter().map(pb::LocalWorkload::from).collect(),
            lease_s: to_seconds(host.lease),
        }
    }
}

impl From<&LocalWorkload> for pb::LocalWorkload {
    fn from(workload: &LocalWorkload) -> Self {
        let port = |(port, mode): (&u16, &InboundMode)| {
            let mode = match mode {
                InboundMode::Permissive => pb::InboundMode::Permissive,
                InboundMode::Observe => pb::InboundMode::Observe,
                InboundMode::Strict => pb::InboundMode::Strict,
            };
            pb::InboundPort { port: u32::from(*port), mode: mode.into() }
        };
        let selector = workload.selector.clone();
        let selector = pb::Selector {
            unit: selector.unit.unwrap_or_default(),
            cgroup: selector.cgroup.unwrap_or_default(),
            uid: selector.uid,
        };
        Self {
            uid: workload.uid.to_string(),
            namespace: workload.namespace.clone(),
            group: workload.group.clone(),
            service_account: workload.service_account.clone(),
            ports: workload.ports.iter().map(port).collect(),
            selector: (!workload.selector.is_any()).then_some(selector),
            probe: workload.probe.as_ref().map(pb::Probe::from),
        }
    }
}

impl From<&Probe> for pb::Probe {
    fn from(probe: &Probe) -> Self {
        Self {
            initial_delay_s: to_seconds(probe.initial_delay),
            timeout_s: to_seconds(probe.timeout),
            period_s: to_seconds(probe.period),
            success_threshold: probe.success_threshold,
            failure_threshold: probe.failure_threshold,
            check: Some(pb::probe::Check::from(&probe.check)),
        }
    }
}

impl From<&Check> for pb::probe::Check {
    fn from(check: &Check) -> Self {
        match check.clone() {
            Check::Tcp { host, port } => Self::Tcp(pb::TcpCheck { host, port: port.into() }),
            Check::Http { scheme, host, port, path, headers } => {
                Self::Http(pb::HttpCheck { scheme, host, port: port.into(), path, headers })
            }
            Check::Exec { command } => Self::Exec(pb::ExecCheck { command }),
        }
    }
}

impl From<&TrustBundle> for pb::TrustBundle {
    fn from(bundle: &TrustBundle) -> Self {
        Self { trust_domain: bundle.trust_domain.to_string(), roots: bundle.roots.clone() }
    }
}
