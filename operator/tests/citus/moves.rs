//! When shards are moved, what keeps them from moving, and what comes between.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use dialog_operator::api::PlanStatus;
use dialog_operator::condition::{BALANCED, SCALE_IN_BLOCKED};
use dialog_operator::names::{DATABASE, Group, MAP_CHANNEL, WAKE_CHANNEL};
use dialog_operator::shards::act::perform;
use dialog_operator::shards::rebalance::MovePlan;
use dialog_operator::shards::retire::{retire, stays};
use dialog_operator::shards::round::{Brief, Round, round};
use dialog_operator::shards::step::Step;
use dialog_operator::shards::wanted::{Gate, Wanted};
use futures::future::{BoxFuture, ready};
use testbed::postgres::{Shutdown, volumes_available};

use crate::needs_citus;
use crate::operator::Operator;
use crate::world::{
    World, brief, closed, condition, few_shards, gated, store_messages, with_an_empty_worker,
};

/// Longest time that a notice may take.
const NOTICE_LIMIT: Duration = Duration::from_secs(30);

/// One round of an operator that carries out the plan `held`.
async fn holding(world: &World, wanted: &Wanted, held: Option<MovePlan>) -> Result<Round> {
    let existing = world.existing();
    let ask = || -> BoxFuture<'_, BTreeSet<Group>> { Box::pin(ready(existing.clone())) };
    let brief = Brief { held, ..brief(wanted, &ask) };
    Ok(round(&brief, &world.sessions()?).await)
}

/// One round of an operator that has just started, and finds the plan `shown` in the status.
async fn resuming(world: &World, wanted: &Wanted, shown: Option<&PlanStatus>) -> Result<Round> {
    let existing = world.existing();
    let ask = || -> BoxFuture<'_, BTreeSet<Group>> { Box::pin(ready(existing.clone())) };
    let brief = Brief { shown, ..brief(wanted, &ask) };
    Ok(round(&brief, &world.sessions()?).await)
}

#[tokio::test]
async fn what_is_approved_is_what_runs() -> Result<()> {
    needs_citus!();
    let world = with_an_empty_worker().await?;
    let shown = holding(&world, &gated(2, closed()), None).await?;
    assert!(shown.long.is_empty(), "{:?}", shown.long);
    let (status, reason, message) = condition(&shown, BALANCED);
    assert_eq!((status, reason), ("False", "OutsideWindow"), "{message}");
    let plan = shown.held_plan().unwrap();

    let other = holding(&world, &gated(2, Gate::Approved("another".to_owned())), Some(plan.clone())).await?;
    assert!(other.long.is_empty());
    let (status, reason, message) = condition(&other, BALANCED);
    assert_eq!((status, reason), ("False", "ApprovalOutdated"), "{message}");
    assert!(message.contains(&plan.hash), "{message}");

    let approved = gated(2, Gate::Approved(plan.hash.clone()));
    let (mut held, mut made) = (Some(plan.clone()), Vec::new());
    while held.is_some() {
        let round = holding(&world, &approved, held).await?;
        for step in &round.long {
            perform(step, &world.long_sessions(step)?).await?;
            made.push(step.clone());
        }
        held = round.held_plan();
        ensure!(made.len() <= plan.moves.len(), "{made:?}");
    }
    let planned: Vec<Step> = plan
        .moves
        .iter()
        .map(|next| Step::MoveShard { shard_id: next.shard_id, from: next.from, to: next.to })
        .collect();
    assert_eq!(made, planned);
    assert_eq!(condition(&world.round(&approved).await?, BALANCED).0, "True");
    Ok(())
}

/// The services that keep a map of the shards need not find out by themselves.
#[tokio::test]
async fn who_keeps_a_map_is_told_of_every_move() -> Result<()> {
    needs_citus!();
    let mut world = with_an_empty_worker().await?;
    let (_listening, mut told) = world.server(Group::Coordinator).listen(DATABASE, MAP_CHANNEL).await?;
    let round = world.round(&few_shards(2)).await?;
    let step = round.long.first().unwrap();
    ensure!(matches!(step, Step::MoveShard { .. }), "{step}");
    ensure!(told.try_recv().is_err(), "nothing has been moved yet");
    perform(step, &world.long_sessions(step)?).await?;
    let notice = tokio::time::timeout(NOTICE_LIMIT, told.recv()).await?.unwrap();
    assert_eq!(notice.channel(), MAP_CHANNEL);
    Ok(())
}

