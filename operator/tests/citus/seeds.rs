//! One person who writes to a hundred thousand.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use dialog_operator::api::{HotTenant, IsolatedTenant};
use dialog_operator::condition::HOT_TENANT;
use dialog_operator::heat::{Action, Mode};
use dialog_operator::names::Group;
use dialog_operator::shards::heat::actions::Outcome;
use dialog_operator::shards::rebalance::HashRange;
use dialog_operator::shards::status::status;
use dialog_operator::shards::step::Step;
use jiff::Timestamp;
use uuid::Uuid;

use crate::flood::{PEERS, People};
use crate::heat::{MANY, Operator, start, watched};
use crate::isolation::{assert_nothing_is_left, with_mode};
use crate::needs_citus;
use crate::world::{SHARDS, World, condition};

const WORKERS: u32 = 3;

/// Messages in each shard, with the worker's port.
async fn messages(world: &World) -> Result<Vec<(i32, i64)>> {
    let rows = world
        .ask(
            Group::Coordinator,
            "SELECT nodeport, result::int8 FROM run_command_on_shards('public.messages', 'SELECT count(*) FROM %s') AS counted
             JOIN pg_dist_placement USING (shardid) JOIN pg_dist_node USING (groupid) WHERE success",
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// Every shard has as many messages as any other but for 5 %, and so has every worker.
async fn assert_spread(world: &World) -> Result<()> {
    let by_shard = messages(world).await?;
    let mut by_worker: BTreeMap<i32, i64> = BTreeMap::new();
    for (port, messages) in &by_shard {
        *by_worker.entry(*port).or_default() += messages;
    }
    println!("messages by worker: {by_worker:?}, by shard: {by_shard:?}");
    ensure!(by_shard.len() == usize::try_from(SHARDS)? && by_worker.len() == usize::try_from(WORKERS)?);
    let total: i64 = by_worker.values().sum();
    ensure!(total >= PEERS.cast_signed(), "{total} messages");
    let shards = by_shard.iter().map(|(_, messages)| (*messages, total / i64::from(SHARDS)));
    for (messages, mean) in shards.chain(by_worker.values().map(|all| (*all, total / i64::from(WORKERS)))) {
        ensure!((messages - mean).abs() * 20 <= mean, "{messages} messages where {mean} are the mean");
    }
    Ok(())
}

/// The range and the node of the shard group of the user tables that covers somebody, and its bytes.
async fn home(world: &World, user: Uuid) -> Result<(HashRange, Group, i64)> {
    let rows = world
        .ask(
            Group::Coordinator,
            &format!(
                "SELECT shardminvalue::int, shardmaxvalue::int, nodeport,
                        (SELECT sum(shard_size)::int8 FROM citus_shards AS all_of JOIN pg_dist_shard AS own USING (shardid)
                         WHERE all_of.colocation_id = its.colocationid AND own.shardminvalue = shard.shardminvalue)
                 FROM pg_dist_shard AS shard JOIN pg_dist_partition AS its USING (logicalrelid)
                 JOIN pg_dist_placement USING (shardid) JOIN pg_dist_node USING (groupid)
                 WHERE shardid = get_shard_id_for_distribution_column('public.user_dialogs', '{user}'::uuid)"
            ),
        )
        .await?;
    let port = u16::try_from(rows[0].get::<_, i32>(2))?;
    let topology = world.topology();
    let on = |group: &Group| topology.endpoint(*group).is_some_and(|endpoint| endpoint.port == port);
    let node = (0..WORKERS).map(Group::Worker).find(on).context("a node of nobody")?;
    Ok((HashRange { min: rows[0].get(0), max: rows[0].get(1) }, node, rows[0].get(3)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_writes_to_a_hundred_thousand_is_spread_by_dialog_and_is_found_as_a_user() -> Result<()> {
    needs_citus!();
    let calm = watched(WORKERS, MANY);
    let world = start(WORKERS, &calm, 100).await?;
    let people = People::settle(&world).await?;
    assert_spread(&world).await?;
    let id = people.sender();
    let sender = id.to_string();
    let (before, source, bytes) = home(&world, id).await?;
    println!("the shard group of the sender is on {source} with {} MiB", bytes >> 20);

    // What the sender's worker spends on it: how fast a machine is, nobody knows before.
    let operator = Operator::new(&world, &calm).await?;
    let flood = people.flood();
    let mut heat = operator.look(None).await?;
    for _ in 0..2 {
        heat = operator.look(Some(&heat)).await?;
    }
    assert_eq!(heat.hot, [], "nobody harms a worker of so many cores");
    let most = heat.nodes.values().map(|load| load.cpu).max().context("there are workers")?;
    let seconds = u64::try_from(heat.length.as_secs())?;

    let wanted = with_mode(watched(WORKERS, most / 1000 / seconds * 2), Mode::Isolate);
    let operator = Operator::new(&world, &wanted).await?;
    let mut periods = 0;
    while heat.last.is_none() {
        heat = operator.look(Some(&heat)).await?;
        periods += 1;
        ensure!(periods <= 4, "not found: {heat:?}");
    }
    // By the servers' own figures no dialog is hot, and the user is, where its inbox is.
    let [HotTenant { tenant, group, node, pinned: false, .. }] = &heat.hot[..] else { panic!("{heat:?}") };
    assert_eq!((tenant, group.as_str(), node), (&sender, "user", &source.to_string()), "{heat:?}");
    assert_spread(&world).await?;
    let decided = heat.last.clone().context("nothing was decided")?;
    assert!(decided.message.starts_with(&format!("user {sender} takes ")), "{}", decided.message);
    let round = world.round_of(&wanted, 0).await?;
    let (holds, reason, message) = condition(&round, HOT_TENANT);
    assert_eq!((holds, reason, &message), ("True", "Acting", &decided.message));

    let steps = world.settle(&wanted).await?;
    let splits: Vec<&Step> = steps.iter().filter(|step| matches!(step, Step::SplitShard(_))).collect();
    assert_eq!(splits.len(), 1, "{steps:?}");
    let (placed, target, _) = home(&world, id).await?;
    assert!(before.min <= placed.min && placed.max <= before.max, "{placed:?} of {before:?}");
    assert!(placed.min == placed.max && target != source, "{placed:?} on {target}");

    // The status tells the whole story, as soon as a period has passed.
    let operator = Operator::new(&world, &wanted).await?;
    let mut looks = 0;
    let (round, story) = loop {
        heat = operator.look(Some(&heat)).await?;
        let round = operator.round(&heat).await;
        let shown = status(&wanted, &world.topology(), &round, None, Timestamp::now());
        let figures = shown.heat.as_ref().and_then(|heat| heat.actions.first()?.after);
        if figures.is_some_and(|after| after.tenant_writes_per_second > Some(0)) {
            break (round, shown);
        }
        looks += 1;
        ensure!(looks <= 4, "nobody says what came of it: {shown:?}");
    };
    let load = story.heat.context("nothing is shown")?;
    let [act] = &load.actions[..] else { panic!("{:?}", load.actions) };
    assert_eq!((act.kind.as_str(), act.tenant.as_deref()), ("Isolate", Some(sender.as_str())));
    assert_eq!((act.asked_by.as_str(), &act.why), ("policy", &decided.message));
    assert_eq!(act.outcome.as_deref(), Some(Outcome::Done.name()), "{act:?}");
    assert!(act.milliseconds > Some(0) && act.ended.is_some(), "{act:?}");
    let before = act.before.context("before")?;
    assert!(before.tenant_writes_per_second > Some(0) && before.source_cpu_percent > Some(30), "{act:?}");
    let [HotTenant { tenant, group, node, pinned: true, .. }] = &story.hot[..] else {
        panic!("{:?}", story.hot)
    };
    assert_eq!((tenant, group.as_str(), node), (&sender, "user", &target.to_string()));
    let [IsolatedTenant { tenant, group, worker, asked_by, .. }] = &story.isolated[..] else {
        panic!("{:?}", story.isolated)
    };
    assert_eq!((tenant, group.as_str(), asked_by.as_str()), (&sender, "user", "policy"));
    assert_eq!((worker, story.isolated_count), (&target.to_string(), Some(1)));
    let (holds, reason, message) = condition(&round, HOT_TENANT);
    assert_eq!((holds, reason), ("False", "Isolated"), "{message}");
    assert!(message.contains(&format!("user {sender}")), "{message}");
    let kept = &round.observed.kept;
    let ([act], [pin]) = (&kept.acts[..], &kept.pins[..]) else { panic!("{kept:?}") };
    let Action::Isolate { tenant, .. } = act.action else { panic!("{act:?}") };
    assert_eq!((tenant.hash, pin.tenant), (placed.min, tenant));

    let written = flood.end(&world).await?;
    println!("{} to {} peers", written.audit.text(), written.peers);
    ensure!(written.audit.is_whole() && written.audit.acknowledged == written.audit.sends);
    ensure!(written.audit.sends > 1000, "no flood");
    assert_spread(&world).await?;
    assert_nothing_is_left(&world, WORKERS).await
}
