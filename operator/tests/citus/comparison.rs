//! The planner beside Citus' own, for tests and for the table of results.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use dialog_operator::names::Group;
use dialog_operator::shards::rebalance::{
    BASE_BYTES, Goal, HashRange, Layout, Node, Policy, Role, ShardGroup, Strategy, plan,
};
use proptest::strategy::{Strategy as Values, ValueTree};
use proptest::test_runner::TestRunner;
use proptest::{collection, prop_oneof};
use serde_json::{Value, json};
use tokio_postgres::Client;
use tokio_postgres::types::Json;

use crate::world::{World, wanted};

/// Random layouts that are compared.
pub const LAYOUTS: usize = 200;
/// Citus counts in single precision: what is no more uneven than this times its own plan is as even.
pub const PRECISION: f64 = 1.0 + 1e-6;

/// The strategies that both have, with Citus' name, threshold and least improvement.
const STRATEGIES: [(Strategy, &str, f32, f32); 2] =
    [(Strategy::BySize, "by_disk_size", 0.1, 0.5), (Strategy::ByCount, "by_shard_count", 0.0, 0.0)];

fn policy(strategy: Strategy) -> Policy {
    Policy { strategy, threshold: 100, max_parallel_moves: 4, moves_per_node: 1, goal: Goal::Balance }
}

fn cost(strategy: Strategy, group: &ShardGroup) -> u64 {
    if strategy == Strategy::ByCount { 1 } else { group.bytes + BASE_BYTES }
}

/// A shard and the node it goes to.
type Hop = (i64, Group);

/// How a plan ends: shard groups on nodes that have to be empty, the unevenness (squares of what each node carries of each
/// colocation group; Citus and we take those with fewer shard groups than nodes together), and the bytes copied on the
/// way.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub misplaced: usize,
    pub unevenness: f64,
    pub bytes: u64,
    pub moves: usize,
}

/// Both plans for the same layout.
#[derive(Clone, Debug)]
pub struct Pair {
    /// Which layout, and by what it is to be even.
    what: String,
    pub ours: Outcome,
    pub citus: Outcome,
}

impl Pair {
    /// How uneven our plan leaves the shards, in parts of what Citus' leaves.
    pub fn unevenness(&self) -> f64 {
        ratio(self.ours.unevenness, self.citus.unevenness)
    }

    /// The bytes that ours copies, in parts of what Citus' copies.
    #[allow(clippy::cast_precision_loss, reason = "bytes are far below 2^53")]
    pub fn bytes(&self) -> f64 {
        ratio(self.ours.bytes as f64, self.citus.bytes as f64)
    }

    /// What is wrong with our plan beside Citus'.
    pub fn complaint(&self) -> Option<String> {
        let Self { what, ours, citus } = self;
        let good = ours.misplaced <= citus.misplaced && self.unevenness() <= PRECISION && self.bytes() <= 1.0;
        (!good).then(|| format!("{what}: ours {ours:?}\ntheirs {citus:?}"))
    }
}

/// Nothing is as much as nothing.
fn ratio(ours: f64, theirs: f64) -> f64 {
    if ours == 0.0 && theirs == 0.0 { 1.0 } else { ours / theirs }
}

fn outcome(layout: &Layout, strategy: Strategy, hops: &[Hop]) -> Result<Outcome> {
    let mut groups: BTreeMap<i64, ShardGroup> =
        layout.groups.iter().map(|group| (group.shard_id, *group)).collect();
    let mut bytes = 0;
    for (shard, node) in hops {
        let group = groups.get_mut(shard).with_context(|| format!("shard {shard} is not in the layout"))?;
        ensure!(group.node != *node, "shard {shard} is on {node} already");
        group.node = *node;
        bytes += group.bytes;
    }
    let shared = shared(layout);
    let members = |id| groups.values().filter(|group| group.colocation_id == id).count();
    let mut carried: BTreeMap<(Option<i32>, Group), f64> = BTreeMap::new();
    let mut misplaced = 0;
    for group in groups.values() {
        if layout.nodes[&group.node].role == Role::Shared {
            // Exact: below 2^53.
            #[allow(clippy::cast_precision_loss, reason = "a cost is far below 2^53")]
            let cost = cost(strategy, group) as f64;
            let alone = (members(group.colocation_id) >= shared).then_some(group.colocation_id);
            *carried.entry((alone, group.node)).or_default() += cost;
        } else {
            misplaced += 1;
        }
    }
    let unevenness = carried.values().map(|carried| carried * carried).sum();
    Ok(Outcome { misplaced, unevenness, bytes, moves: hops.len() })
}

