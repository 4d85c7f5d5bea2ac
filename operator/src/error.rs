//! What can go wrong in a reconciliation. Waiting is not an error; see [`Outcome`](crate::reconcile::Outcome).

use std::time::Duration;

/// A failed reconciliation. It is logged, counted by [`Class`], published as an Event, and tried again later.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Kubernetes API server refused or did not answer.
    #[error("cannot {action} {object}: {}", explain(.source))]
    Kubernetes {
        /// A verb phrase, for example `apply`.
        action: &'static str,
        /// Kind and name, for example `StatefulSet chat-worker-0`.
        object: String,
        /// What the client says.
        source: Box<kube::Error>,
    },
    /// An object of this name is there already, and is not this cluster's.
    #[error(
        "{object} exists and does not belong to this cluster, so it is left as it is; delete or rename it, or give the \
         DialogCluster another name"
    )]
    NameTaken {
        /// Kind and name.
        object: String,
    },
    /// The object is not what its schema says; only possible if it was written past the schema.
    #[error("cannot read the DialogCluster: {reason}; correct it with `kubectl edit`")]
    Malformed {
        /// What the parser says.
        reason: String,
    },
    /// A change of the database was refused. That a node cannot be reached at all is a condition, not an error.
    #[error("cannot {step}: {source}")]
    Database {
        /// What was to be done, for example `create the extension citus on worker-0`.
        step: String,
        /// Where it failed, what the server says, and what to do.
        source: Box<crate::shards::act::Error>,
    },
    /// The Secret with the operator's certificate holds no usable one.
    #[error("Secret {secret}: {source}")]
    Identity {
        /// The Secret.
        secret: String,
        /// What is wrong with it.
        source: crate::pg::IdentityError,
    },
    /// Patroni refused or did not answer.
    #[error("Patroni of {instance}: cannot {action}: {reason}; `kubectl logs {instance}` says more")]
    Patroni {
        /// The pod.
        instance: String,
        /// A verb phrase, for example `read the configuration`.
        action: &'static str,
        /// What it says.
        reason: String,
    },
    /// A key or certificate could not be made.
    #[error("cannot make {object}: {reason}; if it stays, this is a bug in the operator, please report it")]
    Certificate {
        /// What was to be made.
        object: String,
        /// What the library says.
        reason: String,
    },
    /// A reconciliation ended in a panic: a mistake in this program, kept to the one object.
    #[error("this is a bug in the operator, please report it: {0}")]
    Panicked(String),
    /// A reconciliation took longer than its controller allows.
    #[error(
        "the reconciliation had no result after {} s and starts over; if it stays, look for servers that answer slowly: \
         the API server, Patroni, PostgreSQL",
        .0.as_secs()
    )]
    Deadline(Duration),
}

/// The classes of [`Error`], few enough for a metric's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The API server.
    Kubernetes,
    /// The object itself.
    Malformed,
    /// PostgreSQL or Citus.
    Database,
    /// Patroni.
    Patroni,
    /// Keys and certificates.
    Certificate,
    /// A bug in the operator.
    Panicked,
    /// The reconciliation took too long.
    Deadline,
}

impl Class {
    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kubernetes => "kubernetes",
            Self::Malformed => "malformed",
            Self::Database => "database",
            Self::Patroni => "patroni",
            Self::Certificate => "certificate",
            Self::Panicked => "panicked",
            Self::Deadline => "deadline",
        }
    }
}

impl Error {
    /// For `map_err`: the API server failed while we tried to `action` the `object`.
    pub fn kubernetes(action: &'static str, object: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let object = object.into();
        move |source| Self::Kubernetes { action, object, source: Box::new(source) }
    }

    /// Which class this is of.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Kubernetes { .. } | Self::NameTaken { .. } => Class::Kubernetes,
            Self::Malformed { .. } => Class::Malformed,
            Self::Database { .. } => Class::Database,
            Self::Patroni { .. } => Class::Patroni,
            Self::Certificate { .. } | Self::Identity { .. } => Class::Certificate,
            Self::Panicked(_) => Class::Panicked,
            Self::Deadline(_) => Class::Deadline,
        }
    }

    /// The reason to put in an Event or a condition.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Kubernetes { .. } => "KubernetesError",
            Self::NameTaken { .. } => "NameTaken",
            Self::Malformed { .. } => "Malformed",
            Self::Database { .. } => "DatabaseError",
            Self::Patroni { .. } => "PatroniError",
            Self::Certificate { .. } | Self::Identity { .. } => "CertificateError",
            Self::Panicked(_) => "OperatorBug",
            Self::Deadline(_) => "DeadlineExceeded",
        }
    }
}

/// The API server's own sentence where there is one; otherwise the whole chain of causes.
fn explain(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => chain(other),
    }
}

/// An error and its causes, each once.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
