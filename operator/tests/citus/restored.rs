//! Kubernetes goes back to a time before a worker left: etcd is given what it had then, and the databases are as they are.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use dialog_operator::api::{DialogCluster, DialogClusterStatus};
use dialog_operator::cluster::problems::problems;
use dialog_operator::cluster::retire::Removal;
use dialog_operator::condition::{BALANCED, METADATA_SYNCED};
use dialog_operator::names::{CLUSTER_LABEL, GROUP_LABEL, Group};
use dialog_operator::shards::round::{Brief, Round, round};
use dialog_operator::shards::status::status;
use dialog_operator::shards::step::Step;
use dialog_operator::shards::wanted::{REBALANCE_ANNOTATION, Wanted};
use futures::future::{BoxFuture, ready};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, CustomResourceExt as _, ResourceExt as _};
use serde_json::{Value, json};
use testbed::apiserver::ApiServer;

use crate::needs_citus;
use crate::retirement::{Kubernetes, LEAVER};
use crate::world::{World, brief, closed, condition, gated, placements, store_messages};

const ROWS: i64 = 1_000;
const SHARDS: i32 = 4;

#[tokio::test]
async fn a_worker_that_comes_back_with_an_older_etcd_is_made_anew_and_its_old_status_is_not_believed()
-> Result<()> {
    needs_citus!();
    let mut server = tokio::task::spawn_blocking(ApiServer::start).await??;
    let mut world = World::start(1)?;
    world.serve(&asked(1)).await?;
    world.add(LEAVER)?;
    let empty = Wanted { rebalance: gated(2, closed()).rebalance, ..asked(2) };
    world.settle(&empty).await?;
    store_messages(&world, ROWS, "'text'").await?;
    let mut kubernetes = Kubernetes::new(&server, &world).await?;
    kubernetes.define(2).await?;

    // What is kept is of the time when the worker was about to get its shards.
    let begun = world.round(&asked(2)).await?;
    ensure!(begun.long.iter().any(|step| matches!(step, Step::MoveShard { .. })), "{:?}", begun.plan.steps);
    let topology = world.topology();
    let shown = status(&asked(2), &topology, &begun, None, Timestamp::now());
    ensure!(shown.plan.is_some() && shown.rebalance.as_ref().is_some_and(|shown| !shown.current.is_empty()));
    let shown = DialogClusterStatus { last_handled_rebalance: Some("then".to_owned()), ..shown };
    kubernetes.show(&shown).await?;
    let (mut server, backup) = tokio::task::spawn_blocking(move || {
        let backup = server.back_up()?;
        Ok::<_, anyhow::Error>((server, backup))
    })
    .await??;

    // Since then it got them, gave them back, and went with everything it had.
    world.settle(&asked(2)).await?;
    assert_eq!(world.number(Group::Coordinator, HOLDERS).await?, 2, "it got no shard");
    let cluster = kubernetes.ask_for(1).await?;
    world.settle(&wanted(&cluster)).await?;
    kubernetes.remove(&world).await?;
    world.remove(LEAVER);
    let after = placements(&world).await?;
    let server = tokio::task::spawn_blocking(move || server.restore(&backup).map(|()| server)).await??;

    let cluster = kubernetes.cluster().await?;
    let status_of_then = cluster.status.as_ref().context("it has no status")?;
    ensure!(cluster.spec.workers.count == 2 && status_of_then.plan == shown.plan, "{cluster:?}");
    let moves = status_of_then.rebalance.as_ref().map_or(0, |shown| shown.current.len());
    ensure!(moves > 0, "{status_of_then:?}");
    let observed = kubernetes.observed().await?;
    ensure!(observed.groups[&LEAVER].is_initialized() && observed.claims_of(LEAVER) == 1, "{observed:?}");
    kubernetes.read(&cluster)?;

    // There is no server behind what has come back: that is said, and nothing is done, neither here nor there.
    let found = look(&world, &cluster).await?;
    assert_eq!((&found.performed, &found.long), (&vec![], &vec![]));
    let (holds, _, message) = condition(&found, METADATA_SYNCED);
    assert!(holds != "True" && message.contains("worker-1"), "{message}");
    let said =
        status(&wanted(&cluster), &world.topology(), &found, cluster.status.as_ref(), Timestamp::now());
    assert!(said.rebalance.is_none_or(|said| said.current.is_empty()), "a move is shown that is none");
    assert_eq!(kubernetes.step(&world).await?, Vec::<String>::new());
    assert_eq!(kubernetes.observed().await?.groups[&LEAVER].uid, observed.groups[&LEAVER].uid);

    // Its volume is a new one, and Patroni waits for whoever had made the database: what to look at and to do is named.
    kubernetes.wait_in_vain().await?;
    let now = Timestamp::now();
    let problems = problems(&cluster, &kubernetes.target, &kubernetes.observed().await?, now);
    let not_read = problems.iter().find(|problem| problem.reason == "DatabaseNotRead");
    let message = &not_read.with_context(|| format!("{problems:?}"))?.message;
    for part in [
        "chat-worker-1-0: for minutes Patroni has read no database from the volume (data-chat-worker-1-0)",
        "kubectl exec chat-worker-1-0 -- ls",
        "Kubernetes was restored",
        "kubectl delete pvc --wait=false data-chat-worker-1-0 && kubectl delete statefulset chat-worker-1;",
    ] {
        assert!(message.contains(part), "no {part:?} in {message}");
    }

    // That Patroni reads nothing is no proof that there is nothing: also one that is not asked for stays, untouched.
    let cluster = kubernetes.ask_for(1).await?;
    world.settle(&wanted(&cluster)).await?;
    let stays = kubernetes.step(&world).await?;
    ensure!(stays.len() == 1 && stays[0].contains("worker-1 does not answer"), "{stays:?}");
    let there = kubernetes.observed().await?;
    let set = &there.groups[&LEAVER];
    ensure!(set.uid == observed.groups[&LEAVER].uid && !set.volumes_follow, "{set:?}");
    ensure!(there.claims_of(LEAVER) == 1 && !there.claims[&LEAVER][&0].is_terminating, "{:?}", there.claims);

    // The remedy, by hand; the operator goes on once nothing of it is left.
    let cluster = kubernetes.ask_for(2).await?;
    kubernetes.delete_by_hand(&world).await?;
    assert_eq!(placements(&world).await?, after, "shards were moved or lost");
    world.add(LEAVER)?;
    let steps = world.settle(&wanted(&cluster)).await?;
    assert!(steps.contains(&Step::AddNode { group: LEAVER }), "{steps:?}");
    assert_eq!(world.number(Group::Coordinator, HOLDERS).await?, 2, "it got no shard");
    assert_eq!(condition(&look(&world, &cluster).await?, BALANCED).0, "True");
    assert_eq!(world.number(Group::Coordinator, "SELECT count(*) FROM public.messages").await?, ROWS);
    drop(server);
    Ok(())
}

