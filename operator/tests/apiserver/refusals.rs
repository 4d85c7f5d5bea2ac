//! Invalid objects are refused with the field's name and the reason.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::bed::Bed;
use crate::needs_apiserver;

/// What is wrong, the spec, and what the answer must say.
type Case = (&'static str, Value, &'static [&'static str]);

fn parameter(name: &str) -> Value {
    json!({ "postgres": { "parameters": { name: "1" } } })
}

fn host(host: &str) -> Value {
    json!({ "api": { "ingress": { "host": host } } })
}

fn rebalance(rebalance: &Value) -> Value {
    json!({ "sharding": { "rebalance": rebalance } })
}

fn window(schedule: &str, duration: &str) -> Value {
    rebalance(&json!({ "windows": [{ "schedule": schedule, "duration": duration }] }))
}

fn tables(tables: &Value) -> Value {
    json!({ "sharding": { "tables": tables } })
}

fn table(name: &str, column: &str) -> Value {
    json!({ "name": name, "kind": "Distributed", "column": column, "group": "g" })
}

#[allow(clippy::too_many_lines, reason = "a table")]
fn refused_at_first() -> Vec<Case> {
    vec![
        (
            "negative workers",
            json!({ "workers": { "count": -1 } }),
            &["spec.workers.count", "greater than or equal to 0"],
        ),
        (
            "too many workers",
            json!({ "workers": { "count": 100 } }),
            &["spec.workers.count", "less than or equal to 99"],
        ),
        (
            "workers as text",
            json!({ "workers": { "count": "two" } }),
            &["spec.workers.count", "expected numeric"],
        ),
        (
            "no instance",
            json!({ "workers": { "instances": 0 } }),
            &["spec.workers.instances", "greater than or equal to 1"],
        ),
        (
            "too many instances",
            json!({ "coordinator": { "instances": 8 } }),
            &["spec.coordinator.instances", "less than or equal to 7"],
        ),
        (
            "negative replicas",
            json!({ "api": { "replicas": -1 } }),
            &["spec.api.replicas", "greater than or equal to 0"],
        ),
        (
            "too many replicas",
            json!({ "api": { "replicas": 101 } }),
            &["spec.api.replicas", "less than or equal to 100"],
        ),
        (
            "no shard",
            json!({ "sharding": { "shardCount": 0 } }),
            &["spec.sharding.shardCount", "greater than or equal to 1"],
        ),
        (
            "too many shards",
            json!({ "sharding": { "shardCount": 1025 } }),
            &["spec.sharding.shardCount", "less than or equal to 1024"],
        ),
        (
            "no worker but dedicated ones",
            json!({ "workers": { "count": 2 }, "sharding": { "hotTenants": { "dedicatedWorkers": 2 } } }),
            &["sharding.hotTenants.dedicatedWorkers", "must be less than workers.count"],
        ),
        (
            "a pin to a worker that is not asked for",
            json!({
                "workers": { "count": 2 },
                "sharding": { "pins": [{ "group": "dialog", "tenant": "a", "worker": 2 }] },
            }),
            &["sharding.pins", "worker must be less than workers.count"],
        ),
        (
            "no quantity",
            json!({ "workers": { "storage": { "size": "lots" } } }),
            &["spec.workers.storage.size", "should match"],
        ),
        (
            "no size",
            json!({ "workers": { "storage": { "size": "0" } } }),
            &["storage.size", "must be greater than zero"],
        ),
        (
            "a negative size",
            json!({ "coordinator": { "storage": { "size": "-1Gi" } } }),
            &["spec.coordinator.storage.size", "should match"],
        ),
        (
            "no amount of CPU",
            json!({ "api": { "resources": { "requests": { "cpu": "fast" } } } }),
            &["spec.api.resources.requests.cpu", "should match"],
        ),
        (
            "negative memory",
            json!({ "workers": { "resources": { "limits": { "memory": -1 } } } }),
            &["spec.workers.resources.limits.memory", "greater than or equal to 0"],
        ),
        (
            "an owned parameter",
            parameter("wal_level"),
            &["spec.postgres.parameters", "owned by the operator: wal_level"],
        ),
        (
            "preloaded libraries",
            parameter("shared_preload_libraries"),
            &["spec.postgres.parameters", "owned by the operator: shared_preload_libraries"],
        ),
        (
            "a parameter of TLS",
            parameter("ssl_cert_file"),
            &["spec.postgres.parameters", "ssl* are owned by the operator"],
        ),
        (
            "a parameter of Citus' nodes",
            parameter("citus.node_conninfo"),
            &["spec.postgres.parameters", "owned by the operator: citus.node_conninfo"],
        ),
        ("no parameter's name", parameter("Work Mem"), &["postgres.parameters", "lower case letters"]),
        (
            "a number for a parameter",
            json!({ "postgres": { "parameters": { "work_mem": 4 } } }),
            &["spec.postgres.parameters.work_mem", "string"],
        ),
        ("a URL for a host", host("http://chat.example.org"), &["api.ingress.host", "without a scheme"]),
        (
            "a host with a port",
            host("chat.example.org:80"),
            &["api.ingress.host", "without a scheme, port or path"],
        ),
        ("capital letters in a host", host("Chat.example.org"), &["api.ingress.host", "lower case"]),
        (
            "no name of a StorageClass",
            json!({ "workers": { "storage": { "className": "fast disks" } } }),
            &["spec.workers.storage.className", "must be a DNS name"],
        ),
        (
            "no name of an IngressClass",
            json!({ "api": { "ingress": { "host": "chat.example.org", "className": "Traefik" } } }),
            &["spec.api.ingress.className", "must be a DNS name"],
        ),
        (
            "no name of a Secret",
            json!({ "api": { "ingress": { "host": "chat.example.org", "tlsSecretName": "chat_tls" } } }),
            &["spec.api.ingress.tlsSecretName", "must be a DNS name"],
        ),
        (
            "more CPU requested than allowed",
            json!({ "api": { "resources": { "requests": { "cpu": "2" }, "limits": { "cpu": "1500m" } } } }),
            &["spec.api.resources", "resources.requests.cpu: must not exceed"],
        ),
        (
            "more memory requested than allowed",
            json!({ "workers": { "resources": { "requests": { "memory": "1Gi" }, "limits": { "memory": "1G" } } } }),
            &["spec.workers.resources", "resources.requests.memory: must not exceed"],
        ),
        (
            "no label of a node",
            json!({ "workers": { "placement": { "nodeSelector": { "zone!": "a" } } } }),
            &["spec.workers.placement.nodeSelector", "must hold labels"],
        ),
        (
            "no value of a label",
            json!({ "coordinator": { "placement": { "nodeSelector": { "example.org/zone": "a b" } } } }),
            &["spec.coordinator.placement.nodeSelector", "must hold labels"],
        ),
        (
            "an unknown effect",
            json!({ "workers": { "placement": { "tolerations": [{ "key": "dedicated", "effect": "NoStart" }] } } }),
            &["placement.tolerations", "effect must be"],
        ),
        (
            "a value of any value",
            json!({ "workers": { "placement": { "tolerations": [{ "operator": "Exists", "value": "x" }] } } }),
            &["placement.tolerations", "Exists has no value"],
        ),
        ("no host", json!({ "api": { "ingress": {} } }), &["spec.api.ingress.host", "Required value"]),
        (
            "a table of dialog-api",
            tables(&json!([table("messages", "dialog_id")])),
            &["sharding.tables", "table of dialog-api"],
        ),
        (
            "another column in a group of dialog-api",
            tables(
                &json!([{ "name": "reactions", "kind": "Distributed", "group": "dialog", "column": "user_id" }]),
            ),
            &["sharding.tables", "the group dialog goes by the column dialog_id"],
        ),
        (
            "no column",
            tables(&json!([{ "name": "t", "kind": "Distributed", "group": "g" }])),
            &["sharding.tables", "needs column and group"],
        ),
        (
            "a column of a reference table",
            tables(&json!([{ "name": "t", "kind": "Reference", "column": "c" }])),
            &["sharding.tables", "Reference table has neither"],
        ),
        (
            "two columns in a group",
            tables(&json!([table("a", "x"), table("b", "y")])),
            &["sharding.tables", "same column"],
        ),
        ("a table twice", tables(&json!([table("a", "x"), table("a", "x")])), &["duplicate", "a"]),
        (
            "no table's name",
            tables(&json!([table("Messages", "x")])),
            &["spec.sharding.tables[0].name", "should match"],
        ),
        (
            "an unknown kind of table",
            tables(&json!([{ "name": "t", "kind": "Sharded" }])),
            &["spec.sharding.tables[0].kind", "Unsupported value"],
        ),
        (
            "an unknown reclaim",
            json!({ "workers": { "storage": { "reclaim": "Keep" } } }),
            &["spec.workers.storage.reclaim", "Unsupported value"],
        ),
        (
            "an unknown mode",
            rebalance(&json!({ "mode": "Sometimes" })),
            &["spec.sharding.rebalance.mode", "Unsupported value"],
        ),
        (
            "a strategy that is none",
            rebalance(&json!({ "strategy": "ByLuck" })),
            &["spec.sharding.rebalance.strategy", "Unsupported value"],
        ),
        (
            "a load that nobody measures",
            json!({ "sharding": { "rebalance": { "strategy": "ByLoad" }, "hotTenants": { "mode": "Off" } } }),
            &["sharding.rebalance.strategy", "ByLoad needs sharding.hotTenants.mode Observe or Isolate"],
        ),
        (
            "a threshold above one",
            rebalance(&json!({ "threshold": "1.1" })),
            &["spec.sharding.rebalance.threshold", "should match"],
        ),
        (
            "a threshold in percent",
            rebalance(&json!({ "threshold": "10%" })),
            &["spec.sharding.rebalance.threshold", "should match"],
        ),
        (
            "no move at a time",
            rebalance(&json!({ "maxParallelMoves": 0 })),
            &["spec.sharding.rebalance.maxParallelMoves", "greater than or equal to 1"],
        ),
        (
            "no time to stall",
            rebalance(&json!({ "stallTimeout": "0s" })),
            &["sharding.rebalance.stallTimeout", "between 30s and 24h"],
        ),
        (
            "days to stall",
            rebalance(&json!({ "stallTimeout": "2d" })),
            &["spec.sharding.rebalance.stallTimeout", "should match"],
        ),
        (
            "a schedule with seconds",
            window("0 0 2 * * *", "1h"),
            &["spec.sharding.rebalance.windows[0].schedule", "should match"],
        ),
        (
            "a window without end",
            window("0 2 * * *", "200h"),
            &["sharding.rebalance.windows", "between 1m and 168h"],
        ),
        (
            "a window of no time",
            window("0 2 * * *", "0m"),
            &["sharding.rebalance.windows", "between 1m and 168h"],
        ),
        ("an empty image", json!({ "image": "" }), &["spec.image", "at least 1 chars"]),
        (
            "a field that does not exist",
            json!({ "worker": { "count": 1 } }),
            &["spec.worker", "field not declared in schema"],
        ),
    ]
}

fn refused_as_a_change() -> Vec<Case> {
    vec![
        (
            "another shard count",
            json!({ "sharding": { "shardCount": 8 } }),
            &["sharding.shardCount", "is immutable"],
        ),
        ("a table taken away", tables(&json!([table("a", "x")])), &["sharding.tables", "cannot be removed"]),
        (
            "a table changed",
            tables(&json!([table("a", "z"), table("b", "z")])),
            &["sharding.tables", "is immutable"],
        ),
        (
            "another size",
            json!({ "workers": { "storage": { "size": "20Gi" } } }),
            &["storage.size", "is immutable"],
        ),
        (
            "another class",
            json!({ "workers": { "storage": { "className": "slow" } } }),
            &["storage.className", "is immutable"],
        ),
        (
            "a class added",
            json!({ "coordinator": { "storage": { "className": "fast" } } }),
            &["storage.className", "is immutable"],
        ),
    ]
}

fn check(what: &str, answer: Result<impl Sized, kube::Error>, says: &[&str]) -> Result<()> {
    let Err(kube::Error::Api(status)) = answer else {
        anyhow::bail!("{what}: was not refused");
    };
    for part in says {
        ensure!(status.message.contains(part), "{what}: {part:?} is not in: {}", status.message);
    }
    Ok(())
}

#[tokio::test]
async fn each_invalid_object_is_refused_with_the_field_and_the_reason() -> Result<()> {
    needs_apiserver!();
    let bed = Bed::new("refusals").await?;
    let cases = refused_at_first();
    ensure!(cases.len() >= 20);
    let mut wrong = Vec::new();
    for (what, spec, says) in cases {
        wrong.extend(check(what, bed.apply("chat", &spec).await, says).err().map(|error| error.to_string()));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[tokio::test]
async fn each_parameter_that_the_operator_sets_is_refused() -> Result<()> {
    needs_apiserver!();
    let bed = Bed::new("owned-parameters").await?;
    // Those of TLS are refused as a family.
    let owned = |name: &'static str| if name.starts_with("ssl") { "ssl*" } else { name };
    for (name, _) in dialog_operator::cluster::patroni::config::owned(100) {
        check(name, bed.apply("chat", &parameter(name)).await, &["postgres.parameters", owned(name)])?;
    }
    Ok(())
}

#[tokio::test]
async fn each_invalid_name_is_refused() -> Result<()> {
    needs_apiserver!();
    let bed = Bed::new("names").await?;
    let long = "c".repeat(38);
    check("38 characters", bed.apply(&long, &json!({})).await, &["metadata.name", "at most 37 characters"])?;
    for name in ["1chat", "chat.one"] {
        check(name, bed.apply(name, &json!({})).await, &["metadata.name", "DNS-1035"])?;
    }
    bed.apply(&"c".repeat(37), &json!({})).await?;
    Ok(())
}

#[tokio::test]
async fn each_immutable_field_stays_as_it_is() -> Result<()> {
    needs_apiserver!();
    let bed = Bed::new("changes").await?;
    let first = json!({
        "workers": { "storage": { "className": "fast" } },
        "sharding": { "tables": [table("a", "x"), table("b", "x")] },
    });
    bed.apply("chat", &first).await?;
    for (what, change, says) in refused_as_a_change() {
        let mut spec = first.clone();
        merge(&mut spec, &change);
        check(what, bed.apply("chat", &spec).await, says)?;
    }
    let mut grown = first;
    merge(&mut grown, &tables(&json!([table("a", "x"), table("b", "x"), table("c", "x")])));
    bed.apply("chat", &grown).await?;
    Ok(())
}

/// Objects are merged, everything else is replaced.
fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.as_str()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}
