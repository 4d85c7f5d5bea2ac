//! The project's commands.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

use crate::cache::Cache;
use crate::cluster::Cluster;
use crate::progress::Progress;
use crate::tests::Tier;
use crate::tools::{Tool, Tools};

mod apiserver;
mod base_image;
mod bench;
mod cache;
mod chart;
mod cluster;
mod command;
mod crds;
mod debian;
mod demo;
mod disk;
mod docs;
mod engine;
mod images;
mod node_image;
mod postgres;
mod progress;
mod python;
mod release;
mod runtime;
mod table;
mod tests;
mod tools;

/// The project's commands.
///
/// What they build is kept outside the clone: in $`DIALOG_CACHE`, else
/// $`XDG_CACHE_HOME`/dialog-operator, else ~/.cache/dialog-operator.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Commands,
}

#[derive(Debug, Subcommand)]
enum Commands {
    /// From nothing to a message: a local Kubernetes, the operator, an example, and a message through
    /// the ingress.
    Demo,
    /// Runs the tests, tier by tier, with whatever each tier needs.
    Test {
        /// Only this tier; can be given several times.
        #[arg(long = "tier", value_enum)]
        tiers: Vec<Tier>,
        /// Only tests whose name contains this, one after the other; can be given several times.
        #[arg(long = "only", value_name = "NAME")]
        names: Vec<String>,
    },
    /// Measures dialog-api on this machine and writes bench/RESULTS.md. Nothing else should run meanwhile.
    Bench {
        /// A few seconds for each figure: shows that it works, not how fast. Writes nothing.
        #[arg(long)]
        quick: bool,
        /// Flags for `dialog-bench standard`, such as --section mixed or --without-citus.
        #[arg(last = true)]
        flags: Vec<OsString>,
    },
    /// Writes what is generated from the operator's types: crds/ and docs/api-reference.md.
    Crds {
        /// Write nothing; fail if a file is not up to date.
        #[arg(long)]
        check: bool,
    },
    /// Checks the Helm chart and the examples against a real API server.
    Chart {
        /// Write the golden renders instead of comparing with them.
        #[arg(long)]
        bless: bool,
    },
    /// Builds the images for a registry, on published base images.
    Images {
        /// What stands before the images' names, for example registry.example.com/dialog.
        #[arg(long)]
        repository: String,
        /// Their tag; the version of this workspace if absent.
        #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
        tag: String,
        /// Push them, too.
        #[arg(long)]
        push: bool,
    },
    /// The local Kubernetes cluster.
    #[command(subcommand)]
    Cluster(ClusterCommands),
    /// Builds the named tools and prints where they are.
    #[command(hide = true)]
    Tools {
        /// Which; all of them if none is named.
        #[arg(value_enum)]
        names: Vec<Tool>,
    },
    /// Called by the Docker engine in place of runc.
    #[command(hide = true, disable_help_flag = true)]
    Runtime {
        /// What runc would be called with.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

#[derive(Debug, Subcommand)]
enum ClusterCommands {
    /// Brings it up; quick if it is up already.
    Up,
    /// Takes it down, with everything it brought to the machine.
    Down,
    /// Says what runs and how to reach it.
    Status,
    /// Brings images of its Docker engine into its node.
    Load {
        /// The images' names.
        #[arg(required = true)]
        images: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Commands) -> Result<()> {
    match command {
        Commands::Demo => {
            let cache = Cache::open()?;
            let outcome = with_progress(&cache, |progress| demo::run(&cache, progress))?;
            eprintln!("\n{}", outcome.tables);
            println!("{}", outcome.summary);
            Ok(())
        }
        Commands::Test { tiers, names } => {
            let cache = Cache::open()?;
            tests::run(&cache, &Progress::start(&cache)?, &tiers, &names)
        }
        Commands::Bench { quick, flags } => {
            let cache = Cache::open()?;
            bench::run(&Progress::start(&cache)?, quick, &flags)
        }
        Commands::Crds { check } => crds::run(check),
        Commands::Chart { bless } => {
            let cache = Cache::open()?;
            with_progress(&cache, |progress| chart::run(&cache, progress, bless))
        }
        Commands::Images { repository, tag, push } => {
            let cache = Cache::open()?;
            let publish = |progress: &Progress| images::publish(&repository, &tag, push, progress);
            for name in with_progress(&cache, publish)? {
                println!("{name}");
            }
            Ok(())
        }
        Commands::Runtime { arguments } => runtime::run(&arguments),
        Commands::Tools { names } => {
            let cache = Cache::open()?;
            let all = <Tool as clap::ValueEnum>::value_variants();
            let names = if names.is_empty() { all } else { &names };
            let tools = with_progress(&cache, |progress| Tools::ensure(&cache, progress, names))?;
            for tool in names {
                println!("{}", tools.path(*tool).display());
            }
            Ok(())
        }
        Commands::Cluster(command) => {
            let cache = Cache::open()?;
            match command {
                ClusterCommands::Up => {
                    with_progress(&cache, |progress| Cluster::up(&cache, progress))?;
                    println!("{}", Cluster::status(&cache)?);
                }
                ClusterCommands::Down => with_progress(&cache, |progress| Cluster::down(&cache, progress))?,
                ClusterCommands::Status => println!("{}", Cluster::status(&cache)?),
                ClusterCommands::Load { images } => {
                    let cluster = running(&cache)?;
                    with_progress(&cache, |progress| {
                        progress.step("Images into the node", |log| cluster.load_images(&images, log))
                    })?;
                }
            }
            Ok(())
        }
    }
}

fn running(cache: &Cache) -> Result<Cluster> {
    Cluster::find(cache)?.context("no cluster is up: `cargo xtask cluster up` starts one")
}

/// Runs `work` with progress, and prints the breakdown whether it succeeds or not.
fn with_progress<T>(cache: &Cache, work: impl FnOnce(&Progress) -> Result<T>) -> Result<T> {
    let progress = Progress::start(cache)?;
    let outcome = work(&progress);
    progress.finish();
    outcome
}

/// The clone this program was built in.
fn repository() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}