/// Nodes that have shards.
const HOLDERS: &str =
    "SELECT count(DISTINCT at.groupid) FROM pg_dist_partition JOIN pg_dist_shard USING (logicalrelid)
                       JOIN pg_dist_placement AS at USING (shardid) WHERE partmethod = 'h'";

/// Few enough shards that they move thrice in good time.
fn asked(workers: u32) -> Wanted {
    Wanted { shard_count: SHARDS, ..crate::world::wanted(workers) }
}

/// What the resource asks for.
fn wanted(cluster: &DialogCluster) -> Wanted {
    Wanted::of(cluster, Timestamp::now())
}

/// A round of an operator that has just started, and reads the resource with its status.
async fn look(world: &World, cluster: &DialogCluster) -> Result<Round> {
    let wanted = wanted(cluster);
    let existing = world.existing().into_iter().chain([LEAVER]).collect::<BTreeSet<_>>();
    let ask = || -> BoxFuture<'_, BTreeSet<Group>> { Box::pin(ready(existing.clone())) };
    let shown = cluster.status.as_ref().and_then(|status| status.plan.as_ref());
    Ok(round(&Brief { shown, ..brief(&wanted, &ask) }, &world.sessions()?).await)
}

impl Kubernetes {
    /// Stores the resource, which asks for so many workers.
    async fn define(&mut self, workers: i32) -> Result<()> {
        let definitions: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        let definition = definitions.create(&PostParams::default(), &DialogCluster::crd()).await?;
        await_condition(definitions, &definition.name_any(), conditions::is_crd_established()).await?;
        self.create::<DialogCluster>(json!({
            "apiVersion": "dialogcluster.io/v1alpha1", "kind": "DialogCluster",
            "metadata": {
                "name": self.names.cluster(),
                "annotations": {REBALANCE_ANNOTATION: "then"},
            },
            "spec": {"workers": {"count": workers}, "sharding": {"shardCount": SHARDS}},
        }))
        .await
    }

