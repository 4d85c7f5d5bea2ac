//! The command line. Every flag of `run` can be given as an environment variable.

use std::net::SocketAddr;

use clap::{Args, Parser, Subcommand};

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