/// Citus sleeps for a second where it waits for changes to be followed, writers of the shards with it.
#[tokio::test]
async fn a_move_that_sleeps_is_woken_as_long_as_it_lasts() -> Result<()> {
    needs_citus!();
    let mut world = with_an_empty_worker().await?;
    let (_listening, mut woken) = world.server(Group::Coordinator).listen(DATABASE, WAKE_CHANNEL).await?;
    let round = world.round(&few_shards(2)).await?;
    let step = round.long.first().unwrap();
    ensure!(matches!(step, Step::MoveShard { .. }), "{step}");
    ensure!(woken.try_recv().is_err(), "nobody sleeps yet");
    perform(step, &world.long_sessions(step)?).await?;
    tokio::time::timeout(NOTICE_LIMIT, woken.recv()).await?.unwrap();
    // What was on its way when it ended is there before the answer to what is asked afterwards.
    world.round_of(&few_shards(2), 0).await?;
    while woken.try_recv().is_ok() {}
    world.round_of(&few_shards(2), 0).await?;
    ensure!(woken.try_recv().is_err(), "nobody sleeps any more");
    Ok(())
}

#[tokio::test]
async fn an_approved_plan_is_carried_on_by_the_next_operator_and_refused_in_another_world() -> Result<()> {
    needs_citus!();
    let mut world = with_an_empty_worker().await?;
    let plan = holding(&world, &gated(2, closed()), None).await?.held_plan().unwrap();
    let approved = Gate::Approved(plan.hash.clone());
    let mut shown = plan.status();
    let mut made = Vec::new();
    // Each operator makes one move and is gone; a plan made anew would have another name.
    while made.len() + 1 < plan.moves.len() {
        let round = resuming(&world, &gated(2, approved.clone()), shown.as_ref()).await?;
        let step = round.long.first().unwrap();
        perform(step, &world.long_sessions(step)?).await?;
        made.push(step.clone());
        shown = round.plan.moves.unwrap().plan.status();
    }
    let planned = plan.moves.iter().take(made.len());
    let planned: Vec<Step> = planned
        .map(|next| Step::MoveShard { shard_id: next.shard_id, from: next.from, to: next.to })
        .collect();
    assert_eq!(made, planned);

    // With one more worker it is not what was approved.
    world.add(Group::Worker(2))?;
    world.settle(&gated(3, closed())).await?;
    let round = resuming(&world, &gated(3, approved), shown.as_ref()).await?;
    assert!(round.long.is_empty(), "{:?}", round.long);
    let (status, reason, message) = condition(&round, BALANCED);
    assert_eq!((status, reason), ("False", "ApprovalOutdated"), "{message}");
    let why =
        "the plan spreads shards over worker-0; worker-1, and now there are worker-0; worker-1; worker-2";
    assert!(message.contains(why), "{message}");
    assert!(message.contains(&round.held_plan().unwrap().hash), "{message}");
    Ok(())
}

#[tokio::test]
async fn a_rebalance_that_somebody_starts_by_hand_is_waited_for() -> Result<()> {
    needs_citus!();
    let world = with_an_empty_worker().await?;
    world.ask(Group::Coordinator, "SELECT citus_rebalance_start()").await?;
    let open = few_shards(2);
    let mut waited = 0;
    loop {
        let round = world.round(&open).await?;
        let catalog = round.observed.catalog.as_ref().unwrap();
        if catalog.foreign.is_empty() {
            break;
        }
        waited += 1;
        assert!(round.long.is_empty() && round.performed.is_empty(), "{:?}", round.plan.steps);
        let (status, reason, message) = condition(&round, BALANCED);
        assert_eq!((status, reason), ("False", "OtherRebalance"), "{message}");
        assert!(message.contains("citus_job_cancel("), "{message}");
    }
    assert!(waited > 0, "the job was over before it was seen");
    world.settle(&open).await?;
    assert_eq!(condition(&world.round(&open).await?, BALANCED).0, "True");
    Ok(())
}

