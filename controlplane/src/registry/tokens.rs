//! Join tokens: what one allows, kept with the SHA-256 of its secret only.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use api::rest::TokenRequest;
use api::token::JoinToken;
use ipnet::IpNet;
use subtle::ConstantTimeEq as _;

use super::parse_group;
use crate::audit::{self, Event};
use crate::store::{Row, Store, StoreError, Write, WriteError, to_ms};

/// A token as it is kept.
#[derive(Debug, Clone)]
pub struct TokenRecord {
    pub id: String,
    /// `NAMESPACE/NAME` of WorkloadGroups.
    pub groups: Vec<String>,
    pub uses_left: i64,
    /// Empty allows any name.
    pub name_pattern: String,
    /// Empty allows any address.
    pub cidrs: Vec<String>,
    /// Hosts wait for an operator.
    pub approval: bool,
    pub created_ms: i64,
    pub expires_ms: i64,
    pub created_by: String,
}

/// Why no token was made.
#[derive(Debug, thiserror::Error)]
pub enum TokenCreateError {
    #[error("the token cannot be made: {}", mistakes.join("; "))]
    Invalid { mistakes: Vec<String> },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl WriteError for TokenCreateError {
    fn store_error(&self) -> Option<&StoreError> {
        match self {
            Self::Store(source) => Some(source),
            Self::Invalid { .. } => None,
        }
    }
}

/// Makes a token for the control plane whose root certificate has this SHA-256. The answer's first
/// part is the only time the token itself exists.
pub async fn create_token(
    store: &Store,
    request: &TokenRequest,
    root_sha256: &[u8; 32],
    actor: &str,
    now: SystemTime,
) -> Result<(JoinToken, TokenRecord), TokenCreateError> {
    let mistakes = mistakes(request);
    if !mistakes.is_empty() {
        return Err(TokenCreateError::Invalid { mistakes });
    }
    let token = JoinToken::generate(root_sha256);
    let record = TokenRecord {
        id: token.id(),
        groups: request.groups.clone(),
        uses_left: request.uses.into(),
        name_pattern: request.name_pattern.clone(),
        cidrs: request.cidrs.clone(),
        approval: request.approval,
        created_ms: to_ms(now),
        expires_ms: to_ms(now + Duration::from_secs(request.ttl_s)),
        created_by: actor.to_owned(),
    };
    let input = (record.clone(), token.secret_hash().to_vec(), now);
    store.write(&input, |write, (record, hash, now)| Box::pin(insert(write, record, hash, *now))).await?;
    Ok((token, record))
}

/// All that is wrong with a request by itself.
fn mistakes(request: &TokenRequest) -> Vec<String> {
    let mut mistakes = Vec::new();
    if request.groups.is_empty() {
        mistakes.push("groups: name at least one NAMESPACE/WORKLOADGROUP".to_owned());
    }
    for group in request.groups.iter().filter(|group| parse_group(group).is_none()) {
        mistakes.push(format!("groups: {group:?} is not NAMESPACE/WORKLOADGROUP"));
    }
    if !(MIN_TTL_S..=MAX_TTL_S).contains(&request.ttl_s) {
        mistakes.push(format!("ttl_s: {} is not between {MIN_TTL_S} and {MAX_TTL_S} (a week)", request.ttl_s));
    }
    if !(1..=MAX_USES).contains(&request.uses) {
        mistakes.push(format!("uses: {} is not between 1 and {MAX_USES}", request.uses));
    }
    let in_names = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '*' | '?');
    if !request.name_pattern.chars().all(in_names) {
        let pattern = &request.name_pattern;
        mistakes.push(format!("name_pattern: {pattern:?} holds what no host name has: use a-z 0-9 - and * ?"));
    }
    for cidr in request.cidrs.iter().filter(|cidr| parse_cidr(cidr).is_none()) {
        mistakes.push(format!("cidrs: {cidr:?} is not an address or a range such as 10.0.0.0/8"));
    }
    mistakes
}

async fn insert(write: &mut Write, record: &TokenRecord, hash: &[u8], now: SystemTime) -> Result<(), TokenCreateError> {
    let mut mistakes = Vec::new();
    for group in &record.groups {
        if !group_exists(write, group).await? {
            mistakes.push(format!("groups: there is no WorkloadGroup {group}; apply it first"));
        }
    }
    if !mistakes.is_empty() {
        return Err(TokenCreateError::Invalid { mistakes });
    }
    let values = vec![
        (&record.id).into(),
        hash.to_vec().into(),
        list_column(&record.groups).into(),
        record.uses_left.into(),
        (&record.name_pattern).into(),
        list_column(&record.cidrs).into(),
        record.approval.into(),
        record.created_ms.into(),
        record.expires_ms.into(),
        (&record.created_by).into(),
    ];
    write.execute(INSERT, values).await?;
    let detail = format!("groups {}, {} uses", record.groups.join(" "), record.uses_left);
    let event = Event::new(&record.created_by, "token.create", format!("token/{}", record.id), detail);
    audit::record(write, now, event).await?;
    // Agents do not see tokens.
    write.give_back_revision().await?;
    Ok(())
}

