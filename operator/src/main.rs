//! The operator program.

use clap::Parser;
use dialog_operator::cli::{Cli, Command};
use kube::CustomResourceExt;

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Crd => {
            print!("{}", serde_yaml_ng::to_string(&dialog_operator::api::DialogCluster::crd())?);
            Ok(())
        }
        // Two threads serve hundreds of clusters; more would only cost memory.
        Command::Run(arguments) => tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?
            .block_on(dialog_operator::run::run(*arguments)),
    }
}
