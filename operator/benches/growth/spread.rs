//! How evenly the shards are spread, and that nobody was restarted for it.

use anyhow::{Context as _, Result, ensure};
use dialog_bench::table::{Limit, Row};
use dialog_operator::names::Group;
use testbed::postgres::durable;

use crate::world::World;
use crate::{Arguments, change, say, with};

/// Shards of the messages and bytes of all tables, of one worker.
struct Share {
    shards: i64,
    bytes: i64,
}

/// What the workers hold, the fullest first.
pub struct Spread(Vec<Share>);

/// Asks the coordinator.
pub async fn of(world: &World) -> Result<Spread> {
    let shares = "SELECT count(*) FILTER (WHERE table_name = 'public.messages'::regclass), sum(shard_size)::bigint \
                  FROM citus_shards WHERE citus_table_type = 'distributed' GROUP BY nodename, nodeport \
                  ORDER BY 1 DESC, 2 DESC";
    let shares = world.ask(Group::Coordinator, shares).await?;
    Ok(Spread(shares.iter().map(|row| Share { shards: row.get(0), bytes: row.get(1) }).collect()))
}

impl Spread {
    /// One shard more or less is even, and so are bytes within a tenth of the mean.
    #[allow(clippy::cast_precision_loss, reason = "megabytes")]
    pub fn row(&self, what: &str) -> Row {
        let shards: Vec<i64> = self.0.iter().map(|share| share.shards).collect();
        let bytes: Vec<i64> = self.0.iter().map(|share| share.bytes).collect();
        let text = |values: &[i64]| values.iter().map(i64::to_string).collect::<Vec<_>>().join("/");
        let most = bytes.iter().max().copied().unwrap_or_default() as f64;
        let mean = bytes.iter().sum::<i64>() as f64 / bytes.len() as f64;
        let megabytes: Vec<i64> = bytes.iter().map(|bytes| bytes >> 20).collect();
        Row::ratio(
            format!("bytes of the fullest worker above the mean, {what}"),
            format!("{} shards of messages, {} MB of all tables", text(&shards), text(&megabytes)),
            most / mean - 1.0,
            Limit::AtMost(0.1),
        )
    }
}

/// Grows from two workers to five, and looks whether the shards are even and no server was restarted.
#[allow(clippy::cast_precision_loss, reason = "a few shards")]
pub async fn two_five(world: &mut World, arguments: &Arguments, rows: &mut Vec<Row>) -> Result<()> {
    say("2 -> 5");
    let there = [Group::Coordinator, Group::Worker(0), Group::Worker(1)];
    let before = started(world, &there).await?;
    for number in 2..5 {
        world.add_with(Group::Worker(number), durable)?;
    }
    let change = change(world, &with(5, arguments)).await?;
    rows.push(change.as_planned("from 2 to 5 workers"));
    let spread = of(world).await?;
    ensure!(spread.0.len() == 5, "{} workers hold shards", spread.0.len());
    rows.push(spread.row("after 2 -> 5"));
    let (most, least) = (spread.0.first(), spread.0.last());
    let (most, least) = most.zip(least).context("no worker holds a shard")?;
    rows.push(Row::ratio(
        "shards of messages of the fullest worker above those of the emptiest, after 2 -> 5",
        spread.0.iter().map(|share| share.shards.to_string()).collect::<Vec<_>>().join("/"),
        (most.shards - least.shards) as f64,
        Limit::AtMost(1.0),
    ));
    let after = started(world, &there).await?;
    let restarted = before.iter().zip(&after).filter(|(before, after)| before != after).count();
    rows.push(Row::ratio(
        "servers restarted, 2 -> 5",
        format!("of the {} that were there, by pg_postmaster_start_time()", there.len()),
        restarted as f64,
        Limit::AtMost(0.0),
    ));
    Ok(())
}

/// When these servers were started.
async fn started(world: &World, groups: &[Group]) -> Result<Vec<String>> {
    let mut started = Vec::new();
    for &group in groups {
        let rows = world.ask(group, "SELECT pg_postmaster_start_time()::text").await?;
        started.push(rows.first().context("no start time")?.get(0));
    }
    Ok(started)
}
