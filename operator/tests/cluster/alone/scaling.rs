//! More workers, and fewer again, while people write.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use dialog_bench::beside;
use dialog_bench::machine::{self, Processors};
use dialog_bench::sustained::Peak;
use dialog_bench::table::{Limit, Row};
use dialog_operator::names::{CLUSTER_LABEL, GROUP_LABEL, Group};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::json;

use crate::bed::{Bed, CLUSTER, holds};
use crate::load::{self, Population};
use crate::results::{self, Table};

/// How long the count may take to come true.
const TO_SCALE: Duration = Duration::from_mins(10);
/// Some 45 MB; `DIALOG_SCALING_MESSAGES` says how many messages are in each dialog.
const PEOPLE: Population = Population { users: 20_000, dialogs: 20_000, messages: 5 };
/// A messenger's mix, as people write.
const MIX: [&str; 3] = ["--lists=0.8", "--skew=zipf:1", "--connections=32"];
/// What a cluster has unless it is told otherwise.
const SHARDS: usize = 48;
/// Loads, as shares of the peak: the first one, or all where the table is written.
const SHARES: [f64; 2] = [0.6, 0.3];
/// Processor time of the service, whose limit the peak then is: of two processors that all nodes, the service and the load share, a
/// peak of the databases leaves nothing to move shards with.
const SERVICE: &str = "75m";
/// Processor time that is reserved for each server: with the service and the load as much as Kubernetes' own parts leave of two
/// processors. Who reserves little is served last when all are busy.
const SERVER: &str = "120m";
/// Longest time in which no send of a shard group that waited was acknowledged, in milliseconds. What is asked for is
/// half a second; here all nodes share two processors and a disk with the load, and when those are busy with moves, what is
/// due waits for its turn as well.
const LONGEST_WAIT: f64 = 30_000.0;

/// Until all workers say how much they hold: one that is busy may be too slow once.
const TO_SAY: Duration = Duration::from_mins(1);
/// How much more than the mean the fullest worker may hold.
const UNEVEN: Limit = Limit::AtMost(0.1);
/// The bytes of each worker that holds any of the messages, a line for each; 0 of one that does not say.
const BYTES: &str = "SELECT coalesce(sum(shard_size), 0) FROM citus_shards WHERE citus_table_type = 'distributed' GROUP BY nodename";

#[tokio::test(flavor = "multi_thread")]
async fn two_four_two_four_workers_lose_nothing_that_was_acknowledged() -> Result<()> {
    if !Bed::has_citus() {
        println!("SKIPPED citus: the PostgreSQL image was built without the extension");
        return Ok(());
    }
    let busy = machine::load_average()?;
    let bed = Bed::new("scaling").await?;
    bed.create(2, |spec| {
        spec["api"]["resources"] = json!({"limits": {"cpu": SERVICE}});
        for group in ["coordinator", "workers"] {
            spec[group]["resources"]["requests"]["cpu"] = json!(SERVER);
        }
    })
    .await?;
    bed.ready().await?;
    let first = started(&bed).await?;
    let messages = std::env::var("DIALOG_SCALING_MESSAGES").ok().map(|number| number.parse()).transpose();
    let messages = messages.context("DIALOG_SCALING_MESSAGES is no number")?.unwrap_or(PEOPLE.messages);
    let people = Population { messages, ..PEOPLE };
    people.write(&bed).await?;
    // What PostgreSQL does about new rows by itself would come at some time, and be taken for what moves do.
    bed.sql(Group::Coordinator, "VACUUM (ANALYZE) messages").await?;
    let closed = people.run(&bed, &[&MIX[..], &["--duration=12s"]].concat()).await?;
    load::say(&bed, "closed loop", &closed);
    let peak = Peak::find(&closed, async |rate| {
        let arrivals = people.run(&bed, &[&MIX[..], &[&arriving(rate), "--duration=12s"]].concat()).await?;
        load::say(&bed, &format!("{rate:.0} a second"), &arrivals);
        Ok(arrivals)
    });
    let peak = peak.await?;

    let mut rows = vec![peak.row()];
    let measured = if results::are_written() { SHARES.len() } else { 1 };
    let mut old = BTreeMap::new();
    for share in &SHARES[..measured] {
        let rate = arriving(share * peak.sustained);
        let processors = Processors::now()?;
        let before = people.run(&bed, &[&MIX[..], &[&rate, "--duration=22s"]].concat()).await?;
        let busy_before = processors.busy_since()?;
        load::say(&bed, "before", &before);
        let processors = Processors::now()?;
        let writing = people.start(&bed, &[&MIX[..], &[&rate, "--duration=1h"]].concat()).await?;
        let grown = scale(&bed, 4).await?.map(|row| row.of("2 -> 4"));
        old = volumes(&bed).await?;
        let shrunk = scale(&bed, 2).await?.map(|row| row.of("4 -> 2"));
        let busy = beside::busy(busy_before, processors.busy_since()?);
        let during = writing.stop(&bed).await?;
        load::say(&bed, "during", &during);
        ensure!(during.is_whole(), "{}", during.text());
        load::ensure_answered(&during)?;
        let longest = during.longest_wait().context("no shard group")?.gap.longest_wait_ms;
        ensure!(longest <= LONGEST_WAIT, "sends of a shard group waited for {longest} ms: {}", during.text());
        let of_peak = format!("load at {:.0} % of the peak", share * 100.0);
        let latency = beside::latency(&before, &during, beside::P99, &busy);
        let met = grown.into_iter().chain(shrunk).chain(beside::met(&during)?).chain(latency);
        rows.extend(met.map(|row| row.of(&of_peak)));
    }

    rows.extend(scale(&bed, 4).await?.map(|row| row.of("2 -> 4, no load")));
    let new = volumes(&bed).await?;
    for worker in 0..4 {
        let claim = format!("data-{}-0", bed.names.group(Group::Worker(worker)));
        let (old, new) = (old.get(&claim).context("a volume")?, new.get(&claim).context("a volume")?);
        ensure!((old == new) == (worker < 2), "{claim} was {old} and is {new}");
    }
    // The servers that were there all the time were never started again.
    let last = started(&bed).await?;
    let restarted: Vec<&String> =
        first.iter().filter(|(pod, at)| last.get(*pod) != Some(at)).map(|(pod, _)| pod).collect();
    ensure!(restarted.is_empty(), "{restarted:?} were started again: {first:?}, and then {last:?}");
    bed.ready().await?;
    let size =
        bed.sql(Group::Coordinator, "SELECT pg_size_pretty(citus_total_relation_size('messages'))").await?;
    let table = Table {
        title: "Growing and shrinking on Kubernetes",
        test: ("scaling", &format!("DIALOG_SCALING_MESSAGES={messages} ")),
        note: &format!(
            "A coordinator and 2 to 4 workers with {SHARDS} shards in a cluster of kind, with {size} of messages. dialog-api may use \
             {SERVICE} of a processor, and that is what limits the peak. All pods, the load's too, share the processors. \
             [What is measured](../docs/rebalancing.md#measured)."
        ),
        file: "RESULTS-scaling.md",
        busy: &busy,
    };
    table.publish(&bed, &rows).await?;
    bed.done();
    Ok(())
}

