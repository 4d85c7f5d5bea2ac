//! Every name derived from a cluster's name, in one place.
//!
//! A cluster's name has at most 37 characters (a rule of the resource), so that the longest name here, the revision
//! label of a worker's pods, stays within the 63 that Kubernetes allows a label.

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The port of PostgreSQL on every node.
pub const POSTGRES_PORT: u16 = 5432;
/// The port of Patroni's REST API on every instance.
pub const PATRONI_PORT: u16 = 8008;
/// The port of dialog-api's Service and pods.
pub const API_PORT: u16 = 8080;
/// The UDP port on which the pods of dialog-api tell each other of new messages.
pub const PEERS_PORT: u16 = 8081;

/// The volume of each instance, in its pod and in the names of claims.
pub const VOLUME: &str = "data";

/// The database that holds the dialog tables, on every node.
pub const DATABASE: &str = "dialog";

/// The channel of [`DATABASE`] on the coordinator by which whoever keeps a map of the shards hears that it has changed.
pub const MAP_CHANNEL: &str = "dialog_map";
/// The channel on the coordinator to which a session listens that moves or cuts shards, so that it can be woken.
pub const WAKE_CHANNEL: &str = "dialog_operator_wake";

/// Label with the name of the `DialogCluster` that an object belongs to.
pub const CLUSTER_LABEL: &str = "dialogcluster.io/cluster";
/// Label with the database group of a pod, Service or claim.
pub const GROUP_LABEL: &str = "dialogcluster.io/group";
/// Label in which Patroni keeps an instance's role: `primary` or `replica`.
pub const ROLE_LABEL: &str = "dialogcluster.io/role";
/// Label with Patroni's scope: the name of the group's StatefulSet.
pub const SCOPE_LABEL: &str = "dialogcluster.io/scope";
/// Annotation of Patroni's state with the time at which the interrupted making of a database was given up.
pub const BEGUN_ANEW: &str = "dialogcluster.io/begun-anew";

/// A database group: a primary and its standbys.
///
/// The order is the one people read: coordinator first, workers by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    /// The node that holds the catalogs.
    Coordinator,
    /// Worker by number, from 0.
    Worker(u32),
}

impl Group {
    /// The group that `text` names, as `Display` writes it; `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text == "coordinator" {
            return Some(Self::Coordinator);
        }
        let number = text.strip_prefix("worker-")?.parse().ok()?;
        let group = Self::Worker(number);
        // `worker-007` is not a name that we gave.
        (group.to_string() == text).then_some(group)
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Coordinator => f.write_str("coordinator"),
            Self::Worker(number) => write!(f, "worker-{number}"),
        }
    }
}

impl Serialize for Group {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Group {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text)
            .ok_or_else(|| D::Error::custom(format!("{text:?} is no group: coordinator or worker-N")))
    }
}

/// The names of one cluster's objects.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Names {
    cluster: String,
    namespace: String,
}

impl Names {
    /// The names of the cluster `cluster` in `namespace`.
    #[must_use]
    pub fn new(cluster: impl Into<String>, namespace: impl Into<String>) -> Self {
        Self { cluster: cluster.into(), namespace: namespace.into() }
    }

    /// The cluster's own name.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// The namespace of everything.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The group's StatefulSet, its primary's Service, its Patroni scope, and whom its pods act as: ServiceAccount, Role
    /// and RoleBinding.
    #[must_use]
    pub fn group(&self, group: Group) -> String {
        format!("{}-{group}", self.cluster)
    }

    /// The Service of the group's standbys.
    #[must_use]
    pub fn standbys(&self, group: Group) -> String {
        format!("{}-{group}-ro", self.cluster)
    }

    /// The headless Service that gives each instance of the group a name.
    #[must_use]
    pub fn instances(&self, group: Group) -> String {
        format!("{}-{group}-nodes", self.cluster)
    }

    /// The pod of one instance.
    #[must_use]
    pub fn pod(&self, group: Group, ordinal: i32) -> String {
        format!("{}-{ordinal}", self.group(group))
    }

