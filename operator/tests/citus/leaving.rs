//! What keeps a worker that is to leave and that holds nothing by the catalogs.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dialog_operator::condition::SCALE_IN_BLOCKED;
use dialog_operator::names::Group;
use dialog_operator::shards::round::{Brief, round};
use dialog_operator::shards::step::Step;
use futures::future::{BoxFuture, ready};
use testbed::postgres::Shutdown;

use crate::needs_citus;
use crate::operator::Operator;
use crate::world::{World, brief, condition, eventually, few_shards};

/// Longest time that a dozen moves may take.
const LIMIT: Duration = Duration::from_mins(5);

/// Makes a table on `group`'s server that is named like a shard which is somewhere else; its name.
async fn stray(world: &World, group: Group, port: u16) -> Result<String> {
    let elsewhere = format!(
        "SELECT min(shardid) FROM pg_dist_placement JOIN pg_dist_shard USING (shardid) JOIN pg_dist_node USING (groupid)
         WHERE logicalrelid = 'public.messages'::regclass AND nodeport <> {port}"
    );
    let name = format!("public.messages_{}", world.number(Group::Coordinator, &elsewhere).await?);
    let by_hand = world.ask_client(group).await?;
    by_hand.batch_execute("SET citus.enable_manual_changes_to_shards = on").await?;
    by_hand.batch_execute(&format!("CREATE TABLE {name} ()")).await?;
    Ok(name)
}

/// Does what `message` says of the table `name` on `group`'s server.
async fn remedy(world: &World, group: Group, message: &str, name: &str) -> Result<()> {
    let setting = message.split_once("runs on that server ").context(message.to_owned())?.1;
    let (setting, rest) = setting.split_once(", and ").context(message.to_owned())?;
    ensure!(rest.starts_with("DROP TABLE for each"), "{message}");
    let by_hand = world.ask_client(group).await?;
    by_hand.batch_execute(setting).await?;
    Ok(by_hand.batch_execute(&format!("DROP TABLE {name}")).await?)
}

