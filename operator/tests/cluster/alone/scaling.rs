//! More workers, and fewer again, while people write.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dialog_operator::names::{CLUSTER_LABEL, GROUP_LABEL, Group};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::ListParams;

use crate::bed::{Bed, CLUSTER, holds};
use crate::writer::Writer;

/// How long the count may take to come true.
const TO_SCALE: Duration = Duration::from_mins(10);

#[tokio::test(flavor = "multi_thread")]
async fn two_four_two_four_workers_lose_nothing_that_was_acknowledged() -> Result<()> {
    if !Bed::has_citus() {
        println!("SKIPPED citus: the PostgreSQL image was built without the extension");
        return Ok(());
    }
    let bed = Bed::new("scaling").await?;
    bed.create(2, |_| {}).await?;
    bed.ready().await?;
    let first = started(&bed).await?;
    let writer = Writer::start(&bed)?;

    scale(&bed, 4).await?;
    let before = volumes(&bed).await?;
    scale(&bed, 2).await?;
    scale(&bed, 4).await?;
    let after = volumes(&bed).await?;
    writer.stop(&bed).await?;

    for worker in 0..4 {
        let claim = format!("data-{}-0", bed.names.group(Group::Worker(worker)));
        let (old, new) = (before.get(&claim).context("a volume")?, after.get(&claim).context("a volume")?);
        ensure!((old == new) == (worker < 2), "{claim} was {old} and is {new}");
    }
    // The servers that were there all the time were never started again.
    let last = started(&bed).await?;
    for (pod, at) in &first {
        ensure!(last.get(pod) == Some(at), "{pod} was started at {at}, and then {:?}", last.get(pod));
    }
    bed.ready().await?;
    bed.done();
    Ok(())
}

/// Asks for `count` workers as people do, and waits until they hold the shards and nobody else is left.
async fn scale(bed: &Bed, count: usize) -> Result<()> {
    bed.kubectl(&["scale", "dlg", CLUSTER, &format!("--replicas={count}")])?;
    let shares = vec![(48 / count).to_string(); count];
    bed.eventually(&format!("{count} workers hold the shards"), TO_SCALE, || async {
        let rows = bed
            .sql(
                Group::Coordinator,
                "SELECT count(*) FROM citus_shards WHERE table_name = 'public.messages'::regclass GROUP BY nodename",
            )
            .await;
        let rows = match rows {
            Ok(rows) => rows,
            Err(error) => return Ok(Some(format!("{error:#}"))),
        };
        let labels = ListParams::default().labels(&format!("{CLUSTER_LABEL}={CLUSTER}"));
        let sets = bed.all::<StatefulSet>().list(&labels).await?.items.len();
        let balanced = bed.all().get(CLUSTER).await.map(|cluster| holds(&cluster, "Balanced") == "True")?;
        // The sizes count, and they waver: one shard more or less is even.
        let even = rows.lines().count() == count
            && rows.lines().zip(&shares).all(|(found, share)| {
                let number = |text: &str| text.parse::<i64>().unwrap_or(i64::MIN);
                number(found).abs_diff(number(share)) <= 1
            });
        Ok((!(balanced && even && sets == count + 1))
            .then(|| format!("shards {rows:?}, {sets} StatefulSets, Balanced {balanced}")))
    })
    .await
}

/// The volumes' claims, by name.
async fn volumes(bed: &Bed) -> Result<BTreeMap<String, String>> {
    let claims = bed.all::<PersistentVolumeClaim>().list(&ListParams::default()).await?;
    Ok(claims.into_iter().map(|claim| (claim.name_any(), claim.uid().unwrap_or_default())).collect())
}

/// When PostgreSQL of each database pod was started.
async fn started(bed: &Bed) -> Result<BTreeMap<String, String>> {
    let labels = ListParams::default().labels(&format!("{CLUSTER_LABEL}={CLUSTER},{GROUP_LABEL}"));
    let mut started = BTreeMap::new();
    for pod in bed.all::<Pod>().list(&labels).await? {
        let at = bed.sql_in(&pod.name_any(), "SELECT pg_postmaster_start_time()")?;
        started.insert(pod.name_any(), at);
    }
    ensure!(!started.is_empty(), "no database has a pod");
    Ok(started)
}