/// The flag for a load of so many arrivals a second.
fn arriving(rate: f64) -> String {
    format!("--rate={rate:.0}")
}

/// Asks for `count` workers as people do, and waits until they hold the shards and nobody else is left: how long that took, and
/// how even the bytes are then.
async fn scale(bed: &Bed, count: usize) -> Result<[Row; 2]> {
    let began = Instant::now();
    bed.kubectl(&["scale", "dlg", CLUSTER, &format!("--replicas={count}")])?;
    let shares = vec![(SHARDS / count).to_string(); count];
    bed.eventually(&format!("{count} workers hold the shards"), TO_SCALE, || async {
        let labels = ListParams::default().labels(&format!("{CLUSTER_LABEL}={CLUSTER}"));
        let sets = bed.all::<StatefulSet>().list(&labels).await?.items.len();
        let balanced = bed.all().get(CLUSTER).await.map(|cluster| holds(&cluster, "Balanced") == "True")?;
        // Programs in pods take the processors from what is measured: they are asked last.
        if sets != count + 1 || !balanced {
            return Ok(Some(format!("{sets} StatefulSets, Balanced {balanced}")));
        }
        let rows = match shards_of_messages(bed).await {
            Ok(rows) => rows,
            Err(error) => return Ok(Some(format!("{error:#}"))),
        };
        // The sizes count, and they waver: one shard more or less is even.
        let even = rows.lines().count() == count
            && rows.lines().zip(&shares).all(|(found, share)| {
                let number = |text: &str| text.parse::<i64>().unwrap_or(i64::MIN);
                number(found).abs_diff(number(share)) <= 1
            });
        Ok((!even).then(|| format!("shards {rows:?}")))
    })
    .await?;
    let took = began.elapsed().as_secs_f64();
    let found = shards_of_messages(bed).await?.replace('\n', "/");
    let figures = format!("from `kubectl scale` until the shards are at {found} and nobody else is left");
    let seconds = Row::ratio("seconds", figures, took, Limit::None);
    let bytes = bytes(bed).await?;
    let mean = bytes.iter().sum::<f64>() / f64::from(u32::try_from(bytes.len())?);
    let megabytes: Vec<String> = bytes.iter().map(|bytes| format!("{:.0}", bytes / 1e6)).collect();
    let spread = Row::ratio(
        "bytes of the fullest worker above the mean",
        format!("{} MB of all tables", megabytes.join("/")),
        bytes.iter().copied().fold(0.0, f64::max) / mean - 1.0,
        UNEVEN,
    );
    Ok([seconds, spread])
}

/// How many bytes each worker holds that holds any of the messages, once all of them say.
async fn bytes(bed: &Bed) -> Result<Vec<f64>> {
    let read = async || {
        let said = bed.sql(Group::Coordinator, BYTES).await?;
        said.lines().map(str::parse).collect::<Result<Vec<f64>, _>>().context("bytes of workers")
    };
    bed.eventually("each worker says how much it holds", TO_SAY, || async {
        let bytes = read().await?;
        Ok(bytes.contains(&0.0).then(|| format!("{bytes:?}")))
    })
    .await?;
    read().await
}

/// How many shards of the messages each worker holds that holds any, a line for each.
async fn shards_of_messages(bed: &Bed) -> Result<String> {
    // The view `citus_shards` would measure all of them.
    let counted = "SELECT count(*) FROM pg_dist_placement JOIN pg_dist_shard USING (shardid)
                   WHERE logicalrelid = 'public.messages'::regclass GROUP BY groupid";
    bed.sql(Group::Coordinator, counted).await
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