#[tokio::test]
async fn a_table_without_a_key_keeps_its_own_colocation_group_only() -> Result<()> {
    needs_citus!();
    let world = with_an_empty_worker().await?;
    let bare = "SET search_path = public; CREATE TABLE bare (dialog_id uuid);
                SELECT create_distributed_table('bare', 'dialog_id', colocate_with => 'messages')";
    world.ask_client(Group::Coordinator).await?.batch_execute(bare).await?;
    let open = few_shards(2);
    let mut moved = 0;
    let round = loop {
        let round = world.round(&open).await?;
        if round.long.is_empty() && !round.plan.steps.contains(&Step::CleanUp) {
            break round;
        }
        for step in &round.long {
            world.carry_out(&open, step).await?;
            moved += 1;
        }
    };
    assert!(moved >= 5, "the other colocation group is spread: {moved}");
    let (status, reason, message) = condition(&round, BALANCED);
    assert_eq!((status, reason), ("False", "NoReplicaIdentity"), "{message}");
    assert!(message.contains("cannot follow bare"), "{message}");

    let key = "ALTER TABLE public.bare ADD PRIMARY KEY (dialog_id)";
    world.ask_client(Group::Coordinator).await?.batch_execute(key).await?;
    world.settle(&open).await?;
    assert_eq!(condition(&world.round(&open).await?, BALANCED).0, "True");
    Ok(())
}

/// A change of a shard, or of a table, is found on whichever node it began.
/// A move has a subscription for each owner of a table: what is free has to be enough for all of them.
#[tokio::test]
async fn a_move_of_tables_of_many_owners_waits_until_there_is_enough_for_each() -> Result<()> {
    needs_citus!();
    let mut world = World::start(1)?;
    world.serve(&few_shards(1)).await?;
    world.add_with(Group::Worker(1), |builder| builder.parameter("max_logical_replication_workers", "2"))?;
    world.settle(&gated(2, closed())).await?;
    let client = world.ask_client(Group::Coordinator).await?;
    for owner in ["first", "second"] {
        let table = format!("public.of_{owner}");
        for by_hand in [
            format!("CREATE ROLE {owner} LOGIN"),
            format!("CREATE TABLE {table} (dialog_id uuid PRIMARY KEY)"),
            format!(
                "SELECT create_distributed_table('{table}', 'dialog_id', colocate_with => 'public.messages')"
            ),
            format!("ALTER TABLE {table} OWNER TO {owner}"),
        ] {
            client.batch_execute(&by_hand).await.with_context(|| by_hand.clone())?;
        }
    }
    let round = world.round_of(&few_shards(2), 0).await?;
    let owners = &round.observed.catalog.as_ref().context("catalogs")?.owners;
    assert_eq!(owners.values().copied().collect::<BTreeSet<_>>(), BTreeSet::from([1, 3]), "{owners:?}");
    let checks = &round.plan.moves.as_ref().context("moves")?.checks;
    let expected = "worker-1 has 2 logical replication workers free and a move needs 3: ";
    let named = checks
        .iter()
        .any(|check| check.reason == "NoReplicationWorker" && check.message.starts_with(expected));
    assert!(named, "{checks:?}");
    Ok(())
}

#[tokio::test]
async fn a_change_that_runs_on_a_worker_is_named_and_waited_for() -> Result<()> {
    needs_citus!();
    let world = with_an_empty_worker().await?;
    let open = few_shards(2);
    let first = world.round_of(&open, 0).await?.plan.steps.first().cloned();
    let Some(Step::MoveShard { shard_id, from, .. }) = first else { bail!("no move is planned: {first:?}") };
    let table = format!(
        "SELECT shard_name(logicalrelid, shardid), logicalrelid::text FROM pg_dist_shard WHERE shardid = {shard_id}"
    );
    let row = &world.ask(Group::Coordinator, &table).await?[0];
    let (shard, table): (String, String) = (row.get(0), row.get(1));

    let by_hand = world.ask_client(from).await?;
    let pid: i32 = by_hand.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
    by_hand.batch_execute("SET citus.enable_manual_changes_to_shards = on").await?;
    for (change, named) in [
        (format!("CREATE INDEX by_hand ON public.{shard} (created_at)"), shard),
        (format!("LOCK TABLE public.{table} IN SHARE ROW EXCLUSIVE MODE"), table),
    ] {
        by_hand.batch_execute(&format!("BEGIN; {change}")).await.with_context(|| change.clone())?;
        let round = world.round_of(&open, 0).await?;
        let (status, reason, message) = condition(&round, BALANCED);
        assert_eq!((status, reason), ("False", "TableChanging"), "{change}: {message}");
        let who = format!("testbed (pid {pid} on {from}) is changing public.{named}");
        assert!(message.contains(&who), "{change}: {message}");
        assert!(message.contains(&format!("pg_terminate_backend({pid}) there")), "{change}: {message}");
        // The others need not wait.
        let begun = round.plan.steps.iter().filter(|step| matches!(step, Step::MoveShard { .. })).count();
        assert!(!round.plan.steps.contains(first.as_ref().unwrap()) && begun == 1, "{:?}", round.plan.steps);
        by_hand.batch_execute("ROLLBACK").await?;
        let round = world.round_of(&open, 0).await?;
        assert_eq!(round.plan.steps.first(), first.as_ref(), "{:?}", round.plan.waits);
    }
    Ok(())
}

