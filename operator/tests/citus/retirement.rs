//! A worker's way out, from its last shard to its volume: real databases and a real API server, and operators that are
//! killed after every wait of every step. Of Kubernetes there are no controllers: what they would do is done by hand.

use anyhow::{Context as _, Result, ensure};
use dialog_operator::api::DialogCluster;
use dialog_operator::cluster::observe::{Observed, observe};
use dialog_operator::cluster::retire::{Removal, forget, step};
use dialog_operator::cluster::target::Target;
use dialog_operator::context::{Context, Pull, Settings};
use dialog_operator::metrics::Metrics;
use dialog_operator::names::{CLUSTER_LABEL, GROUP_LABEL, Group, Names};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Secret};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use testbed::apiserver::ApiServer;
use tokio_util::sync::CancellationToken;

use crate::killer::{Killer, killed_after};
use crate::needs_citus;
use crate::world::{World, few_shards, store_messages};

pub const LEAVER: Group = Group::Worker(1);
const ROWS: i64 = 1_000;

/// The leaver's objects, and what Kubernetes would do with them.
pub struct Kubernetes {
    pub client: Client,
    pub names: Names,
    /// What the resource asks for.
    pub target: Target,
    context: Context,
}

#[tokio::test]
async fn an_operator_that_is_killed_at_any_step_of_a_removal_is_continued_by_the_next() -> Result<()> {
    needs_citus!();
    let server = tokio::task::spawn_blocking(ApiServer::shared).await??;
    let mut world = World::start(2)?;
    world.serve(&few_shards(2)).await?;
    store_messages(&world, ROWS, "'text'").await?;
    let kubernetes = Kubernetes::new(&server, &world).await?;

    // As long as it holds something it stays, whatever else is done.
    let (mut killer, one) = (Killer::default(), few_shards(1));
    let port = world.server(LEAVER).port();
    let registered = format!("SELECT count(*) FROM pg_dist_node WHERE nodeport = {port}");
    while world.number(Group::Coordinator, &registered).await? > 0 {
        let stays = kubernetes.step(&world).await?;
        ensure!(stays.len() == 1, "it holds shards or is registered, and nothing keeps it: {stays:?}");
        ensure!(kubernetes.next().await? == Some(Removal::LetVolumesFollow), "it is being taken away");
        if let Some(next) = killer.look(&world, &one).await?.plan.steps.first() {
            killer.carry_out(&world, &one, next).await?;
        }
    }
    for kind in ["SetShouldHaveShards", "MoveShard", "RemoveNode"] {
        ensure!(killer.kinds.contains(kind), "no {kind} among {:?}", killer.kinds);
    }

    let (mut seen, mut deaths, mut waits) = (Vec::new(), 0, 0);
    while let Some(next) = kubernetes.next().await? {
        if seen.last() != Some(&next) {
            seen.push(next);
            waits = 0;
        }
        match Box::pin(killed_after(kubernetes.step(&world), waits)).await {
            None => deaths += 1,
            Some(done) => {
                done?;
                if next == Removal::AwaitOwners {
                    kubernetes.follow().await?;
                }
            }
        }
        waits += 1;
    }
    println!("{deaths} operators were killed");
    assert_eq!(seen, Removal::ALL, "a step was left out, or done twice");
    assert!(deaths > 2 * seen.len(), "only {deaths} operators were killed");
    let left = kubernetes.observed().await?;
    assert!(!left.is_leaving(LEAVER) && !left.claims.contains_key(&LEAVER), "{:?}", left.claims);
    let secrets: Vec<&String> = left.secrets.keys().collect();
    assert_eq!(
        secrets,
        [&kubernetes.names.operator_certificate()],
        "the leaver's certificate goes, and no other"
    );

    // One that comes back is new, and gets shards.
    world.remove(LEAVER);
    world.add(LEAVER)?;
    world.settle(&few_shards(2)).await?;
    assert_eq!(world.number(Group::Coordinator, "SELECT count(*) FROM public.messages").await?, ROWS);
    Ok(())
}

fn target(cluster: &DialogCluster, settings: &Settings) -> Result<Target> {
    Target::new(cluster, settings, &Observed::default())
        .map_err(|refusal| anyhow::anyhow!("the cluster is refused: {}", refusal.message))
}

impl Kubernetes {
    /// With the objects of a worker that has a database.
    pub async fn new(server: &ApiServer, world: &World) -> Result<Self> {
        let kubeconfig = Kubeconfig::read_from(server.kubeconfig())?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let (client, watcher) = dialog_operator::run::clients(config)?;
        let names = Names::new("chat", "removal");
        let namespace = serde_json::from_value(json!({"metadata": {"name": names.namespace()}}))?;
        Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await?;
        let settings = Settings {
            postgres_image: Some("example.org/postgres:1".to_owned()),
            api_image: Some("example.org/dialog-api:1".to_owned()),
            pull: Pull::default(),
            namespace: Some(names.namespace().to_owned()),
        };
        let cluster: DialogCluster = serde_json::from_value(json!({
            "apiVersion": "dialogcluster.io/v1alpha1", "kind": "DialogCluster",
            "metadata": {"name": names.cluster(), "namespace": names.namespace(), "uid": "1"},
            "spec": {"workers": {"count": 1}},
        }))?;
        let target = target(&cluster, &settings)?;
        let context =
            Context::new(client.clone(), watcher, settings, Metrics::new(), CancellationToken::new());
        let kubernetes = Self { client, names, target, context };
        kubernetes.create_objects(world).await?;
        Ok(kubernetes)
    }

