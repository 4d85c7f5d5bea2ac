//! Tests that need the machine and the operator for themselves.

mod approval;
mod held_up;
mod hot_pair;
mod interrupted;
mod killed;
mod obstacles;
mod scaling;
mod switchover;
mod two_workers;
mod update;
mod vanished;
mod wal_level;

use std::time::Duration;

use anyhow::Result;
use dialog_operator::names::Group;

use crate::bed::{Bed, CLUSTER, holds};

/// Where the operator is installed.
fn operator_namespace() -> String {
    std::env::var("DIALOG_OPERATOR_NAMESPACE").unwrap_or_else(|_| "dialog-system".to_owned())
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
