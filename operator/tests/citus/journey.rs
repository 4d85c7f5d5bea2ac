//! A cluster's life, by operators that are killed after every single step, or at any moment.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use dialog_operator::names::Group;
use dialog_operator::shards::observe::Sizes;
use dialog_operator::shards::round::round;
use dialog_operator::shards::step::{KINDS, Step};

use crate::needs_citus;
use crate::world::{World, placements, reference, wanted};

/// Each kind of step is performed here, and the operator that performed it ends at once: a step that is added to the
/// plan and not to this journey fails the test.
#[tokio::test]
async fn an_operator_that_ends_after_any_step_is_continued_by_the_next() -> Result<()> {
    needs_citus!();
    let mut world = World::start(2)?;
    let mut wanted = wanted(2);
    let mut steps = Vec::new();

    // Up to the migrations; dialog-api cannot get in before the database has the extension.
    loop {
        let round = world.round_of(&wanted, 1).await?;
        assert!(round.failed.is_empty(), "{:?}", round.failed);
        let ready = "SELECT count(*) FROM pg_extension WHERE extname = 'citus'";
        if world.api(Group::Coordinator).await.is_ok() {
            assert_eq!(world.number(Group::Coordinator, ready).await?, 1);
        }
        if round.performed.is_empty() {
            break;
        }
        steps.extend(round.performed);
    }
    assert!(!steps.iter().any(|step| matches!(step, Step::DistributeTable(_))));
    world.migrate().await?;
    steps.extend(world.settle_by(&wanted, 1).await?);

    // A reference table, and a table with rows beside the others.
    let api = world.api(Group::Coordinator).await?;
    api.run("CREATE TABLE emoji (code text PRIMARY KEY); INSERT INTO emoji VALUES ('x'), ('y')").await?;
    api.run(
        "CREATE TABLE pins (dialog_id uuid, message_id uuid, PRIMARY KEY (dialog_id, message_id));
         INSERT INTO pins SELECT gen_random_uuid(), gen_random_uuid() FROM generate_series(1, 1000)",
    )
    .await?;
    wanted.tables.push(reference("emoji"));
    wanted.tables.push(crate::world::distributed("pins", "dialog_id", "dialog"));
    steps.extend(world.settle_by(&wanted, 1).await?);
    assert_eq!(api.query_one("SELECT count(*) FROM pins", &[]).await?.get::<_, i64>(0), 1000);

    // One more worker lacks the reference table's copy.
    world.add(Group::Worker(2))?;
    wanted.workers = 3;
    steps.extend(world.settle_by(&wanted, 1).await?);
    assert_eq!(world.number(Group::Worker(2), "SELECT count(*) FROM emoji").await?, 2);

    // Somebody changes everything by hand.
    let port = world.server(Group::Worker(2)).port();
    world
        .ask(
            Group::Coordinator,
            "SELECT citus_set_node_property(nodename, nodeport, 'shouldhaveshards', true)
             FROM pg_dist_node WHERE groupid = 0",
        )
        .await?;
    // Its copies of reference tables go away with it, so it may be disabled; the others follow in their own time.
    world.ask(Group::Coordinator, &format!("SELECT citus_disable_node('localhost', {port}, true)")).await?;
    for statement in [
        "ALTER DATABASE dialog OWNER TO postgres",
        "ALTER SYSTEM SET wal_level = 'replica'",
        "ALTER SYSTEM SET max_wal_senders = 3",
    ] {
        world.server(Group::Worker(0)).connect("postgres").await?.batch_execute(statement).await?;
    }
    steps.extend(world.settle_by(&wanted, 1).await?);

    let performed: BTreeSet<&str> = steps.iter().map(Step::kind).collect();
    assert_eq!(performed, KINDS.into_iter().collect::<BTreeSet<_>>());
    let at_rest = world.round(&wanted).await?;
    assert!(at_rest.performed.is_empty() && at_rest.is_settled(), "{:?}", at_rest.plan);
    Ok(())
}

#[tokio::test]
async fn an_operator_that_ends_in_the_middle_of_anything_is_continued_by_the_next() -> Result<()> {
    needs_citus!();
    let world = World::start(2)?;
    let wanted = wanted(2);
    let mut cut_short = 0;
    let mut migrated = false;
    // Ever later moments, so that each statement is hit sooner or later and the last operator comes through.
    for moment in 0_u64.. {
        let (sessions, existing) = (world.sessions()?, world.existing());
        let attempt = round(&wanted, &existing, &sessions, Sizes::Skip, usize::MAX);
        match tokio::time::timeout(Duration::from_millis(5 + moment * 15), attempt).await {
            Err(_) => cut_short += 1,
            Ok(round) if round.is_settled() && !migrated => {
                world.migrate().await?;
                migrated = true;
            }
            Ok(round) if round.is_settled() => break,
            // What an operator began is finished by the server before the next one gets the lock.
            Ok(_) => {}
        }
        assert!(moment < 300, "never at rest");
    }
    assert!(cut_short > 5, "only {cut_short} operators were cut short");
    let placements = placements(&world).await?;
    assert_eq!(placements.len(), 2 * wanted.tables.len(), "{placements:?}");
    assert!(placements.iter().all(|(_, group_id, shards)| *group_id > 0 && *shards == 24), "{placements:?}");
    assert!(world.round(&wanted).await?.performed.is_empty());
    Ok(())
}
