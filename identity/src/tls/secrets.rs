//! What the keys of a connection are made from, for whoever seals and opens its records (`proxy/src/net/tls.rs`).
//!
//! rustls gives the first keys away, but makes later ones only in an object that also keeps the peer's chain, the
//! exporter's secret and room for QUIC: 2 KiB for each open connection (docs/performance.md). Its key log says
//! once what they are made from. Nothing is logged here: the secrets wait in the thread that shakes hands until
//! they are taken. Only tunnels have it: of other connections nobody would take them.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Algorithm, NONCE_LEN};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf::{HKDF_SHA256, HKDF_SHA384, KeyType, Prk};
use rustls::KeyLog;
use zeroize::{Zeroize, Zeroizing};

/// Both directions of one connection.
pub struct TrafficSecrets {
    /// Of what the client sends.
    pub client: TrafficSecret,
    /// Of what the server sends.
    pub server: TrafficSecret,
}

/// One direction's secret (`application_traffic_secret_N`, RFC 8446 §7.1). Overwritten when dropped.
pub struct TrafficSecret {
    bytes: [u8; SHA384_BYTES],
    is_sha384: bool,
}

/// What one direction is protected with (RFC 8446 §7.3).
pub struct TrafficKey {
    pub algorithm: &'static Algorithm,
    pub key: Zeroizing<Vec<u8>>,
    pub iv: [u8; NONCE_LEN],
}

/// Takes the secrets out of handshakes: `key_log` of a configuration whose connections are asked for
/// [`TrafficSecrets::take`].
pub fn key_log() -> Arc<dyn KeyLog> {
    Arc::new(Aside)
}

impl TrafficSecrets {
    /// Those that the last call into rustls on this thread made, if it did.
    pub fn take() -> Option<Self> {
        LAST.with_borrow_mut(|last| Some(Self { client: last.client.take()?, server: last.server.take()? }))
    }
}

impl TrafficSecret {
    /// `None` unless it is as long as the hash of one of our suites.
    pub fn new(secret: &[u8]) -> Option<Self> {
        let mut bytes = [0; SHA384_BYTES];
        let length = secret.len();
        bytes.get_mut(..length).filter(|_| matches!(length, SHA256_BYTES | SHA384_BYTES))?.copy_from_slice(secret);
        Some(Self { bytes, is_sha384: length == SHA384_BYTES })
    }

    /// The key and IV that it stands for. Its hash says the suite, since each of ours has another.
    pub fn key(&self) -> Result<TrafficKey, Unspecified> {
        let algorithm = if self.is_sha384 { &AES_256_GCM } else { &AES_128_GCM };
        let (mut key, mut iv) = (Zeroizing::new(vec![0; algorithm.key_len()]), [0; NONCE_LEN]);
        self.expand(b"key", &mut key)?;
        self.expand(b"iv", &mut iv)?;
        Ok(TrafficKey { algorithm, key, iv })
    }

    /// Becomes the one after it (RFC 8446 §7.2).
    pub fn renew(&mut self) -> Result<(), Unspecified> {
        let mut next = Self { bytes: [0; SHA384_BYTES], is_sha384: self.is_sha384 };
        self.expand(b"traffic upd", &mut next.bytes[..self.length()])?;
        *self = next;
        Ok(())
    }

    fn length(&self) -> usize {
        if self.is_sha384 { SHA384_BYTES } else { SHA256_BYTES }
    }

    /// HKDF-Expand-Label with an empty context (RFC 8446 §7.1).
    fn expand(&self, label: &[u8], into: &mut [u8]) -> Result<(), Unspecified> {
        let hash = if self.is_sha384 { HKDF_SHA384 } else { HKDF_SHA256 };
        let byte = |length: usize| u8::try_from(length).map_err(|_| Unspecified);
        let lengths = [0, byte(into.len())?, byte(PREFIX.len() + label.len())?];
        let info = [&lengths[..], PREFIX, label, &[0]];
        Prk::new_less_safe(hash, &self.bytes[..self.length()]).expand(&info, Bytes(into.len()))?.fill(into)
    }
}

impl Drop for TrafficSecret {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

impl fmt::Debug for TrafficSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TrafficSecret(<set>)")
    }
}

/// So many bytes are wanted.
struct Bytes(usize);

impl KeyType for Bytes {
    fn len(&self) -> usize {
        self.0
    }
}

/// The secrets of the handshake that this thread is at.
#[derive(Default)]
struct Last {
    client: Option<TrafficSecret>,
    server: Option<TrafficSecret>,
}

thread_local! {
    static LAST: RefCell<Last> = RefCell::default();
}

#[derive(Debug)]
struct Aside;

impl KeyLog for Aside {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        LAST.with_borrow_mut(|last| match label {
            CLIENT => last.client = TrafficSecret::new(secret),
            SERVER => last.server = TrafficSecret::new(secret),
            _ => {}
        });
    }

    fn will_log(&self, label: &str) -> bool {
        matches!(label, CLIENT | SERVER)
    }
}

/// The key log's names of the two (`SSLKEYLOGFILE` format, draft-ietf-tls-keylogfile §2.1).
const CLIENT: &str = "CLIENT_TRAFFIC_SECRET_0";
const SERVER: &str = "SERVER_TRAFFIC_SECRET_0";
/// Before every label of TLS 1.3 (RFC 8446 §7.1).
const PREFIX: &[u8] = b"tls13 ";
const SHA256_BYTES: usize = 32;
const SHA384_BYTES: usize = 48;

#[cfg(test)]
mod tests;