fn shared(layout: &Layout) -> usize {
    layout.nodes.values().filter(|node| node.role == Role::Shared).count()
}

fn ours(layout: &Layout, strategy: Strategy) -> Vec<Hop> {
    plan(layout, &policy(strategy)).moves.iter().map(|step| (step.shard_id, step.to)).collect()
}

fn layouts() -> impl Values<Value = Layout> {
    let bytes = || prop_oneof![1 => 0..1_u64 << 20, 4 => 0..200_u64 << 20, 1 => 0..40_u64 << 30];
    // Colocation groups as large as a group of shards can be moved around between two nodes and more.
    let colocation = collection::vec((0..1000_usize, bytes()), 1..60);
    (2..9_usize, 0..3_usize, 0..3_usize, collection::vec(colocation, 1..4)).prop_map(
        |(used, fresh, drained, colocations)| {
            let nodes = (0..used + fresh)
                .map(|number| {
                    let role = if number < drained.min(used - 1) { Role::Draining } else { Role::Shared };
                    (worker(number), Node { role, free_bytes: None })
                })
                .collect();
            let staying = used + fresh - drained.min(used - 1);
            let mut groups = Vec::new();
            for (colocation, id) in colocations.iter().zip(1..) {
                // Citus' test function counts leaving nodes where its planner does not: nothing may hang on that.
                let ambiguous = (staying..used + fresh).contains(&colocation.len());
                let colocation = &colocation[..if ambiguous { staying - 1 } else { colocation.len() }];
                for ((place, bytes), number) in colocation.iter().zip(0..) {
                    groups.push(ShardGroup {
                        colocation_id: id,
                        shard_id: i64::from(id) * 1000 + i64::from(number),
                        range: HashRange { min: number, max: number },
                        node: worker(place % used),
                        bytes: *bytes,
                        load: 0,
                    });
                }
            }
            Layout { nodes, groups, pins: Vec::new() }
        },
    )
}

fn worker(number: usize) -> Group {
    Group::Worker(u32::try_from(number).unwrap())
}

/// What Citus' planner makes of a layout, through the function by which its own tests ask it.
async fn theirs(client: &Client, layout: &Layout, choice: (Strategy, &str, f32, f32)) -> Result<Vec<Hop>> {
    let (strategy, _, threshold, improvement) = choice;
    // Node names sort as the numbers do.
    let name = |group: Group| match group {
        Group::Worker(number) => format!("node-{number:02}"),
        Group::Coordinator => "node-coordinator".to_owned(),
    };
    let all: Vec<String> = layout.groups.iter().map(|group| group.shard_id.to_string()).collect();
    let nodes: Vec<Json<Value>> = layout
        .nodes
        .iter()
        .map(|(group, node)| match node.role {
            Role::Shared => json!({ "node_name": name(*group) }),
            _ => json!({ "node_name": name(*group), "capacity": 0, "disallowed_shards": all.join(",") }),
        })
        .map(Json)
        .collect();
    let mut before = None;
    let shards: Vec<Json<Value>> = layout
        .groups
        .iter()
        .map(|group| {
            let next = before.is_some_and(|id| id != group.colocation_id);
            before = Some(group.colocation_id);
            Json(json!({
                "shardid": group.shard_id, "placementid": group.shard_id, "nodename": name(group.node),
                "cost": cost(strategy, group), "next_colocation": next,
            }))
        })
        .collect();
    let row = client
        .query_one(
            "SELECT citus_plan($1, $2, $3, 1000000, false, $4)",
            &[&nodes, &shards, &threshold, &improvement],
        )
        .await?;
    let steps: Vec<Json<Value>> = row.get(0);
    steps
        .iter()
        .map(|Json(step)| {
            let target = step["targetname"].as_str().and_then(|name| name.strip_prefix("node-"));
            let target = target.with_context(|| format!("no target in {step}"))?;
            let shard = step["shardid"].as_i64().with_context(|| format!("no shard in {step}"))?;
            Ok((shard, Group::Worker(target.parse()?)))
        })
        .collect()
}

