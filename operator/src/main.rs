//! The operator program.

use std::process::ExitCode;

use clap::Parser;
use dialog_operator::cli::{Cli, Command};
use kube::CustomResourceExt;

fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::Crd => {
            print!("{}", serde_yaml_ng::to_string(&dialog_operator::api::DialogCluster::crd())?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Plan(arguments) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let printed = runtime.block_on(dialog_operator::preview::run(&arguments))?;
            print!("{}", printed.text);
            Ok(if printed.to_do { ExitCode::from(2) } else { ExitCode::SUCCESS })
        }
        Command::Observe(arguments) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(dialog_operator::record::run(&arguments))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Simulate(arguments) => {
            print!("{}", dialog_operator::simulate::run(&arguments)?);
            Ok(ExitCode::SUCCESS)
        }
        // Two threads serve hundreds of clusters; more would only cost memory.
        Command::Run(arguments) => tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?
            .block_on(dialog_operator::run::run(*arguments))
            .map(|()| ExitCode::SUCCESS),
    }
}
