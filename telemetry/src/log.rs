//! What the programs log, where to and how: people's text, JSON lines, or journald fields.
//!
//! Each program calls [`init`] once, after [`crate::nss::pin`]. The access log is the tracing target
//! [`ACCESS`] and goes the same way; the filter `access=off` silences it alone. Text and JSON are
//! written by a thread of their own, so that a stalled reader of standard error never stalls
//! traffic; see [`writer`](self::writer) for what is dropped then.

mod writer;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::TryInitError;
use tracing_subscriber::{Layer, Registry, reload};

pub use writer::lines_dropped;
use writer::{Lines, Writer};

/// Target of the one line that every connection leaves.
pub const ACCESS: &str = "access";

/// How much is logged until someone says otherwise.
pub const DEFAULT_FILTER: &str = "info";

/// What a program's `[log]` section says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    pub format: Format,
    /// Comma-separated levels, for all or for one target: `info`, `info,proxy=debug,access=off`.
    pub filter: String,
}

/// Where lines go and how they read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// For people, on standard error.
    #[default]
    Text,
    /// One JSON object a line, on standard error.
    Json,
    /// Structured fields to journald; [`Format::Json`] where journald does not listen.
    Journald,
}

/// Why logging could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("{filter:?} is not a log filter such as \"info\" or \"info,proxy=debug,access=off\"")]
    Filter {
        filter: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{format:?} is not a log format: text, json or journald")]
    Format { format: String },
    #[error("logging is already set up in this process")]
    AlreadySet(#[source] TryInitError),
    #[error("the thread that writes the log cannot be started")]
    Thread(#[source] io::Error),
    #[error("the log filter can no longer be changed")]
    Gone(#[source] reload::Error),
}

/// Changes the level of a running program. Keep one in `main`: dropping the last waits (up to a
/// second) until what was logged is written.
#[derive(Clone)]
pub struct LogHandle {
    filter: reload::Handle<EnvFilter, Registry>,
    writer: Option<Arc<Writer>>,
    format: Format,
}

/// Sets up logging for the whole process.
pub fn init(config: &LogConfig) -> Result<LogHandle, LogError> {
    let (filter, handle) = reload::Layer::new(parse(&config.filter)?);
    let base = tracing_subscriber::registry().with(filter);
    let journald = match config.format {
        Format::Journald => tracing_journald::layer(),
        Format::Text | Format::Json => Err(io::ErrorKind::Unsupported.into()),
    };
    let (subscriber, writer, format): (Box<dyn tracing::Subscriber + Send + Sync>, _, _) = match journald {
        Ok(layer) => (Box::new(base.with(journald_layer(layer))), None, Format::Journald),
        Err(_) => {
            let writer = Arc::new(Writer::spawn(io::stderr()).map_err(LogError::Thread)?);
            let format = if config.format == Format::Text { Format::Text } else { Format::Json };
            (Box::new(base.with(line_layer(format, Lines(writer.clone())))), Some(writer), format)
        }
    };
    tracing_subscriber::util::SubscriberInitExt::try_init(subscriber).map_err(LogError::AlreadySet)?;
    let handle = LogHandle { filter: handle, writer, format };
    if config.format != handle.format {
        tracing::warn!("journald does not listen on /run/systemd/journal/socket: logging JSON to standard error");
    }
    Ok(handle)
}

impl LogHandle {
    /// Puts another filter in force, at once and for all threads.
    pub fn set_filter(&self, filter: &str) -> Result<(), LogError> {
        self.filter.reload(parse(filter)?).map_err(LogError::Gone)
    }

    /// The filter in force.
    pub fn filter(&self) -> String {
        self.filter.with_current(ToString::to_string).unwrap_or_default()
    }

    /// The format in use, which is JSON where journald was asked for and does not listen.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Waits until what was logged so far is written, at most this long.
    pub fn flush(&self, limit: Duration) {
        if let Some(writer) = &self.writer {
            writer.flush(limit);
        }
    }
}

fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    let refused = |source| LogError::Filter { filter: filter.to_owned(), source };
    for directive in filter.split(',').map(str::trim) {
        // To the library a bare word is a target at TRACE; to people it is a level, maybe misspelt.
        let bare = !directive.is_empty() && !directive.contains(['=', '[']);
        if let Some(Err(source)) = bare.then(|| directive.parse::<LevelFilter>()) {
            return Err(refused(source.into()));
        }
    }
    let builder = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into());
    builder.parse(filter).map_err(|source| refused(source.into()))
}

/// One line an event, RFC 3339 in UTC; JSON has the event's fields at the top level.
fn line_layer<S, W>(format: Format, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'span> tracing_subscriber::registry::LookupSpan<'span>,
    W: for<'writer> tracing_subscriber::fmt::MakeWriter<'writer> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    match format {
        Format::Text => Box::new(layer.with_ansi(false)),
        Format::Json | Format::Journald => {
            Box::new(layer.json().flatten_event(true).with_current_span(true).with_span_list(false))
        }
    }
}

/// Field `dst.addr` becomes `TOMBOLO_DST_ADDR`; levels map to syslog's of the same name.
fn journald_layer(layer: tracing_journald::Layer) -> tracing_journald::Layer {
    layer.with_field_prefix(Some("TOMBOLO".to_owned())).with_priority_mappings(PriorityMappings {
        error: Priority::Error,
        warn: Priority::Warning,
        info: Priority::Informational,
        debug: Priority::Debug,
        trace: Priority::Debug,
    })
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { format: Format::default(), filter: DEFAULT_FILTER.to_owned() }
    }
}

impl std::str::FromStr for Format {
    type Err = LogError;

    fn from_str(text: &str) -> Result<Self, LogError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            "journald" => Ok(Self::Journald),
            _ => Err(LogError::Format { format: text.to_owned() }),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
            Self::Journald => "journald",
        })
    }
}

impl fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogHandle").field("filter", &self.filter()).field("format", &self.format).finish()
    }
}

#[cfg(test)]
mod tests;