#[tokio::test]
async fn a_group_is_deleted_only_when_its_own_server_says_that_it_holds_nothing() -> Result<()> {
    needs_citus!();
    let mut world = World::start(2)?;
    world.serve(&few_shards(2)).await?;
    let ask = async |world: &World| -> Result<(Option<String>, bool)> {
        let mut deleted = false;
        let delete = async || {
            deleted = true;
            Ok::<_, anyhow::Error>(())
        };
        let sessions = world.sessions()?;
        let early = stays(&sessions, Group::Worker(1), true).await.map(|stay| stay.message);
        let late = retire(&sessions, Group::Worker(1), true, delete).await?;
        // What stays for a reason of its own is told so without the lock.
        let by_lock = late.as_ref().is_some_and(|why| why.contains("topology lock"));
        ensure!(early == late || early.is_none() && by_lock, "{early:?}, {late:?}");
        Ok((late, deleted))
    };
    let (stays, deleted) = ask(&world).await?;
    assert!(!deleted && stays.as_deref() == Some("worker-1 is still registered"), "{stays:?}");

    world.settle(&few_shards(1)).await?;
    // Somebody else is about to change the topology.
    let keys = dialog_api::migrations::TOPOLOGY_LOCK;
    let other = world.ask_client(Group::Coordinator).await?;
    other.batch_execute(&format!("SELECT pg_advisory_lock({}, {})", keys.0, keys.1)).await?;
    let (stays, deleted) = ask(&world).await?;
    assert!(!deleted && stays.is_some_and(|why| why.contains("the topology lock is held by")));
    other.batch_execute(&format!("SELECT pg_advisory_unlock({}, {})", keys.0, keys.1)).await?;

    // A shard that the coordinator's catalogs know nothing of.
    let shard: i64 = world
        .ask(
            Group::Worker(1),
            "SELECT min(shardid) FROM pg_dist_shard WHERE logicalrelid = 'public.messages'::regclass",
        )
        .await?[0]
        .get(0);
    let by_hand = world.ask_client(Group::Worker(1)).await?;
    by_hand.batch_execute("SET citus.enable_manual_changes_to_shards = on").await?;
    by_hand.batch_execute(&format!("CREATE TABLE public.messages_{shard} ()")).await?;
    let (stays, deleted) = ask(&world).await?;
    assert!(
        !deleted
            && stays.as_ref().is_some_and(|why| why.contains(&format!("(1): public.messages_{shard}. "))),
        "{stays:?}"
    );
    by_hand.batch_execute(&format!("DROP TABLE public.messages_{shard}")).await?;

    // After a failover a Service may lead to the old primary for a moment: its catalogs are old, and so is its lock.
    drop((other, by_hand));
    for group in [Group::Coordinator, Group::Worker(1)] {
        let folder: String = world.ask(group, "SELECT current_setting('data_directory')").await?[0].get(0);
        let signal = Path::new(&folder).join("standby.signal");
        std::fs::write(&signal, "")?;
        world.server(group).restart(Shutdown::Fast)?;
        let (stays, deleted) = ask(&world).await?;
        assert!(!deleted && stays.as_ref().is_some_and(|why| why.contains("is a standby")), "{stays:?}");
        std::fs::remove_file(&signal)?;
        world.server(group).restart(Shutdown::Fast)?;
    }

    let (stays, deleted) = ask(&world).await?;
    assert!(deleted && stays.is_none(), "{stays:?}");
    let round = world.round(&few_shards(1)).await?;
    assert_eq!(condition(&round, SCALE_IN_BLOCKED).1, "Removing");
    Ok(())
}

