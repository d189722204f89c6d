//! What the DNS server counts, under Istio's names (ztunnel, src/dns/metrics.rs) where it is the same.

use std::time::Duration;

use hickory_proto::rr::RecordType;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// How a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct QuestionLabels {
    request_query_type: &'static str,
    request_protocol: &'static str,
}

/// Why a question was not worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dropped {
    /// More at once than the limit.
    Busy,
    /// Not a question.
    Malformed,
    /// One of our own came back.
    Loop,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct DropLabels {
    reason: &'static str,
}

#[derive(Debug, Clone)]
pub(super) struct DnsMetrics {
    requests: Family<QuestionLabels, Counter>,
    upstream_requests: Family<QuestionLabels, Counter>,
    upstream_failures: Family<QuestionLabels, Counter>,
    upstream_duration: Family<QuestionLabels, Histogram>,
    dropped: Family<DropLabels, Counter>,
}

/// Upper bounds in seconds: a resolver on this host, in this network, far away, and ours giving up.
const BUCKETS: [f64; 8] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 2.0, 6.0];

impl DnsMetrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            upstream_requests: Family::default(),
            upstream_failures: Family::default(),
            upstream_duration: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            dropped: Family::default(),
        };
        registry.register("istio_dns_requests", "DNS questions received", metrics.requests.clone());
        let asked = "DNS questions forwarded to the host's resolvers";
        registry.register("istio_dns_upstream_requests", asked, metrics.upstream_requests.clone());
        let failed = "Forwarded DNS questions that no resolver answered";
        registry.register("istio_dns_upstream_failures", failed, metrics.upstream_failures.clone());
        registry.register_with_unit(
            "istio_dns_upstream_request_duration",
            "How long the host's resolvers took to answer",
            Unit::Seconds,
            metrics.upstream_duration.clone(),
        );
        let dropped = "DNS messages not worked on: too many at once, not a question, or our own come back";
        registry.register("tombolo_dns_dropped", dropped, metrics.dropped.clone());
        metrics
    }

    pub(super) fn received(&self, labels: &QuestionLabels) {
        self.requests.get_or_create(labels).inc();
    }

    /// A forwarded question ended: answered after a while, or not at all.
    pub(super) fn forwarded(&self, labels: &QuestionLabels, answered_after: Option<Duration>) {
        self.upstream_requests.get_or_create(labels).inc();
        match answered_after {
            Some(duration) => self.upstream_duration.get_or_create(labels).observe(duration.as_secs_f64()),
            None => drop(self.upstream_failures.get_or_create(labels).inc()),
        }
    }

    pub(super) fn dropped(&self, why: Dropped) {
        let reason = match why {
            Dropped::Busy => "busy",
            Dropped::Malformed => "malformed",
            Dropped::Loop => "loop",
        };
        self.dropped.get_or_create(&DropLabels { reason }).inc();
    }
}

impl QuestionLabels {
    /// Types beyond the usual ones share a label: the asker chooses the number.
    pub(super) fn new(record_type: RecordType, transport: Transport) -> Self {
        let request_query_type = match record_type {
            RecordType::A => "a",
            RecordType::AAAA => "aaaa",
            RecordType::SRV => "srv",
            RecordType::PTR => "ptr",
            RecordType::HTTPS => "https",
            RecordType::SVCB => "svcb",
            RecordType::TXT => "txt",
            RecordType::MX => "mx",
            RecordType::NS => "ns",
            RecordType::SOA => "soa",
            RecordType::CNAME => "cname",
            RecordType::ANY => "any",
            _ => "other",
        };
        let request_protocol = match transport {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        };
        Self { request_query_type, request_protocol }
    }
}
