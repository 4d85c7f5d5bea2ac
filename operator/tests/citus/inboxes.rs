//! One who writes to very many at once, whose inbox dialog-api brings up to date together with theirs.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use dialog_api::clock::Clock;
use dialog_api::dialogs::pair::Pair;
use dialog_api::inbox::Inbox;
use dialog_bench::population::Population;
use dialog_operator::names::Group;
use jiff::Timestamp;
use uuid::Uuid;

use crate::heat::{MANY, start, watched};
use crate::needs_citus;
use crate::sends::Service;
use crate::world::World;

const WORKERS: u32 = 2;
/// Dialogs at a time.
const DIALOGS: u64 = 64;

/// How many writes the workers have counted for this user, on which of them, and for how many others.
async fn counted(world: &World, user: Uuid) -> Result<(i64, Vec<Group>, i64)> {
    let (mut writes, mut on, mut others) = (0, Vec::new(), 0);
    for group in (0..WORKERS).map(Group::Worker) {
        let listed = "SELECT tenant_attribute, query_count_in_this_period + query_count_in_last_period
                             - read_count_in_this_period - read_count_in_last_period
                      FROM citus_stat_tenants_local(true)";
        for row in world.ask(group, listed).await? {
            let (tenant, count): (String, i32) = (row.get(0), row.get(1));
            if tenant == user.to_string() {
                on.push(group);
                writes += i64::from(count);
            } else {
                others += 1;
            }
        }
    }
    Ok((writes, on, others))
}

#[tokio::test(flavor = "multi_thread")]
async fn who_writes_to_many_at_once_is_counted_for_the_own_inbox() -> Result<()> {
    needs_citus!();
    let world = start(WORKERS, &watched(WORKERS, MANY), 100).await?;
    let service = Service::start(&world).await?;
    let inbox = Inbox::new(Arc::clone(&service.database), Arc::clone(&service.metrics));
    let population = Population::new(DIALOGS + 1, 1, 1)?;
    let sender = population.user(0);
    let clock = Clock::new(Timestamp::now());
    let mut newest = Uuid::nil();
    for peer in 1..=DIALOGS {
        let pair = Pair::new(sender, population.user(peer));
        newest = clock.next_id().0;
        inbox.follow(pair.dialog_id(), pair, newest);
    }
    ensure!(inbox.catch_up().await, "not all inboxes were told");
    assert_eq!(service.metrics.inboxes_together.get(), DIALOGS, "not all of them together");
    let (writes, on, others) = counted(&world, sender).await?;
    let home = format!(
        "SELECT nodeport FROM pg_dist_placement JOIN pg_dist_node USING (groupid)
         WHERE shardid = get_shard_id_for_distribution_column('public.user_dialogs', '{sender}'::uuid)"
    );
    let home: i32 = world.ask(Group::Coordinator, &home).await?[0].get(0);
    let [on] = on[..] else { panic!("counted on {on:?}") };
    let topology = world.topology();
    assert_eq!(i32::from(topology.endpoint(on).context("a worker")?.port), home);
    // By one statement; nobody else has one.
    assert_eq!((writes, others), (1, 0));
    let rows = "SELECT count(*) FROM public.user_dialogs";
    assert_eq!(world.number(Group::Coordinator, rows).await?, 2 * DIALOGS.cast_signed());
    let last = inbox.list(sender, Uuid::max(), 1).await?;
    assert_eq!(last.iter().map(|entry| entry.last_message).collect::<Vec<_>>(), [newest]);
    Ok(())
}
