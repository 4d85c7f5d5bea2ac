//! The command line. Every flag of `run` can be given as an environment variable.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::context::PullPolicy;
use crate::telemetry::LogFormat;

/// Kubernetes operator for Citus with a chat back end on top.
#[derive(Debug, Parser)]
#[command(name = "dialog-operator", version, max_term_width = 120)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the controllers until SIGTERM or SIGINT.
    Run(Box<Run>),
    /// Print the custom resource definition as YAML.
    Crd,
    /// Print which shards the operator would move or is moving, and exit with 2 if there is something to do.
    ///
    /// The plan is the one that the operator has written into the cluster's status: what is shown is what would run, and
    /// nothing but the right to read the resource is needed. Exits with 0 if the shards are where they belong, with 2 if
    /// they are not, whether moves are planned already or something has to come first, and with 1 if that is not known, as
    /// while the operator has not seen the latest change of the spec.
    Plan(Plan),
    /// Show what the operator would do about load: hours and days of it in seconds, from a scenario.
    ///
    /// The scenario describes a cluster and its load, or holds the recorded load of a real one. What is decided is decided
    /// by the same function as in a cluster.
    Simulate(Simulate),
    /// Write the load of a cluster, as the operator has seen it, in the form that `simulate` reads.
    ///
    /// The operator keeps the last 1440 periods in the coordinator's database. This reads them with the operator's own
    /// certificate, so it has to run where the Secret can be read and the cluster's Services be reached, such as in the
    /// operator's pod. No file can be written there: `kubectl exec deploy/dialog-operator -- dialog-operator observe NAME
    /// --out - > FILE`.
    Observe(Observe),
}

/// The flags of `observe`.
#[derive(Clone, Debug, Args)]
pub struct Observe {
    /// Name of the `DialogCluster`.
    pub name: String,
    /// Its namespace; that of the current context if absent.
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// The file to write; `-` is the standard output.
    #[arg(long, value_name = "FILE", default_value = "-")]
    pub out: PathBuf,
}

/// The flags of `simulate`.
#[derive(Clone, Debug, Args)]
pub struct Simulate {
    /// The scenario, as YAML or JSON.
    pub file: PathBuf,
    /// Draw the load of each worker over time, with what was done, into this file.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// How the outcome is printed.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

/// The flags of `plan`.
#[derive(Clone, Debug, Args)]
pub struct Plan {
    /// Name of the `DialogCluster`.
    pub name: String,
    /// Its namespace; that of the current context if absent.
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// How the plan is printed.
    #[arg(short, long, value_enum, default_value = "table")]
    pub output: Output,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Text for people.
    Table,
    /// For programs: the fields of `status.plan`, or all that is known of a simulation.
    Json,
}

/// The flags of `run`.
#[derive(Clone, Debug, Args)]
pub struct Run {
    /// Image of PostgreSQL, Patroni and Citus for clusters that name none.
    #[arg(long, env = "DIALOG_OPERATOR_POSTGRES_IMAGE", value_name = "IMAGE")]
    pub postgres_image: Option<String>,
    /// Image of dialog-api for clusters that name none.
    #[arg(long, env = "DIALOG_OPERATOR_API_IMAGE", value_name = "IMAGE")]
    pub api_image: Option<String>,
    /// Secrets with credentials for pulling the images of databases and of dialog-api, separated by commas. Each is
    /// expected in the namespace of the DialogCluster.
    #[arg(long, env = "DIALOG_OPERATOR_IMAGE_PULL_SECRETS", value_name = "NAMES", value_delimiter = ',')]
    pub image_pull_secrets: Vec<String>,
    /// When the images of databases and of dialog-api are pulled; Kubernetes decides by the tag if absent.
    #[arg(long, env = "DIALOG_OPERATOR_IMAGE_PULL_POLICY", value_enum)]
    pub image_pull_policy: Option<PullPolicy>,
    /// Look at this namespace only; all namespaces if absent.
    #[arg(long, env = "DIALOG_OPERATOR_WATCH_NAMESPACE", value_name = "NAMESPACE")]
    pub watch_namespace: Option<String>,
    /// Address of /health, /ready and /metrics.
    #[arg(long, env = "DIALOG_OPERATOR_LISTEN", value_name = "ADDRESS", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
    /// Namespace of the lease by which one of several operators leads; the client's own if absent.
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE")]
    pub lease_namespace: Option<String>,
    /// Name of the lease.
    #[arg(long, env = "DIALOG_OPERATOR_LEASE", value_name = "NAME", default_value = "dialog-operator")]
    pub lease_name: String,
    /// Who holds the lease, unique among the operators; a random one if absent.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub identity: Option<String>,
    /// How log lines look.
    #[arg(long, env = "DIALOG_OPERATOR_LOG_FORMAT", value_enum, default_value = "json")]
    pub log_format: LogFormat,
    /// What is logged, as `target=level` directives.
    #[arg(long, env = "DIALOG_OPERATOR_LOG", value_name = "DIRECTIVES", default_value = "info")]
    pub log: String,
}
