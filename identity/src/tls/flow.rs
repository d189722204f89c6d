//! The configurations of `tombolo/1`: as those of HBONE, and sessions are resumed.
//!
//! A resumed session skips the certificate checks, so it must not outlive what they would find. On
//! both sides the memory of sessions belongs to one state of the [`Credentials`]: whoever renews a
//! certificate or changes a bundle begins with an empty one. A client keeps one memory for each source,
//! destination and set of expected identities. That the peer's certificate has ended in the meantime is
//! seen by the caller, with [`super::peer_not_after`], after every handshake.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use api::SpiffeId;
use rustls::client::{ClientSessionMemoryCache, Resumption};
use rustls::server::ServerSessionMemoryCache;
use rustls::{ClientConfig, ServerConfig};

use super::{FLOW_ALPN, HBONE_ALPN, TlsError, tunnel_client, tunnel_server};
use crate::credentials::Credentials;

/// The server's configurations, one for each default identity.
#[derive(Debug)]
pub struct FlowServers {
    credentials: Credentials,
    made: Mutex<Made>,
}

#[derive(Debug, Default)]
struct Made {
    /// Of the credentials that the configurations were made for.
    generation: u64,
    by_default: BTreeMap<SpiffeId, Arc<ServerConfig>>,
}

impl FlowServers {
    pub fn new(credentials: Credentials) -> Self {
        Self { credentials, made: Mutex::default() }
    }

    /// As [`super::server_config`], for `tombolo/1` only. Callers take it anew for every connection:
    /// sessions of older credentials are not in it.
    pub fn config(&self, default: &SpiffeId) -> Result<Arc<ServerConfig>, TlsError> {
        let generation = self.credentials.generation();
        // Nothing here panics half-way; a poisoned lock is still whole.
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if made.generation != generation {
            *made = Made { generation, by_default: BTreeMap::new() };
        }
        if let Some(config) = made.by_default.get(default) {
            return Ok(config.clone());
        }
        let mut config = tunnel_server(&self.credentials, default, &[FLOW_ALPN])?;
        config.session_storage = ServerSessionMemoryCache::new(SERVER_SESSIONS);
        config.send_tls13_tickets = TICKETS;
        let config = Arc::new(config);
        made.by_default.insert(default.clone(), config.clone());
        Ok(config)
    }
}

/// As [`super::client_config`], offering `tombolo/1` and HBONE. It remembers sessions: to be used for
/// one destination only, and not after the credentials have changed.
pub fn flow_client_config(
    credentials: &Credentials,
    own: &SpiffeId,
    expected: Vec<SpiffeId>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = tunnel_client(credentials, own, expected, &[FLOW_ALPN, HBONE_ALPN])?;
    config.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(CLIENT_SESSIONS)));
    Ok(Arc::new(config))
}

/// Sessions a server remembers for each default identity: 2 KiB each with the client's chain, 1 MiB in
/// all. A client whose session has been forgotten makes a whole handshake.
const SERVER_SESSIONS: usize = 512;
/// A ticket for each connection is what a client needs that opens one after the other.
const TICKETS: usize = 1;
/// Server names of one destination: it has one. rustls keeps up to eight tickets of each.
const CLIENT_SESSIONS: usize = 1;
