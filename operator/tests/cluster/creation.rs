//! One node, with Citus in its image and without.

use anyhow::{Context as _, Result, ensure};
use dialog_operator::condition::{CITUS_AVAILABLE, METADATA_SYNCED, SCHEMA_DISTRIBUTED};
use serde_json::json;

use crate::bed::{Bed, TO_NOTICE, TO_SERVE};

/// What the image without Citus says, whatever is asked for.
const NO_EXTENSION: &str = "the image has no Citus extension";
const REMEDY: &str = "for shards set spec.image to one that has it";

#[tokio::test(flavor = "multi_thread")]
async fn without_citus_one_node_serves_and_workers_wait_for_an_image_that_has_it() -> Result<()> {
    let image = std::env::var("DIALOG_IMAGE_WITHOUT_CITUS").context("xtask names the image")?;
    let bed = Bed::new("without-citus").await?;
    bed.create(0, |spec| spec["image"] = json!(image)).await?;
    bed.ready().await?;
    let citus = bed.condition(CITUS_AVAILABLE, "reported", TO_NOTICE, |_| true).await?;
    ensure!((citus.status.as_str(), citus.reason.as_str()) == ("False", "NotInImage"), "{citus:?}");
    let message = citus.message;
    ensure!(message.contains(NO_EXTENSION) && message.contains("the coordinator serves"), "{message}");
    ensure!(message.contains(REMEDY), "{message}");
    let (ada, grace, said) = bed.talk()?;

    bed.patch(json!({"workers": {"count": 1}})).await?;
    let message = bed.refused("CitusMissing", TO_NOTICE).await?.message;
    let without = "without the workers asked for (1)";
    ensure!([NO_EXTENSION, without, REMEDY].iter().all(|part| message.contains(part)), "{message}");
    bed.still_listed(&ada, &grace, &said)?;

    if Bed::has_citus() {
        // The operator's own image has it: the cause is gone, and the rows go to the worker.
        bed.patch(json!({"image": null})).await?;
        for kind in [CITUS_AVAILABLE, METADATA_SYNCED, SCHEMA_DISTRIBUTED] {
            bed.condition(kind, kind, TO_SERVE, |condition| condition.status == "True").await?;
        }
    } else {
        bed.patch(json!({"workers": {"count": 0}})).await?;
    }
    bed.ready().await?;
    bed.still_listed(&ada, &grace, &said)?;
    bed.done();
    Ok(())
}
