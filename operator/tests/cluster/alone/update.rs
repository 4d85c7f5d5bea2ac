//! A change that needs every instance to start anew, as the instances and the clients see it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use dialog_operator::condition::{self, PARAMETERS_APPLIED};
use dialog_operator::names::{GROUP_LABEL, Group, ROLE_LABEL};
use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::ListParams;
use kube::runtime::watcher;
use serde_json::json;

use crate::bed::{Bed, TO_SERVE, holds};
use crate::writer::Writer;

/// A parameter that takes a restart, and a value that it does not have by default.
const PARAMETER: &str = "max_locks_per_transaction";
const VALUE: &str = "192";

#[tokio::test(flavor = "multi_thread")]
async fn an_update_goes_one_instance_at_a_time_while_the_service_answers() -> Result<()> {
    let bed = Bed::new("update").await?;
    bed.create(Bed::workers(), |spec| {
        spec["coordinator"]["instances"] = json!(2);
        spec["workers"]["instances"] = json!(2);
    })
    .await?;
    bed.ready().await?;
    let groups: Vec<_> =
        if Bed::has_citus() { vec![Group::Worker(0), Group::Coordinator] } else { vec![Group::Coordinator] };

    // The same image under its full name: the template of every pod changes, and nothing else does.
    let expected = in_order(&bed, &groups).await?;
    let image = std::env::var("DIALOG_IMAGE").context("xtask names the image")?;
    let image = format!("docker.io/{image}");
    let writer = Writer::start(&bed)?;
    bed.patch(json!({"image": image})).await?;
    let replacements = tokio::time::timeout(TO_SERVE, replacements(&bed, expected.len()))
        .await
        .context("the pods are not replaced in time")??;
    writer.stop(&bed).await?;
    let order: Vec<_> = replacements.iter().map(|replaced| replaced.pod.as_str()).collect();
    bed.say(format!("replaced: {}", order.join(", ")));
    ensure!(order == expected, "replaced in the order {order:?} and not {expected:?}");
    for Replaced { pod, was_primary, others } in &replacements {
        ensure!(others.is_empty(), "when {pod} went, others were not ready: {}", others.join(", "));
        ensure!(!was_primary, "{pod} went while it was primary, although there was a standby");
    }
    bed.ready().await?;
    for pod in pods(&bed).await?.values() {
        let now = pod.spec.as_ref().and_then(|spec| spec.containers.first()?.image.clone());
        ensure!(now.as_ref() == Some(&image), "{} runs {now:?}", pod.name_any());
    }

    // A parameter takes a restart of PostgreSQL only: the pods stay.
    let expected = in_order(&bed, &groups).await?;
    let before = pods(&bed).await?;
    let slots = idle_slots(&bed, groups[0]).await?;
    let writer = Writer::start(&bed)?;
    bed.patch(json!({"postgres": {"parameters": {PARAMETER: VALUE}}})).await?;
    bed.condition(PARAMETERS_APPLIED, "applied", TO_SERVE, |condition| condition.status == "True").await?;
    bed.until("idle", TO_SERVE, |cluster| {
        holds(cluster, condition::READY) == "True" && holds(cluster, condition::PROGRESSING) == "False"
    })
    .await?;
    writer.stop(&bed).await?;
    let mut started = Vec::new();
    for (name, pod) in pods(&bed).await? {
        ensure!(before.get(&name).is_some_and(|old| old.uid() == pod.uid()), "{name} is another pod");
        let value = bed.sql_in(&name, &format!("SHOW {PARAMETER}"))?;
        ensure!(value == VALUE, "{PARAMETER} is {value} on {name}");
        let start = bed.sql_in(&name, "SELECT extract(epoch FROM pg_postmaster_start_time())")?;
        started.push((start.parse::<f64>().with_context(|| format!("{name} started at {start}"))?, name));
    }
    started.sort_by(|one, other| one.0.total_cmp(&other.0));
    let order: Vec<_> = started.into_iter().map(|(_, name)| name).collect();
    bed.say(format!("restarted: {}", order.join(", ")));
    ensure!(order == expected, "restarted in the order {order:?} and not {expected:?}");
    let kept =
        bed.sql(groups[0], "SELECT slot_name FROM pg_replication_slots WHERE slot_type = 'logical'").await?;
    ensure!(
        slots.iter().all(|slot| kept.lines().any(|kept| kept == slot)),
        "of {slots:?} there is still: {kept}"
    );
    bed.done();
    Ok(())
}