/// Both plans for random layouts, always the same ones, by each strategy that both have.
pub async fn random_layouts(client: &Client) -> Result<Vec<Pair>> {
    client
        .batch_execute(
            "CREATE FUNCTION citus_plan(json[], json[], real, int, boolean, real) RETURNS json[]
             LANGUAGE C STRICT AS 'citus', 'shard_placement_rebalance_array'",
        )
        .await?;
    let mut runner = TestRunner::deterministic();
    let mut pairs = Vec::new();
    for number in 0..LAYOUTS {
        let layout = layouts().new_tree(&mut runner).map_err(anyhow::Error::msg)?.current();
        for choice in STRATEGIES {
            let (strategy, name, ..) = choice;
            let citus = outcome(&layout, strategy, &theirs(client, &layout, choice).await?)?;
            let ours = outcome(&layout, strategy, &ours(&layout, strategy))?;
            pairs.push(Pair { what: format!("layout {number} {name}"), ours, citus });
        }
    }
    Ok(pairs)
}

/// Tables of different sizes and shard counts, all on the first two of four workers.
async fn uneven_tables(client: &Client) -> Result<()> {
    let hold = |value: bool| {
        format!(
            "SELECT citus_set_node_property(nodename, nodeport, 'shouldhaveshards', {value})
             FROM pg_dist_node WHERE groupid > 2"
        )
    };
    client.batch_execute(&hold(false)).await?;
    client.batch_execute("CREATE SEQUENCE row_numbers").await?;
    for (table, shards, rows, width) in [
        ("even", 24, 20_000, 400),
        ("few", 3, 3000, 2000),
        ("skewed", 13, 12_000, 3000),
        ("one", 1, 100, 100),
        ("empty", 7, 0, 0),
    ] {
        // A third of the rows of a skewed table share one value.
        let value = if table == "skewed" { "CASE WHEN n % 3 = 0 THEN 7 ELSE n END" } else { "n" };
        client
            .batch_execute(&format!(
                "CREATE TABLE {table} (tenant int, n int, body text, PRIMARY KEY (tenant, n));
                 ALTER TABLE {table} ALTER body SET STORAGE PLAIN;
                 SELECT create_distributed_table('{table}', 'tenant', shard_count := {shards}, colocate_with := 'none');
                 INSERT INTO {table} SELECT {value}, n, repeat('x', {width}) FROM generate_series(1, {rows}) AS n"
            ))
            .await?;
    }
    client
        .batch_execute(
            "CREATE TABLE beside (tenant int PRIMARY KEY, body text);
             SELECT create_distributed_table('beside', 'tenant', colocate_with := 'skewed');
             INSERT INTO beside SELECT n, repeat('y', 500) FROM generate_series(1, 5000) AS n",
        )
        .await?;
    client.batch_execute(&hold(true)).await?;
    Ok(())
}