/// Every token that can still be used or ended less than a week ago, newest first.
pub async fn list_tokens(store: &Store) -> Result<Vec<TokenRecord>, StoreError> {
    store
        .read(&(), |read, ()| {
            Box::pin(async move { read.fetch(LIST, vec![]).await?.iter().map(TokenRecord::read).collect() })
        })
        .await
}

/// Whether there was such a token.
pub async fn revoke_token(store: &Store, id: &str, actor: &str, now: SystemTime) -> Result<bool, StoreError> {
    let input = (id.to_owned(), actor.to_owned(), now);
    store
        .write(&input, |write, (id, actor, now)| {
            Box::pin(async move {
                let found = write.execute("DELETE FROM tokens WHERE id = $1", vec![id.into()]).await? > 0;
                if found {
                    let event = Event::new(actor, "token.revoke", format!("token/{id}"), "");
                    audit::record(write, *now, event).await?;
                }
                write.give_back_revision().await?;
                Ok(found)
            })
        })
        .await
}

/// The token of this id, if the secret is right. One that is not known costs the same comparison.
pub(super) async fn proved(write: &mut Write, token: &JoinToken) -> Result<Option<TokenRecord>, StoreError> {
    let rows = write.fetch(FIND, vec![token.id().into()]).await?;
    let kept = rows.first().map(|row| row.blob(9)).transpose()?.unwrap_or_else(|| vec![0; 32]);
    let right = bool::from(kept.as_slice().ct_eq(&token.secret_hash()));
    rows.first().filter(|_| right).map(TokenRecord::read).transpose()
}

/// Takes one use; false when none is left. Of two joins that race for the last one, one gets it.
pub(super) async fn consume(write: &mut Write, id: &str) -> Result<bool, StoreError> {
    let n_rows =
        write.execute("UPDATE tokens SET uses_left = uses_left - 1 WHERE id = $1 AND uses_left > 0", vec![id.into()]);
    Ok(n_rows.await? == 1)
}

/// Whether `NAMESPACE/NAME` is an applied WorkloadGroup.
pub(super) async fn group_exists(write: &mut Write, group: &str) -> Result<bool, StoreError> {
    let Some((namespace, name)) = parse_group(group) else { return Ok(false) };
    let rows = write.fetch(
        "SELECT 1 FROM resources WHERE kind = 'workloadgroup' AND namespace = $1 AND name = $2",
        vec![namespace.into(), name.into()],
    );
    Ok(!rows.await?.is_empty())
}

impl TokenRecord {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.text(0)?,
            groups: row.json(1)?,
            uses_left: row.int(2)?,
            name_pattern: row.text(3)?,
            cidrs: row.json(4)?,
            approval: row.flag(5)?,
            created_ms: row.int(6)?,
            expires_ms: row.int(7)?,
            created_by: row.text(8)?,
        })
    }

    pub(super) fn allows_name(&self, name: &str) -> bool {
        self.name_pattern.is_empty() || glob_matches(&self.name_pattern, name)
    }

    pub(super) fn allows_address(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.cidrs.is_empty() || self.cidrs.iter().filter_map(|cidr| parse_cidr(cidr)).any(|net| net.contains(&address))
    }
}

/// A range, or a single address.
fn parse_cidr(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// `*` is any run of characters, `?` any one.
fn glob_matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut seen) = (0, 0);
    // Where the last star stood, and how much of the text it has taken.
    let mut star: Option<(usize, usize)> = None;
    while seen < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, seen));
                at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[seen] => {
                at += 1;
                seen += 1;
            }
            _ => {
                let Some((star_at, taken)) = star else { return false };
                star = Some((star_at, taken + 1));
                at = star_at + 1;
                seen = taken + 1;
            }
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

/// A list as the database keeps it.
pub(super) fn list_column<T: serde::Serialize>(items: &[T]) -> String {
    serde_json::to_string(items).unwrap_or_else(|_| "[]".to_owned())
}

const INSERT: &str = "INSERT INTO tokens (id, secret_hash, groups, uses_left, name_pattern, cidrs, approval, \
    created_ms, expires_ms, created_by) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
const LIST: &str = "SELECT id, groups, uses_left, name_pattern, cidrs, approval, created_ms, expires_ms, created_by \
    FROM tokens ORDER BY created_ms DESC, id";
const FIND: &str = "SELECT id, groups, uses_left, name_pattern, cidrs, approval, created_ms, expires_ms, created_by, \
    secret_hash FROM tokens WHERE id = $1";
const MIN_TTL_S: u64 = 1;
const MAX_TTL_S: u64 = 7 * 24 * 3600;
const MAX_USES: u32 = 10_000;

#[cfg(test)]
mod tests {
    use super::glob_matches;

    #[test]
    fn a_name_pattern_matches_as_in_a_shell() {
        let rows = [
            ("web-*", "web-1", true),
            ("web-*", "web-", true),
            ("web-*", "web", false),
            ("*", "", true),
            ("?", "", false),
            ("w?b", "web", true),
            ("w?b", "weeb", false),
            ("*-db-*", "eu-db-1", true),
            ("*-db-*", "eu-db1", false),
            ("a*b*c", "axxbyybzc", true),
            ("a*b*c", "axxbyybz", false),
            ("web", "web", true),
            ("web", "web1", false),
        ];
        for (pattern, text, expected) in rows {
            assert_eq!(glob_matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
