//! A named set of workloads and the addresses it is reached at. Pure.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The key of a service everywhere: `namespace/hostname`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacedHostname {
    pub namespace: String,
    pub hostname: String,
}

/// What the port carries, as far as it was declared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AppProtocol {
    #[default]
    Unknown,
    Http11,
    Http2,
    Grpc,
    Tcp,
    Tls,
}

/// One port of a service. As part of a [`Service`] a `target_port` of 0 means "as the workload says".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Port {
    /// What callers dial.
    pub service_port: u16,
    /// What the workload listens on.
    pub target_port: u16,
    pub app_protocol: AppProtocol,
}

/// A named set of workloads.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    pub name: String,
    pub namespace: String,
    /// The name callers use, such as `orders.shop.mesh`.
    pub hostname: String,
    /// Virtual addresses (240.240.0.0/16, a ULA range) or those declared by the operator.
    pub vips: Vec<IpAddr>,
    pub ports: Vec<Port>,
    /// Identities an endpoint may prove besides the selected workload's own.
    pub subject_alt_names: Vec<String>,
    /// Also pick endpoints that are known to be unhealthy.
    pub allow_unhealthy: bool,
}

impl Service {
    pub fn key(&self) -> NamespacedHostname {
        NamespacedHostname { namespace: self.namespace.clone(), hostname: self.hostname.clone() }
    }

    pub fn port(&self, service_port: u16) -> Option<&Port> {
        self.ports.iter().find(|port| port.service_port == service_port)
    }
}

impl fmt::Display for NamespacedHostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

impl FromStr for NamespacedHostname {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((namespace, hostname)) if !hostname.is_empty() && !hostname.contains('/') => {
                Ok(Self { namespace: namespace.to_owned(), hostname: hostname.to_owned() })
            }
            _ => Err(format!("{text:?} is not NAMESPACE/HOSTNAME")),
        }
    }
}
