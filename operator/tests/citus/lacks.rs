//! What a move needs of its servers and lacks is named before it begins, and it begins when that is there.

use anyhow::{Context, Result};
use dialog_operator::names::Group;
use dialog_operator::shards::step::Step;

use crate::needs_citus;
use crate::world::{World, closed, eventually, few_shards, gated, store_messages, with_an_empty_worker};

/// What `reason` is said to be of the moves that are planned now; empty if it is no reason.
async fn lacking(world: &World, reason: &str) -> Result<String> {
    let round = world.round_of(&few_shards(2), 0).await?;
    let checks = &round.plan.moves.as_ref().context("no moves are planned")?.checks;
    let named = checks.iter().find(|check| check.reason == reason);
    // Whatever is said of a move, it does not begin.
    let begins = round.plan.steps.iter().any(|step| matches!(step, Step::MoveShard { .. }));
    assert!(named.is_none() || !begins, "{checks:?}, and yet {:?}", round.plan.steps);
    Ok(named.map(|check| check.message.clone()).unwrap_or_default())
}

#[tokio::test]
async fn slots_and_old_transactions_are_named_and_waited_for() -> Result<()> {
    needs_citus!();
    let source = Group::Worker(0);
    let world = with_an_empty_worker().await?;
    store_messages(&world, 1, "'text'").await?;
    let take = "SELECT pg_create_physical_replication_slot('idle_' || number) FROM generate_series(2, (
                    SELECT current_setting('max_replication_slots')::int - count(*)::int FROM pg_replication_slots)) AS number";
    world.ask(source, take).await?;
    let message = lacking(&world, "NoReplicationSlot").await?;
    assert!(
        message.starts_with("worker-0 has 1 replication slots free and a move needs 2: drop slots"),
        "{message}"
    );
    let drop =
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name LIKE 'idle_%'";
    world.ask(source, drop).await?;
    assert_eq!(lacking(&world, "NoReplicationSlot").await?, "");

    // Three who write and do not end, each in another way: from now on they grow old.
    let through = world.ask_client(Group::Coordinator).await?;
    through.batch_execute("BEGIN; UPDATE public.messages SET text = 'open'").await?;
    let origin: i32 = through.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
    let local = world.ask_client(source).await?;
    local
        .batch_execute("SET citus.enable_ddl_propagation = off; BEGIN; CREATE TABLE public.local ()")
        .await?;
    let pid: i32 = local.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
    let prepared = world.ask_client(source).await?;
    let forgotten = "SET citus.enable_ddl_propagation = off; BEGIN; CREATE TABLE public.prepared ()";
    prepared.batch_execute(&format!("{forgotten}; PREPARE TRANSACTION 'forgotten'")).await?;

    assert_eq!(lacking(&world, "LongTransaction").await?, "", "none is a minute old");
    for (who, remedy) in [
        (
            format!(
                "a transaction that came through coordinator (pid {origin} there) on worker-0 has written"
            ),
            format!("SELECT pg_terminate_backend({origin}) on coordinator"),
        ),
        (
            format!("a transaction of testbed (pid {pid}) on worker-0 has written"),
            format!("SELECT pg_terminate_backend({pid}) there"),
        ),
        (
            "the prepared transaction forgotten on worker-0 has written".to_owned(),
            "ROLLBACK PREPARED 'forgotten'".to_owned(),
        ),
    ] {
        let mut message = String::new();
        eventually("the transaction is old", async || {
            message = lacking(&world, "LongTransaction").await?;
            Ok(message.starts_with(&who))
        })
        .await
        .with_context(|| format!("{message}, not {who}"))?;
        assert!(message.contains(" s, and a move waits for it: ") && message.contains(&remedy), "{message}");
        let node = if remedy.ends_with("on coordinator") { Group::Coordinator } else { source };
        let end = remedy.trim_end_matches(" on coordinator").trim_end_matches(" there");
        world.ask_client(node).await?.batch_execute(end).await?;
    }
    eventually("moves begin", async || {
        let round = world.round_of(&few_shards(2), 0).await?;
        Ok(round.plan.steps.iter().any(|step| matches!(step, Step::MoveShard { .. })))
    })
    .await
}

#[tokio::test]
async fn senders_and_background_workers_are_named() -> Result<()> {
    needs_citus!();
    let mut world = World::start(0)?;
    world.add_with(Group::Worker(0), |builder| builder.parameter("max_wal_senders", "1"))?;
    world.serve(&few_shards(1)).await?;
    world.add_with(Group::Worker(1), |builder| builder.parameter("max_worker_processes", "3"))?;
    world.settle(&gated(2, closed())).await?;
    let message = lacking(&world, "NoWalSender").await?;
    assert!(
        message.starts_with("worker-0 has 1 WAL senders free and a move needs 2: see pg_stat_replication"),
        "{message}"
    );
    let message = lacking(&world, "NoBackgroundWorker").await?;
    let expected = "worker-1 has ";
    assert!(message.starts_with(expected), "{message}");
    assert!(
        message.contains(" background workers free and a move needs 2: see pg_stat_activity"),
        "{message}"
    );
    Ok(())
}
