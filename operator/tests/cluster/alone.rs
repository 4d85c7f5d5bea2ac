//! Tests that need the machine and the operator for themselves.

mod approval;
mod flapping;
mod flood;
mod held_up;
mod hot_pair;
mod hot_user;
mod interrupted;
mod killed;
mod obstacles;
mod scaling;
mod switchover;
mod two_workers;
mod update;
mod vanished;
mod wal_level;
mod windows;

use std::time::Duration;

use anyhow::{Result, ensure};
use dialog_operator::names::Group;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, ListParams};

use crate::bed::{Bed, CLUSTER, holds};

/// Where the operator is installed.
fn operator_namespace() -> String {
    std::env::var("DIALOG_OPERATOR_NAMESPACE").unwrap_or_else(|_| "dialog-system".to_owned())
}

/// Deletes the operator's pod without warning; returns when that has gone.
async fn kill_operator(bed: &Bed) -> Result<()> {
    let namespace = operator_namespace();
    let operators: Api<Pod> = Api::namespaced(bed.client.clone(), &namespace);
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
    .await
}

/// Returns when the operator finds the shards balanced and each of two workers has half of the `shards` of messages.
async fn until_halved(bed: &Bed, shards: i32, limit: Duration) -> Result<()> {
    let half = (shards / 2).to_string();
    bed.eventually("both workers hold shards", limit, || async {
        let balanced = bed.all().get(CLUSTER).await.map(|cluster| holds(&cluster, "Balanced") == "True")?;
        let count = "SELECT count(*) FROM citus_shards WHERE table_name = 'public.messages'::regclass GROUP BY nodename";
        let nodes = match bed.sql(Group::Coordinator, count).await {
            Ok(nodes) => nodes,
            // A server that has just changed may not answer yet.
            Err(error) => return Ok(Some(format!("{error:#}"))),
        };
        let even = nodes.lines().collect::<Vec<_>>() == [&half, &half];
        Ok((!(balanced && even)).then(|| format!("{nodes:?}, Balanced {balanced}")))
    })
    .await
}
