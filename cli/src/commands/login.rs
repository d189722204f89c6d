//! `tombolo login`: tries a control plane and remembers how to reach it.

use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use api::rest::ControlPlaneStatus;

use crate::client::Client;
use crate::config::{ConfigFile, Connection, Context, Trust, parse_pin, server_url};
use crate::exit::Exit;
use crate::output::{note, print};

const EXAMPLES: &str = "\
Examples:
  tombolo login https://mesh.corp.example --ca ca.pem --token-file admin.token
  tombolo login 10.0.0.5 --ca-pin sha256:… --token-stdin --name lab < token
  tombolo login --use lab
  tombolo login --list

The CA and the token are copied beside ~/.config/tombolo/config.toml, readable by you alone.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The control plane, such as https://mesh.corp.example:15014
    #[arg(value_name = "URL", required_unless_present_any = ["select", "list"])]
    server: Option<String>,
    /// File with its root certificates (PEM)
    #[arg(long, value_name = "FILE", env = "TOMBOLO_CA", conflicts_with = "ca_pin")]
    ca: Option<PathBuf>,
    /// Instead of --ca: the hash of its root certificate
    #[arg(long, value_name = "sha256:HEX")]
    ca_pin: Option<String>,
    /// File with the token
    #[arg(long, value_name = "FILE", conflicts_with = "token_stdin")]
    token_file: Option<PathBuf>,
    /// Read the token from standard input
    #[arg(long)]
    token_stdin: bool,
    /// Name to remember it by
    #[arg(long, value_name = "NAME", default_value = "default", value_parser = context_name)]
    name: String,
    /// Namespace of commands that name none
    #[arg(short, long, value_name = "NS")]
    namespace: Option<String>,
    /// Only switch to a context that is remembered
    #[arg(long = "use", value_name = "NAME", conflicts_with = "server")]
    select: Option<String>,
    /// Only list the contexts that are remembered
    #[arg(long, conflicts_with_all = ["server", "select"])]
    list: bool,
}

/// It becomes a part of file names.
fn context_name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let sound = (1..=64).contains(&text.len()) && text.chars().all(allowed) && !text.starts_with('.');
    if sound { Ok(text.to_owned()) } else { Err("1 to 64 letters, digits, - _ .".to_owned()) }
}

pub(super) async fn run(args: Args) -> anyhow::Result<Exit> {
    let mut file = ConfigFile::load()?;
    if args.list {
        for (name, context) in &file.contexts {
            let mark = if file.current.as_ref() == Some(name) { "*" } else { " " };
            print(&format!("{mark} {name}  {}\n", context.server))?;
        }
        return Ok(Exit::Ok);
    }
    if let Some(name) = args.select {
        if !file.contexts.contains_key(&name) {
            bail!("there is no context {name:?}; `tombolo login --list` shows them");
        }
        file.current = Some(name);
        file.save()?;
        return Ok(Exit::Ok);
    }
    let server = server_url(&args.server.context("name the control plane")?)?;
    let trust = match (&args.ca, &args.ca_pin) {
        (Some(ca), _) => Trust::Roots(ca.clone()),
        (None, Some(pin)) => Trust::Pin(parse_pin(pin)?),
        (None, None) => bail!("say how to know the control plane: --ca FILE or --ca-pin sha256:HEX"),
    };
    let token = token(args.token_file, args.token_stdin)?;
    let namespace = args.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let connection = Connection { server: server.clone(), token: token.clone(), trust, namespace };
    let status: ControlPlaneStatus = Client::new(&connection)?.get(&["status"]).await?;

    let ca = match &args.ca {
        Some(ca) => {
            let pem = std::fs::read_to_string(ca).with_context(|| format!("cannot read {}", ca.display()))?;
            Some(ConfigFile::keep(&format!("{}.ca.pem", args.name), &pem)?)
        }
        None => None,
    };
    let token_file = Some(ConfigFile::keep(&format!("{}.token", args.name), &format!("{token}\n"))?);
    let context =
        Context { server: server.to_string(), token_file, ca, ca_pin: args.ca_pin, namespace: args.namespace };
    file.contexts.insert(args.name.clone(), context);
    file.current = Some(args.name.clone());
    let path = file.save()?;
    print(&format!("logged in to {server}, trust domain {}, revision {}\n", status.trust_domain, status.revision))?;
    note(&format!("remembered as {:?} in {}", args.name, path.display()));
    Ok(Exit::Ok)
}

fn token(file: Option<PathBuf>, stdin: bool) -> anyhow::Result<String> {
    let text = match (file, stdin, std::env::var_os("TOMBOLO_TOKEN")) {
        (Some(file), ..) => {
            std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?
        }
        (None, true, _) => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
            text
        }
        (None, false, Some(token)) => token.into_string().ok().context("TOMBOLO_TOKEN is not text")?,
        (None, false, None) => bail!("give the token: --token-file FILE, --token-stdin or TOMBOLO_TOKEN"),
    };
    match text.trim() {
        "" => bail!("the token is empty"),
        token => Ok(token.to_owned()),
    }
}