    /// The claim of one instance's volume, as the StatefulSet names it.
    #[must_use]
    pub fn claim(&self, group: Group, ordinal: i32) -> String {
        format!("{VOLUME}-{}", self.pod(group, ordinal))
    }

    /// The ordinal of the instance whose volume this claim is, if it is one of the group's.
    #[must_use]
    pub fn ordinal_of_claim(&self, group: Group, claim: &str) -> Option<i32> {
        let ordinal = claim.rsplit_once('-')?.1.parse().ok()?;
        (self.claim(group, ordinal) == claim).then_some(ordinal)
    }

    /// The name under which a Service answers inside Kubernetes, without assuming the cluster's domain.
    #[must_use]
    pub fn host_of_service(&self, service: &str) -> String {
        format!("{service}.{}.svc", self.namespace)
    }

    /// The address of a group's primary. This, never a pod's address, is what `pg_dist_node` holds.
    #[must_use]
    pub fn host(&self, group: Group) -> String {
        self.host_of_service(&self.group(group))
    }

    /// The address of one instance, by its pod.
    #[must_use]
    pub fn instance_host(&self, group: Group, pod: &str) -> String {
        format!("{pod}.{}", self.host_of_service(&self.instances(group)))
    }

    /// The Secret with the cluster's certificate authority.
    #[must_use]
    pub fn authority(&self) -> String {
        format!("{}-ca", self.cluster)
    }

    /// The Secret with the authority of those who may command Patroni.
    #[must_use]
    pub fn patroni_authority(&self) -> String {
        format!("{}-patroni-ca", self.cluster)
    }

    /// The Secret with the certificate that instances and the operator show to Patroni.
    #[must_use]
    pub fn patroni_certificate(&self) -> String {
        format!("{}-patroni-tls", self.cluster)
    }

    /// The Secret with the certificate of a group's instances.
    #[must_use]
    pub fn group_certificate(&self, group: Group) -> String {
        format!("{}-tls", self.group(group))
    }

    /// The Secret with the certificate that the operator shows to the databases.
    #[must_use]
    pub fn operator_certificate(&self) -> String {
        format!("{}-operator-tls", self.cluster)
    }

    /// The Secret with the certificate that dialog-api shows to the databases.
    #[must_use]
    pub fn api_certificate(&self) -> String {
        format!("{}-api-tls", self.cluster)
    }

    /// The Secret with the key that signs the tokens of dialog-api.
    #[must_use]
    pub fn api_token(&self) -> String {
        format!("{}-api-token", self.cluster)
    }

    /// The ConfigMap with Patroni's configuration of every group.
    #[must_use]
    pub fn patroni(&self) -> String {
        format!("{}-patroni", self.cluster)
    }

    /// One of the ConfigMaps in which Patroni keeps a group's state: `config`, `leader`, `failover` or `sync`.
    #[must_use]
    pub fn patroni_state(&self, group: Group, what: &str) -> String {
        format!("{}-{what}", self.group(group))
    }

    /// The Deployment, Service, Ingress, ServiceAccount and PodDisruptionBudget of dialog-api.
    #[must_use]
    pub fn api(&self) -> String {
        format!("{}-api", self.cluster)
    }

    /// The headless Service by which the pods of dialog-api find each other.
    #[must_use]
    pub fn api_peers(&self) -> String {
        format!("{}-api-peers", self.cluster)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_name_leaves_room_for_a_revision_label() {
        let names = Names::new("c".repeat(37), "n");
        let revision = format!("{}-{}", names.group(Group::Worker(99)), "0123456789");
        assert!(revision.len() <= 63, "{revision} has {} characters", revision.len());
    }

    #[test]
    fn only_what_a_group_is_called_names_it() {
        for group in [Group::Coordinator, Group::Worker(0), Group::Worker(12)] {
            assert_eq!(Group::parse(&group.to_string()), Some(group));
        }
        for stranger in ["", "worker", "worker-", "worker-00", "worker--1", "coordinator-0"] {
            assert_eq!(Group::parse(stranger), None, "{stranger}");
        }
    }
}
