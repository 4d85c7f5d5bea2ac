//! A count that changes faster than it can come true, asks for more than there is room for, and goes to nothing and back.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use dialog_operator::api::{Amount, DialogCluster};
use dialog_operator::condition::{BALANCED, READY};
use dialog_operator::names::{CLUSTER_LABEL, GROUP_LABEL, Group};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Node, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::events::v1::Event;
use kube::api::{DeleteParams, ListParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::interval;

use super::held_up::HeldUp;
use super::{kill_operator, until_halved};
use crate::bed::{Bed, TO_NOTICE};
use crate::load::{self, Population};

/// Shards of each table: a few moves say as much as many.
const SHARDS: i32 = 4;
/// What is asked for, again and again.
const WISHES: [i32; 6] = [4, 2, 3, 0, 50, 2];
/// How often something else is asked for.
const EVERY: Duration = Duration::from_millis(500);
/// How many times that is.
const CHANGES: usize = 20;
/// More workers than one node takes.
const MANY: usize = 50;
/// Workers that ask for all of the processors that a node can give away. Some of these are taken: fewer fit.
const ON_A_NODE: u64 = 8;
/// How long a count may take to come true.
const TO_SCALE: Duration = Duration::from_mins(4);
const PEOPLE: Population = Population { users: 500, dialogs: 500, messages: 2 };
/// Enough for each shard group to be written to all the time.
const LOAD: [&str; 5] = ["--lists=0.5", "--skew=uniform", "--connections=8", "--rate=40", "--duration=1h"];

#[tokio::test(flavor = "multi_thread")]
async fn a_count_that_flaps_ends_where_it_is_left_and_loses_nothing() -> Result<()> {
    if !Bed::has_citus() {
        println!("SKIPPED citus: the PostgreSQL image was built without the extension");
        return Ok(());
    }
    let bed = Bed::new("flapping").await?;
    let share = share_of_a_node(&bed).await?;
    let change = |spec: &mut Value| {
        spec["workers"]["resources"]["requests"]["cpu"] = json!(share);
        // Volumes of workers that leave go all the same.
        spec["workers"]["storage"]["reclaim"] = json!("Retain");
        spec["sharding"] = json!({"shardCount": SHARDS});
    };
    bed.create(2, change).await?;
    bed.ready().await?;
    PEOPLE.write(&bed).await?;

    let writing = PEOPLE.start(&bed, &LOAD).await?;
    flap(&bed).await?;
    ask_for(&bed, MANY).await?;
    until_too_many(&bed).await?;
    ask_for(&bed, 2).await?;
    until_exactly(&bed, 2).await?;
    until_halved(&bed, SHARDS, TO_SCALE).await?;
    let report = writing.stop(&bed).await?;
    load::say(&bed, "while the count flapped", &report);
    ensure!(report.is_whole(), "{}", report.text());
    load::ensure_answered(&report)?;

    let writing = PEOPLE.start(&bed, &LOAD).await?;
    ask_for_none_while_a_worker_goes(&bed).await?;
    until_exactly(&bed, 0).await?;
    let places = bed.sql(Group::Coordinator, "SELECT DISTINCT groupid FROM pg_dist_placement").await?;
    ensure!(places == "0", "there are no workers, and shards are placed on {places:?}");
    ask_for(&bed, 2).await?;
    until_exactly(&bed, 2).await?;
    until_halved(&bed, SHARDS, TO_SCALE).await?;
    // One of the servers was away for a time, and its only one: whoever wrote to it then was told so.
    let report = writing.stop(&bed).await?;
    load::say(&bed, "while a worker went", &report);
    ensure!(report.is_whole(), "{}", report.text());
    bed.done();
    Ok(())
}

/// The processors of one worker: a part of what a node of this Kubernetes can give away.
async fn share_of_a_node(bed: &Bed) -> Result<String> {
    let nodes: Api<Node> = Api::all(bed.client.clone());
    let thousandths = |node: Node| {
        let processors = node.status?.allocatable?.remove("cpu")?;
        serde_json::from_value::<Amount>(json!(processors)).ok()?.thousandths()
    };
    let found: Vec<u64> =
        nodes.list(&ListParams::default()).await?.into_iter().filter_map(thousandths).collect();
    let [node] = found[..] else {
        anyhow::bail!("one node is wanted that says how many processors it gives away: {found:?}");
    };
    Ok(format!("{}m", node / ON_A_NODE))
}

/// Asks for one count after the other without waiting for any, and has the operator die in the middle.
async fn flap(bed: &Bed) -> Result<()> {
    let mut ticks = interval(EVERY);
    for (number, count) in WISHES.into_iter().cycle().take(CHANGES).enumerate() {
        ticks.tick().await;
        bed.patch(json!({"workers": {"count": count}})).await?;
        if number == CHANGES / 2 {
            kill_operator(bed).await?;
        }
    }
    let refused = bed.patch(json!({"workers": {"count": -1}})).await;
    let refused = refused.err().context("a negative count was accepted")?.to_string();
    bed.say(&refused);
    ensure!(refused.contains("spec.workers.count"), "the field is not named: {refused}");
    Ok(())
}

async fn ask_for(bed: &Bed, workers: usize) -> Result<()> {
    bed.patch(json!({"workers": {"count": workers}})).await
}

/// Returns when there is a server for each of the many workers, most of which find no place, and the conditions say so.
async fn until_too_many(bed: &Bed) -> Result<()> {
    let sets = groups(MANY).len();
    bed.eventually("a server for each worker", TO_SCALE, || async {
        let found = labelled::<Pod>(bed).await?.len();
        Ok((found != sets).then(|| format!("{found} pods of {sets}")))
    })
    .await?;
    let ready =
        bed.condition(READY, "told of workers without a place", TO_NOTICE, |it| it.reason == "Unschedulable");
    let ready = ready.await?;
    bed.say(&ready.message);
    for part in ["no node takes pod chat-worker-", "Insufficient cpu", "add nodes"] {
        ensure!(ready.message.contains(part), "{part:?} is not said: {}", ready.message);
    }
    let balanced = bed
        .condition(BALANCED, "told what the spread waits for", TO_SCALE, |it| it.reason == "WorkersMissing");
    let balanced = balanced.await?;
    bed.say(&balanced.message);
    // Some are named, and the rest are counted.
    let (named, rest) = balanced.message.split_once("; and ").context("the workers are not counted")?;
    let (more, remedy) = rest.split_once(" more; ").context("the workers are not counted")?;
    let missing = named.matches("worker-").count() + more.parse::<usize>().context(more.to_owned())?;
    ensure!(MANY - missing < usize::try_from(ON_A_NODE)?, "{missing} are missing: {}", balanced.message);
    ensure!(remedy.contains("lower spec.workers.count"), "what to do is not said: {}", balanced.message);
    let labels = ListParams::default().labels(&format!("{CLUSTER_LABEL},{GROUP_LABEL}"));
    let pods = bed.all::<Pod>().list(&labels).await?;
    let phase =
        |pod: &&Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Pending");
    let pending = pods.iter().filter(phase).count();
    bed.say(format!("{pending} of {} pods find no place", pods.items.len()));
    ensure!(pending > MANY / 2, "this Kubernetes has a place for most of {MANY} workers: {pending} wait");
    Ok(())
}

/// Asks for no workers, and deletes the pod of one, whose only one it is, in the middle of the move of a shard from there.
async fn ask_for_none_while_a_worker_goes(bed: &Bed) -> Result<()> {
    let held_up = HeldUp::begin(bed, 1).await?;
    held_up.until_held(bed).await?;
    ask_for(bed, 0).await?;
    held_up.until_copied(bed, "").await?;
    let source = |cluster: &DialogCluster| {
        let moves = &cluster.status.as_ref()?.rebalance.as_ref()?.current;
        Some((moves.first()?.shard_id, Group::parse(&moves.first()?.from)?))
    };
    let cluster = bed.until("moving", TO_NOTICE, |cluster| source(cluster).is_some()).await?;
    let (shard, source) = source(&cluster).context("it was there a moment ago")?;
    let pod = bed.names.pod(source, 0);
    let before = bed.all::<Pod>().get(&pod).await?.uid();
    bed.all::<Pod>().delete(&pod, &DeleteParams::default()).await?;
    bed.eventually("the worker's pod has gone", TO_NOTICE, || async {
        let now = bed.all::<Pod>().get_opt(&pod).await?.and_then(|pod| pod.uid());
        Ok((now == before).then(|| format!("{pod} is there")))
    })
    .await?;
    held_up.end(bed).await?;
    // It was in the middle: it has failed, and is made once more.
    let failed = format!("could not move shard {shard} from {source} to ");
    bed.eventually("the move has failed", TO_SCALE, || async {
        let events = bed.all::<Event>().list(&ListParams::default()).await?;
        let told = |event: &Event| event.note.as_ref().is_some_and(|note| note.starts_with(&failed));
        let note = events.into_iter().find(told).and_then(|event| event.note);
        Ok(match note {
            Some(note) => {
                bed.say(note);
                None
            }
            None => Some(format!("no Event says {failed:?}")),
        })
    })
    .await
}

/// Returns when the cluster is ready and balanced with `workers` workers, and nothing is left of others.
async fn until_exactly(bed: &Bed, workers: usize) -> Result<()> {
    let wanted = groups(workers);
    bed.eventually(&format!("{workers} workers and nothing of others"), TO_SCALE, || async {
        for (kind, there) in [
            ("StatefulSets", labelled::<StatefulSet>(bed).await?),
            ("pods", labelled::<Pod>(bed).await?),
            ("claims", labelled::<PersistentVolumeClaim>(bed).await?),
        ] {
            if !there.iter().eq(&wanted) {
                return Ok(Some(format!("{kind} of {}", there.join(", "))));
            }
        }
        for (kind, there) in
            [("ConfigMaps", labelled::<ConfigMap>(bed).await?), ("Services", labelled::<Service>(bed).await?)]
        {
            if let Some(other) = there.iter().find(|group| !wanted.contains(*group)) {
                return Ok(Some(format!("{kind} of {other}")));
            }
        }
        Ok(None)
    })
    .await?;
    bed.condition(BALANCED, "balanced", TO_SCALE, |found| found.status == "True").await?;
    let nodes = bed.sql(Group::Coordinator, "SELECT nodename FROM pg_dist_node").await?;
    let nodes: BTreeSet<&str> = nodes.lines().collect();
    let hosts: Vec<String> =
        wanted.iter().filter_map(|group| Some(bed.names.host(Group::parse(group)?))).collect();
    ensure!(nodes == hosts.iter().map(String::as_str).collect(), "registered are {nodes:?}");
    bed.ready().await?;
    Ok(())
}

/// The labels of the groups that are there with `workers` workers.
fn groups(workers: usize) -> BTreeSet<String> {
    let workers = (0..).map(Group::Worker).take(workers);
    workers.chain([Group::Coordinator]).map(|group| group.to_string()).collect()
}

/// The groups of the objects of one kind, in the order of their labels; a group with two of them is there twice.
async fn labelled<K>(bed: &Bed) -> Result<Vec<String>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    let labels = ListParams::default().labels(&format!("{CLUSTER_LABEL},{GROUP_LABEL}"));
    let found = bed.all::<K>().list_metadata(&labels).await?;
    let mut groups: Vec<String> =
        found.iter().filter_map(|object| object.labels().get(GROUP_LABEL).cloned()).collect();
    groups.sort();
    Ok(groups)
}
