//! Two workers: what they serve, how soon, and at what cost.

use std::time::{Duration, Instant};

use acceptance::numbers::{self, ImageSizes, Number};
use anyhow::{Context as _, Result, ensure};
use dialog_api::database::statements::Sql;
use dialog_operator::names::Group;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::{ListParams, PostParams};
use serde_json::{Value, json};
use testbed::wait::eventually;

use super::operator_namespace;
use crate::bed::{Bed, TO_NAME, holds, object};

/// Shards per worker and table for 48 shards and two workers.
const HALF: &str = "24";
/// How long the kubelet may take to measure a new container.
const TO_MEASURE: Duration = Duration::from_mins(1);

/// What must be so of a cluster with two workers that serves, however it came about.
pub(super) async fn assert_serve(bed: &Bed) -> Result<()> {
    let cluster = bed.ready().await?;
    for kind in ["CitusAvailable", "MetadataSynced", "WalLevelLogical", "SchemaDistributed"] {
        ensure!(holds(&cluster, kind) == "True", "{kind} is {:?}", holds(&cluster, kind));
    }
    // Settings that differ leave it true, with another reason.
    let citus = bed.condition("CitusAvailable", "asked for Citus", TO_NAME, |_| true).await?;
    ensure!(citus.reason == "Installed", "{}: {}", citus.reason, citus.message);
    bed.talk()?;
    let nodes = bed
        .sql(
            Group::Coordinator,
            "SELECT nodename, (isactive AND metadatasynced), shouldhaveshards FROM pg_dist_node ORDER BY groupid",
        )
        .await?;
    let host = |group| bed.names.host(group);
    let expected = format!(
        "{}|t|f\n{}|t|t\n{}|t|t",
        host(Group::Coordinator),
        host(Group::Worker(0)),
        host(Group::Worker(1))
    );
    ensure!(nodes == expected, "pg_dist_node holds\n{nodes}\nand not\n{expected}");
    let placed = bed
        .sql(
            Group::Coordinator,
            "SELECT nodename, count(*) FROM citus_shards WHERE table_name = 'public.messages'::regclass \
             GROUP BY 1 ORDER BY 1",
        )
        .await?;
    let expected = format!("{}|{HALF}\n{}|{HALF}", host(Group::Worker(0)), host(Group::Worker(1)));
    ensure!(placed == expected, "the shards are placed\n{placed}\nand not\n{expected}");
    let dialog = bed.sql(Group::Coordinator, "SELECT dialog_id FROM messages LIMIT 1").await?;
    let last = "ffffffff-ffff-ffff-ffff-ffffffffffff";
    let explain = format!(
        "PREPARE list AS {}; EXPLAIN EXECUTE list('{dialog}', '{last}', 100)",
        Sql::ListMessages.text()
    );
    let plan = bed.sql(Group::Coordinator, &explain).await?;
    ensure!(plan.contains("Task Count: 1"), "listing a dialog takes more than one task:\n{plan}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_serve_within_the_numbers_and_every_pod_is_restricted() -> Result<()> {
    if !Bed::has_citus() {
        println!("SKIPPED citus: the PostgreSQL image was built without the extension");
        return Ok(());
    }
    let bed = Bed::new("two-workers").await?;
    let applied = Instant::now();
    bed.create(2, |_| {}).await?;
    bed.ready().await?;
    let mut numbers = vec![Number::to_ready(applied.elapsed())];
    // Before anybody logs in: hashing a password takes memory, and an idle dialog-api is asked for.
    numbers.extend(memory(&bed).await?);
    numbers.extend(Number::images(image_sizes()?));
    for Number { what, value, limit, .. } in &numbers {
        bed.say(format!("{what}: {value} of {limit}"));
    }
    let exceeded: Vec<_> = numbers.iter().filter(|number| !number.holds).collect();
    ensure!(exceeded.is_empty(), "over the limit: {exceeded:?}");

    assert_serve(&bed).await?;
    // The namespace's label is not decoration: the same API server refuses what is not restricted.
    let careless: Pod = object(json!({
        "metadata": {"name": "careless"},
        "spec": {"containers": [{"name": "c", "image": "careless"}]},
    }))?;
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let refused =
        bed.all::<Pod>().create(&dry, &careless).await.err().context("a careless pod is admitted")?;
    ensure!(refused.to_string().contains("violates PodSecurity"), "{refused}");
    bed.done();
    Ok(())
}

/// The working sets of the operator and of the cluster's dialog-api.
async fn memory(bed: &Bed) -> Result<[Number; 2]> {
    eventually("the kubelet measures the memory of the operator and of dialog-api", TO_MEASURE, async || {
        let mut pods = Vec::new();
        let nodes: Api<Node> = Api::all(bed.client.clone());
        for node in nodes.list(&ListParams::default()).await? {
            let name = node.metadata.name.context("a node without a name")?;
            let path = format!("/api/v1/nodes/{name}/proxy/stats/summary");
            let mut summary: Value = bed.client.request(http::Request::get(path).body(Vec::new())?).await?;
            if let Value::Array(found) = summary["pods"].take() {
                pods.extend(found);
            }
        }
        let summary = json!({"pods": pods});
        let memory = |namespace: &str, container, what| {
            Some(Number::memory(what, numbers::working_set(&summary, namespace, container)?))
        };
        Ok(memory(&operator_namespace(), "operator", "the operator")
            .zip(memory(bed.names.namespace(), "api", "dialog-api, idle"))
            .map(|(operator, api)| [operator, api]))
    })
    .await
}

/// The sizes of the images, by the engine that built them.
fn image_sizes() -> Result<ImageSizes> {
    let sizes = std::env::var("DIALOG_IMAGE_SIZES").context("DIALOG_IMAGE_SIZES is set by xtask")?;
    serde_json::from_str(&sizes).with_context(|| format!("DIALOG_IMAGE_SIZES is {sizes}"))
}
