//! From an applied object to a service.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dialog_operator::names::Group;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::json;
use tokio::task::block_in_place;

use crate::bed::{Bed, holds, object};
use crate::http::Service;

/// Shards per worker and table for 48 shards and two workers.
const HALF: &str = "24";

/// What must be so of a cluster with two workers that serves, however it came about.
async fn assert_serves_on_two_workers(bed: &Bed) -> Result<()> {
    let cluster = bed.ready().await?;
    for kind in ["CitusAvailable", "MetadataSynced", "WalLevelLogical", "SchemaDistributed"] {
        ensure!(holds(&cluster, kind) == "True", "{kind} is {:?}", holds(&cluster, kind));
    }
    let service = block_in_place(|| Service::behind(&bed.host()))?;
    block_in_place(|| -> Result<()> {
        let (ada, grace) = (service.person("Ada")?, service.person("Grace")?);
        ensure!(service.send(&ada, &grace, "through the ingress")? == 200);
        ensure!(service.list(&grace, &ada)? == ["through the ingress"]);
        Ok(())
    })?;
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
    let plan = bed
        .sql(Group::Coordinator, &format!("EXPLAIN SELECT * FROM messages WHERE dialog_id = '{dialog}'"))
        .await?;
    ensure!(plan.contains("Task Count: 1"), "listing a dialog takes more than one task:\n{plan}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_serve_and_every_pod_is_restricted() -> Result<()> {
    if Bed::lacks_citus() {
        return Ok(());
    }
    let bed = Bed::new("two-workers").await?;
    bed.create(2, |_| {}).await?;
    assert_serves_on_two_workers(&bed).await?;
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

#[tokio::test(flavor = "multi_thread")]
async fn one_node_serves_with_or_without_citus() -> Result<()> {
    let bed = Bed::new("one-node").await?;
    bed.create(0, |_| {}).await?;
    let cluster = bed.ready().await?;
    let expected = if std::env::var("DIALOG_CITUS").as_deref() == Ok("yes") { "True" } else { "False" };
    ensure!(holds(&cluster, "CitusAvailable") == expected, "CitusAvailable is not {expected}");
    let service = block_in_place(|| Service::behind(&bed.host()))?;
    block_in_place(|| -> Result<()> {
        let (ada, grace) = (service.person("Ada")?, service.person("Grace")?);
        ensure!(service.send(&ada, &grace, "first")? == 200);
        ensure!(service.list(&ada, &grace)? == ["first"]);
        Ok(())
    })?;
    bed.done();
    Ok(())
}

/// An operator that dies at any moment leaves nothing half done for the next: the end is the same, and what is made
/// once (certificates, keys) is made once.
#[tokio::test(flavor = "multi_thread")]
async fn killing_the_operator_at_random_changes_nothing_in_the_end() -> Result<()> {
    if Bed::lacks_citus() {
        return Ok(());
    }
    let bed = Bed::new("killed").await?;
    let namespace = std::env::var("DIALOG_OPERATOR_NAMESPACE").unwrap_or_else(|_| "dialog-system".to_owned());
    let operators: Api<Pod> = Api::namespaced(bed.client.clone(), &namespace);
    bed.create(2, |_| {}).await?;
    let mut secrets = BTreeMap::new();
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(rand::random_range(200..5_000))).await;
        let at_once = DeleteParams::default().grace_period(0);
        let labels = ListParams::default().labels("app.kubernetes.io/component=operator");
        let killed = operators.list(&labels).await?;
        ensure!(!killed.items.is_empty(), "there is no operator to kill in namespace {namespace}");
        operators.delete_collection(&at_once, &labels).await?;
        let uids: Vec<_> = killed.iter().map(|pod| pod.metadata.uid.clone()).collect();
        bed.eventually("the operator's pod is gone", Duration::from_secs(30), || async {
            let left = operators.list(&labels).await?;
            Ok(left.iter().find(|pod| uids.contains(&pod.metadata.uid)).map(kube::ResourceExt::name_any))
        })
        .await?;
        for (name, data) in contents(&bed).await? {
            let first = secrets.entry(name.clone()).or_insert_with(|| data.clone());
            ensure!(*first == data, "Secret {name} was made a second time");
        }
    }
    assert_serves_on_two_workers(&bed).await?;
    for (name, data) in contents(&bed).await? {
        ensure!(
            secrets.get(&name).is_none_or(|first| *first == data),
            "Secret {name} was made a second time"
        );
    }
    bed.done();
    Ok(())
}

/// The Secrets of the cluster, by name, as bytes.
async fn contents(bed: &Bed) -> Result<BTreeMap<String, Vec<u8>>> {
    let found = bed.all::<Secret>().list(&ListParams::default().labels("dialogcluster.io/cluster")).await?;
    let bytes = |secret: Secret| {
        let data =
            secret.data.into_iter().flatten().flat_map(|(key, value)| [key.into_bytes(), value.0].concat());
        (secret.metadata.name.unwrap_or_default(), data.collect())
    };
    Ok(found.into_iter().map(bytes).collect())
}