    async fn cluster(&self) -> Result<DialogCluster> {
        Ok(self.all::<DialogCluster>().get(self.names.cluster()).await?)
    }

    async fn show(&self, status: &DialogClusterStatus) -> Result<()> {
        let change = Patch::Merge(json!({"status": status}));
        let how = PatchParams::default();
        self.all::<DialogCluster>().patch_status(self.names.cluster(), &how, &change).await?;
        Ok(())
    }

    /// Has the resource ask for so many workers, and the operator read it.
    async fn ask_for(&mut self, workers: i32) -> Result<DialogCluster> {
        let change = Patch::Merge(json!({"spec": {"workers": {"count": workers}}}));
        let how = PatchParams::default();
        let cluster = self.all::<DialogCluster>().patch(self.names.cluster(), &how, &change).await?;
        self.read(&cluster)?;
        Ok(cluster)
    }

    /// Takes the worker away as far as it lets itself be taken away.
    async fn remove(&self, world: &World) -> Result<()> {
        while let Some(next) = self.next().await? {
            let stays = self.step(world).await?;
            ensure!(stays.is_empty(), "{stays:?}");
            if matches!(next, Removal::AwaitOwners) {
                self.follow().await?;
            }
        }
        self.ensure_gone().await
    }

    /// Deletes the worker's claim and StatefulSet as somebody would, and what Kubernetes deletes because of that.
    async fn delete_by_hand(&self, world: &World) -> Result<()> {
        let (claims, claim) = (self.all::<PersistentVolumeClaim>(), self.names.claim(LEAVER, 0));
        claims.delete(&claim, &DeleteParams::default()).await?;
        self.all::<StatefulSet>().delete(&self.names.group(LEAVER), &DeleteParams::default()).await?;
        // As long as its pod has the volume, the worker is neither forgotten nor made anew.
        ensure!(self.step(world).await?.is_empty());
        let observed = self.observed().await?;
        ensure!(observed.is_leaving(LEAVER) && observed.claims_of(LEAVER) == 1, "{observed:?}");
        ensure!(self.all::<ConfigMap>().get_opt(&self.state()).await?.is_some(), "Patroni's state is gone");
        self.all::<Pod>()
            .delete(&self.names.pod(LEAVER, 0), &DeleteParams::default().grace_period(0))
            .await?;
        let unused = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        claims.patch(&claim, &PatchParams::default(), &unused).await?;
        ensure!(self.step(world).await?.is_empty());
        self.ensure_gone().await
    }

    /// Nothing is left of the worker, and it can be made anew.
    async fn ensure_gone(&self) -> Result<()> {
        let left = self.observed().await?;
        ensure!(!left.groups.contains_key(&LEAVER) && !left.claims.contains_key(&LEAVER), "{left:?}");
        ensure!(!left.is_leaving(LEAVER), "{left:?}");
        ensure!(self.all::<ConfigMap>().get_opt(&self.state()).await?.is_none(), "Patroni's state stays");
        Ok(())
    }

    fn state(&self) -> String {
        self.names.patroni_state(LEAVER, "config")
    }

    /// The worker's pod, long since started, as Patroni reports it that finds nothing on its volume.
    async fn wait_in_vain(&self) -> Result<()> {
        let name = self.names.pod(LEAVER, 0);
        let labels = json!({CLUSTER_LABEL: self.names.cluster(), GROUP_LABEL: LEAVER.to_string()});
        let report = json!({"state": "stopped", "role": "uninitialized"});
        self.create::<Pod>(json!({
            "metadata": {"name": name, "labels": labels, "annotations": {"status": report.to_string()}},
            "spec": {"containers": [{"name": "postgres", "image": "example.org/postgres:1"}]},
        }))
        .await?;
        let started = Timestamp::now() - SignedDuration::from_mins(5);
        let status: Value = json!({"status": {"containerStatuses": [{
            "name": "postgres", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"running": {"startedAt": started.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()}},
        }]}});
        self.all::<Pod>().patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await?;
        Ok(())
    }
}
