//! An operator that dies at any moment.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::api::ListParams;

use super::{kill_operator, two_workers};
use crate::bed::Bed;

/// It leaves nothing half done for the next: the end is the same, and what is made once (certificates, keys) is made
/// once.
#[tokio::test(flavor = "multi_thread")]
async fn killing_the_operator_at_random_changes_nothing_in_the_end() -> Result<()> {
    let bed = Bed::new("killed").await?;
    bed.create(if Bed::has_citus() { 2 } else { 0 }, |_| {}).await?;
    let mut secrets = BTreeMap::new();
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(rand::random_range(200..5_000))).await;
        kill_operator(&bed).await?;
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
