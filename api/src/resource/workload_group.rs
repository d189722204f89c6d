//! networking.istio.io WorkloadGroup: what every host that joins it runs. Pure.
//!
//! Which processes of the host are the workload, and what happens to plaintext, Istio's schema cannot
//! say; annotations in `spec.metadata.annotations` do: `tombolo.dev/unit`, `tombolo.dev/cgroup`,
//! `tombolo.dev/uid` and `tombolo.dev/inbound`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::fields::{At, Fields, Mistakes};
use super::meta;
use super::mistake::{Problem, closest};
use super::workload_entry::{Placement, named_ports};
use crate::host::{Check, InboundMode, Probe, Selector};

const PREFIX: &str = "tombolo.dev/";
const UNIT: &str = "tombolo.dev/unit";
const CGROUP: &str = "tombolo.dev/cgroup";
const UID: &str = "tombolo.dev/uid";
const INBOUND: &str = "tombolo.dev/inbound";
const MODES: [(&str, InboundMode); 3] =
    [("permissive", InboundMode::Permissive), ("observe", InboundMode::Observe), ("strict", InboundMode::Strict)];

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadGroup {
    /// Labels and annotations of each of its workloads.
    #[serde(skip_serializing_if = "TemplateMeta::is_empty")]
    pub metadata: TemplateMeta,
    pub template: Template,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<ReadinessProbe>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TemplateMeta {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Template {
    /// Ports it listens on, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub ports: BTreeMap<String, u16>,
    #[serde(flatten)]
    pub placement: Placement,
}

/// How its agent finds out whether it is healthy. Absent numbers are Kubernetes' defaults.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ReadinessProbe {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial_delay_seconds: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period_seconds: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success_threshold: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_threshold: Option<u32>,
    #[serde(flatten)]
    pub check: ProbeCheck,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum ProbeCheck {
    HttpGet {
        #[serde(skip_serializing_if = "Option::is_none")]
        path: Option<String>,
        port: u16,
        #[serde(skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        scheme: Option<String>,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        http_headers: Vec<HttpHeader>,
    },
    TcpSocket {
        #[serde(skip_serializing_if = "Option::is_none")]
        host: Option<String>,
        port: u16,
    },
    Exec {
        command: Vec<String>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HttpHeader {
    pub name: String,
    pub value: String,
}

impl TemplateMeta {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl WorkloadGroup {
    /// Which processes of a host are the workload.
    pub fn selector(&self) -> Selector {
        let annotation = |key: &str| self.metadata.annotations.get(key).cloned();
        Selector {
            unit: annotation(UNIT),
            cgroup: annotation(CGROUP),
            uid: annotation(UID).and_then(|uid| uid.parse().ok()),
        }
    }

    /// What happens to plaintext, when the group says so itself; else PeerAuthentication does.
    pub fn inbound(&self) -> Option<InboundMode> {
        let said = self.metadata.annotations.get(INBOUND)?;
        MODES.iter().find(|(word, _)| word == said).map(|(_, mode)| *mode)
    }

    pub fn service_account(&self) -> &str {
        self.template.placement.service_account()
    }

    /// The probe as agents run it.
    pub fn probe(&self) -> Option<Probe> {
        self.probe.as_ref().map(Probe::from)
    }
}

/// Defaults: Kubernetes' core/v1 Probe. A probe without a host asks the host itself.
impl From<&ReadinessProbe> for Probe {
    fn from(probe: &ReadinessProbe) -> Self {
        let seconds = |value: Option<u32>, default: u32| Duration::from_secs(value.unwrap_or(default).into());
        let local = |host: &Option<String>| host.clone().unwrap_or_else(|| "localhost".to_owned());
        let check = match &probe.check {
            ProbeCheck::HttpGet { path, port, host, scheme, http_headers } => Check::Http {
                scheme: scheme.as_deref().unwrap_or("http").to_ascii_lowercase(),
                host: local(host),
                port: *port,
                path: path.clone().unwrap_or_else(|| "/".to_owned()),
                headers: http_headers.iter().map(|h| (h.name.clone(), h.value.clone())).collect(),
            },
            ProbeCheck::TcpSocket { host, port } => Check::Tcp { host: local(host), port: *port },
            ProbeCheck::Exec { command } => Check::Exec { command: command.clone() },
        };
        Self {
            check,
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            timeout: seconds(probe.timeout_seconds, 1),
            period: seconds(probe.period_seconds, 10),
            success_threshold: probe.success_threshold.unwrap_or(1),
            failure_threshold: probe.failure_threshold.unwrap_or(3),
        }
    }
}

pub(super) fn read(mut spec: Fields<'_>, mistakes: &Mistakes) -> WorkloadGroup {
    let group = WorkloadGroup {
        metadata: spec.object("metadata").map(|fields| template_meta(fields, mistakes)).unwrap_or_default(),
        template: spec
            .required("template", "what each workload has: ports, serviceAccount; {} when there is nothing to say")
            .and_then(At::object)
            .map(template)
            .unwrap_or_default(),
        probe: spec.object("probe").and_then(probe),
    };
    spec.finish(&[]);
    group
}

fn template_meta(mut fields: Fields<'_>, mistakes: &Mistakes) -> TemplateMeta {
    let meta = TemplateMeta {
        labels: fields.at("labels").map(At::labels).unwrap_or_default(),
        annotations: meta::annotations(&mut fields),
    };
    fields.finish(&[("name", "a workload is named by its group and host"), ("namespace", "it is the group's")]);
    for (key, value) in &meta.annotations {
        if let Some(problem) = annotation_problem(key, value) {
            mistakes.report(format!("spec.metadata.annotations[{key}]"), problem);
        }
    }
    meta
}

/// Our own annotations are checked as fields are: a typing error must not silently mean nothing.
fn annotation_problem(key: &str, value: &str) -> Option<Problem> {
    let invalid = |expected: &str| Some(Problem::Invalid { value: value.to_owned(), expected: expected.to_owned() });
    match key {
        UNIT if !value.contains('.') || value.contains('/') => invalid("a systemd unit such as orders.service"),
        CGROUP if !value.starts_with('/') || value.contains("/../") => {
            invalid("a path below the cgroup mount such as /system.slice/orders.service")
        }
        UID if value.parse::<u32>().is_err() => invalid("a numeric user id"),
        INBOUND if !MODES.iter().any(|(word, _)| *word == value) => invalid("permissive, observe or strict"),
        UNIT | CGROUP | UID | INBOUND => None,
        _ if key.starts_with(PREFIX) => Some(Problem::Unknown { meant: closest(key, [UNIT, CGROUP, UID, INBOUND]) }),
        _ => None,
    }
}

fn template(mut fields: Fields<'_>) -> Template {
    let template = Template {
        ports: fields.at("ports").map(named_ports).unwrap_or_default(),
        placement: Placement::read(&mut fields),
    };
    fields.finish(&[
        ("address", "each host brings its own addresses; leave it out"),
        ("labels", "write them in spec.metadata.labels"),
    ]);
    template
}

fn probe(mut fields: Fields<'_>) -> Option<ReadinessProbe> {
    let most = 24 * 60 * 60;
    let initial_delay_seconds = fields.at("initialDelaySeconds").and_then(|at| at.number(0, most));
    let mut at_least_one = |name| fields.at(name).and_then(|at| at.number(1, most));
    let (timeout_seconds, period_seconds) = (at_least_one("timeoutSeconds"), at_least_one("periodSeconds"));
    let (success_threshold, failure_threshold) = (at_least_one("successThreshold"), at_least_one("failureThreshold"));
    let checks = [
        fields.object("httpGet").and_then(http_get),
        fields.object("tcpSocket").and_then(tcp_socket),
        fields.object("exec").and_then(exec),
    ];
    let mut checks = checks.into_iter().flatten();
    let (check, another) = (checks.next(), checks.next());
    if check.is_none() || another.is_some() {
        fields.conflict("must have exactly one of httpGet, tcpSocket and exec");
    }
    fields.finish(&[("grpc", "use tcpSocket on the same port, or exec with a gRPC health client")]);
    Some(ReadinessProbe {
        initial_delay_seconds,
        timeout_seconds,
        period_seconds,
        success_threshold,
        failure_threshold,
        check: check?,
    })
}

fn http_get(mut fields: Fields<'_>) -> Option<ProbeCheck> {
    let headers = fields.list("httpHeaders").into_iter().filter_map(At::object).filter_map(header).collect();
    let schemes = [("HTTP", "HTTP"), ("HTTPS", "HTTPS"), ("http", "HTTP"), ("https", "HTTPS")];
    let check = ProbeCheck::HttpGet {
        path: fields.at("path").and_then(path),
        host: fields.text("host"),
        scheme: fields.at("scheme").and_then(|at| at.one_of(&schemes)).map(str::to_owned),
        http_headers: headers,
        port: fields.required("port", "the port to ask").and_then(At::port).unwrap_or_default(),
    };
    fields.finish(&[]);
    Some(check)
}

fn path(at: At<'_>) -> Option<String> {
    let text = at.sibling().text()?;
    let sound = text.starts_with('/') && text.parse::<http::uri::PathAndQuery>().is_ok();
    if sound { Some(text) } else { at.invalid(&text, "a path that begins with a slash") }
}

fn header(mut fields: Fields<'_>) -> Option<HttpHeader> {
    let (name, value) = (fields.required("name", "a header's name")?, fields.at("value"));
    let text = name.sibling().text()?;
    if http::HeaderName::try_from(&text).is_err() {
        return name.invalid(&text, "a header name");
    }
    let value = match value {
        Some(at) => {
            let text = at.sibling().any_text()?;
            if http::HeaderValue::try_from(&text).is_err() {
                return at.invalid(&text, "a header value");
            }
            text
        }
        None => String::new(),
    };
    fields.finish(&[]);
    Some(HttpHeader { name: text, value })
}

fn tcp_socket(mut fields: Fields<'_>) -> Option<ProbeCheck> {
    let check = ProbeCheck::TcpSocket {
        host: fields.text("host"),
        port: fields.required("port", "the port to ask").and_then(At::port).unwrap_or_default(),
    };
    fields.finish(&[]);
    Some(check)
}

fn exec(mut fields: Fields<'_>) -> Option<ProbeCheck> {
    let command = fields.required("command", "the program and its arguments")?;
    let command = command.filled_list("write the program and its arguments").into_iter().filter_map(At::any_text);
    let check = ProbeCheck::Exec { command: command.collect() };
    fields.finish(&[]);
    Some(check)
}
