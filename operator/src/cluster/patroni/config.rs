//! Patroni's configuration. Pure.
//!
//! It has two parts. The *local* part is a file in each pod: paths, certificates, who may connect. The *dynamic* part
//! lives in Patroni's store, one for the whole group; the file holds it too, for the moment the database is made.
//! Every key was checked against the source of Patroni 4.1.5.

use serde_json::{Map, Value, json};

use crate::api::{HotTenantsMode, HotTenantsSpec};
use crate::cluster::build::meta;
use crate::cluster::build::pod::{PATRONI_TLS_DIRECTORY, TLS_DIRECTORY};
use crate::cluster::certificates::{API, CA, CERTIFICATE, KEY, NODE, OPERATOR};
use crate::cluster::target::Target;
use crate::names::{Group, PATRONI_PORT, POSTGRES_PORT, ROLE_LABEL, SCOPE_LABEL};

/// Where the volume of an instance is mounted.
pub const VOLUME: &str = "/var/lib/postgresql/data";
/// Where PostgreSQL's Unix socket is.
pub const SOCKETS: &str = "/var/run/postgresql";

/// The data directory; one below the volume, which may hold a `lost+found`.
pub const DATA: &str = "/var/lib/postgresql/data/pgdata";
/// PostgreSQL's programs, wherever the image's distribution puts them.
const PROGRAMS: &str = "/usr/local/lib/postgresql-bin";
/// Part of the image: makes a whole data directory or none, so that a database is never half made.
const INITDB: &str = "/usr/local/bin/initdb-atomic";
/// Part of the image: preloads Citus exactly where the image has it.
const IMAGE_CONFIGURATION: &str = "/etc/dialog/postgresql.conf";

/// Who may connect, and how: the lines of `pg_hba.conf`. Inside a pod the socket, from everywhere else a certificate.
pub const PG_HBA: [&str; 4] = [
    "local all all peer map=local",
    "local replication all peer map=local",
    "hostssl all all all cert clientcert=verify-full map=nodes",
    "hostssl replication all all cert clientcert=verify-full map=nodes",
];

/// Connections where the resource does not say.
const MAX_CONNECTIONS: u64 = 200;

/// The file in the pods of a group.
#[must_use]
pub fn file(target: &Target, group: Group) -> String {
    let mut file = local_part(target, group);
    if target.groups.get(&group).is_some_and(|group| group.bootstrap) {
        file.insert("bootstrap".to_owned(), bootstrap(target, group));
    }
    text(&Value::Object(file))
}

/// The part of the file that takes a restart to change.
#[must_use]
pub fn local(target: &Target, group: Group) -> String {
    text(&Value::Object(local_part(target, group)))
}

/// JSON, which is YAML too: Patroni reads YAML 1.1, where a bare `on` is no string any more.
fn text(value: &Value) -> String {
    format!("{value:#}\n")
}

fn local_part(target: &Target, group: Group) -> Map<String, Value> {
    let names = &target.names;
    let tls = |file: &str| format!("{TLS_DIRECTORY}/{file}");
    let commander = |file: &str| format!("{PATRONI_TLS_DIRECTORY}/{file}");
    let role = |name: &str| {
        json!({
            "username": name,
            "sslmode": "verify-full",
            "sslrootcert": tls(CA),
            "sslcert": tls(CERTIFICATE),
            "sslkey": tls(KEY),
        })
    };
    let mut labels = meta::patroni(names, group);
    labels.remove(SCOPE_LABEL);
    let file = json!({
        "scope": names.group(group),
        "kubernetes": {
            "namespace": names.namespace(),
            "labels": labels,
            "scope_label": SCOPE_LABEL,
            "role_label": ROLE_LABEL,
            "leader_label_value": "primary",
            "follower_label_value": "replica",
            "standby_leader_label_value": "primary",
            "use_endpoints": false,
        },
        "restapi": {
            "listen": format!("0.0.0.0:{PATRONI_PORT}"),
            "certfile": tls(CERTIFICATE),
            "keyfile": tls(KEY),
            // Probes of the kubelet have no certificate; whoever changes something needs one of this authority, which
            // is not the one of the databases: dialog-api has a certificate of that.
            "cafile": commander(CA),
            "verify_client": "optional",
        },
        "ctl": { "cacert": tls(CA), "certfile": commander(CERTIFICATE), "keyfile": commander(KEY) },
        "log": { "level": "INFO", "deduplicate_heartbeat_logs": true },
        "watchdog": { "mode": "off" },
        "postgresql": {
            "listen": format!("*:{POSTGRES_PORT}"),
            "bin_dir": PROGRAMS,
            "bin_name": { "initdb": INITDB },
            "data_dir": DATA,
            "custom_conf": IMAGE_CONFIGURATION,
            "pgpass": "/tmp/pgpass",
            // A standby is copied at once, rather than after the next checkpoint, minutes later.
            "basebackup": { "checkpoint": "fast" },
            "use_unix_socket": true,
            "use_unix_socket_repl": true,
            "authentication": {
                "superuser": { "username": "postgres" },
                "replication": role("replicator"),
                "rewind": role("rewinder"),
            },
            "pg_hba": PG_HBA,
            "pg_ident": pg_ident(),
        },
    });
    match file {
        Value::Object(file) => file,
        _ => Map::new(),
    }
}