/// The layout of the catalogs, with the groups' Citus numbers for names.
async fn layout(client: &Client) -> Result<Layout> {
    let node = |row: &tokio_postgres::Row| {
        let role = if row.get(1) { Role::Shared } else { Role::Draining };
        let number: i32 = row.get(0);
        Ok((Group::Worker(u32::try_from(number)?), Node { role, free_bytes: None }))
    };
    let nodes = client.query("SELECT groupid, shouldhaveshards FROM pg_dist_node", &[]).await?;
    let groups = client
        .query(
            "SELECT colocationid, min(s.shardid), shardminvalue::int, shardmaxvalue::int, groupid, sum(shard_size)::int8
             FROM pg_dist_shard AS s JOIN pg_dist_partition USING (logicalrelid) JOIN pg_dist_placement USING (shardid)
             JOIN (SELECT DISTINCT shardid, shard_size FROM citus_shards) AS sizes USING (shardid)
             WHERE partmethod = 'h' GROUP BY 1, 3, 4, 5",
            &[],
        )
        .await?;
    let group = |row: &tokio_postgres::Row| {
        let node: i32 = row.get(4);
        let bytes: i64 = row.get(5);
        Ok(ShardGroup {
            colocation_id: row.get(0),
            shard_id: row.get(1),
            range: HashRange { min: row.get(2), max: row.get(3) },
            node: Group::Worker(u32::try_from(node)?),
            bytes: u64::try_from(bytes)?,
            load: 0,
        })
    };
    Ok(Layout {
        nodes: nodes.iter().map(node).collect::<Result<_>>()?,
        groups: groups.iter().map(group).collect::<Result<_>>()?,
        pins: Vec::new(),
    })
}

/// Both plans for the catalogs of a cluster with tables of different sizes, on two of four workers, and then while one
/// of these two is to be emptied, by each strategy that both have.
pub async fn real_catalogs() -> Result<Vec<Pair>> {
    let world = World::start(4)?;
    // Registered while there are no tables: nothing is moved.
    world.round(&wanted(4)).await?;
    let client = world.ask_client(Group::Coordinator).await?;
    let registered: i64 = client.query_one("SELECT count(*) FROM pg_dist_node", &[]).await?.get(0);
    ensure!(registered == 5, "{registered} nodes are registered");
    uneven_tables(&client).await?;
    client.batch_execute(&format!("SET citus.rebalancer_by_disk_size_base_cost = {BASE_BYTES}")).await?;
    let drain = "SELECT citus_set_node_property(nodename, nodeport, 'shouldhaveshards', false)
                 FROM pg_dist_node WHERE groupid = 1";
    let mut pairs = Vec::new();
    for leaving in [false, true] {
        if leaving {
            client.batch_execute(drain).await?;
        }
        let layout = layout(&client).await?;
        ensure!(layout.groups.len() == 48, "{} shard groups", layout.groups.len());
        for (strategy, name, ..) in STRATEGIES {
            let hops = planned_by_citus(&world, &client, name).await?;
            ensure!(!hops.is_empty(), "Citus sees nothing to do by {name}");
            let citus = outcome(&layout, strategy, &hops)?;
            let ours = outcome(&layout, strategy, &ours(&layout, strategy))?;
            pairs.push(Pair { what: format!("{name}, draining {leaving}"), ours, citus });
        }
    }
    Ok(pairs)
}

/// What Citus' planner makes of its catalogs.
async fn planned_by_citus(world: &World, client: &Client, name: &str) -> Result<Vec<Hop>> {
    let rows = client
        .query(
            "SELECT p.shardid, groupid FROM get_rebalance_table_shards_plan(rebalance_strategy := $1::text::name)
             WITH ORDINALITY AS p JOIN pg_dist_node ON (targetname, targetport) = (nodename, nodeport)
             ORDER BY ordinality",
            &[&name],
        )
        .await?;
    let mut hops: Vec<Hop> = Vec::new();
    for row in &rows {
        let target: i32 = row.get(1);
        let hop = (lowest(world, row.get(0)).await?, Group::Worker(u32::try_from(target)?));
        // Colocated shards are listed one by one, and move together.
        if !hops.contains(&hop) {
            hops.push(hop);
        }
    }
    Ok(hops)
}

/// The lowest id of the shards that move with `shard`.
async fn lowest(world: &World, shard: i64) -> Result<i64> {
    world
        .number(
            Group::Coordinator,
            &format!(
                "SELECT min(other.shardid) FROM pg_dist_shard AS one JOIN pg_dist_partition AS t USING (logicalrelid)
                 JOIN pg_dist_partition AS u ON u.colocationid = t.colocationid
                 JOIN pg_dist_shard AS other
                   ON other.logicalrelid = u.logicalrelid AND other.shardminvalue = one.shardminvalue
                 WHERE one.shardid = {shard}"
            ),
        )
        .await
}
