//! Rules that more than one field has, or whose sentence is put together from what was refused.

use kube::core::{Message, Rule};

/// Parameters that the operator sets, or that would take away what it relies on; Citus' own are how nodes reach each
/// other, and what is declared elsewhere.
const OWNED: [&str; 41] = [
    "archive_mode",
    "citus.cluster_name",
    "citus.local_hostname",
    "citus.node_conninfo",
    "citus.shard_count",
    "citus.shard_replication_factor",
    "citus.stat_tenants_limit",
    "citus.stat_tenants_period",
    "citus.stat_tenants_track",
    "citus.stat_tenants_untracked_sample_rate",
    "citus.use_secondary_nodes",
    "cluster_name",
    "config_file",
    "data_directory",
    "external_pid_file",
    "fsync",
    "full_page_writes",
    "hba_file",
    "hot_standby",
    "ident_file",
    "krb_server_keyfile",
    "listen_addresses",
    "max_logical_replication_workers",
    "max_prepared_transactions",
    "max_replication_slots",
    "max_sync_workers_per_subscription",
    "max_wal_senders",
    "max_worker_processes",
    "output_plugin_libraries",
    "password_encryption",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "recovery_target",
    "restore_command",
    "shared_preload_libraries",
    "synchronous_standby_names",
    "track_commit_timestamp",
    "unix_socket_directories",
    "wal_level",
    "wal_log_hints",
];

/// None of the keys of a map is a parameter that the operator owns; the sentence names those that are.
///
/// The API server reckons with the longest keys that there may be, so the sentence is made of the names in the rule.
pub(super) fn no_owned_parameter() -> Rule {
    let list = OWNED.map(|name| format!("'{name}'")).join(", ");
    let named = OWNED.map(|name| format!("('{name}' in self ? ' {name}' : '')")).join(" + ");
    Rule::new(format!("![{list}].exists(name, name in self)"))
        .message(Message::Expression(format!("'postgres.parameters: owned by the operator:' + {named}")))
}

/// A field holds the name of an object whose names are DNS subdomains.
pub(super) fn dns_subdomain(field: &str) -> Rule {
    Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')").message(
        Message::Message(format!("{field}: must be a DNS name: lower case letters, digits, '-' and '.'")),
    )
}

/// Of `resource`, not more is requested than the container may use.
pub(super) fn within_limit(resource: &str) -> Rule {
    let amount = |side: &str| format!("quantity(string(self.{side}.{resource}))");
    let (requested, limit) = (amount("requests"), amount("limits"));
    Rule::new(format!(
        "!has(self.requests) || !has(self.limits) || !has(self.requests.{resource}) || !has(self.limits.{resource}) \
         || {requested}.compareTo({limit}) <= 0"
    ))
    .message(Message::Message(format!("resources.requests.{resource}: must not exceed resources.limits.{resource}")))
}
