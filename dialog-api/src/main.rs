//! The service program: reads its configuration, runs until it is told to end.

use std::{process::ExitCode, time::Duration};

use clap::Parser as _;
use dialog_api::{config::Config, server, telemetry};
use mimalloc::MiMalloc;

/// A request allocates dozens of times, on which the C library spends a sixth of its processor time. With this
/// allocator a list takes 15 % less of it (`cargo xtask bench -- --section plain`). Huge pages are off: with them an
/// idle process occupies twice the memory.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// How long a thread for hashes of passwords waits for the next. The allocator keeps the memory of a hash, which is
/// 19 MiB, for the thread that used it, and gives it back when the thread ends.
const THREAD_KEEP_ALIVE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let config = Config::parse();
    telemetry::start(config.log_format, &config.log_level);
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_keep_alive(THREAD_KEEP_ALIVE)
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
