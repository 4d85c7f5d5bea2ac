//! From empty servers to a cluster at rest.

use anyhow::Result;
use dialog_operator::condition::{
    BALANCED, CITUS_AVAILABLE, METADATA_SYNCED, SCALE_IN_BLOCKED, SCHEMA_DISTRIBUTED, WAL_LEVEL_LOGICAL,
};
use dialog_operator::names::Group;

use crate::needs_citus;
use crate::world::{World, condition, wanted};

const PLACEMENTS: &str = "SELECT t.logicalrelid::text, p.groupid, count(*)
    FROM pg_dist_partition t JOIN pg_dist_shard USING (logicalrelid) JOIN pg_dist_placement p USING (shardid)
    GROUP BY 1, 2 ORDER BY 1, 2";

#[tokio::test]
async fn empty_servers_become_a_cluster_and_stay_one() -> Result<()> {
    needs_citus!();
    let world = World::start(2)?;
    let wanted = wanted(2);

    let first = world.round(&wanted).await?;
    assert!(first.failed.is_empty(), "{:?}", first.failed);
    assert_eq!(condition(&first, SCHEMA_DISTRIBUTED).1, "TablesMissing");
    world.migrate().await?;
    let steps = world.settle(&wanted).await?;
    assert_eq!(steps.len(), wanted.tables.len(), "one step per table: {steps:?}");

    let placements: Vec<(String, i32, i64)> = world
        .ask(Group::Coordinator, PLACEMENTS)
        .await?
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect();
    assert_eq!(placements.len(), 12, "{placements:?}");
    assert!(placements.iter().all(|(_, group_id, shards)| *group_id > 0 && *shards == 24), "{placements:?}");

    let round = world.round(&wanted).await?;
    assert_eq!((round.performed, round.plan.steps), (vec![], vec![]), "a cluster at rest is left alone");
    for (kind, status) in [
        (CITUS_AVAILABLE, "True"),
        (METADATA_SYNCED, "True"),
        (WAL_LEVEL_LOGICAL, "True"),
        (SCHEMA_DISTRIBUTED, "True"),
        (BALANCED, "True"),
        (SCALE_IN_BLOCKED, "False"),
    ] {
        let finding = round.plan.findings.iter().find(|finding| finding.kind == kind).unwrap();
        assert_eq!(finding.holds.as_str(), status, "{finding:?}");
    }
    Ok(())
}
