//! The token of the administrator: made at the first start, in a file of the data directory that only
//! its owner can read. Memory holds its hash.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use rand::TryRng as _;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::Actor;
use super::problem::Problem;

/// What a bearer token is compared with.
#[derive(Clone)]
pub struct AdminToken {
    hash: [u8; 32],
}

/// Why the administrator's token cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AdminTokenError {
    #[error("cannot read or make the administrator's token {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} can be read by others (mode {mode:03o}): chmod 600 it, or delete it to have a new one made", path.display())]
    Readable { path: PathBuf, mode: u32 },
    #[error("{} holds no token: delete it to have a new one made at the next start", path.display())]
    Empty { path: PathBuf },
}

impl AdminToken {
    /// Where the token is kept.
    pub fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("admin.token")
    }

    /// Reads the token, or makes it; whether it was made.
    pub fn load_or_create(data_dir: &Path) -> Result<(Self, bool), AdminTokenError> {
        let path = Self::path(data_dir);
        let file = |source| AdminTokenError::File { path: path.clone(), source };
        match create(&path) {
            Ok(token) => return Ok((Self::of(&token), true)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(file(error)),
        }
        let mode = std::fs::metadata(&path).map_err(file)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(AdminTokenError::Readable { path, mode });
        }
        let text = std::fs::read_to_string(&path).map_err(file)?;
        match text.trim() {
            token if token.len() >= LEAST_CHARACTERS => Ok((Self::of(token), false)),
            _ => Err(AdminTokenError::Empty { path }),
        }
    }

    fn of(token: &str) -> Self {
        Self { hash: Sha256::digest(token).into() }
    }

    /// Compares hashes in constant time.
    fn matches(&self, presented: &str) -> bool {
        let presented: [u8; 32] = Sha256::digest(presented).into();
        self.hash.ct_eq(&presented).into()
    }
}

/// 256 random bits with a prefix that secret scanners find; `AlreadyExists` if there is one.
fn create(path: &Path) -> io::Result<String> {
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut secret = [0; 32];
    rand::rngs::SysRng.try_fill_bytes(&mut secret).map_err(io::Error::other)?;
    let mut token = "tmbadm_".to_owned();
    for byte in secret {
        let _ = write!(token, "{byte:02x}");
    }
    file.write_all(format!("{token}\n").as_bytes())?;
    file.sync_all()?;
    Ok(token)
}

/// Lets only the administrator pass.
pub(super) async fn check(State(token): State<AdminToken>, mut request: Request, next: Next) -> Response {
    let presented = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = presented.and_then(|value| {
        let (scheme, rest) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| rest.trim())
    });
    let message = match bearer {
        Some(bearer) if token.matches(bearer) => {
            let from = request.extensions().get::<SocketAddr>().map(|address| format!("@{}", address.ip()));
            request.extensions_mut().insert(Actor(format!("admin{}", from.unwrap_or_default())));
            return next.run(request).await;
        }
        Some(_) => "the token is not the administrator's",
        None => "a token is needed: authorization: Bearer TOKEN",
    };
    let hint = "set TOMBOLO_TOKEN to the content of admin.token in the control plane's data directory";
    Problem::new(StatusCode::UNAUTHORIZED, "unauthenticated", message, hint).into_response()
}

/// A file that was cut short by a full disk is no token.
const LEAST_CHARACTERS: usize = 32;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_token_is_made_once_private_and_found_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let (made, new) = AdminToken::load_or_create(directory.path()).expect("made");
        let path = AdminToken::path(directory.path());
        let text = std::fs::read_to_string(&path).expect("it is there");
        assert!(new && made.matches(text.trim()) && !made.matches("tmbadm_"));
        assert_eq!(text.trim().len(), "tmbadm_".len() + 64);
        assert_eq!(std::fs::metadata(&path).expect("it is there").permissions().mode() & 0o777, 0o600);
        let (again, new) = AdminToken::load_or_create(directory.path()).expect("read");
        assert!(!new && again.matches(text.trim()));

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("changed");
        assert!(matches!(AdminToken::load_or_create(directory.path()), Err(AdminTokenError::Readable { .. })));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("changed");
        std::fs::write(&path, "").expect("emptied");
        assert!(matches!(AdminToken::load_or_create(directory.path()), Err(AdminTokenError::Empty { .. })));
    }
}
