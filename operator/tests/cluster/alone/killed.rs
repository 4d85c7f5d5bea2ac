//! An operator that dies at any moment.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Api;
use kube::api::{DeleteParams, ListParams};

use super::{operator_namespace, two_workers};
use crate::bed::Bed;

/// It leaves nothing half done for the next: the end is the same, and what is made once (certificates, keys) is made
/// once.
#[tokio::test(flavor = "multi_thread")]
async fn killing_the_operator_at_random_changes_nothing_in_the_end() -> Result<()> {
    let bed = Bed::new("killed").await?;
    let namespace = operator_namespace();
    let operators: Api<Pod> = Api::namespaced(bed.client.clone(), &namespace);
    bed.create(if Bed::has_citus() { 2 } else { 0 }, |_| {}).await?;
    let mut secrets = BTreeMap::new();
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(rand::random_range(200..5_000))).await;
        let at_once = DeleteParams::default().grace_period(0);
        let labels = ListParams::default().labels("app.kubernetes.io/component=operator");
        let killed = operators.list(&labels).await?;
        ensure!(!killed.items.is_empty(), "there is no operator to kill in namespace {namespace}");
        operators.delete_collection(&at_once, &labels).await?;
        let uids: Vec<_> = killed.iter().map(|pod| pod.metadata.uid.clone()).collect();
        bed.eventually("the operator's pod is gone", Duration::from_secs(30), || async {
            let left = operators.list(&labels).await?;
            Ok(left.iter().find(|pod| uids.contains(&pod.metadata.uid)).map(kube::ResourceExt::name_any))
        })
        .await?;
        for (name, data) in contents(&bed).await? {
            let first = secrets.entry(name.clone()).or_insert_with(|| data.clone());
            ensure!(*first == data, "Secret {name} was made a second time");
        }
    }
    if Bed::has_citus() {
        two_workers::assert_serve(&bed).await?;
    } else {
        bed.ready().await?;
        bed.talk()?;
    }
    for (name, data) in contents(&bed).await? {
        ensure!(
            secrets.get(&name).is_none_or(|first| *first == data),
            "Secret {name} was made a second time"
        );
    }
    bed.done();
    Ok(())
}

/// The Secrets of the cluster, by name, as bytes.
async fn contents(bed: &Bed) -> Result<BTreeMap<String, Vec<u8>>> {
    let found = bed.all::<Secret>().list(&ListParams::default().labels("dialogcluster.io/cluster")).await?;
    let bytes = |secret: Secret| {
        let data =
            secret.data.into_iter().flatten().flat_map(|(key, value)| [key.into_bytes(), value.0].concat());
        (secret.metadata.name.unwrap_or_default(), data.collect())
    };
    Ok(found.into_iter().map(bytes).collect())
}