/// Makes slots such as Citus' moves have, which nobody uses for the moment. Patroni drops those that it does not know when
/// a server starts, unless it was told to ignore them.
async fn idle_slots(bed: &Bed, group: Group) -> Result<Vec<String>> {
    let mut slots = vec![];
    for plugin in ["pgoutput", "citus"].into_iter().take(if Bed::has_citus() { 2 } else { 1 }) {
        let slot = format!("idle_{plugin}");
        let create = format!("SELECT pg_create_logical_replication_slot('{slot}', '{plugin}')");
        bed.sql(group, &create).await.with_context(|| format!("slot {slot}"))?;
        slots.push(slot);
    }
    Ok(slots)
}

/// The instances in the order in which they are to go: group by group, the standby before the primary.
async fn in_order(bed: &Bed, groups: &[Group]) -> Result<Vec<String>> {
    let all = pods(bed).await?;
    let mut order = Vec::new();
    for group in groups {
        let primary = bed.primary(*group).await?;
        let label = group.to_string();
        let of_group = all.iter().filter(|(_, pod)| pod.labels().get(GROUP_LABEL) == Some(&label));
        order.extend(of_group.map(|(name, _)| name.clone()).filter(|name| *name != primary));
        order.push(primary);
    }
    Ok(order)
}

/// The instances of all groups.
async fn pods(bed: &Bed) -> Result<BTreeMap<String, Pod>> {
    let found = bed.all::<Pod>().list(&ListParams::default().labels(GROUP_LABEL)).await?;
    Ok(found.into_iter().map(|pod| (pod.name_any(), pod)).collect())
}

/// A pod that was deleted, and what was so at that moment.
struct Replaced {
    pod: String,
    was_primary: bool,
    /// Instances that were not there or not ready.
    others: Vec<String>,
}

/// Watches until each of `count` pods was deleted once and all are ready again.
async fn replacements(bed: &Bed, count: usize) -> Result<Vec<Replaced>> {
    let mut events = Box::pin(watcher(bed.all::<Pod>(), watcher::Config::default().labels(GROUP_LABEL)));
    let mut there: BTreeMap<String, Pod> = BTreeMap::new();
    let mut replaced: Vec<Replaced> = Vec::new();
    while let Some(event) = events.try_next().await? {
        match event {
            watcher::Event::Delete(pod) => {
                there.remove(&pod.name_any());
            }
            watcher::Event::InitApply(pod) | watcher::Event::Apply(pod) => {
                let name = pod.name_any();
                let is_new = |old: &Pod| old.metadata.deletion_timestamp.is_none();
                if pod.metadata.deletion_timestamp.is_some() && there.get(&name).is_some_and(is_new) {
                    let absent = (there.len() < count).then(|| "one that is not there".to_owned());
                    let unready = there.iter().filter(|(other, pod)| **other != name && !is_ready(pod));
                    replaced.push(Replaced {
                        pod: name.clone(),
                        was_primary: pod.labels().get(ROLE_LABEL).is_some_and(|role| role == "primary"),
                        others: unready.map(|(other, _)| other.clone()).chain(absent).collect(),
                    });
                }
                there.insert(name, pod);
            }
            watcher::Event::Init | watcher::Event::InitDone => {}
        }
        if replaced.len() >= count && there.len() == count && there.values().all(is_ready) {
            return Ok(replaced);
        }
    }
    bail!("the watch has ended")
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let is_ready = conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    is_ready && pod.metadata.deletion_timestamp.is_none()
}
