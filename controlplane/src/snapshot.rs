//! What every agent is told: built anew for each revision, published whole.
//!
//! [`start`] builds the first and keeps a task that follows the store. Streams (`grpc/discovery.rs`)
//! and the REST API read [`Published`] through a `watch`. The build is pure (`snapshot/build.rs`) and
//! runs beside the async threads; a database that is away leaves the last snapshot in force.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::snapshot::{Change, TrustBundle};
use api::wire::{self, Encoded};
use api::{Revision, Service, Workload};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{debug, error, info, warn};

mod build;
mod inbound;
pub mod table;

pub use build::{Mesh, Objects};
pub use table::{Diff, Entry, Table};

use crate::store::{HostRowState, Store, StoreError, World};

/// Everything that is told at one revision.
#[derive(Debug, Default)]
pub struct Published {
    pub revision: Revision,
    pub workloads: BTreeMap<String, Workload>,
    pub services: BTreeMap<api::NamespacedHostname, Service>,
    /// What the store held: for what peers are not told, such as why a workload is unhealthy.
    pub world: Arc<World>,
    addresses: Arc<Table>,
    authorizations: Arc<Table>,
    bundles: Arc<Table>,
    hosts: BTreeMap<String, PublishedHost>,
}

#[derive(Debug, Clone)]
struct PublishedHost {
    state: HostRowState,
    config: Arc<Table>,
}

/// The snapshot at each moment, and the task that keeps it; dropping this ends the task.
pub struct Snapshots {
    receiver: watch::Receiver<Arc<Published>>,
    task: JoinHandle<()>,
}

/// How often a database that failed is asked again.
const RETRY: Duration = Duration::from_millis(500);

/// Builds the first snapshot and follows the store from there.
pub async fn start(store: Store, mesh: Mesh) -> Result<Snapshots, StoreError> {
    let changes = store.changes();
    let world = store.world().await?;
    let mut builder = Builder::new(mesh);
    let first = builder.publish(world);
    let (sender, receiver) = watch::channel(first);
    let task = tokio::spawn(follow(store, changes, builder, sender));
    Ok(Snapshots { receiver, task })
}

impl Snapshots {
    pub fn subscribe(&self) -> watch::Receiver<Arc<Published>> {
        self.receiver.clone()
    }
}

impl Drop for Snapshots {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(
    store: Store,
    mut changes: watch::Receiver<Revision>,
    mut builder: Builder,
    sender: watch::Sender<Arc<Published>>,
) {
    let (mut failing, mut skipped) = (false, 0);
    let mesh = builder.mesh.clone();
    loop {
        let known = sender.borrow().revision;
        if *changes.borrow_and_update() <= known.max(skipped) && changes.changed().await.is_err() {
            return;
        }
        let world = match store.world().await {
            Ok(world) => world,
            Err(error) => {
                if !failing {
                    warn!(error = %telemetry::Chain(&error), "the store cannot be read: agents keep revision {known}");
                }
                failing = true;
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        if std::mem::take(&mut failing) {
            info!(revision = world.revision, "the store can be read again");
        }
        let revision = world.revision;
        let built = tokio::task::spawn_blocking(move || {
            let published = builder.publish(world);
            (builder, published)
        });
        match built.await {
            Ok((next, published)) => {
                builder = next;
                debug!(revision = published.revision, "revision {} is published", published.revision);
                sender.send_replace(published);
            }
            Err(failure) if failure.is_panic() => {
                // A mistake of ours. The next change may well not meet it.
                error!(error = %failure, revision, "building revision {revision} failed: agents keep revision {known}");
                builder = Builder { mesh: mesh.clone(), last: sender.borrow().clone() };
                skipped = revision;
            }
            // The program ends.
            Err(_) => return,
        }
    }
}

/// Turns worlds into snapshots, each sharing what did not change with the one before.
pub struct Builder {
    mesh: Mesh,
    last: Arc<Published>,
}

impl Builder {
    pub fn new(mesh: Mesh) -> Self {
        Self { mesh, last: Arc::default() }
    }

    pub fn publish(&mut self, world: World) -> Arc<Published> {
        let objects = build::build(&world, &self.mesh);
        let last = &self.last;
        let policies = objects.policies.into_values().map(Change::Policy);
        let bundle = TrustBundle { trust_domain: self.mesh.trust_domain.clone(), roots: self.mesh.roots.clone() };
        let published = Published {
            revision: world.revision,
            addresses: Table::next(
                &last.addresses,
                addresses(&objects.workloads, &objects.services),
                aliases(&objects.workloads, &objects.services),
            ),
            authorizations: Table::next(&last.authorizations, encoded(policies), BTreeMap::new()),
            bundles: Table::next(&last.bundles, encoded([Change::Bundle(bundle)]), BTreeMap::new()),
            hosts: hosts(last, objects.hosts, &world),
            workloads: objects.workloads,
            services: objects.services,
            world: Arc::new(world),
        };
        self.last = Arc::new(published);
        self.last.clone()
    }
}

fn encoded(changes: impl IntoIterator<Item = Change>) -> Vec<Encoded> {
    changes.into_iter().filter_map(|change| wire::encode(&change)).collect()
}

fn addresses(
    workloads: &BTreeMap<String, Workload>,
    services: &BTreeMap<api::NamespacedHostname, Service>,
) -> Vec<Encoded> {
    let workloads = workloads.values().cloned().map(Change::Workload);
    encoded(workloads.chain(services.values().cloned().map(Change::Service)))
}

/// As istiod looks up a name that is subscribed on demand: by address, and a service with its endpoints.
fn aliases(
    workloads: &BTreeMap<String, Workload>,
    services: &BTreeMap<api::NamespacedHostname, Service>,
) -> BTreeMap<String, BTreeSet<Arc<str>>> {
    let mut aliases: BTreeMap<String, BTreeSet<Arc<str>>> = BTreeMap::new();
    for workload in workloads.values() {
        for address in &workload.addresses {
            aliases.entry(format!("{}/{address}", workload.network)).or_default().insert(workload.uid.clone());
        }
        for service in workload.services.keys() {
            aliases.entry(service.to_string()).or_default().insert(workload.uid.clone());
        }
    }
    for service in services.values() {
        for vip in &service.vips {
            let key: Arc<str> = service.key().to_string().into();
            aliases.entry(format!("/{vip}")).or_default().insert(key);
        }
    }
    aliases
}

fn hosts(
    last: &Published,
    configs: BTreeMap<String, api::HostConfig>,
    world: &World,
) -> BTreeMap<String, PublishedHost> {
    let empty = Arc::new(Table::default());
    let host = |(name, config): (String, api::HostConfig)| {
        let state = world.host(&name)?.state;
        let before = last.hosts.get(&name).map_or(&empty, |host| &host.config);
        let config = Table::next(before, encoded([Change::Host(config)]), BTreeMap::new());
        Some((name, PublishedHost { state, config }))
    };
    configs.into_iter().filter_map(host).collect()
}

impl Published {
    /// What `host` is told of one type; `None` for a type or a host that there is not.
    pub fn table(&self, type_url: &str, host: &str) -> Option<&Arc<Table>> {
        match type_url {
            wire::ADDRESS => Some(&self.addresses),
            wire::AUTHORIZATION => Some(&self.authorizations),
            wire::TRUST_BUNDLE => Some(&self.bundles),
            wire::HOST_CONFIG => self.hosts.get(host).map(|host| &host.config),
            _ => None,
        }
    }

    /// `None` when the host is not known.
    pub fn host_state(&self, host: &str) -> Option<HostRowState> {
        self.hosts.get(host).map(|host| host.state)
    }
}
