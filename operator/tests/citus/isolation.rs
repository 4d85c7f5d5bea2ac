//! An isolation as the policy decides it, and what the catalogs say of it.

use anyhow::{Context, Result, ensure};
use dialog_operator::heat::{Action, Mode, Tenant};
use dialog_operator::names::Group;
use dialog_operator::shards::heat::actions::Act;
use dialog_operator::shards::rebalance::HashRange;
use dialog_operator::shards::round::Round;
use dialog_operator::shards::wanted::Wanted;
use tokio_postgres::types::Json;

use crate::world::{World, few_shards};

/// A resource whose hot tenants are isolated.
pub fn isolating(workers: u32) -> Wanted {
    with_mode(few_shards(workers), Mode::Isolate)
}

pub fn with_mode(mut wanted: Wanted, mode: Mode) -> Wanted {
    if let Some(watch) = &mut wanted.watch {
        watch.policy.mode = mode;
    }
    wanted
}

/// Three workers that serve, and what is asked for: that hot tenants are isolated.
pub async fn serving() -> Result<(World, Wanted)> {
    let (world, wanted) = (World::start(3)?, isolating(3));
    world.serve(&wanted).await?;
    Ok((world, wanted))
}

/// A shard group, as the catalogs say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    pub shard_id: i64,
    pub range: HashRange,
    pub node: Group,
    /// Tables that have a shard in it.
    pub shards: i64,
}

/// The shard group of `messages` that covers `hash`, with its whole colocation group.
pub async fn covering(world: &World, hash: i32) -> Result<Placed> {
    let statement = format!(
        "SELECT min(shardid), shardminvalue::int, shardmaxvalue::int, nodename::text, nodeport, count(*)
         FROM pg_dist_shard JOIN pg_dist_placement USING (shardid) JOIN pg_dist_node USING (groupid)
         JOIN pg_dist_partition USING (logicalrelid)
         WHERE colocationid = {} AND {hash} BETWEEN shardminvalue::int AND shardmaxvalue::int GROUP BY 2, 3, 4, 5",
        colocation(world).await?
    );
    let rows = world.ask(Group::Coordinator, &statement).await?;
    ensure!(rows.len() == 1, "the shards of one range are on {} nodes", rows.len());
    let row = &rows[0];
    let port: i32 = row.get(4);
    let endpoint = dialog_operator::pg::Endpoint::new(row.get::<_, String>(3), u16::try_from(port)?);
    Ok(Placed {
        shard_id: row.get(0),
        range: HashRange { min: row.get(1), max: row.get(2) },
        node: world.topology().group(&endpoint).context("a node of nobody")?,
        shards: row.get(5),
    })
}

/// The colocation group of `messages`.
pub async fn colocation(world: &World) -> Result<i32> {
    let statement =
        "SELECT colocationid FROM pg_dist_partition WHERE logicalrelid = 'public.messages'::regclass";
    Ok(world.ask(Group::Coordinator, statement).await?[0].get(0))
}

/// The hash of a dialog.
pub async fn hash(world: &World, dialog: &str) -> Result<i32> {
    Ok(world.ask(Group::Coordinator, &format!("SELECT worker_hash('{dialog}'::uuid)")).await?[0].get(0))
}

/// Writes an action down as a decision does.
pub async fn decide(world: &World, action: Action) -> Result<i64> {
    let client = world.ask_client(Group::Coordinator).await?;
    let row = client
        .query_one(
            "INSERT INTO dialog_operator.actions (decided, action, asked_by, why) VALUES (now(), $1, 'test', 'a test says so')
             RETURNING id",
            &[&Json(action)],
        )
        .await?;
    Ok(row.get(0))
}

/// The isolation of a hash onto a worker where it is not, the rest onto the other one of three.
pub async fn isolation(world: &World, hash: i32) -> Result<Action> {
    let Placed { node: from, .. } = covering(world, hash).await?;
    let mut others = (0..3).map(Group::Worker).filter(|group| *group != from);
    let (to, rest) = (others.next().context("no other worker")?, others.next());
    let tenant = Tenant { colocation_id: colocation(world).await?, hash };
    Ok(Action::Isolate { tenant, from, to, rest })
}

/// What became of an action.
pub async fn outcome(round: &Round, id: i64) -> Result<Act> {
    round.observed.kept.acts.iter().find(|act| act.id == id).cloned().context("it was not written down")
}

/// No trace of a split is left on any server, nor a shard where it does not belong.
pub async fn assert_nothing_is_left(world: &World, workers: u32) -> Result<()> {
    let left = left_over(world, workers).await?;
    ensure!(left.is_empty(), "left over: {}", left.join(", "));
    Ok(())
}

/// What splits have left on servers, each kind with its number, and shards where they do not belong.
pub async fn left_over(world: &World, workers: u32) -> Result<Vec<String>> {
    // What was split is dropped a moment later.
    world
        .ask_client(Group::Coordinator)
        .await?
        .batch_execute("CALL citus_cleanup_orphaned_resources()")
        .await?;
    let mut left_over = Vec::new();
    for group in (0..workers).map(Group::Worker).chain([Group::Coordinator]) {
        for (what, of) in [
            ("slots", "pg_replication_slots WHERE slot_name LIKE 'citus_%'"),
            ("subscriptions", "pg_subscription"),
            ("publications", "pg_publication WHERE pubname LIKE 'citus_shard_%'"),
            ("roles", "pg_roles WHERE rolname LIKE 'citus_shard_%'"),
            ("records", "pg_dist_cleanup"),
            (
                "shards that belong elsewhere",
                "pg_dist_shard JOIN pg_dist_placement USING (shardid) JOIN pg_dist_partition USING (logicalrelid)
                 WHERE partmethod = 'h' AND to_regclass('public.' || shard_name(logicalrelid, shardid)) IS NOT NULL
                   AND groupid <> (SELECT groupid FROM pg_dist_local_group)",
            ),
        ] {
            let left = world.number(group, &format!("SELECT count(*) FROM {of}")).await?;
            if left > 0 {
                left_over.push(format!("{left} {what} on {group}"));
            }
        }
    }
    Ok(left_over)
}
