//! What every tunnel of a peer walks, whatever its protocol: whose port, what does the policy say,
//! connect to the application.
//!
//! `stream.rs` (HBONE) and `flow.rs` (`tombolo/1`) read the question and write the answer. Identity is
//! what the certificate proves, never a header. The order of the checks is ztunnel's
//! (`src/proxy/inbound.rs`).

use std::net::SocketAddr;
use std::sync::Arc;

use api::{Snapshot, SpiffeId, Workload};
use tokio::net::TcpStream;

use crate::connections::Open;
use crate::hbone::Authority;
use crate::inbound::authorize::{judge, review_one};
use crate::inbound::{DialError, Shared, service_of, workload_at};
use crate::metrics::Party;
use crate::net::addr::{ClientAddr, OrigDst, UpstreamAddr};
use crate::report::{Carrier, Direction, Flag, Flagged, Report};
use crate::standing::Standing;

/// Who is at the other end of a tunnel.
pub(crate) struct Peer {
    pub(crate) identity: SpiffeId,
    pub(crate) client: ClientAddr,
    /// Our address of the connection, and so the workload's.
    pub(crate) local: OrigDst,
    pub(crate) standing: Arc<Standing>,
}

/// Why a peer does not get its connection, in the order of the checks.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdmitError {
    #[error("ip mismatch: {authority} was asked for, and this is {local}")]
    NotOurs { authority: SocketAddr, local: OrigDst },
    #[error("no workload of this host is an endpoint of {authority}")]
    NoService { authority: Authority },
    #[error("port {port} is the agent's own: a connection to it would be a loop")]
    OwnPort { port: u16 },
    #[error("no workload of this host listens on port {port} for the mesh")]
    NotListening { port: u16 },
    #[error("the mesh does not know workload {uid} yet, so its policies are not known either")]
    UnknownWorkload { uid: String },
    #[error("{reason}")]
    Denied { reason: String },
    #[error("not connected")]
    Dial(#[source] DialError),
}

/// The application, connected.
pub(crate) struct Admitted {
    pub(crate) application: TcpStream,
    pub(crate) workload: Arc<Workload>,
}

/// What was asked for, found.
struct Target {
    workload: Arc<Workload>,
    address: UpstreamAddr,
}

/// The report of one connection of `peer`.
pub(crate) fn report(shared: &Shared, peer: &Peer, carrier: Carrier) -> Report {
    let mut report = Report::new(&shared.observers, Direction::Inbound, peer.client.get());
    let snapshot = shared.view.load();
    report.facts.carrier = carrier;
    report.facts.tunnel = Some(peer.local.get());
    report.facts.source.identity = Some(peer.identity.clone());
    report.facts.source.workload = source_workload(&snapshot, peer);
    report.facts.revision = snapshot.revision();
    report.facts.standing = Some(peer.standing.clone());
    report
}

/// All the checks, and the application connected.
pub(crate) async fn admit(
    shared: &Shared,
    peer: &Peer,
    authority: &Authority,
    report: &mut Report,
) -> Result<Admitted, AdmitError> {
    let snapshot = shared.view.load();
    let facts = &mut report.facts;
    facts.revision = snapshot.revision();
    if let Authority::Address(address) = authority {
        facts.dialled = Some(*address);
    }
    let target = target(shared, peer, &snapshot, authority)?;
    facts.upstream = Some(target.address.get());
    let own = target.workload.identity().ok();
    // All connections to it hold its name once, as long as it has a certificate.
    let held = own.as_ref().and_then(|own| shared.credentials.svid(own)).map(|svid| svid.identity().clone());
    facts.destination = Party { workload: Some(target.workload.clone()), identity: held.or(own) };
    facts.service = service_of(&snapshot, &target.workload, target.address.get().port());
    let verdict = judge(&snapshot, &target.workload, &facts.connection(target.address));
    facts.policy = verdict.policy().map(Box::from);
    if !verdict.allowed() {
        return Err(AdmitError::Denied { reason: verdict.reason() });
    }
    let application = shared.dial(peer.client, target.address).await.map_err(AdmitError::Dial)?;
    Ok(Admitted { application, workload: target.workload })
}

/// Puts an admitted connection among the open ones: bytes may move.
pub(crate) fn open(shared: &Shared, report: &mut Report) -> Arc<Open> {
    let open = report.open();
    // Policies may have changed while the application was dialled.
    review_one(&shared.view.load(), &open, &shared.observers);
    open
}

/// Which workload is meant, and where it listens.
fn target(shared: &Shared, peer: &Peer, snapshot: &Snapshot, authority: &Authority) -> Result<Target, AdmitError> {
    let port = match authority {
        Authority::Address(address) if !is_ours(snapshot, *address, peer.local) => {
            return Err(AdmitError::NotOurs { authority: *address, local: peer.local });
        }
        Authority::Address(address) => address.port(),
        Authority::Name { host, port } => {
            let found = target_port(snapshot, host, *port);
            found.ok_or_else(|| AdmitError::NoService { authority: authority.clone() })?
        }
    };
    if shared.own_ports.contains(&port) {
        return Err(AdmitError::OwnPort { port });
    }
    let ip = peer.local.get().ip();
    let (local, workload) = workload_at(snapshot, ip, port).ok_or(AdmitError::NotListening { port })?;
    let unknown = || AdmitError::UnknownWorkload { uid: local.uid.to_string() };
    let workload = workload.cloned().ok_or_else(unknown)?;
    Ok(Target { workload, address: UpstreamAddr::new(SocketAddr::new(ip, port)) })
}

/// The address of the connection itself, or another of this host's (behind NAT they differ).
fn is_ours(snapshot: &Snapshot, address: SocketAddr, local: OrigDst) -> bool {
    if address.ip() == local.get().ip() {
        return true;
    }
    let locals = snapshot.host().into_iter().flat_map(|host| &host.workloads);
    let mut workloads = locals.filter_map(|local| snapshot.workload(&local.uid));
    workloads.any(|workload| workload.addresses.contains(&address.ip()))
}

/// The port on which a workload of this host serves `host:service_port`.
fn target_port(snapshot: &Snapshot, host: &str, service_port: u16) -> Option<u16> {
    let locals = &snapshot.host()?.workloads;
    let namespace = locals.first().map(|local| local.namespace.as_str());
    snapshot.services_by_hostname(host, namespace).into_iter().find_map(|service| {
        let endpoints = snapshot.endpoints(&service.key(), service_port);
        let is_local = |uid: &str| locals.iter().any(|local| &*local.uid == uid);
        endpoints
            .into_iter()
            .find(|endpoint| is_local(&endpoint.workload.uid))
            .map(|endpoint| endpoint.port.target_port)
    })
}

/// The workload that calls, for telemetry: at its address, with the identity that it proved.
fn source_workload(snapshot: &Snapshot, peer: &Peer) -> Option<Arc<Workload>> {
    let mut here = snapshot.workloads_at(peer.client.get().ip());
    here.find(|workload| workload.identity().is_ok_and(|identity| identity == peer.identity)).cloned()
}

impl Flagged for AdmitError {
    fn flag(&self) -> Flag {
        match self {
            Self::NotOurs { .. } | Self::NoService { .. } => Flag::NoRoute,
            Self::OwnPort { .. } => Flag::Loop,
            Self::NotListening { .. } | Self::UnknownWorkload { .. } => Flag::NoRoute,
            Self::Denied { .. } => Flag::Denied,
            Self::Dial(_) => Flag::Connect,
        }
    }
}
