//! Simulated agents: they join, open the discovery stream and obey what it says, exactly as the agent
//! does, but without a data plane, so that hundreds fit on one machine.
//!
//! The `fleet` program runs them inside the control plane's namespace and measures how long a change
//! takes from `tombolo apply` to the snapshot of each.

use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result};
use api::snapshot::{Delta, Snapshot};
use api::token::JoinToken;
use api::wire::tombolo::enrolment_client::EnrolmentClient;
use api::wire::tombolo::{JoinRequest, JoinResponse};
use api::wire::xds::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use api::wire::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use api::wire::{self};
use hyper_util::rt::TokioIo;
use identity::tls::{control_plane_client_config, join_client_config, server_name};
use identity::verifier::Pins;
use identity::{Bundles, KeyPair, Svid};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

/// One simulated agent's view of the mesh, as it last changed.
pub type Seen = watch::Receiver<Snapshot>;

/// Joins as `name` with `token` at `address` and follows discovery until dropped.
pub async fn start(address: &str, token: &str, name: &str) -> Result<(Seen, tokio::task::JoinHandle<Result<()>>)> {
    let (granted, key) = join(address, token, name).await.with_context(|| format!("{name} cannot join"))?;
    let trust_domain = granted.trust_domain.parse()?;
    let svid = Svid::from_pem(&granted.cert_chain.concat(), &key)?;
    let bundles = Bundles::from_pem(&trust_domain, &granted.roots)?;
    let config = control_plane_client_config(&bundles, Some(Arc::new(svid)), &trust_domain)?;
    let channel = connect(address, config).await?;
    let (publish, seen) = watch::channel(Snapshot::default());
    let follow = tokio::spawn(follow(channel, name.to_owned(), publish));
    Ok((seen, follow))
}

async fn join(address: &str, token: &str, name: &str) -> Result<(JoinResponse, KeyPair)> {
    let key = KeyPair::generate()?;
    let pins = Pins { token: Some(JoinToken::parse(token)?), ..Pins::default() };
    let channel = connect(address, join_client_config(pins)?).await?;
    let request = JoinRequest {
        token: token.to_owned(),
        csr: key.csr(None)?,
        name: name.to_owned(),
        addresses: vec!["10.88.0.250".to_owned()],
        version: "fleet".to_owned(),
        now_unix_s: i64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs())?,
        ..JoinRequest::default()
    };
    let granted = EnrolmentClient::new(channel).join(request).await?.into_inner();
    Ok((granted, key))
}

async fn connect(address: &str, config: Arc<rustls::ClientConfig>) -> Result<Channel> {
    let address = address.to_owned();
    let connector = tower::service_fn(move |_| {
        let (address, connector) = (address.clone(), TlsConnector::from(config.clone()));
        async move {
            let stream = TcpStream::connect(&address).await?;
            connector.connect(server_name(&[]), stream).await.map(TokioIo::new)
        }
    });
    Ok(Endpoint::from_static("http://control-plane").connect_with_connector(connector).await?)
}

/// Subscribes to all four types and obeys each response.
async fn follow(channel: Channel, name: String, publish: watch::Sender<Snapshot>) -> Result<()> {
    let (send, requests) = mpsc::channel(16);
    let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(200 << 20);
    for type_url in [wire::ADDRESS, wire::AUTHORIZATION, wire::HOST_CONFIG, wire::TRUST_BUNDLE] {
        let node = Some(Node { id: format!("tombolo~{name}"), ..Node::default() });
        let request = DeltaDiscoveryRequest { node, type_url: type_url.to_owned(), ..DeltaDiscoveryRequest::default() };
        send.send(request).await?;
    }
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut responses = client.delta_aggregated_resources(requests).await?.into_inner();
    while let Some(response) = responses.message().await? {
        let delta = delta(&response)?;
        publish.send_modify(|snapshot| *snapshot = snapshot.apply(delta));
        let (type_url, response_nonce) = (response.type_url, response.nonce);
        send.send(DeltaDiscoveryRequest { type_url, response_nonce, ..DeltaDiscoveryRequest::default() }).await?;
    }
    Ok(())
}

fn delta(response: &DeltaDiscoveryResponse) -> Result<Delta> {
    let mut changes = Vec::new();
    for resource in &response.resources {
        let body = resource.resource.as_ref().context("a resource without a body")?;
        changes.push(wire::decode(&response.type_url, &resource.name, &body.value)?);
    }
    for name in &response.removed_resources {
        changes.push(wire::removal(&response.type_url, name)?);
    }
    Ok(Delta { revision: response.system_version_info.parse().unwrap_or_default(), changes })
}
