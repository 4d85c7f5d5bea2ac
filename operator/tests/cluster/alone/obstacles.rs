//! What stands in the way is named soon, waited for quietly, and gone when it is gone.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use dialog_operator::names::{DATABASE, Group};
use futures::future::join_all;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};

use super::operator_namespace;
use crate::bed::{Bed, CLUSTER, TO_NAME, object};

/// How long the operator is watched while it waits.
const WATCHED: Duration = Duration::from_secs(20);
/// It may look once per this time, controller and cluster.
const PACE: Duration = Duration::from_secs(5);
/// No image has this name, and no resolver takes its time to say so.
const IMAGE: &str = "127.0.0.1:1/no/such/image:1";

/// Something that keeps a cluster from being ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Obstacle {
    /// An image that cannot be pulled.
    Image,
    /// A StorageClass that does not exist.
    MissingClass,
    /// A StorageClass whose provisioner refuses.
    RefusingClass,
    /// A StorageClass whose provisioner nobody serves.
    UnservedClass,
    /// A pod that fits no node.
    Placement,
    /// A server that takes connections and says nothing: its postmaster is stopped.
    SilentDatabase,
    /// A database that refuses connections.
    ClosedDatabase,
}

impl Obstacle {
    const ALL: [Self; 7] = [
        Self::Image,
        Self::MissingClass,
        Self::RefusingClass,
        Self::UnservedClass,
        Self::Placement,
        Self::SilentDatabase,
        Self::ClosedDatabase,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::MissingClass => "missing-class",
            Self::RefusingClass => "refusing-class",
            Self::UnservedClass => "unserved-class",
            Self::Placement => "placement",
            Self::SilentDatabase => "silent-database",
            Self::ClosedDatabase => "closed-database",
        }
    }

    /// The reason by which it is to be named, and what the sentence has to hold.
    fn named_as(self, bed: &Bed) -> (&'static str, String) {
        let claim = bed.names.claim(Group::Coordinator, 0);
        match self {
            Self::Image => ("ImagePullFailed", IMAGE.to_owned()),
            Self::MissingClass => ("StorageClassMissing", class_of(bed)),
            Self::RefusingClass => ("VolumeNotProvisioned", claim),
            Self::UnservedClass => ("VolumePending", claim),
            Self::Placement => ("Unschedulable", bed.names.pod(Group::Coordinator, 0)),
            Self::SilentDatabase | Self::ClosedDatabase => {
                ("DatabaseUnreachable", bed.names.host(Group::Coordinator))
            }
        }
    }

    /// A cluster before the obstacle.
    async fn cluster(self, bed: &Bed) -> Result<()> {
        match self {
            Self::RefusingClass => {
                // local-path-provisioner makes volumes below its own folders only.
                let elsewhere = json!({"nodePath": "/not/one/of/its/folders"});
                create_class(bed, &standard(bed).await?.provisioner, Some(elsewhere)).await?;
            }
            Self::UnservedClass => create_class(bed, "example.com/nobody", None).await?,
            _ => {}
        }
        match self {
            Self::Image => bed.create(0, |spec| spec["image"] = json!(IMAGE)).await,
            Self::MissingClass | Self::RefusingClass | Self::UnservedClass => {
                let class = class_of(bed);
                bed.create(0, |spec| spec["coordinator"]["storage"]["className"] = json!(class)).await
            }
            Self::Placement => {
                let label = node_label(bed);
                let placement = json!({"nodeSelector": {label: "yes"}});
                bed.create(0, |spec| spec["coordinator"]["placement"] = placement).await
            }
            Self::SilentDatabase | Self::ClosedDatabase => {
                bed.create(0, |_| {}).await?;
                bed.ready().await?;
                self.mistake(bed).await
            }
        }
    }

    /// A wrong value in the object of a cluster that serves, before the obstacle itself.
    async fn mistake(self, bed: &Bed) -> Result<()> {
        let (mistake, correction, reason, part) = if self == Self::SilentDatabase {
            (json!({"image": IMAGE}), json!({"image": null}), "ImagePullFailed", IMAGE)
        } else {
            let class = |name: Option<&str>| json!({"ingress": {"className": name}});
            (class(Some("no-such-class")), class(None), "IngressClassMissing", "no-such-class")
        };
        bed.patch(json!({"api": mistake})).await?;
        let condition = bed.refused(reason, TO_NAME).await?;
        bed.say(&condition.message);
        ensure!(condition.message.contains(part), "{part} is not named: {}", condition.message);
        bed.patch(json!({"api": correction})).await?;
        bed.ready().await.map(drop)
    }

    /// Puts it in the way of a cluster that serves; the others stand there from the beginning.
    fn appear(self, bed: &Bed) -> Result<()> {
        match self {
            Self::SilentDatabase => signal(bed, "STOP"),
            Self::ClosedDatabase => allow_connections(bed, false),
            _ => Ok(()),
        }
    }

    /// Takes it out of the way.
    async fn vanish(self, bed: &Bed) -> Result<()> {
        match self {
            Self::Image => bed.patch(json!({"image": null})).await,
            Self::MissingClass => create_class(bed, &standard(bed).await?.provisioner, None).await,
            Self::RefusingClass | Self::UnservedClass => {
                // A class cannot be changed, only be replaced.
                delete_class(bed).await?;
                create_class(bed, &standard(bed).await?.provisioner, None).await
            }
            Self::Placement => mark_node(bed, Some("yes")).await,
            Self::SilentDatabase => signal(bed, "CONT"),
            Self::ClosedDatabase => allow_connections(bed, true),
        }
    }

    /// Takes away what is in no namespace.
    async fn tidy(self, bed: &Bed) -> Result<()> {
        match self {
            Self::MissingClass | Self::RefusingClass | Self::UnservedClass => delete_class(bed).await,
            Self::Placement => mark_node(bed, None).await,
            // A pod with a postmaster that does not listen to signals takes minutes to end.
            Self::SilentDatabase => signal(bed, "CONT"),
            Self::Image | Self::ClosedDatabase => Ok(()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn obstacles_are_named_waited_for_quietly_and_overcome() -> Result<()> {
    let mut beds = Vec::new();
    for obstacle in Obstacle::ALL {
        beds.push((obstacle, Bed::new(obstacle.name()).await?));
    }
    let outcome = all_obstacles(&beds).await;
    for (obstacle, bed) in &beds {
        // After a failure, there may be nothing to take away.
        if let Err(error) = obstacle.tidy(bed).await {
            bed.say(format!("tidying up: {error:#}"));
        }
    }
    // All namespaces at once: each takes its time to go.
    std::thread::scope(|scope| {
        for (_, bed) in beds {
            let overcome = outcome.is_ok();
            scope.spawn(move || if overcome { bed.done() } else { drop(bed) });
        }
    });
    outcome
}

async fn all_obstacles(beds: &[(Obstacle, Bed)]) -> Result<()> {
    // Clusters that start take the machine for themselves, and may not count against those that wait.
    for serves in [true, false] {
        let some = beds.iter().filter(|(obstacle, _)| {
            serves == matches!(obstacle, Obstacle::SilentDatabase | Obstacle::ClosedDatabase)
        });
        all(some.map(async |(obstacle, bed)| {
            let named = async {
                obstacle.cluster(bed).await?;
                obstacle.appear(bed)?;
                let (reason, part) = obstacle.named_as(bed);
                let condition = bed.refused(reason, TO_NAME).await?;
                bed.say(&condition.message);
                ensure!(condition.message.contains(&part), "{part} is not named: {}", condition.message);
                Ok(())
            };
            named.await.with_context(|| format!("{obstacle:?}"))
        }))
        .await?;
    }
    assert_wait_quietly(beds).await?;
    all(beds.iter().map(async |(obstacle, bed)| {
        let overcome = async {
            obstacle.vanish(bed).await?;
            bed.ready().await?;
            bed.talk().map(drop)
        };
        overcome.await.with_context(|| format!("{obstacle:?} is gone"))
    }))
    .await
}

/// Awaits all, and fails with everything that failed.
async fn all(each: impl Iterator<Item = impl Future<Output = Result<()>>>) -> Result<()> {
    let failed: Vec<_> = join_all(each).await.into_iter().filter_map(Result::err).collect();
    if failed.is_empty() {
        return Ok(());
    }
    bail!("{}", failed.iter().map(|error| format!("{error:#}")).collect::<Vec<_>>().join("\n"))
}

/// The operator's pod, and how often its container was started anew.
async fn operator(client: &Client) -> Result<(String, i32)> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), &operator_namespace());
    let labels = ListParams::default().labels("app.kubernetes.io/component=operator");
    let pod = pods.list(&labels).await?.into_iter().next().context("there is no operator")?;
    let containers = pod.status.iter().flat_map(|status| &status.container_statuses).flatten();
    Ok((pod.name_any(), containers.map(|container| container.restart_count).sum()))
}

