//! The join token's text. Pure apart from the random source of [`JoinToken::generate`].
//!
//! `tmb_` and the base32 (lower case, no padding) of: 8 bytes id, 20 bytes secret, 16 bytes of the
//! SHA-256 of the control plane's root certificate (DER), 4 bytes CRC-32 over all before it.
//! The prefix lets secret scanners find it, the checksum tells a typing error from a refusal, the
//! root's hash lets a host trust the control plane before it knows anything else. At rest the
//! control plane keeps the id and the SHA-256 of the secret: with 160 random bits no slow hash is
//! needed (evidence.md §3.4).

use data_encoding::{BASE32_NOPAD, HEXLOWER};
use rand::TryRng;
use sha2::{Digest, Sha256};

const PREFIX: &str = "tmb_";
const ID_BYTES: usize = 8;
const SECRET_BYTES: usize = 20;
const PIN_BYTES: usize = 16;
const CRC_BYTES: usize = 4;
const BYTES: usize = ID_BYTES + SECRET_BYTES + PIN_BYTES + CRC_BYTES;

/// A join token. Its `Debug` shows the id only.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    id: [u8; ID_BYTES],
    secret: [u8; SECRET_BYTES],
    ca_pin: [u8; PIN_BYTES],
}

/// Why a text is not a join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("this is not a join token: it must begin with {PREFIX}")]
    Prefix,
    #[error("the join token is damaged: it has {found} characters, {expected} are expected; copy it again")]
    Length { found: usize, expected: usize },
    #[error("the join token is damaged: it holds a character that no token has; copy it again")]
    Alphabet,
    #[error("the join token is damaged: its checksum does not fit; copy it again")]
    Checksum,
}

impl JoinToken {
    /// A fresh token for the control plane whose root certificate has this SHA-256.
    pub fn generate(root_sha256: &[u8; 32]) -> Self {
        let mut token = Self { id: [0; ID_BYTES], secret: [0; SECRET_BYTES], ca_pin: [0; PIN_BYTES] };
        let filled = rand::rngs::SysRng
            .try_fill_bytes(&mut token.id)
            .and_then(|()| rand::rngs::SysRng.try_fill_bytes(&mut token.secret));
        filled.expect("the kernel's random source does not fail after boot (getrandom(2))");
        token.ca_pin.copy_from_slice(&root_sha256[..PIN_BYTES]);
        token
    }

    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(TokenError::Prefix)?;
        let expected = BASE32_NOPAD.encode_len(BYTES);
        if body.len() != expected {
            return Err(TokenError::Length { found: body.len() + PREFIX.len(), expected: expected + PREFIX.len() });
        }
        let bytes = BASE32_NOPAD.decode(body.to_ascii_uppercase().as_bytes()).map_err(|_| TokenError::Alphabet)?;
        let (content, checksum) = bytes.split_at_checked(BYTES - CRC_BYTES).ok_or(TokenError::Checksum)?;
        if crc32fast::hash(content).to_be_bytes() != checksum {
            return Err(TokenError::Checksum);
        }
        let (id, rest) = content.split_first_chunk().ok_or(TokenError::Checksum)?;
        let (secret, rest) = rest.split_first_chunk().ok_or(TokenError::Checksum)?;
        let (ca_pin, _) = rest.split_first_chunk().ok_or(TokenError::Checksum)?;
        Ok(Self { id: *id, secret: *secret, ca_pin: *ca_pin })
    }

    /// The whole token, to be shown once.
    pub fn reveal(&self) -> String {
        let mut bytes = [self.id.as_slice(), &self.secret, &self.ca_pin].concat();
        bytes.extend(crc32fast::hash(&bytes).to_be_bytes());
        format!("{PREFIX}{}", BASE32_NOPAD.encode(&bytes).to_ascii_lowercase())
    }

    /// What lists and logs may show: 16 hex digits.
    pub fn id(&self) -> String {
        HEXLOWER.encode(&self.id)
    }

    /// What the control plane keeps: SHA-256 of the secret.
    pub fn secret_hash(&self) -> [u8; 32] {
        Sha256::digest(self.secret).into()
    }

    /// Whether this root certificate (its DER's SHA-256) is the one the token was made for.
    pub fn pins(&self, root_sha256: &[u8; 32]) -> bool {
        root_sha256[..PIN_BYTES] == self.ca_pin
    }
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "JoinToken({})", self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_copying_and_shows_damage() {
        let token = JoinToken::generate(&[7; 32]);
        let text = token.reveal();
        assert_eq!(JoinToken::parse(&format!(" {text}\n")), Ok(token.clone()));
        assert_eq!(JoinToken::parse(&text.to_uppercase().replace("TMB_", "tmb_")), Ok(token.clone()));
        assert!(token.pins(&[7; 32]) && !token.pins(&[8; 32]));
        assert!(!format!("{token:?}").contains(&text[12..]));

        // Not the last one, of which two bits mean nothing and must be zero.
        let (head, body) = text.split_at(4);
        let other = if body.starts_with('a') { 'b' } else { 'a' };
        let changed = format!("{head}{other}{}", &body[1..]);
        assert_eq!(JoinToken::parse(&changed), Err(TokenError::Checksum));
        assert_eq!(JoinToken::parse(&text[..20]), Err(TokenError::Length { found: 20, expected: text.len() }));
        assert_eq!(JoinToken::parse("hunter2"), Err(TokenError::Prefix));
        assert_eq!(JoinToken::parse(&format!("{head}!{}", &body[1..])), Err(TokenError::Alphabet));
    }

    #[test]
    fn fuzzed_tokens_are_revealed_as_they_were_read() {
        for (file, text) in crate::corpus::texts("token") {
            if let Ok(token) = JoinToken::parse(&text) {
                assert_eq!(JoinToken::parse(&token.reveal()), Ok(token), "{file}");
            }
        }
    }
}
