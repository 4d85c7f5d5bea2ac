//! What somebody else's splits have left, and what a split leaves whose servers ended in the middle of it.

use std::time::Duration;

use anyhow::{Result, ensure};
use dialog_operator::condition::BALANCED;
use dialog_operator::names::Group;
use dialog_operator::shards::heat::actions::Outcome;
use testbed::postgres::Shutdown;

use crate::acting::{DIALOG, decide_while_written, with_a_large_shard};
use crate::isolation::{assert_nothing_is_left, covering, decide, hash, isolation, outcome, serving};
use crate::needs_citus;
use crate::operator::Operator;
use crate::world::condition;

/// What a split needs, with the names that Citus gives, and no note of any of it.
const LEFT: [&str; 5] = [
    "SELECT pg_create_logical_replication_slot('citus_shard_split_slot_9_10_4711', 'pgoutput')",
    "CREATE PUBLICATION citus_shard_split_publication_9_10_4711",
    "CREATE ROLE citus_shard_split_subscription_role_10_4711 SUPERUSER",
    "CREATE SUBSCRIPTION citus_shard_split_subscription_10_4711 CONNECTION 'dbname=nowhere'
     PUBLICATION nothing WITH (connect = false, slot_name = NONE, enabled = false, create_slot = false)",
    "CREATE TABLE public.messages_999999 (LIKE public.messages)",
];

/// What takes that away, as the condition says.
const REMEDIES: [&str; 5] = [
    "SELECT pg_drop_replication_slot('citus_shard_split_slot_9_10_4711')",
    "DROP PUBLICATION \"citus_shard_split_publication_9_10_4711\"",
    "DROP ROLE \"citus_shard_split_subscription_role_10_4711\"",
    "ALTER SUBSCRIPTION \"citus_shard_split_subscription_10_4711\" DISABLE; ALTER SUBSCRIPTION \
     \"citus_shard_split_subscription_10_4711\" SET (slot_name = NONE); DROP SUBSCRIPTION \
     \"citus_shard_split_subscription_10_4711\"",
    "DROP TABLE public.messages_999999",
];

#[tokio::test]
async fn what_somebody_else_has_left_is_named_and_left_and_in_nobodys_way() -> Result<()> {
    needs_citus!();
    let (world, wanted) = serving().await?;
    assert_eq!(condition(&world.round(&wanted).await?, BALANCED).1, "Balanced");
    let client = world.ask_client(Group::Worker(1)).await?;
    for statement in LEFT {
        client.batch_execute(&format!("SET citus.enable_ddl_propagation = off; {statement}")).await?;
    }
    let (status, reason, message) = condition(&world.round(&wanted).await?, BALANCED);
    assert_eq!((status, reason), ("True", "LeftBehind"), "{message}");
    assert!(message.contains("on worker-1 ") && message.contains("; and 2 more"), "{message}");

    // An action is not kept by it, neither its split nor its end.
    let small = hash(&world, DIALOG).await?;
    let id = decide(&world, isolation(&world, small).await?).await?;
    world.settle(&wanted).await?;
    let act = outcome(&world.round(&wanted).await?, id).await?;
    assert_eq!((act.outcome, act.attempts), (Some(Outcome::Done), 1), "{:?}", act.note);

    // Each is there until somebody does what is said; all are named sooner or later.
    for remedy in REMEDIES {
        let (_, reason, before) = condition(&world.round(&wanted).await?, BALANCED);
        assert_eq!(reason, "LeftBehind", "{before}");
        client.batch_execute(&format!("SET citus.enable_ddl_propagation = off; {remedy}")).await?;
    }
    let (_, reason, message) = condition(&world.round(&wanted).await?, BALANCED);
    assert_eq!(reason, "Balanced", "{message}");
    assert_nothing_is_left(&world, 3).await
}

/// The coordinator ends when parts of the shard are copied: parts, slots and publications are on the workers, and Citus has
/// noted all of them.
#[tokio::test]
async fn a_split_whose_coordinator_ends_is_made_anew_and_its_parts_are_nobodys_orphans() -> Result<()> {
    needs_citus!();
    let (mut world, wanted, large) = with_a_large_shard().await?;
    let source = covering(&world, large).await?.node;
    let (id, writer) = decide_while_written(&world, large).await?;
    let mut operator = Operator::default();
    operator.until_held(&world, &wanted, source).await?;
    let noted = world.number(Group::Coordinator, "SELECT count(*) FROM pg_dist_cleanup").await?;
    ensure!(noted > 0, "nothing is there yet");
    let (_, reason, message) = condition(&operator.round(&world, &wanted).await?, BALANCED);
    assert_ne!(reason, "LeftBehind", "{message}");
    world.server(Group::Coordinator).stop(Shutdown::Immediate)?;
    world.server(Group::Coordinator).start()?;
    writer.batch_execute("ROLLBACK").await?;
    // Another operator goes on; what the first one has begun is gone.
    let mut next = Operator::default();
    next.settle(&world, &wanted, Duration::from_mins(3)).await?;
    let round = world.round(&wanted).await?;
    assert_eq!(condition(&round, BALANCED).1, "Balanced");
    let act = outcome(&round, id).await?;
    assert_eq!((act.outcome, act.attempts), (Some(Outcome::Done), 2), "{:?}", act.note);
    assert_eq!(covering(&world, large).await?.range.min, large);
    assert_nothing_is_left(&world, 3).await
}
