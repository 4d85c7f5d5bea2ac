//! One person who writes to thousands.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use dialog_operator::condition::HOT_TENANT;
use dialog_operator::heat::{Action, Mode};
use dialog_operator::names::Group;
use dialog_operator::shards::heat::actions::Outcome;
use dialog_operator::shards::rebalance::HashRange;
use dialog_operator::shards::status::status;
use jiff::Timestamp;
use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Statement};

use crate::heat::{MANY, Operator, start, uuid, watched};
use crate::isolation::{assert_nothing_is_left, with_mode};
use crate::needs_citus;
use crate::world::{World, condition};

/// Whom the sender writes to.
const PEERS: u32 = 2_000;
const SESSIONS: u32 = 3;

fn sender() -> String {
    uuid(0)
}

/// One who writes to all peers, one after the other, each in a dialog of its own: the message, and the inboxes of both.
struct Flood {
    stop: Arc<AtomicBool>,
    sessions: Vec<JoinHandle<Result<i64>>>,
}

impl Flood {
    async fn start(world: &World) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut sessions = Vec::new();
        for number in 0..SESSIONS {
            let client = world.ask_client(Group::Coordinator).await?;
            client.batch_execute("SET search_path = public").await?;
            sessions.push(tokio::spawn(flood(client, number, Arc::clone(&stop))));
        }
        Ok(Self { stop, sessions })
    }

    /// Ends it; how many messages were acknowledged.
    async fn end(self) -> Result<i64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut written = 0;
        for session in self.sessions {
            written += session.await??;
        }
        Ok(written)
    }
}

async fn flood(client: Client, number: u32, stop: Arc<AtomicBool>) -> Result<i64> {
    let message = client
        .prepare(
            "INSERT INTO messages (dialog_id, message_id, from_user_id, to_user_id, text, created_at)
             VALUES ($1::text::uuid, gen_random_uuid(), $2::text::uuid, $3::text::uuid, 'to you', now())",
        )
        .await?;
    let inbox = client
        .prepare(
            "INSERT INTO user_dialogs (user_id, dialog_id, peer_id, last_message_id)
             VALUES ($1::text::uuid, $2::text::uuid, $3::text::uuid, gen_random_uuid())
             ON CONFLICT (user_id, dialog_id) DO UPDATE SET last_message_id = excluded.last_message_id",
        )
        .await?;
    let mut written = 0;
    let first = PEERS / SESSIONS * number;
    for peer in (1..=PEERS).cycle().skip(usize::try_from(first)?) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        // Dialogs are others than people.
        let (peer, dialog) = (uuid(peer), uuid(1_000_000 + peer));
        execute(&client, &message, &[&dialog, &sender(), &peer]).await?;
        execute(&client, &inbox, &[&sender(), &dialog, &peer]).await?;
        execute(&client, &inbox, &[&peer, &dialog, &sender()]).await?;
        written += 1;
    }
    Ok(written)
}

/// Again, if a split has just replaced the shard: dialog-api tries again then, too.
async fn execute(client: &Client, statement: &Statement, values: &[&(dyn ToSql + Sync)]) -> Result<()> {
    while let Err(error) = client.execute(statement, values).await {
        ensure!(error.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE), "{error:?}");
    }
    Ok(())
}

