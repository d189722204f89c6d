//! Where the control plane is and how to prove who asks: flags, environment, then the context file
//! that `tombolo login` writes. Called by the operator's commands.
//!
//! `~/.config/tombolo/config.toml`: `current = "NAME"` and tables `[contexts.NAME]`. Secrets are paths
//! to files only their owner can read; the token itself may come in `TOMBOLO_TOKEN`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use url::Url;

/// How to reach the control plane.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct ConnectionArgs {
    /// The control plane, such as https://mesh.corp.example:15014
    #[arg(long, env = "TOMBOLO_URL", hide_env_values = true, value_name = "URL")]
    pub(crate) server: Option<String>,
    /// File with the operator's token; TOMBOLO_TOKEN holds the token itself
    #[arg(long, env = "TOMBOLO_TOKEN_FILE", hide_env_values = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// File with the control plane's root certificates (PEM)
    #[arg(long, env = "TOMBOLO_CA", hide_env_values = true, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Instead of --ca: the root certificate's hash, as `tombolo status` prints it
    #[arg(long, env = "TOMBOLO_CA_PIN", hide_env_values = true, value_name = "sha256:HEX")]
    pub(crate) ca_pin: Option<String>,
    /// Which context of the configuration file to use
    #[arg(long, env = "TOMBOLO_CONTEXT", hide_env_values = true, value_name = "NAME")]
    pub(crate) context: Option<String>,
}

/// All that a client needs to know.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    pub(crate) server: Url,
    pub(crate) token: String,
    pub(crate) trust: Trust,
    /// Where objects are looked for when nothing is said.
    pub(crate) namespace: String,
}

/// By what the control plane is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trust {
    Roots(PathBuf),
    Pin([u8; 32]),
}

/// The configuration file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConfigFile {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    #[serde(default)]
    pub(crate) contexts: BTreeMap<String, Context>,
}

/// One control plane, by name.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Context {
    pub(crate) server: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token_file: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ca_pin: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<String>,
}

impl ConnectionArgs {
    /// Whether the command line or the environment names a control plane, so that `tombolo status`
    /// is about it and not about this host.
    pub(crate) fn names_a_server(&self) -> bool {
        self.server.is_some() || self.context.is_some()
    }

    pub(crate) fn resolve(&self) -> anyhow::Result<Connection> {
        let context = self.chosen_context()?;
        let Some(server) = self.server.clone().or_else(|| context.as_ref().map(|context| context.server.clone()))
        else {
            bail!(
                "no control plane is known: run `tombolo login URL --ca FILE`, or set TOMBOLO_URL, TOMBOLO_CA and TOMBOLO_TOKEN"
            );
        };
        let server = server_url(&server)?;
        // A server given by hand must not be shown the secrets of another one.
        let is_of = |context: &Context| server_url(&context.server).is_ok_and(|url| url == server);
        let context = context.filter(is_of).unwrap_or_default();
        let token_file = self.token_file.clone().or(context.token_file);
        Ok(Connection {
            server,
            token: token(token_file.as_deref())?,
            trust: trust(self, context.ca, context.ca_pin)?,
            namespace: context.namespace.unwrap_or_else(|| "default".to_owned()),
        })
    }

    fn chosen_context(&self) -> anyhow::Result<Option<Context>> {
        let mut file = ConfigFile::load()?;
        let Some(name) = self.context.clone().or_else(|| file.current.clone()) else { return Ok(None) };
        match file.contexts.remove(&name) {
            Some(context) => Ok(Some(context)),
            None => {
                let path = ConfigFile::path()?;
                bail!("there is no context {name:?} in {}; `tombolo login` makes one", path.display())
            }
        }
    }
}

fn trust(args: &ConnectionArgs, ca: Option<PathBuf>, ca_pin: Option<String>) -> anyhow::Result<Trust> {
    match (&args.ca, &args.ca_pin, ca, ca_pin) {
        (Some(ca), _, _, _) => Ok(Trust::Roots(ca.clone())),
        (None, Some(pin), _, _) => Ok(Trust::Pin(parse_pin(pin)?)),
        (None, None, Some(ca), _) => Ok(Trust::Roots(ca)),
        (None, None, None, Some(pin)) => Ok(Trust::Pin(parse_pin(&pin)?)),
        (None, None, None, None) => bail!(
            "nothing says how to know the control plane: give its ca.pem with --ca FILE (TOMBOLO_CA) or its hash with --ca-pin"
        ),
    }
}

pub(crate) fn server_url(text: &str) -> anyhow::Result<Url> {
    let text = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let mut url: Url = text.parse().with_context(|| format!("{text:?} is not a URL"))?;
    if url.scheme() != "https" {
        bail!("{text:?} is not an https URL: the token must not travel in the clear");
    }
    // Without a port 443 would be meant, where no control plane listens unless told to.
    if url.port().is_none() && !text.trim_end_matches('/').ends_with(":443") {
        url.set_port(Some(api::ports::CONTROL_PLANE_REST)).ok().context("the URL takes no port")?;
    }
    Ok(url)
}

pub(crate) fn parse_pin(text: &str) -> anyhow::Result<[u8; 32]> {
    let hex = text.strip_prefix("sha256:").unwrap_or(text).to_ascii_lowercase();
    let bytes = data_encoding::HEXLOWER.decode(hex.as_bytes()).ok();
    let Some(pin) = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()) else {
        bail!("{text:?} is not a pin: sha256: and 64 hex digits");
    };
    Ok(pin)
}

fn token(file: Option<&Path>) -> anyhow::Result<String> {
    let found = match (std::env::var_os("TOMBOLO_TOKEN"), file) {
        (Some(token), _) => token.into_string().ok().context("TOMBOLO_TOKEN is not text")?,
        (None, Some(file)) => {
            fs::read_to_string(file).with_context(|| format!("cannot read the token file {}", file.display()))?
        }
        (None, None) => bail!("no token: set TOMBOLO_TOKEN, give --token-file FILE, or run `tombolo login`"),
    };
    let found = found.trim();
    if found.is_empty() {
        bail!("the token is empty");
    }
    Ok(found.to_owned())
}

impl ConfigFile {
    /// `$XDG_CONFIG_HOME/tombolo/config.toml`, else `~/.config/tombolo/config.toml`.
    pub(crate) fn path() -> anyhow::Result<PathBuf> {
        Ok(Self::folder()?.join("config.toml"))
    }

    fn folder() -> anyhow::Result<PathBuf> {
        let xdg = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let base = xdg.or_else(|| std::env::home_dir().map(|home| home.join(".config")));
        Ok(base.context("there is no home folder: set HOME")?.join("tombolo"))
    }

    /// An absent file is an empty one.
    pub(crate) fn load() -> anyhow::Result<Self> {
        // Without a home folder (a daemon, a container) there is no file either.
        let Ok(path) = Self::path() else { return Ok(Self::default()) };
        match fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).with_context(|| format!("cannot understand {}", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    pub(crate) fn save(&self) -> anyhow::Result<PathBuf> {
        let text = toml::to_string(self).context("the configuration cannot be written as TOML")?;
        Self::keep("config.toml", &text)
    }

    /// Writes a file beside the configuration that only its owner can read; all of it or nothing.
    pub(crate) fn keep(name: &str, content: &str) -> anyhow::Result<PathBuf> {
        let folder = Self::folder()?;
        let path = folder.join(name);
        let write = || {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
            let new = folder.join(format!(".{name}.new"));
            let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(content.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        write().with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests;