/// The operator must not spin while it can only wait for something.
async fn assert_wait_quietly(beds: &[(Obstacle, Bed)]) -> Result<()> {
    let (_, any) = beds.first().context("no obstacles")?;
    let before = operator(&any.client).await?;
    let since = Timestamp::now();
    tokio::time::sleep(WATCHED).await;
    ensure!(operator(&any.client).await? == before, "the operator has crashed or was replaced");
    let namespace = operator_namespace();
    let log =
        any.kubectl(&["logs", &before.0, "--namespace", &namespace, "--since-time", &since.to_string()])?;
    let lines: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    // One more, because the interval begins anywhere.
    let allowed = usize::try_from(WATCHED.as_secs() / PACE.as_secs())? + 1;
    for (obstacle, bed) in beds {
        for controller in ["cluster", "shards"] {
            let key = format!("/{CLUSTER}.{}", bed.names.namespace());
            let count = lines.iter().filter(|line| {
                line["message"] == "reconciled"
                    && line["controller"] == controller
                    && line["cluster"].as_str().is_some_and(|cluster| cluster.ends_with(&key))
            });
            let count = count.count();
            bed.say(format!("{controller}: {count} reconciliations in {} s of waiting", WATCHED.as_secs()));
            // None at all would mean that they are not logged, and nothing could be counted.
            ensure!(
                (1..=allowed).contains(&count),
                "{obstacle:?}: {count} reconciliations by {controller} in {} s of waiting",
                WATCHED.as_secs()
            );
        }
    }
    Ok(())
}

