//! The service program: reads its configuration, runs until it is told to end.

use std::process::ExitCode;

use clap::Parser as _;
use dialog_api::{config::Config, server, telemetry};

fn main() -> ExitCode {
    let config = Config::parse();
    telemetry::start(config.log_format, &config.log_level);
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(server::run(config)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "dialog-api cannot run");
            ExitCode::FAILURE
        }
    }
}
