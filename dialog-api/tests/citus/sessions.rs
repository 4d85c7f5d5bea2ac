//! What many statements leave behind in a session with a node that owns shards.

use std::fs;

use anyhow::{Context as _, Result};
use futures::future::try_join_all;
use testbed::postgres::{Server, citus_or_skip};

use crate::{
    cluster::Cluster,
    support::{Client, User},
};

const PEERS: usize = 12;
/// Lists by each peer before memory is looked at: plans and catalogs are cached by then.
const BEFORE: usize = 60;
/// Lists by each peer until memory is looked at again.
const MORE: usize = 300;
/// A plan that is kept takes some 25 kB; one for each list of a coordinator's shards would be 30 MB.
const GROWTH: u64 = 6 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn sessions_do_not_grow_with_the_statements_they_served() -> Result<()> {
    if !citus_or_skip() {
        return Ok(());
    }
    let cluster = Cluster::new(2).await?;
    let port = i32::from(cluster.coordinator.port());
    let sql = cluster.coordinator.connect("dialog").await?;
    sql.execute("SELECT citus_set_node_property('localhost', $1, 'shouldhaveshards', true)", &[&port])
        .await?;
    let service = cluster.serving(&["--distribution", "required"]).await?;

    let client = service.client();
    let reader = client.user("Ada").await?;
    let mut peers = Vec::new();
    for _ in 0..PEERS {
        peers.push(client.user("Bob").await?);
    }
    list(&client, &reader, &peers, BEFORE).await?;
    let before = kept_kib(&cluster).await?;
    list(&client, &reader, &peers, MORE).await?;
    let after = kept_kib(&cluster).await?;
    assert!(
        after < before + GROWTH,
        "sessions grew from {before} KiB to {after} KiB in {MORE} lists by {PEERS} peers"
    );
    Ok(())
}

/// All peers at once, each one list after the other.
async fn list(client: &Client, reader: &User, peers: &[User], times: usize) -> Result<()> {
    try_join_all(peers.iter().map(|peer| async move {
        for _ in 0..times {
            let answer = client.list(reader, peer).await?;
            anyhow::ensure!(answer.status == 200, "{}", answer.text());
        }
        Ok(())
    }))
    .await
    .map(drop)
}

/// KiB of their own that the service's sessions hold on all nodes together.
async fn kept_kib(cluster: &Cluster) -> Result<u64> {
    let mut kept = 0;
    for node in std::iter::once(&cluster.coordinator).chain(&cluster.workers) {
        kept += kept_on(node).await?;
    }
    Ok(kept)
}

async fn kept_on(node: &Server) -> Result<u64> {
    let sessions = "SELECT pid FROM pg_stat_activity WHERE usename = 'dialog_api'";
    let mut kept = 0;
    for row in node.connect("dialog").await?.query(sessions, &[]).await? {
        let path = format!("/proc/{}/status", row.get::<_, i32>(0));
        let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("no RssAnon")?;
        kept += line.trim().trim_end_matches(" kB").parse::<u64>()?;
    }
    Ok(kept)
}