/// The StorageClass of a test, and the label of the node that its pod fits: both are in no namespace.
pub(super) fn class_of(bed: &Bed) -> String {
    bed.names.namespace().to_owned()
}

fn node_label(bed: &Bed) -> String {
    format!("dialogcluster.io/{}", bed.names.namespace())
}

/// The class that this Kubernetes has.
pub(super) async fn standard(bed: &Bed) -> Result<StorageClass> {
    let all: Api<StorageClass> = Api::all(bed.client.clone());
    let is_default = |class: &StorageClass| {
        let default = "storageclass.kubernetes.io/is-default-class";
        class.metadata.annotations.as_ref().and_then(|all| all.get(default)).is_some_and(|is| is == "true")
    };
    let found = all.list(&ListParams::default()).await?.into_iter().find(is_default);
    found.context("this cluster has no default StorageClass")
}

pub(super) async fn create_class(bed: &Bed, provisioner: &str, parameters: Option<Value>) -> Result<()> {
    let all: Api<StorageClass> = Api::all(bed.client.clone());
    let class = object(json!({
        "metadata": {"name": class_of(bed)},
        "provisioner": provisioner,
        "parameters": parameters,
        "volumeBindingMode": "WaitForFirstConsumer",
    }))?;
    all.create(&PostParams::default(), &class).await?;
    Ok(())
}

pub(super) async fn delete_class(bed: &Bed) -> Result<()> {
    let all: Api<StorageClass> = Api::all(bed.client.clone());
    all.delete(&class_of(bed), &DeleteParams::default()).await?;
    Ok(())
}

async fn mark_node(bed: &Bed, value: Option<&str>) -> Result<()> {
    let nodes: Api<Node> = Api::all(bed.client.clone());
    let node = nodes.list(&ListParams::default()).await?.into_iter().next();
    let node = node.and_then(|node| node.metadata.name).context("this cluster has no node")?;
    let mark = Patch::Merge(json!({"metadata": {"labels": {node_label(bed): value}}}));
    nodes.patch(&node, &PatchParams::default(), &mark).await?;
    Ok(())
}

/// Sends a signal to the postmaster, and to it alone.
fn signal(bed: &Bed, signal: &str) -> Result<()> {
    let kill = format!("kill -{signal} $(head -n 1 $PGDATA/postmaster.pid)");
    bed.exec(&bed.names.pod(Group::Coordinator, 0), &["sh", "-c", &kill]).map(drop)
}

/// Whether the database lets anybody in; asked for in another database of the server.
fn allow_connections(bed: &Bed, allowed: bool) -> Result<()> {
    let statement = format!("ALTER DATABASE {DATABASE} ALLOW_CONNECTIONS {allowed}");
    let psql = ["psql", "-XAtq", "-U", "postgres", "-d", "postgres", "-c", &statement];
    bed.exec(&bed.names.pod(Group::Coordinator, 0), &psql).map(drop)
}
