//! Every metric of the data plane: name, help, unit, labels.
//!
//! `report.rs` writes those of connections, the listeners and the pool the others. Names and labels of
//! the `istio_tcp_*` family are Istio's, so that its dashboards work (ztunnel's `src/proxy/metrics.rs`); ours begin
//! with `tombolo_`. Labels name groups of workloads, never instances or addresses, so their number is
//! bounded by the size of the mesh's configuration.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use api::{Service, SpiffeId, Workload};
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The families, shared by everything that counts.
#[derive(Clone, Default)]
pub(crate) struct Metrics {
    pub(crate) opened: Family<TcpLabels, Counter>,
    pub(crate) closed: Family<TcpLabels, Counter>,
    pub(crate) failed: Family<TcpLabels, Counter>,
    pub(crate) received_bytes: Family<TcpLabels, Counter>,
    pub(crate) sent_bytes: Family<TcpLabels, Counter>,
    pub(crate) sockets_open: Family<Label, Gauge>,
    pub(crate) handshakes: Family<Label, Counter>,
    pub(crate) tunnels: Gauge,
    pub(crate) tunnels_made: Family<Label, Counter>,
    pub(crate) warm: Gauge,
    pub(crate) closed_by_policy: Counter,
    pub(crate) accept_errors: Family<Label, Counter>,
    series: Arc<Mutex<HashMap<TcpLabels, Arc<Series>>>>,
}

/// What counts an open connection of these labels: found once, when it opens. Two dozen texts are hashed and compared
/// for each look (`TcpLabels`).
pub(crate) struct Series {
    pub(crate) opened: Counter,
    /// Without a fault.
    pub(crate) closed: Counter,
    pub(crate) received_bytes: Counter,
    pub(crate) sent_bytes: Counter,
}

/// Which side of a connection reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Reporter {
    Source,
    Destination,
}

/// One end of a connection, as far as it is known.
#[derive(Debug, Clone, Default)]
pub(crate) struct Party {
    pub(crate) workload: Option<Arc<Workload>>,
    /// What the peer proved, or what we expect it to prove.
    pub(crate) identity: Option<SpiffeId>,
}

/// Istio's label set of the TCP metrics.
#[derive(Debug, Clone)]
pub(crate) struct TcpLabels {
    pub(crate) reporter: Reporter,
    pub(crate) source: Party,
    pub(crate) destination: Party,
    pub(crate) service: Option<Arc<Service>>,
    /// The bytes on the wire were under mTLS.
    pub(crate) mutual_tls: bool,
    pub(crate) flag: &'static str,
}

/// A single label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Label(pub(crate) &'static str, pub(crate) &'static str);

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let m = metrics.clone();
        registry.register("istio_tcp_connections_opened", "Connections that were let through", m.opened);
        registry.register("istio_tcp_connections_closed", "Connections that were let through and ended", m.closed);
        registry.register("istio_tcp_connections_failed", "Connections refused, or ended by an error", m.failed);
        registry.register("istio_tcp_received_bytes", "Bytes from client to server", m.received_bytes);
        registry.register("istio_tcp_sent_bytes", "Bytes from server to client", m.sent_bytes);
        registry.register("istio_tcp_sockets_open", "Connections open at this moment", m.sockets_open);
        registry.register("tombolo_inbound_handshakes", "TLS handshakes of peers, by result", m.handshakes);
        registry.register("tombolo_tunnels_open", "Pooled connections to peers at this moment", m.tunnels);
        registry.register("tombolo_tunnels_made", "Connections to peers that were tried, by result", m.tunnels_made);
        registry.register("tombolo_tunnels_warm", "Connections to peers that wait for a flow of tombolo/1", m.warm);
        let help = "Open connections that were closed because a new policy forbids them";
        registry.register("tombolo_connections_closed_by_policy", help, m.closed_by_policy);
        let help = "Connections that could not be accepted, by listener (too many open files, mostly)";
        registry.register("tombolo_accept_errors", help, m.accept_errors);
        metrics
    }
}

