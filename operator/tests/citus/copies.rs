//! Copies of reference tables that cannot be made: what keeps them is named, and nothing else waits for it without end.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use dialog_operator::condition::{BALANCED, SCALE_IN_BLOCKED, SCHEMA_DISTRIBUTED};
use dialog_operator::names::Group;
use dialog_operator::shards::observed::Operation;
use dialog_operator::shards::step::Step;
use dialog_operator::shards::wanted::Wanted;
use tokio_postgres::Client;

use crate::needs_citus;
use crate::operator::Operator;
use crate::world::{World, condition, eventually, few_shards};

/// How long a copy may make no progress here.
const STALL: Duration = Duration::from_secs(2);
/// Until a cause is named.
const LIMIT: Duration = Duration::from_mins(2);
/// Until all shards are moved.
const TO_REST: Duration = Duration::from_mins(10);

/// A worker that serves, with reference tables that are made by hand.
async fn serving_with(tables: &[&str]) -> Result<World> {
    let world = World::start(1)?;
    world.serve(&few_shards(1)).await?;
    let client = world.ask_client(Group::Coordinator).await?;
    for statement in tables {
        client.batch_execute(statement).await?;
    }
    Ok(world)
}

/// Somebody who has written something where copies come from, in another database than ours, and does not end.
async fn forgotten(world: &World) -> Result<(Group, Client, i32)> {
    let first = "SELECT nodeport::int8 FROM pg_dist_node WHERE isactive ORDER BY nodename COLLATE \"C\", nodeport LIMIT 1";
    let port = world.number(Group::Coordinator, first).await?;
    let is_it = |group: &Group| {
        world.topology().endpoint(*group).is_some_and(|endpoint| i64::from(endpoint.port) == port)
    };
    let source = [Group::Coordinator, Group::Worker(0)].into_iter().find(is_it).unwrap();
    let client = world.ask_elsewhere(source).await?;
    client.batch_execute("BEGIN; CREATE TABLE left_open (id int)").await?;
    let pid = client.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
    Ok((source, client, pid))
}

