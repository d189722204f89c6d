//! The snapshot file: a fixed head, then a protobuf [`SnapshotFile`]. Pure.
//!
//! Head, 52 bytes: `TOMBOLO\0`, format version (u32, big endian), length of what follows (u64, big
//! endian), its SHA-256. A file that is cut, grown, flipped or foreign is told from a good one before
//! anything of it is obeyed; what is wrong with it never ends the agent.

use api::snapshot::Change;
use api::wire::{self, tombolo::SnapshotFile};
use api::{Delta, Snapshot};
use prost::Message;
use sha2::{Digest, Sha256};

const MAGIC: &[u8; 8] = b"TOMBOLO\0";
/// Raised when an older agent could not obey the body.
const VERSION: u32 = 1;
const HEAD_BYTES: usize = 8 + 4 + 8 + 32;

/// Why a file is not a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotFileError {
    #[error("it does not begin as a snapshot does")]
    Magic,
    #[error("it has format {found}, this agent reads {VERSION}")]
    Version { found: u32 },
    #[error("it is {found} bytes long, {expected} were written")]
    Length { found: u64, expected: u64 },
    #[error("its checksum does not fit its content")]
    Checksum,
    #[error("its content does not decode")]
    Undecodable(#[source] prost::DecodeError),
}

/// The bytes of the file.
pub fn encode(content: &SnapshotFile) -> Vec<u8> {
    let body = content.encode_to_vec();
    let mut bytes = Vec::with_capacity(HEAD_BYTES + body.len());
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_be_bytes());
    bytes.extend((body.len() as u64).to_be_bytes());
    bytes.extend(Sha256::digest(&body));
    bytes.extend(body);
    bytes
}

/// The content of the file, or what is wrong with it.
pub fn decode(bytes: &[u8]) -> Result<SnapshotFile, SnapshotFileError> {
    let (magic, rest) = bytes.split_first_chunk::<8>().ok_or(SnapshotFileError::Magic)?;
    if magic != MAGIC {
        return Err(SnapshotFileError::Magic);
    }
    let short = || SnapshotFileError::Length { found: bytes.len() as u64, expected: HEAD_BYTES as u64 };
    let (version, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    let (length, rest) = rest.split_first_chunk::<8>().ok_or_else(short)?;
    let (checksum, body) = rest.split_first_chunk::<32>().ok_or_else(short)?;
    match u32::from_be_bytes(*version) {
        VERSION => {}
        found => return Err(SnapshotFileError::Version { found }),
    }
    let expected = u64::from_be_bytes(*length).saturating_add(HEAD_BYTES as u64);
    if bytes.len() as u64 != expected {
        return Err(SnapshotFileError::Length { found: bytes.len() as u64, expected });
    }
    if Sha256::digest(body).as_slice() != checksum {
        return Err(SnapshotFileError::Checksum);
    }
    SnapshotFile::decode(body).map_err(SnapshotFileError::Undecodable)
}

/// The snapshot that the content makes, and what of it this version does not understand. Those
/// objects are left out: the control plane sends them again.
pub fn snapshot(content: &SnapshotFile) -> (Snapshot, Vec<wire::WireError>) {
    let mut refused = Vec::new();
    let mut changes: Vec<Change> = Vec::new();
    for resource in &content.resources {
        match wire::decode(&resource.type_url, &resource.name, &resource.body) {
            Ok(change) => changes.push(change),
            Err(error) => refused.push(error),
        }
    }
    (Snapshot::default().apply(Delta { revision: content.revision, changes }), refused)
}

#[cfg(test)]
mod tests;
