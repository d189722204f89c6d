//! The command line of `tombolo-controlplane`: flags to configuration, configuration to a running
//! program, errors to a sentence with a cure and an exit code (1 failed, 2 usage).

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use sd_notify::NotifyState;
use telemetry::log::{LogConfig, LogHandle};
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::config::{Config, Sources};
use crate::issuer;
use crate::rest::AdminToken;
use crate::run::ControlPlane;
use crate::store::Store;

#[derive(Parser)]
#[command(name = "tombolo-controlplane", version = telemetry::build::VERSION, about = "The control plane of a Tombolo mesh")]
#[command(arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the control plane
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(Box<Options>),
    /// Bring the store's schema up to date and exit; `serve` does it too
    Migrate(Box<Options>),
    /// Work on an authority's files
    #[command(subcommand)]
    Ca(Ca),
    /// Write the manual pages
    Man {
        /// The folder they go to
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
}

#[derive(Subcommand)]
enum Ca {
    /// Make a new issuing certificate where the root's key is kept; for a control plane that has not got that key
    Renew {
        /// The folder with root.key, root.pem and issuing.key, which is made if it is missing
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
}

const SERVE_EXAMPLES: &str = "\
Examples:
  tombolo-controlplane serve --trust-domain corp.example
  tombolo-controlplane serve --data-dir /srv/tombolo --trust-domain corp.example \\
    --advertise mesh.corp.example --store postgres://tombolo@db.corp.example/mesh --store-password-file /run/secret";

#[derive(Args)]
struct Options {
    /// Where the authority's keys, the administrator's token and the SQLite file are [default: /var/lib/tombolo-controlplane]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// sqlite:///PATH or postgres://USER@HOST/DATABASE [default: state.db in the data directory]
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// File with the password for Postgres
    #[arg(long, value_name = "FILE")]
    store_password_file: Option<PathBuf>,
    /// Where agents connect [default: [::]:15012]
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<String>,
    /// Where operators connect [default: [::]:15014]
    #[arg(long, value_name = "IP:PORT")]
    api_listen: Option<String>,
    /// The name of the mesh in every identity; cannot be changed later
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<String>,
    /// A name or address by which hosts and operators reach this control plane; may be repeated
    #[arg(long, value_name = "NAME_OR_IP")]
    advertise: Vec<String>,
    /// Configuration file [default: /etc/tombolo/controlplane.toml, if there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// auto, text, json or journald
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Levels, such as info or info,controlplane=debug
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// Print every setting and where it came from, and exit
    #[arg(long)]
    print_config: bool,
}

impl Options {
    fn sources(&self) -> Sources {
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| absolute(path).display().to_string());
        let single = [
            ("paths.data_dir", path(&self.data_dir)),
            ("store.url", self.store.clone()),
            ("store.password_file", path(&self.store_password_file)),
            ("grpc.listen", self.listen.clone()),
            ("api.listen", self.api_listen.clone()),
            ("mesh.trust_domain", self.trust_domain.clone()),
            ("log.format", self.log_format.clone()),
            ("log.filter", self.log.clone()),
        ];
        let flags = single.into_iter().filter_map(|(key, value)| Some((key, value?)));
        let flags = flags.chain(self.advertise.iter().map(|name| ("mesh.advertise", name.clone()))).collect();
        Sources { file: self.config.clone(), flags, ..Sources::of_process() }
    }
}

/// A relative path on the command line is meant from where one stands.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Runs the program. The caller has pinned name look-ups and installed the crypto provider.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match &cli.command {
        Command::Serve(options) => with_config(options, serve),
        Command::Migrate(options) => with_config(options, migrate),
        Command::Ca(Ca::Renew { folder }) => renew(folder),
        Command::Man { dir } => clap_mangen::generate_to(Cli::command(), dir)
            .map_err(|error| format!("cannot write manual pages to {}: {error}", dir.display())),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            say(&mut io::stderr(), &format!("tombolo-controlplane: {problem}\n"));
            ExitCode::FAILURE
        }
    }
}