/// Which certificate or local user may be which role: the lines of `pg_ident.conf`.
///
/// A node forwards a query under the role of the client, but with its own certificate: so a node may be every role.
#[must_use]
pub fn pg_ident() -> Vec<String> {
    let lines = |map: &str, who: &str, roles: &[&str]| {
        roles.iter().map(|role| format!("{map} {who} {role}")).collect::<Vec<_>>()
    };
    [
        lines("local", "postgres", &["postgres", "replicator", "rewinder"]),
        lines("nodes", NODE, &["postgres", "dialog_operator", "dialog_api", "replicator", "rewinder"]),
        lines("nodes", OPERATOR, &["postgres", "dialog_operator"]),
        lines("nodes", API, &["dialog_api"]),
    ]
    .concat()
}

fn bootstrap(target: &Target, group: Group) -> Value {
    json!({
        "dcs": dynamic(target, group),
        "initdb": [
            "data-checksums",
            { "encoding": "UTF8" },
            { "locale": "C.UTF-8" },
            { "auth-local": "peer" },
            { "auth-host": "reject" },
        ],
    })
}

/// The dynamic configuration of a group.
#[must_use]
pub fn dynamic(target: &Target, group: Group) -> Value {
    json!({
        // Patroni wants loop_wait + 2 * retry_timeout <= ttl, and no ttl below 20.
        "ttl": 20,
        "loop_wait": 5,
        "retry_timeout": 5,
        "maximum_lag_on_failover": 1_048_576,
        // What was acknowledged is on a standby, if there is one; without one, the primary goes on alone.
        "synchronous_mode": target.group(group).instances > 1,
        // A primary whose members all answer stays primary while the API server does not.
        "failsafe_mode": true,
        // Citus' moves and splits have slots that Patroni does not know; it would drop them while they are idle.
        "ignore_slots": [
            { "type": "logical", "plugin": "pgoutput" },
            { "type": "logical", "plugin": "citus" },
        ],
        "postgresql": {
            "use_pg_rewind": true,
            "use_slots": true,
            "parameters": parameters(target, group),
        },
    })
}

/// What the resource may overrule, however large the server is.
pub const DEFAULTS: [(&str, &str); 4] = [
    ("max_locks_per_transaction", "128"),
    ("citus.max_background_task_executors", "4"),
    ("citus.max_background_task_executors_per_node", "4"),
    // Each move of a shard has subscriptions of its own. PostgreSQL 15 starts workers of subscriptions once in this time,
    // whosever they are: with its own five seconds a move of few rows would be made of waiting.
    ("wal_retrieve_retry_interval", "200ms"),
];

fn parameters(target: &Target, group: Group) -> Map<String, Value> {
    let asked = &target.spec.postgres.parameters;
    let connections =
        asked.get("max_connections").and_then(|text| text.parse().ok()).unwrap_or(MAX_CONNECTIONS);
    let mut parameters = Map::new();
    let mut set = |name: &str, value: String| {
        parameters.insert(name.to_owned(), Value::String(value));
    };
    set("max_connections", connections.to_string());
    for (name, value) in DEFAULTS {
        set(name, value.to_owned());
    }
    let resources = target.group(group).resources;
    let memory = resources.limits.memory.as_ref().or(resources.requests.memory.as_ref());
    if let Some(mebibytes) = memory.and_then(crate::api::Amount::units).map(|bytes| bytes >> 20) {
        set("shared_buffers", format!("{}MB", (mebibytes / 4).max(16)));
        set("effective_cache_size", format!("{}MB", (mebibytes / 4 * 3).max(16)));
    }
    for (name, value) in asked {
        set(name, value.clone());
    }
    for (name, value) in owned(connections).into_iter().chain(statistics(&target.spec.sharding.hot_tenants)) {
        set(name, value);
    }
    parameters
}

