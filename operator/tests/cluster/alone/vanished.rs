//! A StorageClass that is deleted under a cluster that is to grow.

use anyhow::{Result, ensure};
use dialog_operator::names::Group;
use serde_json::{Value, json};

use super::obstacles::{class_of, create_class, delete_class, standard};
use super::until_halved;
use crate::bed::{Bed, CLUSTER, TO_NAME, TO_SERVE};

/// Shards of each table: a few moves say as much as many.
const SHARDS: i32 = 4;

/// The new worker's claim waits and says for what; the others serve on; and it goes on when the class is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_class_that_vanishes_keeps_a_new_worker_waiting_and_nobody_else() -> Result<()> {
    if !Bed::has_citus() {
        println!("SKIPPED citus: the PostgreSQL image was built without the extension");
        return Ok(());
    }
    let bed = Bed::new("vanished").await?;
    let outcome = grow(&bed).await;
    // It is in no namespace.
    if let Err(error) = delete_class(&bed).await {
        bed.say(format!("tidying up: {error:#}"));
    }
    outcome?;
    bed.done();
    Ok(())
}

async fn grow(bed: &Bed) -> Result<()> {
    let (class, provisioner) = (class_of(bed), standard(bed).await?.provisioner);
    create_class(bed, &provisioner, None).await?;
    let change = |spec: &mut Value| {
        spec["workers"]["storage"]["className"] = json!(class);
        spec["sharding"] = json!({"shardCount": SHARDS});
    };
    bed.create(1, change).await?;
    bed.ready().await?;
    let (ada, grace, message) = bed.talk()?;

    delete_class(bed).await?;
    bed.kubectl(&["scale", "dlg", CLUSTER, "--replicas=2"])?;
    let found = bed.refused("StorageClassMissing", TO_NAME).await?;
    bed.say(&found.message);
    let claim = bed.names.claim(Group::Worker(1), 0);
    for part in [format!("claim {claim}"), format!("StorageClass {class}"), "create it".to_owned()] {
        ensure!(found.message.contains(&part), "{part:?} is not said: {}", found.message);
    }
    // Nothing is moved to a worker that is not there, and who is there serves on.
    let balanced =
        bed.condition("Balanced", "told what moves wait for", TO_NAME, |it| it.status == "False").await?;
    ensure!(
        balanced.reason == "WorkersMissing" && balanced.message.contains("worker-1"),
        "{}: {}",
        balanced.reason,
        balanced.message
    );
    bed.still_listed(&ada, &grace, &message)?;

    create_class(bed, &provisioner, None).await?;
    bed.ready().await?;
    until_halved(bed, SHARDS, TO_SERVE).await?;
    bed.still_listed(&ada, &grace, &message)
}