fn with_config(options: &Options, run: fn(&Config) -> Result<(), String>) -> Result<(), String> {
    let config = Config::load(&options.sources()).map_err(|error| error.to_string())?;
    if options.print_config {
        say(&mut io::stdout(), &config.print());
        return Ok(());
    }
    run(&config)
}

fn serve(config: &Config) -> Result<(), String> {
    let log = log(config)?;
    let outcome = runtime()?.block_on(serve_async(config));
    log.flush(std::time::Duration::from_secs(1));
    outcome
}

async fn serve_async(config: &Config) -> Result<(), String> {
    // Before anything is started: a signal that comes meanwhile ends the start in order.
    let shutdown = shutdown()?;
    let control_plane = ControlPlane::start(config)
        .await
        .map_err(|error| format!("{}\n  hint: {}", telemetry::Chain(&error), error.hint()))?;
    if control_plane.first_start() {
        say(&mut io::stdout(), &welcome(config, &control_plane.api_url()));
    }
    info!(
        trust_domain = %config.trust_domain, store = %config.store, revision = control_plane.app().store.revision(),
        grpc = ?control_plane.grpc_address().ok(), rest = ?control_plane.api_address().ok(),
        "tombolo-controlplane {} serves", telemetry::build::VERSION
    );
    notify(&[NotifyState::Ready]);
    let ended = control_plane.run(async {
        tokio::select! {
            () = shutdown => {}
            () = feed_watchdog() => {}
        }
        notify(&[NotifyState::Stopping]);
    });
    let ended = ended.await;
    ended.map_err(|error| telemetry::Chain(&error).to_string())
}

fn migrate(config: &Config) -> Result<(), String> {
    let opened = runtime()?.block_on(async {
        let store = Store::open(&config.store).await?;
        let revision = store.revision();
        store.close().await;
        Ok::<_, crate::store::StoreError>(revision)
    });
    match opened {
        Ok(revision) => {
            say(&mut io::stdout(), &format!("{} is up to date, at revision {revision}\n", config.store));
            Ok(())
        }
        Err(error) => {
            Err(format!("cannot migrate {}: {}\n  hint: {}", config.store, telemetry::Chain(&error), error.hint()))
        }
    }
}

fn renew(folder: &Path) -> Result<(), String> {
    let end = issuer::renew_issuing(folder).map_err(|error| telemetry::Chain(&error).to_string())?;
    let made = folder.join("issuing.pem");
    let said = format!("{} is good until {end}: give it to the control plane, and restart that\n", made.display());
    say(&mut io::stdout(), &said);
    Ok(())
}

fn log(config: &Config) -> Result<LogHandle, String> {
    let wanted = LogConfig { format: config.log_output(), filter: config.log_filter.clone() };
    telemetry::log::init(&wanted).map_err(|error| telemetry::Chain(&error).to_string())
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    let built = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    built.map_err(|error| format!("threads cannot be started: {error}"))
}

/// Ready when the service manager or a terminal asks to end.
fn shutdown() -> Result<impl Future<Output = ()>, String> {
    let failed = |error: io::Error| format!("signals cannot be received: {error}");
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// As long as the runtime gets round to it; never ends.
async fn feed_watchdog() {
    let Some(period) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    loop {
        notify(&[NotifyState::Watchdog]);
        tokio::time::sleep(period / 3).await;
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(error = %error, "systemd could not be told");
    }
}

fn welcome(config: &Config, url: &str) -> String {
    let (ca, token) = (config.data_dir.join("ca.pem"), AdminToken::path(&config.data_dir));
    format!(
        "The mesh {} is new. To use it from here:\n\n  export TOMBOLO_URL={url}\n  export TOMBOLO_CA={}\n  \
         export TOMBOLO_TOKEN_FILE={}\n  tombolo status\n\n\
         From another machine: copy the two files there, or run `tombolo login {url}`.\n",
        config.trust_domain,
        ca.display(),
        token.display(),
    )
}

/// Writes for people; a reader that has gone away changes nothing.
fn say(to: &mut dyn io::Write, text: &str) {
    let _ = to.write_all(text.as_bytes()).and_then(|()| to.flush());
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