impl Metrics {
    /// The series of connections without a fault.
    pub(crate) fn series(&self, labels: TcpLabels) -> Arc<Series> {
        // Nothing that can panic runs under this lock; a poisoned one is still whole.
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = series.get(&labels) {
            return known.clone();
        }
        let of = |family: &Family<TcpLabels, Counter>| family.get_or_create_owned(&labels);
        let new = Arc::new(Series {
            opened: of(&self.opened),
            closed: of(&self.closed),
            received_bytes: of(&self.received_bytes),
            sent_bytes: of(&self.sent_bytes),
        });
        series.insert(labels, new.clone());
        new
    }
}

impl TcpLabels {
    fn pairs(&self) -> [(&'static str, Cow<'_, str>); 23] {
        let source = self.source.values();
        let destination = self.destination.values();
        let (service, service_name, service_namespace) = match &self.service {
            Some(service) => (service.hostname.as_str(), service.name.as_str(), service.namespace.as_str()),
            None => (UNKNOWN, UNKNOWN, UNKNOWN),
        };
        let reporter = match self.reporter {
            Reporter::Source => "source",
            Reporter::Destination => "destination",
        };
        let security = if self.mutual_tls { "mutual_tls" } else { UNKNOWN };
        [
            ("reporter", reporter.into()),
            ("source_workload", source.workload.into()),
            ("source_canonical_service", source.name.into()),
            ("source_canonical_revision", source.revision.into()),
            ("source_workload_namespace", source.namespace.into()),
            ("source_app", source.name.into()),
            ("source_version", source.revision.into()),
            ("source_cluster", source.cluster.into()),
            ("source_principal", self.source.principal()),
            ("destination_workload", destination.workload.into()),
            ("destination_canonical_service", destination.name.into()),
            ("destination_canonical_revision", destination.revision.into()),
            ("destination_workload_namespace", destination.namespace.into()),
            ("destination_app", destination.name.into()),
            ("destination_version", destination.revision.into()),
            ("destination_cluster", destination.cluster.into()),
            ("destination_principal", self.destination.principal()),
            ("destination_service", service.into()),
            ("destination_service_name", service_name.into()),
            ("destination_service_namespace", service_namespace.into()),
            ("request_protocol", "tcp".into()),
            ("response_flags", self.flag.into()),
            ("connection_security_policy", security.into()),
        ]
    }
}

impl TcpLabels {
    fn key(&self) -> impl Hash + Eq + '_ {
        let service = self.service.as_ref().map(|service| (&service.namespace, &service.hostname, &service.name));
        let identities = (&self.source.identity, &self.destination.identity);
        let parties = (self.source.values(), self.destination.values());
        (self.reporter, parties, identities, service, self.mutual_tls, self.flag)
    }
}

/// What tells two label sets apart: all that [`TcpLabels::pairs`] prints.
impl PartialEq for TcpLabels {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for TcpLabels {}

impl Hash for TcpLabels {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

impl EncodeLabelSet for TcpLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.pairs().into_iter().try_for_each(|pair| pair.encode(encoder.encode_label()))
    }
}

impl EncodeLabelSet for Label {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        (self.0, self.1).encode(encoder.encode_label())
    }
}

/// A workload's values for its half of the labels.
#[derive(PartialEq, Eq, Hash)]
struct PartyValues<'a> {
    workload: &'a str,
    name: &'a str,
    revision: &'a str,
    namespace: &'a str,
    cluster: &'a str,
}

impl Party {
    fn values(&self) -> PartyValues<'_> {
        let or_unknown = |text| if str::is_empty(text) { UNKNOWN } else { text };
        match &self.workload {
            Some(workload) => PartyValues {
                workload: or_unknown(&workload.workload_name),
                name: or_unknown(&workload.canonical_name),
                revision: or_unknown(&workload.canonical_revision),
                namespace: or_unknown(&workload.namespace),
                cluster: or_unknown(&workload.cluster_id),
            },
            None => {
                let namespace = self.identity.as_ref().and_then(SpiffeId::namespace).unwrap_or(UNKNOWN);
                PartyValues { workload: UNKNOWN, name: UNKNOWN, revision: UNKNOWN, namespace, cluster: UNKNOWN }
            }
        }
    }

    fn principal(&self) -> Cow<'_, str> {
        self.identity.as_ref().map_or(UNKNOWN.into(), |identity| identity.to_string().into())
    }
}

/// Istio's word for what nobody said.
const UNKNOWN: &str = "unknown";

#[cfg(test)]
mod tests;
