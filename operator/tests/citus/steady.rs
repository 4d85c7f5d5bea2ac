//! What the operator asks of a coordinator with nothing to do.

use anyhow::{Context, Result, ensure};
use dialog_operator::names::{DATABASE, Group};
use dialog_operator::reconcile::Reconciler as _;
use dialog_operator::shards::Controller;
use dialog_operator::shards::heat::look;
use dialog_operator::shards::observe::Sizes;
use dialog_operator::shards::world::World as Sight;
use jiff::{SignedDuration, Timestamp};

use crate::world::{World, wanted};

/// Statements per second that a cluster at rest may cost its coordinator.
pub const MOST: f64 = 1.0;
/// Looks of which the one with the most statements counts.
const LOOKS: usize = 5;
/// Statements of the operator since they were counted last, with those that Citus makes of them.
const COUNT: &str = "SELECT sum(calls)::int8 FROM pg_stat_statements JOIN pg_database ON oid = dbid
                     WHERE datname = 'dialog' AND userid = 'dialog_operator'::regrole AND toplevel";
const RESET: &str = "SELECT pg_stat_statements_reset()";

/// Statements on a coordinator with two workers.
pub struct Steady {
    /// Of one look: once per [`Controller::REST`], and at the end of each period.
    pub look: i64,
    /// Of one that measures shards, once per minute.
    pub measured: i64,
    /// Of what is asked about load, once per period.
    pub watching: i64,
    /// Of all these per second, with the period that a resource has unless it says otherwise.
    pub per_second: f64,
}

/// Starts servers, and counts.
pub async fn measure() -> Result<Steady> {
    let mut world = World::empty()?;
    world.add_with(Group::Coordinator, |builder| {
        builder.parameter("shared_preload_libraries", "citus,pg_stat_statements")
    })?;
    world.add(Group::Worker(0))?;
    world.add(Group::Worker(1))?;
    // Citus' own maintenance is at work now and then, in the name of who made the extension: as that is somebody else, none of
    // it counts as the operator's.
    for group in [Group::Coordinator, Group::Worker(0), Group::Worker(1)] {
        let server = world.server(group);
        server.connect("postgres").await?.batch_execute(&format!("CREATE DATABASE {DATABASE}")).await?;
        server.connect(DATABASE).await?.batch_execute("CREATE EXTENSION citus").await?;
    }
    let wanted = wanted(2);
    world.serve(&wanted).await?;
    let counter = world.server(Group::Coordinator).connect("postgres").await?;
    counter.batch_execute("CREATE EXTENSION pg_stat_statements").await?;
    let calls = async |sizes: Sizes| -> Result<i64> {
        let mut most = 0;
        for _ in 0..LOOKS {
            counter.batch_execute(RESET).await?;
            let round = world.look(&wanted, sizes).await?;
            ensure!(round.is_settled() && round.performed.is_empty(), "{:?}", round.plan);
            most = most.max(counter.query_one(COUNT, &[]).await?.get(0));
        }
        Ok(most)
    };
    let (look_calls, measured) = (calls(Sizes::Skip).await?, calls(Sizes::Measure).await?);
    // Load is looked at when a period is over; the shortest period here, so that nobody waits for it.
    let mut hasty = wanted.clone();
    let watch = hasty.watch.as_mut().context("load is watched unless the resource says otherwise")?;
    let period = std::mem::replace(&mut watch.period, SignedDuration::from_secs(1)).as_secs_f64();
    let watch = *watch;
    let (topology, observed) = (world.topology(), world.round(&hasty).await?.observed);
    let sight = Sight { wanted: &hasty, topology: &topology, observed: &observed };
    let mut watching = 0;
    for first in [true].into_iter().chain([false; LOOKS]) {
        counter.batch_execute(RESET).await?;
        let heat = look(&world.sessions()?, &sight, &watch, Timestamp::now()).await?;
        let heat = heat.context("there is nowhere to keep what is seen of load")?;
        let calls: i64 = counter.query_one(COUNT, &[]).await?.get(0);
        // The first one finds nothing of a period before.
        if !first {
            watching = watching.max(calls);
        }
        while !heat.is_due(&watch, Timestamp::now()) {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
    let count = |statements: i64| u32::try_from(statements).map(f64::from);
    let looks = (period / Controller::REST.as_secs_f64()).ceil() / period;
    let per_second = count(look_calls)? * looks + 1.0 / 60.0 + count(watching)? / period;
    Ok(Steady { look: look_calls, measured, watching, per_second })
}