    async fn create_objects(&self, world: &World) -> Result<()> {
        let Self { names, .. } = self;
        let labels = json!({CLUSTER_LABEL: names.cluster(), GROUP_LABEL: LEAVER.to_string()});
        let files = world.authority.client("dialog-operator")?;
        self.create::<Secret>(json!({
            "metadata": {"name": names.operator_certificate(), "labels": {CLUSTER_LABEL: names.cluster()}},
            "stringData": {
                "ca.crt": world.authority.certificate(), "tls.crt": files.certificate, "tls.key": files.key,
            },
        }))
        .await?;
        self.create::<ConfigMap>(json!({
            "metadata": {
                "name": names.patroni_state(LEAVER, "config"),
                "labels": labels,
                "annotations": {"initialize": "7000000000000000001"},
            },
        }))
        .await?;
        self.create::<Secret>(json!({
            "metadata": {"name": names.group_certificate(LEAVER), "labels": labels},
            "stringData": {"tls.crt": files.certificate},
        }))
        .await?;
        let image = json!([{"name": "postgres", "image": "example.org/postgres:1"}]);
        self.create::<StatefulSet>(json!({
            "metadata": {"name": names.group(LEAVER), "labels": labels},
            "spec": {
                "serviceName": "none",
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": image}},
            },
        }))
        .await?;
        self.create::<PersistentVolumeClaim>(json!({
            "metadata": {"name": names.claim(LEAVER, 0), "labels": labels},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
        }))
        .await
    }

    /// Has the operator read the resource anew.
    pub fn read(&mut self, cluster: &DialogCluster) -> Result<()> {
        self.target = target(cluster, &self.context.settings)?;
        Ok(())
    }

    pub fn all<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), self.names.namespace())
    }

    pub async fn create<K>(&self, object: Value) -> Result<()>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
        K: Clone + std::fmt::Debug + DeserializeOwned + serde::Serialize,
    {
        self.all::<K>().create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        Ok(())
    }

    pub async fn observed(&self) -> Result<Observed> {
        Ok(observe(&self.client, &self.names).await?)
    }

    pub async fn next(&self) -> Result<Option<Removal>> {
        let observed = self.observed().await?;
        // What it has begun Kubernetes brings to its end.
        if observed.leaving.contains(&LEAVER) {
            self.follow().await?;
            return Ok(Removal::next(&self.observed().await?, LEAVER));
        }
        Ok(Removal::next(&observed, LEAVER))
    }

    /// What the operator does of a removal in one reconciliation; why the worker stays.
    pub async fn step(&self, world: &World) -> Result<Vec<String>> {
        let observed = self.observed().await?;
        forget(&self.context, &self.target, &observed).await?;
        Ok(step(&self.context, &self.target, &observed, world.topology()).await?)
    }

    /// Lets Kubernetes take note of what was written: claims follow their StatefulSet, and go before it does.
    pub async fn follow(&self) -> Result<()> {
        let (sets, claims) = (self.all::<StatefulSet>(), self.all::<PersistentVolumeClaim>());
        let Some(set) = sets.get_opt(&self.names.group(LEAVER)).await? else { return Ok(()) };
        let policy = set.spec.and_then(|spec| spec.persistent_volume_claim_retention_policy);
        let claim = self.names.claim(LEAVER, 0);
        let patch = |what: Value| Patch::Merge(what);
        let how = PatchParams::default();
        if set.metadata.deletion_timestamp.is_some() {
            let owned = claims.get_opt(&claim).await?.map(|claim| claim.owner_references().to_vec());
            ensure!(
                owned.is_some_and(|owners| !owners.is_empty()),
                "the volume would outlive its StatefulSet"
            );
            let unused = patch(json!({"metadata": {"finalizers": null}}));
            claims.patch(&claim, &how, &unused).await?;
            claims.delete(&claim, &DeleteParams::default()).await?;
            sets.patch(&self.names.group(LEAVER), &how, &unused).await?;
        } else if policy.is_some_and(|policy| policy.when_deleted.as_deref() == Some("Delete")) {
            let owner = json!([{
                "apiVersion": "apps/v1", "kind": "StatefulSet", "name": self.names.group(LEAVER),
                "uid": set.metadata.uid.context("a stored object has a UID")?,
            }]);
            claims.patch(&claim, &how, &patch(json!({"metadata": {"ownerReferences": owner}}))).await?;
        }
        Ok(())
    }
}