/// Makes rounds until the condition `kind` has this reason; whether it holds, and what it says then.
async fn until_said(
    world: &World,
    operator: &mut Operator,
    wanted: &Wanted,
    kind: &str,
    reason: &str,
) -> Result<(&'static str, String)> {
    let started = Instant::now();
    loop {
        let round = operator.round(world, wanted).await?;
        let (status, found, message) = condition(&round, kind);
        if found == reason {
            return Ok((status, message));
        }
        ensure!(started.elapsed() < LIMIT, "{kind} is not {reason}, but {found}: {message}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_copy_that_waits_for_a_forgotten_transaction_is_named_and_cancelled_and_made_afterwards()
-> Result<()> {
    needs_citus!();
    let mut world = serving_with(&[
        "CREATE TABLE countries (code text PRIMARY KEY)",
        "SELECT create_reference_table('countries')",
        "INSERT INTO countries VALUES ('de'), ('fr')",
    ])
    .await?;
    world.add(Group::Worker(1))?;
    let (source, client, pid) = forgotten(&world).await?;
    let mut wanted = few_shards(2);
    wanted.rebalance.stall_timeout = STALL;
    let mut operator = Operator::default();

    // Whoever lowers the count again is told what the worker waits for.
    let copying = |step: &Step| *step == Step::ReplicateReferenceTables;
    eventually("the copy is begun", async || {
        let round = operator.round(&world, &wanted).await?;
        let mut operations = round.observed.catalog.iter().flat_map(|catalog| &catalog.operations);
        Ok(operator.jobs.has(&Step::ReplicateReferenceTables) && operations.any(Operation::spreads))
    })
    .await?;
    let mut fewer = wanted.clone();
    fewer.workers = 1;
    fewer.rebalance.stall_timeout = TO_REST;
    eventually("it is under way", async || {
        let round = operator.round(&world, &fewer).await?;
        let (status, reason, message) = condition(&round, SCALE_IN_BLOCKED);
        ensure!((status, reason) == ("False", "Draining"), "{reason}: {message}");
        Ok(message.contains("dialog-operator: copy the reference tables to every node (pid "))
    })
    .await?;

    let (_, message) = until_said(&world, &mut operator, &wanted, SCHEMA_DISTRIBUTED, "CopyBlocked").await?;
    for part in [
        "dialog-operator: copy the reference tables to every node (pid ".to_owned(),
        "on the coordinator) has made no progress for ".to_owned(),
        format!("on {source} its process "),
        format!("(pid {pid}, open for "),
        format!("SELECT pg_terminate_backend({pid}) there"),
        "it is cancelled and planned again".to_owned(),
    ] {
        assert!(message.contains(&part), "no {part:?} in {message}");
    }
    let started = Instant::now();
    while !operator.failed.iter().any(copying) {
        operator.round(&world, &wanted).await?;
        ensure!(started.elapsed() < LIMIT, "it does not end: {:?}", operator.done);
    }
    assert!(operator.done.iter().any(|step| matches!(step, Step::CancelMove { .. })), "{:?}", operator.done);
    assert!(!operator.done.iter().any(copying), "{:?}", operator.done);

    // It is begun again and again, until the transaction is known to be a long one.
    let (status, message) =
        until_said(&world, &mut operator, &wanted, SCHEMA_DISTRIBUTED, "LongTransaction").await?;
    assert_eq!(status, "False");
    assert!(message.contains(&format!("(pid {pid}) on {source} has written and is open for ")), "{message}");
    assert!(message.contains("a copy of reference tables waits for it: let it end"), "{message}");
    let (_, message) = until_said(&world, &mut operator, &wanted, BALANCED, "Waiting").await?;
    assert!(message.contains("a copy of reference tables waits for it"), "{message}");
    // One that was found to be needless may be just about to end.
    eventually("nothing is under way", async || Ok(operator.jobs.is_idle())).await?;

    client.batch_execute("ROLLBACK").await?;
    operator.settle(&world, &wanted, TO_REST).await?;
    assert!(operator.done.iter().any(copying), "{:?}", operator.done);
    assert_eq!(condition(&operator.round(&world, &wanted).await?, BALANCED).1, "Balanced");
    assert_eq!(world.number(Group::Worker(1), "SELECT count(*) FROM public.countries").await?, 2);
    Ok(())
}

#[tokio::test]
async fn who_leaves_before_the_copies_are_made_goes_while_the_transaction_is_open() -> Result<()> {
    needs_citus!();
    let mut world = serving_with(&[
        "CREATE TABLE countries (code text PRIMARY KEY)",
        "SELECT create_reference_table('countries')",
    ])
    .await?;
    world.add(Group::Worker(1))?;
    let (_, client, _) = forgotten(&world).await?;
    let (mut wanted, mut operator) = (few_shards(2), Operator::default());
    wanted.rebalance.stall_timeout = STALL;
    until_said(&world, &mut operator, &wanted, SCHEMA_DISTRIBUTED, "CopyBlocked").await?;
    wanted.workers = 1;
    eventually("the worker has left", async || {
        operator.round(&world, &wanted).await?;
        Ok(operator.done.contains(&Step::RemoveNode { group: Group::Worker(1) }))
    })
    .await?;
    client.batch_execute("ROLLBACK").await?;
    operator.settle(&world, &wanted, TO_REST).await?;
    assert_eq!(condition(&operator.round(&world, &wanted).await?, BALANCED).1, "Balanced");
    Ok(())
}

#[tokio::test]
async fn a_reference_table_without_a_key_is_named_before_anything_is_begun() -> Result<()> {
    needs_citus!();
    let mut world =
        serving_with(&["CREATE TABLE countries (code text)", "SELECT create_reference_table('countries')"])
            .await?;
    let (wanted, mut operator) = (few_shards(2), Operator::default());
    // Nobody minds as long as every node has a copy.
    operator.settle(&world, &few_shards(1), TO_REST).await?;
    world.add(Group::Worker(1))?;
    let (status, message) =
        until_said(&world, &mut operator, &wanted, SCHEMA_DISTRIBUTED, "NoReplicaIdentity").await?;
    assert_eq!(status, "False");
    for part in ["logical replication cannot follow public.countries", "primary key", "worker-1"] {
        assert!(message.contains(part), "{message}");
    }
    let round = operator.round(&world, &wanted).await?;
    let (_, _, balanced) = condition(&round, BALANCED);
    assert!(balanced.contains("public.countries"), "{balanced}");
    assert!(round.long.is_empty() && operator.jobs.is_idle(), "{:?}", round.long);
    assert_eq!(operator.failed, []);

    let client = world.ask_client(Group::Coordinator).await?;
    client.batch_execute("ALTER TABLE public.countries ADD PRIMARY KEY (code)").await?;
    operator.settle(&world, &wanted, TO_REST).await?;
    assert_eq!(operator.failed, []);
    assert!(operator.done.contains(&Step::ReplicateReferenceTables), "{:?}", operator.done);
    Ok(())
}
