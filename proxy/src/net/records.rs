//! Pure: TLS 1.3 records of an established connection (RFC 8446 §5), sealed and opened where they lie.
//!
//! `tls.rs` shakes hands with rustls and takes the traffic secrets from it; from then on the records
//! are ours, because a proxy can read into the place where it encrypts and write from the place where
//! it decrypted: no byte is copied between two sockets. AES-GCM only, as our configurations offer.

use std::ops::Range;

use aws_lc_rs::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;
use identity::tls::TrafficKey;

/// Type, version and length before the sealed bytes (§5.2).
pub(crate) const HEAD_BYTES: usize = 5;
/// The inner content type and the tag after the plaintext (§5.2; AES-GCM's tag has 16 bytes).
pub(crate) const TAIL_BYTES: usize = 1 + TAG_BYTES;
/// The most plaintext that one record may carry (§5.1).
pub(crate) const MAX_PLAINTEXT_BYTES: usize = 1 << 14;
/// The most that a record may carry sealed (§5.2).
const MAX_SEALED_BYTES: usize = MAX_PLAINTEXT_BYTES + 256;
const TAG_BYTES: usize = 16;
/// Records under one key before it has to be replaced: 2^24.5 of full size are the limit (§5.5).
const MAX_RECORDS: u64 = 1 << 24;
/// `legacy_record_version` (§5.1).
const VERSION: [u8; 2] = [3, 3];

/// What a record carries (§5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Alert = 21,
    Handshake = 22,
    Data = 23,
}

/// Why bytes of a peer are no record of this connection. None of it can be recovered from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("the peer sent a TLS record of type {kind}, which has no place after the handshake")]
    Unexpected { kind: u8 },
    #[error("the peer sent a TLS record of {bytes} bytes; 17 to {MAX_SEALED_BYTES} are allowed")]
    Length { bytes: usize },
    #[error("a TLS record was changed on its way")]
    Forged,
    #[error("the peer sent more TLS records than one key may protect")]
    Exhausted,
}

/// Protects what we send.
pub(crate) struct Sealer(Keys);

/// Opens what the peer sent.
pub(crate) struct Opener(Keys);

struct Keys {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    /// Of the next record.
    sequence: u64,
}

impl Keys {
    fn new(sequence: u64, key: &TrafficKey) -> Result<Self, Unspecified> {
        let bound = LessSafeKey::new(UnboundKey::new(key.algorithm, &key.key)?);
        Ok(Self { key: bound, iv: key.iv, sequence })
    }

    /// The nonce of the next record (§5.3); never the same twice under one key.
    fn nonce(&mut self) -> Result<Nonce, RecordError> {
        let next = self.sequence.checked_add(1).ok_or(RecordError::Exhausted)?;
        let mut nonce = self.iv;
        for (byte, number) in nonce[NONCE_LEN - 8..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        self.sequence = next;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

impl Sealer {
    pub(crate) fn new(sequence: u64, key: &TrafficKey) -> Result<Self, Unspecified> {
        Keys::new(sequence, key).map(Self)
    }

    /// Whether the key has to be replaced before the next record.
    pub(crate) fn worn(&self) -> bool {
        self.0.sequence >= MAX_RECORDS
    }

    /// Makes a record of `slot`, whose plaintext lies between [`HEAD_BYTES`] and [`TAIL_BYTES`].
    pub(crate) fn seal(&mut self, content: Content, slot: &mut [u8]) -> Result<(), RecordError> {
        let sealed = slot.len().checked_sub(HEAD_BYTES).filter(|bytes| (TAIL_BYTES..=MAX_SEALED_BYTES).contains(bytes));
        let sealed = sealed.ok_or(RecordError::Length { bytes: slot.len() })?;
        let length = u16::try_from(sealed).map_err(|_| RecordError::Length { bytes: sealed })?.to_be_bytes();
        let head = [Content::Data as u8, VERSION[0], VERSION[1], length[0], length[1]];
        slot[..HEAD_BYTES].copy_from_slice(&head);
        let (plaintext, tail) = slot[HEAD_BYTES..].split_at_mut(sealed - TAIL_BYTES);
        let nonce = self.0.nonce()?;
        // Fails for lengths that the lines above exclude.
        let done = self.0.key.seal_in_place_scatter(nonce, Aad::from(head), plaintext, &[content as u8], tail);
        done.map_err(|_| RecordError::Length { bytes: sealed })
    }
}

impl Opener {
    pub(crate) fn new(sequence: u64, key: &TrafficKey) -> Result<Self, Unspecified> {
        Keys::new(sequence, key).map(Self)
    }

    /// Decrypts one whole record in place: what it carries, and where in `record`.
    pub(crate) fn open(&mut self, record: &mut [u8]) -> Result<(Content, Range<usize>), RecordError> {
        let (head, sealed) = record.split_at_mut(HEAD_BYTES);
        let nonce = self.0.nonce()?;
        let plain = self.0.key.open_in_place(nonce, Aad::from(&*head), sealed).map_err(|_| RecordError::Forged)?;
        // The content type is the last byte that is not padding (§5.4).
        let last = plain.iter().rposition(|byte| *byte != 0).ok_or(RecordError::Unexpected { kind: 0 })?;
        let content = match plain[last] {
            21 => Content::Alert,
            22 => Content::Handshake,
            23 => Content::Data,
            kind => return Err(RecordError::Unexpected { kind }),
        };
        if last > MAX_PLAINTEXT_BYTES {
            return Err(RecordError::Length { bytes: last });
        }
        Ok((content, HEAD_BYTES..HEAD_BYTES + last))
    }
}

/// How long the first record of `bytes` is, head included; `None` while its head is not whole.
pub(crate) fn length(bytes: &[u8]) -> Result<Option<usize>, RecordError> {
    let Some(&[kind, _, _, high, low]) = bytes.first_chunk::<HEAD_BYTES>() else { return Ok(None) };
    if kind != Content::Data as u8 {
        return Err(RecordError::Unexpected { kind });
    }
    let sealed = usize::from(u16::from_be_bytes([high, low]));
    if !(TAIL_BYTES..=MAX_SEALED_BYTES).contains(&sealed) {
        return Err(RecordError::Length { bytes: sealed });
    }
    Ok(Some(HEAD_BYTES + sealed))
}

#[cfg(test)]
mod tests;
