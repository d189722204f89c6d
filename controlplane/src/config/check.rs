//! From what people typed to what the program uses. Every mistake is collected with the layer of its
//! key, none ends the checking.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::layers::{Effective, Setting, Sources};
use super::{Config, LogFormat, Mistake};
use crate::store::StoreUrl;

/// `None` only together with a mistake.
pub(super) fn check(mut effective: Vec<Effective>, sources: &Sources, mistakes: &mut Vec<Mistake>) -> Option<Config> {
    let n_before = mistakes.len();
    let mut on = Checker { effective: &effective, mistakes };
    let data_dir = PathBuf::from(on.text("paths.data_dir"));
    if !data_dir.is_absolute() {
        on.mistake("paths.data_dir", format!("{:?} is not an absolute path", data_dir.display()));
    }
    let trust_domain = on.trust_domain();
    let store = on.store(&data_dir, sources);
    let (grpc_listen, api_listen) = (on.listen("grpc.listen"), on.listen("api.listen"));
    if let (Some(grpc), Some(api)) = (grpc_listen, api_listen)
        && grpc == api
        && grpc.port() != 0
    {
        on.mistake("api.listen", format!("{api} is already [grpc] listen: choose another port"));
    }
    let lease = on.duration("registry.lease", Duration::from_secs(3), Duration::from_secs(600));
    let grace = on.duration("registry.grace", Duration::ZERO, Duration::from_secs(3600));
    let log_format = on.log_format();
    let log_filter = on.text("log.filter").to_owned();
    let advertise = on.advertise();
    let failed = mistakes.len() > n_before;
    hide_password(&mut effective);
    if failed {
        return None;
    }
    Some(Config {
        data_dir,
        credentials: sources.credentials.clone(),
        trust_domain: trust_domain?,
        advertise,
        store: store?,
        grpc_listen: grpc_listen?,
        api_listen: api_listen?,
        lease: lease?,
        grace: grace?,
        log_format: log_format?,
        log_filter,
        effective,
    })
}

struct Checker<'a> {
    effective: &'a [Effective],
    mistakes: &'a mut Vec<Mistake>,
}