/// How Citus counts what tenants do, on every node: clients go to each of them.
#[must_use]
pub fn statistics(spec: &HotTenantsSpec) -> Vec<(&'static str, String)> {
    let track = match spec.mode {
        HotTenantsMode::Off => "none",
        HotTenantsMode::Observe | HotTenantsMode::Isolate => "all",
    };
    let statistics = &spec.statistics;
    vec![
        ("citus.stat_tenants_track", track.to_owned()),
        ("citus.stat_tenants_limit", statistics.limit.to_string()),
        ("citus.stat_tenants_period", statistics.period().as_secs().to_string()),
        ("citus.stat_tenants_untracked_sample_rate", statistics.sample_rate.as_str().to_owned()),
    ]
}

/// What the operator owns, for servers with this many connections. The resource's schema refuses each of these.
#[must_use]
pub fn owned(connections: u64) -> Vec<(&'static str, String)> {
    let tls = |file: &str| format!("{TLS_DIRECTORY}/{file}");
    let (ca, certificate, key) = (tls(CA), tls(CERTIFICATE), tls(KEY));
    let node = format!("sslmode=verify-full sslrootcert={ca} sslcert={certificate} sslkey={key}");
    vec![
        // Moves need logical replication, and room for it; all of it takes a restart, so it is there from the
        // beginning.
        ("wal_level", "logical".to_owned()),
        ("max_replication_slots", "32".to_owned()),
        ("max_wal_senders", "32".to_owned()),
        ("max_worker_processes", "32".to_owned()),
        ("max_logical_replication_workers", "16".to_owned()),
        // Citus commits in two phases: each client's transaction may have one prepared transaction on each node.
        ("max_prepared_transactions", (connections * 2).max(200).to_string()),
        ("wal_log_hints", "on".to_owned()),
        // Patroni leaves this one out where the server's minor version does not know it.
        ("output_plugin_libraries", "pgoutput, test_decoding, citus".to_owned()),
        ("unix_socket_directories", SOCKETS.to_owned()),
        ("ssl", "on".to_owned()),
        ("ssl_ca_file", ca),
        ("ssl_cert_file", certificate),
        ("ssl_key_file", key),
        // A server without Citus takes these as they are and ignores them.
        ("citus.local_hostname", "localhost".to_owned()),
        ("citus.node_conninfo", node),
    ]
}

/// What has to be sent to Patroni to make `current` into `desired`; `None` if nothing.
///
/// Parameters of PostgreSQL that are not desired any more are removed. Other keys that somebody added, such as a
/// pause, stay.
#[must_use]
pub fn difference(current: &Value, desired: &Value) -> Option<Value> {
    patch(current, desired, false)
}

/// The names of what a change changes, such as `postgresql.parameters.work_mem`.
#[must_use]
pub fn keys(change: &Value) -> Vec<String> {
    let Value::Object(entries) = change else { return Vec::new() };
    let below = |(key, value): (&String, &Value)| match keys(value) {
        below if below.is_empty() => vec![key.clone()],
        below => below.into_iter().map(|name| format!("{key}.{name}")).collect(),
    };
    entries.iter().flat_map(below).collect()
}

fn patch(current: &Value, desired: &Value, only_desired: bool) -> Option<Value> {
    let (Value::Object(now), Value::Object(wanted)) = (current, desired) else {
        return (current != desired).then(|| desired.clone());
    };
    let mut changes: Map<String, Value> = wanted
        .iter()
        .filter_map(|(key, value)| {
            let before = now.get(key).unwrap_or(&Value::Null);
            Some((key.clone(), patch(before, value, key == "parameters")?))
        })
        .collect();
    if only_desired {
        let gone = now.keys().filter(|key| !wanted.contains_key(*key));
        changes.extend(gone.map(|key| (key.clone(), Value::Null)));
    }
    (!changes.is_empty()).then_some(Value::Object(changes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_difference_is_sent() {
        let desired =
            json!({"ttl": 20, "postgresql": {"parameters": {"a": "1", "b": "2"}, "use_slots": true}});
        assert_eq!(difference(&desired, &desired), None);
        let current = json!({
            "ttl": 30, "pause": true, "ignore_slots": [],
            "postgresql": {"parameters": {"a": "1", "c": "3"}, "use_slots": true, "more": 1},
        });
        assert_eq!(
            difference(&current, &desired),
            Some(json!({"ttl": 20, "postgresql": {"parameters": {"b": "2", "c": null}}}))
        );
        let names = ["postgresql.parameters.b", "postgresql.parameters.c", "ttl"];
        assert_eq!(
            difference(&current, &desired).map(|change| keys(&change)),
            Some(names.map(str::to_owned).to_vec())
        );
        assert_eq!(difference(&Value::Null, &desired), Some(desired));
    }

    #[test]
    fn lists_are_compared_whole() {
        let (short, long) = (json!({"ignore_slots": [1]}), json!({"ignore_slots": [1, 2]}));
        assert_eq!(difference(&short, &long), Some(long));
    }
}
