//! Tests of `registry`, the file beside this folder: what all of them use.

use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use api::SpiffeId;
use api::rest::TokenRequest;

use super::leases::Pause;
use super::*;
use crate::resources::{self, Apply};
use crate::store::{HostRowState, Store, StoreError};
use crate::testing::{Database, on_each_store, postgres};

mod hosts;
mod joining;
mod leases;
mod renewal;

const LEASE: Duration = Duration::from_secs(15);
const HOUR: Duration = Duration::from_secs(3600);
const PIN: [u8; 32] = [7; 32];

fn at(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

async fn put_group(store: &Store, namespace: &str, name: &str, service_account: &str) {
    let document = serde_json::json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadGroup",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"template": {"serviceAccount": service_account}},
    });
    let apply = Apply {
        documents: vec![document],
        dry_run: false,
        actor: "admin".to_owned(),
        trust_domain: "td".parse().expect("a trust domain"),
        now: SystemTime::now(),
    };
    resources::apply(store, &apply).await.expect("the group is applied");
}

fn request(groups: &[&str]) -> TokenRequest {
    TokenRequest {
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        ttl_s: 3600,
        uses: 1,
        name_pattern: String::new(),
        cidrs: Vec::new(),
        approval: false,
    }
}

async fn token(store: &Store, request: &TokenRequest, now: SystemTime) -> String {
    create_token(store, request, &PIN, "admin", now).await.expect("the token is made").0.reveal()
}

fn attempt(token: &str, name: &str, now: SystemTime) -> JoinAttempt {
    JoinAttempt {
        token: token.to_owned(),
        name: name.to_owned(),
        groups: Vec::new(),
        addresses: vec![at("10.0.0.1")],
        version: "0.1.0".to_owned(),
        peer_ip: at("10.0.0.1"),
        key_hash: PIN,
        now,
    }
}

fn beat(epoch: u64, healthy: Option<bool>) -> Report {
    let workloads = healthy.map(|healthy| WorkloadReport {
        uid: workload_uid("shop", "orders", "web"),
        healthy,
        reason: String::new(),
    });
    Report {
        epoch,
        revision: 1,
        workloads: workloads.into_iter().collect(),
        addresses: vec![at("10.0.0.1")],
        version: "0.1.0".to_owned(),
        intercepting: true,
        problem: String::new(),
        peer_ip: at("10.0.0.1"),
    }
}

/// A store where host `web` of `shop/orders` has joined.
async fn joined(database: &Database, now: SystemTime) -> JoinGrant {
    put_group(&database.store, "shop", "orders", "orders").await;
    let token = token(&database.store, &request(&["shop/orders"]), now).await;
    join(&database.store, &attempt(&token, "web", now)).await.expect("web joins")
}
