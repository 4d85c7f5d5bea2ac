//! Logs on standard error: one JSON object per line for machines, text for people.

use tracing_subscriber::{EnvFilter, fmt, prelude::*};

use crate::config::LogFormat;

/// Installs the logger of the process. Called once, before anything logs.
///
/// `filter` has the syntax of `RUST_LOG`, such as `info` or `info,dialog_api=debug`. A part of it that makes
/// no sense is left out and reported.
pub fn start(format: LogFormat, filter: &str) {
    let filter = EnvFilter::builder().parse_lossy(filter);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Json => {
            registry.with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr)).init();
        }
        LogFormat::Text => registry.with(fmt::layer().with_writer(std::io::stderr)).init(),
    }
}
