//! Structured logs whose filter can be changed at run time.

use std::fmt;
use std::sync::Arc;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt as format, reload};

/// Longest filter in bytes.
const FILTER_BYTES_MAX: usize = 1024;

/// Changes what is logged.
#[derive(Clone)]
pub struct LogControl {
    handle: Option<Arc<reload::Handle<EnvFilter, Registry>>>,
}

impl fmt::Debug for LogControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogControl").field("active", &self.handle.is_some()).finish()
    }
}

impl LogControl {
    /// For nodes in a process that logs by itself, such as a test.
    pub fn none() -> Self {
        Self { handle: None }
    }

    /// Sets the filter; the one before.
    ///
    /// # Errors
    /// What is wrong with the filter.
    pub fn set(&self, filter: &str) -> Result<String, String> {
        if filter.is_empty() || filter.len() > FILTER_BYTES_MAX {
            return Err(format!("a filter has 1 to {FILTER_BYTES_MAX} bytes"));
        }
        let parsed = EnvFilter::try_new(filter).map_err(|error| format!("the filter is wrong: {error}"))?;
        let handle = self.handle.as_ref().ok_or_else(|| "this process does not log by itself".to_owned())?;
        let previous = handle.with_current(ToString::to_string).map_err(|error| error.to_string())?;
        handle.reload(parsed).map_err(|error| error.to_string())?;
        Ok(previous)
    }
}

/// Starts logging to standard error.
///
/// # Errors
/// What is wrong with the filter or the format.
pub fn start(filter: &str, form: &str) -> Result<LogControl, String> {
    let parsed = EnvFilter::try_new(filter).map_err(|error| format!("--log `{filter}` is wrong: {error}"))?;
    let (filter, handle) = reload::Layer::new(parsed);
    let registry = tracing_subscriber::registry().with(filter);
    let started = match form {
        "text" => registry.with(format::layer().with_writer(std::io::stderr).with_ansi(false)).try_init(),
        "json" => registry.with(format::layer().with_writer(std::io::stderr).json()).try_init(),
        other => return Err(format!("--log-format `{other}` is wrong: text or json is expected")),
    };
    started.map_err(|error| error.to_string())?;
    Ok(LogControl { handle: Some(Arc::new(handle)) })
}
