//! security.istio.io PeerAuthentication: whether plaintext is taken. Pure.

use std::collections::BTreeMap;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::fields::{At, Fields};
use super::selector;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// Labels of the workloads it is for; `None` is all of the namespace (of the mesh, in the root
    /// namespace).
    pub selector: Option<BTreeMap<String, String>>,
    pub mtls: MutualTls,
    /// By the workload's own port.
    pub port_level_mtls: BTreeMap<u16, MutualTls>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MutualTls {
    /// As the next wider PeerAuthentication says; PERMISSIVE where none does.
    #[default]
    Unset,
    /// Plaintext only: the workload is not meshed.
    Disable,
    /// Plaintext is taken as well.
    Permissive,
    /// Plaintext is refused.
    Strict,
}

const MODES: [(&str, MutualTls); 4] = [
    ("UNSET", MutualTls::Unset),
    ("DISABLE", MutualTls::Disable),
    ("PERMISSIVE", MutualTls::Permissive),
    ("STRICT", MutualTls::Strict),
];

pub(super) fn read(mut spec: Fields<'_>) -> PeerAuthentication {
    let authentication = PeerAuthentication {
        selector: selector(&mut spec),
        mtls: spec.object("mtls").map(mutual_tls).unwrap_or_default(),
        port_level_mtls: spec.at("portLevelMtls").map(port_level).unwrap_or_default(),
    };
    // Istio ignores port levels without a selector; whoever writes them means something by it.
    if authentication.selector.is_none() && !authentication.port_level_mtls.is_empty() {
        spec.conflict("portLevelMtls needs a selector: ports are of certain workloads");
    }
    spec.finish(&[]);
    authentication
}

fn mutual_tls(mut fields: Fields<'_>) -> MutualTls {
    let mode = fields.at("mode").and_then(|at| at.one_of(&MODES)).unwrap_or_default();
    fields.finish(&[]);
    mode
}

fn port_level(at: At<'_>) -> BTreeMap<u16, MutualTls> {
    let is_port = |text: &str| match text.parse::<u16>() {
        Ok(port) if port != 0 => Ok(()),
        _ => Err("a port (1 to 65535)"),
    };
    let level = |(port, at): (String, At<'_>)| Some((port.parse().ok()?, mutual_tls(at.object()?)));
    at.entries(is_port).into_iter().filter_map(level).collect()
}

#[derive(Serialize)]
struct Mode {
    mode: MutualTls,
}

impl Serialize for PeerAuthentication {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut spec = serializer.serialize_struct("PeerAuthenticationSpec", 3)?;
        if let Some(labels) = &self.selector {
            spec.serialize_field("selector", &BTreeMap::from([("matchLabels", labels)]))?;
        }
        if self.mtls != MutualTls::Unset {
            spec.serialize_field("mtls", &Mode { mode: self.mtls })?;
        }
        if !self.port_level_mtls.is_empty() {
            let levels = self.port_level_mtls.iter().map(|(port, mode)| (port.to_string(), Mode { mode: *mode }));
            spec.serialize_field("portLevelMtls", &levels.collect::<BTreeMap<_, _>>())?;
        }
        spec.end()
    }
}