/// Messages on each worker.
async fn messages_by_worker(world: &World) -> Result<BTreeMap<i32, i64>> {
    let rows = world
        .ask(
            Group::Coordinator,
            "SELECT nodeport, sum(result::int8)::int8
             FROM run_command_on_shards('public.messages', 'SELECT count(*) FROM %s') AS counted
             JOIN pg_dist_placement USING (shardid) JOIN pg_dist_node USING (groupid) WHERE success GROUP BY 1",
        )
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// The range and the node of the shard group of the user tables that covers the sender.
async fn home(world: &World) -> Result<(HashRange, i32)> {
    let rows = world
        .ask(
            Group::Coordinator,
            &format!(
                "SELECT shardminvalue::int, shardmaxvalue::int, nodeport FROM pg_dist_shard
                 JOIN pg_dist_placement USING (shardid) JOIN pg_dist_node USING (groupid)
                 WHERE shardid = get_shard_id_for_distribution_column('public.user_dialogs', '{}'::uuid)",
                sender()
            ),
        )
        .await?;
    Ok((HashRange { min: rows[0].get(0), max: rows[0].get(1) }, rows[0].get(2)))
}

#[tokio::test]
async fn who_writes_to_thousands_is_spread_by_dialog_and_is_found_as_a_user() -> Result<()> {
    needs_citus!();
    let world = start(3, &watched(3, MANY), 100).await?;
    // What the sender's worker spends on it: how fast a machine is, nobody knows before.
    let calm = watched(3, MANY);
    let operator = Operator::new(&world, &calm).await?;
    let flood = Flood::start(&world).await?;
    let mut heat = operator.look(None).await?;
    for _ in 0..2 {
        heat = operator.look(Some(&heat)).await?;
    }
    assert_eq!(heat.hot, [], "nobody harms a worker of so many cores");
    let most = heat.nodes.values().map(|load| load.cpu).max().context("there are workers")?;
    let seconds = u64::try_from(heat.length.as_secs())?;

    let wanted = with_mode(watched(3, most / 1000 / seconds * 2), Mode::Isolate);
    let operator = Operator::new(&world, &wanted).await?;
    let mut periods = 0;
    while heat.last.is_none() {
        heat = operator.look(Some(&heat)).await?;
        periods += 1;
        ensure!(periods <= 4, "not found: {heat:?}");
    }
    // No dialog is hot, and no worker has more than its share of them.
    let hot: Vec<(&str, &str)> =
        heat.hot.iter().map(|hot| (hot.group.as_str(), hot.tenant.as_str())).collect();
    let sender = sender();
    assert_eq!(hot, [("user", sender.as_str())], "{heat:?}");
    let spread = messages_by_worker(&world).await?;
    let total: i64 = spread.values().sum();
    println!("{total} messages to {PEERS} peers: {spread:?}");
    assert!(spread.len() == 3 && total > i64::from(PEERS), "{spread:?}");
    for (port, messages) in &spread {
        let percent = messages * 100 / total;
        assert!((25..=42).contains(&percent), "{percent} % of the messages are on the worker of port {port}");
    }

    let (before, source) = home(&world).await?;
    let decided = heat.last.clone().context("nothing was decided")?;
    assert!(decided.message.starts_with(&format!("user {sender} takes ")), "{}", decided.message);
    let round = operator.round(&heat).await;
    assert_eq!(condition(&round, HOT_TENANT).2, decided.message);
    world.settle(&wanted).await?;
    let (placed, port) = home(&world).await?;
    assert!(before.min < placed.min || placed.max < before.max, "{placed:?} of {before:?}");
    assert!(placed.min == placed.max && port != source, "{placed:?} on {port}");

    // The status tells the whole story.
    let operator = Operator::new(&world, &wanted).await?;
    for _ in 0..2 {
        heat = operator.look(Some(&heat)).await?;
    }
    let round = operator.round(&heat).await;
    let shown = status(&wanted, &world.topology(), &round, None, Timestamp::now());
    let story = shown.heat.context("nothing is shown")?;
    let [act] = &story.actions[..] else { panic!("{:?}", story.actions) };
    assert_eq!((act.kind.as_str(), act.tenant.as_deref()), ("Isolate", Some(sender.as_str())));
    assert_eq!((act.outcome.as_deref(), &act.why), (Some(Outcome::Done.name()), &decided.message));
    assert!(act.before.is_some_and(|figures| figures.tenant_writes_per_second > Some(0)), "{act:?}");
    let [kept] = &round.observed.kept.acts[..] else { panic!("{:?}", round.observed.kept.acts) };
    let Action::Isolate { tenant, .. } = kept.action else { panic!("{kept:?}") };
    assert_eq!((tenant.hash, round.observed.kept.pins.len()), (placed.min, 1));

    let written = flood.end().await?;
    let rows = world.number(Group::Coordinator, "SELECT count(*) FROM public.messages").await?;
    assert_eq!(rows, written);
    let inbox = format!("SELECT count(*) FROM public.user_dialogs WHERE user_id = '{sender}'");
    assert_eq!(world.number(Group::Coordinator, &inbox).await?, i64::from(PEERS).min(written));
    assert_nothing_is_left(&world, 3).await
}