#[tokio::test]
async fn a_table_that_is_not_cut_by_a_hash_keeps_its_worker_and_nothing_else() -> Result<()> {
    needs_citus!();
    let world = World::start(2)?;
    world.serve(&few_shards(2)).await?;
    let owner = world.ask_client(Group::Coordinator).await?;
    owner
        .batch_execute(
            "CREATE TABLE public.notes (id int PRIMARY KEY);
             SELECT create_distributed_table('public.notes', NULL);
             SELECT citus_move_shard_placement(shardid, source.nodeid, target.nodeid, 'block_writes')
             FROM pg_dist_shard JOIN pg_dist_placement USING (shardid) JOIN pg_dist_node AS source USING (groupid)
             CROSS JOIN pg_dist_node AS target
             WHERE logicalrelid = 'public.notes'::regclass AND source.groupid <> 2 AND target.groupid = 2",
        )
        .await?;
    world.settle(&few_shards(1)).await?;
    let round = world.round(&few_shards(1)).await?;
    let (status, reason, message) = condition(&round, SCALE_IN_BLOCKED);
    assert_eq!((status, reason), ("True", "TableNotMovable"), "{message}");
    assert!(message.contains("worker-1 has tables") && message.contains("notes"), "{message}");
    let left = "SELECT count(*) FROM pg_dist_placement JOIN pg_dist_shard USING (shardid)
                JOIN pg_dist_partition USING (logicalrelid) WHERE groupid = 2 AND partmethod = 'h'";
    assert_eq!(world.number(Group::Coordinator, left).await?, 0, "the other tables are gone from there");

    owner.batch_execute("SELECT undistribute_table('public.notes')").await?;
    world.settle(&few_shards(1)).await?;
    assert_eq!(condition(&world.round(&few_shards(1)).await?, SCALE_IN_BLOCKED).1, "Removing");
    Ok(())
}

/// Longest time that two dozen moves may take.
const SHRINK_LIMIT: Duration = Duration::from_mins(5);
/// Bytes of a volume that a test fills.
const VOLUME: u64 = 600 << 20;

fn add_with_volume(world: &mut World, group: Group) -> Result<()> {
    world.add_with(group, |builder| {
        builder.volume(VOLUME).parameter("max_wal_size", "64MB").parameter("min_wal_size", "32MB")
    })
}

#[tokio::test]
async fn nothing_is_moved_to_where_there_is_no_room() -> Result<()> {
    needs_citus!();
    if let Err(reason) = volumes_available() {
        println!("SKIPPED a full volume: {reason}");
        return Ok(());
    }
    let mut world = World::empty()?;
    world.add(Group::Coordinator)?;
    add_with_volume(&mut world, Group::Worker(0))?;
    world.add(Group::Worker(1))?;
    world.serve(&few_shards(2)).await?;
    store_messages(&world, 20_000, "repeat('text', 450)").await?;
    // About 20 MiB are on each; a tenth of the volume is kept free.
    world.server(Group::Worker(0)).leave_free(VOLUME / 10 + (10 << 20))?;
    let mut operator = Operator::default();
    operator.round(&world, &few_shards(1)).await?;
    // It knows by now that not all can leave.
    let round = operator.round(&world, &few_shards(1)).await?;
    assert!(
        round.performed.is_empty() && round.long.is_empty(),
        "nobody is told to go: {:?}",
        round.performed
    );
    let (status, reason, message) = condition(&round, SCALE_IN_BLOCKED);
    assert_eq!((status, reason), ("True", "NoPlace"), "{message}");
    assert!(message.starts_with("worker-1 cannot leave") && message.contains("finds no room"), "{message}");
    let flags = "SELECT count(*) FROM pg_dist_node WHERE groupid > 0 AND shouldhaveshards";
    assert_eq!(world.number(Group::Coordinator, flags).await?, 2);

    world.server(Group::Worker(0)).leave_free(VOLUME)?;
    operator.settle(&world, &few_shards(1), SHRINK_LIMIT).await?;
    let round = world.round(&few_shards(1)).await?;
    assert_eq!(condition(&round, SCALE_IN_BLOCKED).1, "Removing");

    // The other way round: the one that comes back has no room.
    world.remove(Group::Worker(1));
    add_with_volume(&mut world, Group::Worker(1))?;
    world.server(Group::Worker(1)).leave_free(VOLUME / 10)?;
    world.settle(&few_shards(2)).await?;
    let (status, reason, message) = condition(&world.round(&few_shards(2)).await?, BALANCED);
    assert_eq!((status, reason), ("False", "NoPlace"), "{message}");
    assert!(message.contains("belongs on worker-1"), "{message}");
    world.server(Group::Worker(1)).leave_free(VOLUME)?;
    world.settle(&few_shards(2)).await?;
    assert_eq!(condition(&world.round(&few_shards(2)).await?, BALANCED).0, "True");
    let rows = world.number(Group::Coordinator, "SELECT count(*) FROM public.messages").await?;
    assert_eq!(rows, 20_000);
    Ok(())
}