#[tokio::test]
async fn a_table_that_nobody_has_noted_keeps_its_worker_and_is_named() -> Result<()> {
    needs_citus!();
    let leaver = Group::Worker(1);
    let mut world = World::start(2)?;
    world.serve(&few_shards(2)).await?;
    let port = world.server(leaver).port();
    let name = stray(&world, leaver, port).await?;
    let (mut operator, one) = (Operator::default(), few_shards(1));
    let mut message = String::new();
    eventually("the worker is kept by its table", async || {
        let round = operator.round(&world, &one).await?;
        ensure!(!round.is_settled(), "nobody looks any more: {:?}", condition(&round, SCALE_IN_BLOCKED));
        let (status, reason, said) = condition(&round, SCALE_IN_BLOCKED);
        message = said;
        Ok((status, reason) == ("True", "LeftBehind"))
    })
    .await?;
    assert!(message.starts_with("worker-1 cannot leave: ") && message.contains(&name), "{message}");
    let removal = Step::RemoveNode { group: leaver };
    assert!(!operator.done.contains(&removal), "{:?}", operator.done);

    remedy(&world, leaver, &message, &name).await?;
    operator.settle(&world, &one, LIMIT).await?;
    assert_eq!(operator.done.last(), Some(&removal));
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_registered_no_more_is_asked_why_it_stays() -> Result<()> {
    needs_citus!();
    let leaver = Group::Worker(1);
    let mut world = World::start(2)?;
    world.serve(&few_shards(2)).await?;
    let port = world.server(leaver).port();
    let one = few_shards(1);
    world.settle(&one).await?;
    let mut operator = Operator::default();
    let said = async |operator: &mut Operator, world: &World| -> Result<_> {
        Ok(condition(&operator.round(world, &one).await?, SCALE_IN_BLOCKED))
    };
    let (status, reason, message) = said(&mut operator, &world).await?;
    assert_eq!((status, reason), ("False", "Removing"), "{message}");

    world.server(leaver).stop(Shutdown::Immediate)?;
    let (status, reason, message) = said(&mut operator, &world).await?;
    assert_eq!((status, reason), ("True", "NodeUnreachable"), "{message}");
    assert!(message.starts_with("worker-1 stays: worker-1 does not answer"), "{message}");
    world.server(leaver).start()?;

    // It takes itself for another one.
    let other =
        world.number(Group::Coordinator, "SELECT min(groupid)::int8 FROM pg_dist_node WHERE groupid > 0");
    let take = |number| format!("UPDATE pg_dist_local_group SET groupid = {number}");
    let own = world.number(leaver, "SELECT groupid::int8 FROM pg_dist_local_group").await?;
    world.ask(leaver, &take(other.await?)).await?;
    let (status, reason, message) = said(&mut operator, &world).await?;
    assert_eq!((status, reason), ("True", "LeftBehind"), "{message}");
    assert!(message.contains("and so does the catalogs' worker-0 ("), "{message}");
    world.ask(leaver, &take(own)).await?;

    let name = stray(&world, leaver, port).await?;
    let (status, reason, message) = said(&mut operator, &world).await?;
    assert_eq!((status, reason), ("True", "LeftBehind"), "{message}");
    assert!(message.starts_with("worker-1 stays: ") && message.contains(&name), "{message}");

    // What is under way does not wait long for its answer; until it answers, what it said last counts.
    let long = world.ask_client(Group::Coordinator).await?;
    long.batch_execute("SET application_name = 'dialog-operator: distribute nothing'").await?;
    let token = long.cancel_token();
    let sleep = tokio::spawn(async move { long.batch_execute("SELECT pg_sleep(3600)").await });
    let active = "SELECT count(*) FROM pg_stat_activity
                  WHERE application_name = 'dialog-operator: distribute nothing' AND state = 'active'";
    eventually(
        "an operation is under way",
        async || Ok(world.number(Group::Coordinator, active).await? == 1),
    )
    .await?;
    remedy(&world, leaver, &message, &name).await?;
    let pid = world.server(leaver).pid().context("it runs")?.to_string();
    let signal = |signal: &str| Command::new("kill").args(["-s", signal, &pid]).status();
    assert!(signal("STOP")?.success());
    let last = said(&mut operator, &world).await;
    assert!(signal("CONT")?.success());
    let (status, reason, message) = last?;
    assert_eq!((status, reason), ("True", "LeftBehind"), "{message}");
    let (status, reason, message) = said(&mut operator, &world).await?;
    assert_eq!((status, reason), ("False", "Removing"), "{message}");
    token.cancel_query(tokio_postgres::NoTls).await?;
    ensure!(sleep.await?.is_err(), "it was not cancelled");
    Ok(())
}

#[tokio::test]
async fn a_server_that_never_had_a_database_keeps_nobody() -> Result<()> {
    needs_citus!();
    let leaver = Group::Worker(1);
    let mut world = World::start(2)?;
    world.serve(&few_shards(2)).await?;
    let one = few_shards(1);
    world.settle(&one).await?;
    world.server(leaver).stop(Shutdown::Immediate)?;
    let existing = world.existing();
    let mut before = None;
    for (blank, expected) in [
        (Some(BTreeSet::from([leaver])), ("False", "Removing")),
        (Some(BTreeSet::new()), ("True", "NodeUnreachable")),
        // Nobody can tell: what was known counts.
        (None, ("True", "NodeUnreachable")),
    ] {
        let ask = || -> BoxFuture<'_, BTreeSet<Group>> { Box::pin(ready(existing.clone())) };
        let blank = || -> BoxFuture<'_, Option<BTreeSet<Group>>> { Box::pin(ready(blank.clone())) };
        let brief = Brief { blank: &blank, before: before.as_ref(), ..brief(&one, &ask) };
        let round = round(&brief, &world.sessions()?).await;
        let (status, reason, message) = condition(&round, SCALE_IN_BLOCKED);
        assert_eq!((status, reason), expected, "{message}");
        before = Some(round.observed);
    }
    Ok(())
}

#[tokio::test]
async fn who_holds_the_topology_lock_is_named_where_a_worker_leaves() -> Result<()> {
    needs_citus!();
    let world = World::start(2)?;
    world.serve(&few_shards(2)).await?;
    let keys = dialog_api::migrations::TOPOLOGY_LOCK;
    let other = world.ask_client(Group::Coordinator).await?;
    other.batch_execute(&format!("SELECT pg_advisory_lock({}, {})", keys.0, keys.1)).await?;
    let one = few_shards(1);
    let (status, reason, message) = condition(&world.round(&one).await?, SCALE_IN_BLOCKED);
    assert_eq!((status, reason), ("False", "TopologyLocked"), "{message}");
    assert!(
        message.contains("keep new shards off worker-1: the topology lock is held by testbed"),
        "{message}"
    );
    other.batch_execute(&format!("SELECT pg_advisory_unlock({}, {})", keys.0, keys.1)).await?;
    world.settle(&one).await?;
    assert_eq!(condition(&world.round(&one).await?, SCALE_IN_BLOCKED).1, "Removing");

    // Nothing is left to be done here; what deletes its servers waits for the lock, too.
    other.batch_execute(&format!("SELECT pg_advisory_lock({}, {})", keys.0, keys.1)).await?;
    let mut message = String::new();
    eventually("the lock is taken for forgotten", async || {
        let (status, reason, said) = condition(&world.round(&one).await?, SCALE_IN_BLOCKED);
        message = said;
        Ok((status, reason) == ("True", "TopologyLocked"))
    })
    .await?;
    assert!(message.starts_with("worker-1 stays: the topology lock is held by testbed"), "{message}");
    assert!(message.contains("SELECT pg_terminate_backend("), "{message}");
    other.batch_execute(&format!("SELECT pg_advisory_unlock({}, {})", keys.0, keys.1)).await?;
    assert_eq!(condition(&world.round(&one).await?, SCALE_IN_BLOCKED).1, "Removing");
    Ok(())
}