impl Checker<'_> {
    fn find(&self, key: &str) -> Option<&Effective> {
        self.effective.iter().find(|known| known.key == key)
    }

    fn text(&self, key: &str) -> &str {
        match self.find(key).map(|known| &known.value) {
            Some(Setting::Text(text)) => text.trim(),
            Some(Setting::List(_)) | None => "",
        }
    }

    fn mistake(&mut self, key: &str, what: String) {
        let layer = self.find(key).map(|known| known.layer.clone()).unwrap_or_default();
        self.mistakes.push(Mistake { layer, key: key.to_owned(), what });
    }

    /// The parsed value, or a mistake.
    fn parsed<T: FromStr>(&mut self, key: &str, expected: &str) -> Option<T> {
        let text = self.text(key).to_owned();
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.mistake(key, format!("{text:?} is not {expected}"));
        }
        parsed
    }

    fn trust_domain(&mut self) -> Option<api::TrustDomain> {
        if self.text("mesh.trust_domain").is_empty() {
            let what = "is needed: the name of the mesh, such as corp.example (--trust-domain)";
            self.mistake("mesh.trust_domain", what.to_owned());
            return None;
        }
        self.parsed("mesh.trust_domain", "a trust domain: a-z 0-9 . - _, such as corp.example")
    }

    fn listen(&mut self, key: &str) -> Option<SocketAddr> {
        self.parsed(key, "IP:PORT, such as 0.0.0.0:15012 or [::]:15012")
    }

    fn advertise(&mut self) -> Vec<String> {
        let names = match self.find("mesh.advertise").map(|known| &known.value) {
            Some(Setting::List(names)) => names.clone(),
            Some(Setting::Text(_)) | None => Vec::new(),
        };
        for name in &names {
            if !is_name(name) {
                let what = format!("{name:?} is neither a host name nor an IP address (no port, no https://)");
                self.mistake("mesh.advertise", what);
            }
        }
        names
    }

    fn duration(&mut self, key: &str, least: Duration, most: Duration) -> Option<Duration> {
        let text = self.text(key).to_owned();
        match duration(&text) {
            None => self.mistake(key, format!("{text:?} is not a time such as 500ms, 15s, 2m or 1h")),
            Some(value) if !(least..=most).contains(&value) => {
                self.mistake(key, format!("{text} is not between {least:?} and {most:?}"));
            }
            value => return value,
        }
        None
    }

    fn log_format(&mut self) -> Option<LogFormat> {
        let format = match self.text("log.format") {
            "auto" => LogFormat::Auto,
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            "journald" => LogFormat::Journald,
            other => {
                let what = format!("{other:?} is not one of auto, text, json, journald");
                self.mistake("log.format", what);
                return None;
            }
        };
        Some(format)
    }

    fn store(&mut self, data_dir: &std::path::Path, sources: &Sources) -> Option<StoreUrl> {
        let text = self.text("store.url").to_owned();
        if text.is_empty() {
            return Some(StoreUrl::sqlite(data_dir.join("state.db")));
        }
        if self.find("store.url").is_some_and(|known| known.layer == "flags") && has_password(&text) {
            let what = "a password on the command line is seen by every user of this machine: \
                        leave it out and give --store-password-file";
            self.mistake("store.url", what.to_owned());
            return None;
        }
        let parsed: StoreUrl = match text.parse() {
            Ok(parsed) => parsed,
            Err(error) => {
                self.mistake("store.url", telemetry::Chain(&error).to_string());
                return None;
            }
        };
        match self.password(sources) {
            Some(password) => Some(parsed.with_password(&password)),
            None => Some(parsed),
        }
    }

    /// From the file that is named, else from systemd's credential.
    fn password(&mut self, sources: &Sources) -> Option<String> {
        let named = self.text("store.password_file").to_owned();
        let folder = sources.credentials.as_ref();
        let credential = CREDENTIALS.iter().find_map(|name| Some(folder?.join(name)).filter(|path| path.exists()));
        let path = match (named.is_empty(), credential) {
            (false, _) => PathBuf::from(&named),
            (true, Some(credential)) => credential,
            (true, None) => return None,
        };
        match std::fs::read_to_string(&path) {
            Ok(text) => Some(text.trim_end_matches(['\n', '\r']).to_owned()),
            Err(error) => {
                self.mistake("store.password_file", format!("{} cannot be read: {error}", path.display()));
                None
            }
        }
    }
}

/// A DNS name or an address, as it can stand in a certificate and in a URL.
fn is_name(text: &str) -> bool {
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (1..=63).contains(&label.len()) && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    text.parse::<IpAddr>().is_ok() || (text.len() <= 253 && text.split('.').all(label))
}

/// A number and its unit.
fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    match unit.trim() {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
        "h" => Some(Duration::from_secs(number.checked_mul(3600)?)),
        _ => None,
    }
}

fn has_password(store_url: &str) -> bool {
    let parsed = url::Url::parse(store_url).ok();
    parsed.is_some_and(|url| url.password().is_some() || url.query_pairs().any(|(name, _)| name == "password"))
}

/// `--print-config` and logs never show a password.
fn hide_password(effective: &mut [Effective]) {
    for known in effective.iter_mut().filter(|known| known.key == "store.url") {
        if let Setting::Text(text) = &mut known.value
            && has_password(text)
        {
            *text = text.parse::<StoreUrl>().map_or_else(|_| "<set>".to_owned(), |url| url.to_string());
        }
    }
}

/// As the unit calls the plain one and the one that it decrypts.
const CREDENTIALS: [&str; 2] = ["store-password", "tombolo-controlplane.store-password.cred"];
