//! The program: reads its command line and does what it says.

use std::process::ExitCode;

use clap::Parser as _;
use dialog_bench::cli::{Arguments, execute};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // One thread makes the load and leaves the other processors to what is measured.
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(execute(arguments)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
