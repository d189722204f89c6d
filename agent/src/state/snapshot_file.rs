//! The snapshot file: a fixed head, then a protobuf [`SnapshotFile`], written and read one resource at a
//! time, since a large one is many times what the agent needs otherwise. Pure.
//!
//! Head, 52 bytes: `TOMBOLO\0`, format version (u32, big endian), length of what follows (u64, big
//! endian), its SHA-256. A file that is cut, grown, flipped or foreign is told from a good one before
//! anything of it is obeyed; what is wrong with it never ends the agent.

use api::Revision;
use api::wire::tombolo::{NamedResource, SnapshotFile};
use bytes::Bytes;
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

/// A [`SnapshotFile`] whose resources are still encoded, each a [`NamedResource`], in the file's own bytes.
#[derive(Clone, PartialEq, Message)]
pub struct Content {
    #[prost(uint64, tag = "1")]
    pub revision: Revision,
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub resources: Vec<Bytes>,
}

/// The bytes of the file.
pub fn encode(revision: Revision, resources: impl IntoIterator<Item = NamedResource>) -> Vec<u8> {
    let mut bytes = vec![0; HEAD_BYTES];
    bytes.extend(SnapshotFile { revision, resources: vec![] }.encode_to_vec());
    for resource in resources {
        // Messages one after the other are one message with what all of them say.
        bytes.extend(SnapshotFile { revision: 0, resources: vec![resource] }.encode_to_vec());
    }
    let body = &bytes[HEAD_BYTES..];
    let (length, checksum) = ((body.len() as u64).to_be_bytes(), Sha256::digest(body));
    let head = [MAGIC.as_slice(), &VERSION.to_be_bytes(), &length, &checksum].concat();
    bytes[..HEAD_BYTES].copy_from_slice(&head);
    bytes
}

/// The content of the file, or what is wrong with it.
pub fn decode(bytes: impl Into<Bytes>) -> Result<Content, SnapshotFileError> {
    let bytes: Bytes = bytes.into();
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
    Content::decode(bytes.slice_ref(body)).map_err(SnapshotFileError::Undecodable)
}

#[cfg(test)]
mod tests;
