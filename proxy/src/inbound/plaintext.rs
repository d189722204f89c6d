//! One plaintext connection to a workload that wants them observed: authorize, dial, copy.
//!
//! TPROXY brings it to our listener without translating anything, so its local address is where it
//! was going. The caller proves nothing and is judged as nobody.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use api::{Snapshot, Workload};
use tokio::net::TcpStream;

use crate::inbound::admit::open;
use crate::inbound::authorize::judge;
use crate::inbound::{DialError, Shared, service_of, workload_at};
use crate::metrics::Party;
use crate::net::addr::{ClientAddr, OrigDst, UpstreamAddr};
use crate::net::copy::{End, copy_both_ways};
use crate::net::socket;
use crate::report::{Direction, Flag, Flagged, Report};

/// Why a plaintext connection was refused, in the order of the checks.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlaintextError {
    #[error("where the connection was going cannot be told")]
    Address(#[source] std::io::Error),
    #[error("{dialled} is the agent's own port: a connection to it would be a loop")]
    Loop { dialled: OrigDst },
    #[error("interception is off, so no plaintext should arrive here")]
    NotIntercepting,
    #[error("no workload of this host listens on port {port} for the mesh")]
    NotListening { port: u16 },
    #[error("the mesh does not know workload {uid} yet, so its policies are not known either")]
    UnknownWorkload { uid: String },
    #[error("{reason}")]
    Denied { reason: String },
    #[error("not connected")]
    Dial(#[source] DialError),
}

/// Serves one connection until it ends.
pub(crate) async fn serve(shared: Arc<Shared>, peer: TcpStream, client: SocketAddr) {
    let client = ClientAddr::new(client);
    let mut report = Report::new(&shared.observers, Direction::Inbound, client.get());
    match accept(&shared, &peer, client, &mut report).await {
        Ok(application) => {
            let open = open(&shared, &mut report);
            let idle = shared.config.inbound.idle_timeout;
            let (mut client, mut application) = (End::Tcp(peer), End::Tcp(application));
            let result = copy_both_ways(&mut client, &mut application, &open.traffic, idle).await;
            report.copied(result);
        }
        Err(error) => {
            socket::reset_on_close(&peer);
            report.failed(&error);
        }
    }
}

/// All the checks, and the application connected.
async fn accept(
    shared: &Shared,
    peer: &TcpStream,
    client: ClientAddr,
    report: &mut Report,
) -> Result<TcpStream, PlaintextError> {
    let dialled = socket::local_as_dialled(peer).map_err(PlaintextError::Address)?;
    report.facts.dialled = Some(dialled.get());
    if shared.own_ports.contains(&dialled.get().port()) {
        return Err(PlaintextError::Loop { dialled });
    }
    if !shared.transparent.load(Ordering::Relaxed) {
        return Err(PlaintextError::NotIntercepting);
    }
    let snapshot = shared.view.load();
    report.facts.revision = snapshot.revision();
    let (ip, port) = (dialled.get().ip(), dialled.get().port());
    let (local, workload) = workload_at(&snapshot, ip, port).ok_or(PlaintextError::NotListening { port })?;
    let workload = workload.ok_or_else(|| PlaintextError::UnknownWorkload { uid: local.uid.to_string() })?;
    let target = UpstreamAddr::new(dialled.get());
    report.facts.upstream = Some(target.get());
    report.facts.destination = Party { workload: Some(workload.clone()), identity: None };
    report.facts.service = service_of(&snapshot, workload, port);
    report.facts.source.workload = only_workload_at(&snapshot, client);
    let verdict = judge(&snapshot, workload, &report.facts.connection(target));
    report.facts.policy = verdict.policy().map(Box::from);
    if !verdict.allowed() {
        return Err(PlaintextError::Denied { reason: verdict.reason() });
    }
    shared.dial(client, target).await.map_err(PlaintextError::Dial)
}

/// The workload that calls, for telemetry: nothing tells several at one address apart.
fn only_workload_at(snapshot: &Snapshot, client: ClientAddr) -> Option<Arc<Workload>> {
    let mut here = snapshot.workloads_at(client.get().ip());
    let first = here.next().cloned();
    first.filter(|_| here.next().is_none())
}

impl Flagged for PlaintextError {
    fn flag(&self) -> Flag {
        match self {
            Self::Loop { .. } => Flag::Loop,
            Self::Denied { .. } => Flag::Denied,
            Self::Dial(_) => Flag::Connect,
            Self::Address(_) | Self::NotIntercepting | Self::NotListening { .. } | Self::UnknownWorkload { .. } => {
                Flag::NoRoute
            }
        }
    }
}
