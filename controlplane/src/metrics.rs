//! The control plane's metrics. `/metrics` on the REST port shows them; docs/metrics.md lists them.

use std::sync::Arc;

use telemetry::metrics::prometheus_client::collector::Collector;
use telemetry::metrics::prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use telemetry::metrics::prometheus_client::metrics::counter::{ConstCounter, Counter};
use telemetry::metrics::prometheus_client::metrics::family::Family;
use telemetry::metrics::prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use telemetry::metrics::{Registry, register_process};

use crate::grpc::Agents;
use crate::store::Store;

/// Everything that is counted. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Certificates asked for: `kind` is `host` or `workload`, `outcome` `signed` or `refused`.
    pub certificates: Family<CertificateLabels, Counter>,
    /// Joins, renewals, reports and leaves of hosts: `call`, and `outcome` `granted` or `refused`.
    pub enrolment: Family<CallLabels, Counter>,
    /// Answers of agents to what discovery sent: `outcome` is `acknowledged` or `refused`.
    pub discovery_answers: Family<OutcomeLabels, Counter>,
    /// Resources sent to agents, removals included.
    pub discovery_resources: Counter,
    /// Requests of the REST API by route and status.
    pub requests: Family<RequestLabels, Counter>,
    /// Requests of the REST API that are being answered, those that wait for news included.
    pub requests_in_flight: Gauge,
    registry: Arc<Registry>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CertificateLabels {
    pub kind: &'static str,
    pub outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CallLabels {
    pub call: &'static str,
    pub outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabels {
    pub outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    pub method: String,
    /// The route's pattern, never what was asked for.
    pub route: String,
    pub status: u16,
}

impl Metrics {
    pub fn new(store: &Store, agents: &Agents) -> Self {
        let mut registry = Registry::default();
        register_process(&mut registry);
        let (certificates, enrolment) = (Family::default(), Family::default());
        let (discovery_answers, requests) = (Family::default(), Family::default());
        let (discovery_resources, requests_in_flight) = (Counter::default(), Gauge::default());
        let ours = registry.sub_registry_with_prefix("tombolo_controlplane");
        ours.register("certificates", "Certificates asked for", Family::clone(&certificates));
        ours.register("enrolment_calls", "Joins, renewals, reports and leaves of hosts", Family::clone(&enrolment));
        ours.register("discovery_answers", "Answers of agents to discovery", Family::clone(&discovery_answers));
        ours.register("discovery_resources", "Resources sent to agents", discovery_resources.clone());
        ours.register("requests", "Requests of the REST API", Family::clone(&requests));
        ours.register("requests_in_flight", "Requests that are being answered", requests_in_flight.clone());
        ours.register_collector(Box::new(State { store: store.clone(), agents: agents.clone() }));
        let registry = Arc::new(registry);
        Self { certificates, enrolment, discovery_answers, discovery_resources, requests, requests_in_flight, registry }
    }

    /// As `/metrics` shows it.
    pub fn encode(&self) -> String {
        telemetry::metrics::encode_text(&self.registry)
    }
}

/// What is known elsewhere, read at each scrape.
struct State {
    store: Store,
    agents: Agents,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("State")
    }
}

impl Collector for State {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let revision = self.store.revision();
        let gauges = [
            ("revision", "Newest revision known", revision),
            ("connected_agents", "Streams of agents to this replica", self.agents.n_connected() as u64),
            (
                "current_agents",
                "Of them, those that have confirmed the newest revision",
                self.agents.n_current(revision) as u64,
            ),
            ("store_available", "Whether the database answered when it was last asked", self.store.available().into()),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let errors = ConstCounter::new(self.store.n_errors());
        let name = "store_errors";
        errors.encode(encoder.encode_descriptor(name, "Failures of the database", None, errors.metric_type())?)
    }
}
