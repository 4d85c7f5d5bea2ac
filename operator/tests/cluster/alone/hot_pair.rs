//! One pair floods a worker that others use, who notice, until it has a worker of its own.

mod table;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use dialog_bench::machine;
use dialog_bench::report::Report;
use dialog_operator::api::DialogCluster;
use dialog_operator::heat::Action;
use dialog_operator::names::Group;
use dialog_operator::simulate::{Scenario, simulate};
use k8s_openapi::jiff::Timestamp;

use self::table::{Measured, WAIT};
use super::flood::{self, Flood, PERIOD, PERIODS, isolation};
use crate::bed::{Bed, CLUSTER};
use crate::load::{self, Population, RETRIES};

const PEOPLE: Population = Population { users: 5_000, dialogs: 5_000, messages: 5 };
const MIX: [&str; 3] = ["--lists=0.5", "--skew=uniform", "--connections=16"];
/// Of the peak: a worker that may use no more than its part of a processor, in each tenth of a second, keeps people waiting
/// long before it is busy all the time.
const SHARE: f64 = 0.25;
/// What it takes until all sessions flood.
const A_LOOK: Duration = Duration::from_secs(3);
/// From the flood until it is somewhere else: two periods that count, one that does not, and the split.
const TO_ACT: Duration = Duration::from_mins(3);
/// The others on the worker suffer if the median of their sends is above this multiple of what it was before: the flood is there
/// for too short a time to be judged by the slowest of a hundred.
const SUFFERING: f64 = 1.5;
/// They are relieved if the p99 is within this multiple of what it was before.
const RELIEVED: f64 = 1.3;
/// Minutes in which they have to be: what is left of the shard that was cut is removed in the first.
const TO_RELIEVE: usize = 3;
/// Longest time in which nothing was written into the pair's own dialog.
const GAP: Duration = Duration::from_secs(2);
/// The longest time, in milliseconds, that sends to a shard group that is not cut may wait while the pair is isolated. What is
/// asked of the product is half of it: here all nodes, the service and the load share the processors of one machine, often two.
const LONGEST_WAIT: f64 = 2.0 * WAIT;

#[tokio::test(flavor = "multi_thread")]
async fn others_on_the_worker_of_a_pair_that_floods_it_are_relieved() -> Result<()> {
    if !Bed::has_citus() {
        println!("SKIPPED citus: the PostgreSQL image was built without the extension");
        return Ok(());
    }
    let busy = machine::load_average()?;
    let bed = Bed::new("hot-pair").await?;
    flood::create(&bed).await?;
    bed.ready().await?;
    PEOPLE.write(&bed).await?;
    let peak = PEOPLE.run(&bed, &[&MIX[..], &["--duration=12s"]].concat()).await?;
    let rate = format!("--rate={:.0}", SHARE * (peak.sends.per_second + peak.lists.per_second));
    let some_time = [&MIX[..], &[&rate, "--duration=62s"]].concat();
    let before = PEOPLE.run(&bed, &some_time).await?;
    load::say(&bed, "before", &before);

    let (pair, shards) = (Pair::find(&bed).await?, shards(&bed).await?);
    let load = PEOPLE.start(&bed, &[&MIX[..], &[&rate, "--duration=1h", "--warmup=0s"]].concat()).await?;
    let begun = Instant::now();
    let flood = pair.flood(&bed).await?;
    let by_clock = Timestamp::now();
    let isolated = |cluster: &DialogCluster| isolation(cluster, &pair.dialog);
    let cluster = bed.until("the pair isolated", TO_ACT, |cluster| isolated(cluster).is_some()).await?;
    let action = isolated(&cluster).context("it was there a moment ago")?;
    bed.say(format!("{:.1} s after the flood began: {action:?}", begun.elapsed().as_secs_f64()));
    let found = Duration::try_from(action.decided.0.duration_since(by_clock)).unwrap_or_default();
    ensure!(found <= PERIOD * (PERIODS + 1) + A_LOOK, "found {found:?} after the flood began");
    let isolation = format!("{:.1} s after the flood began; {}", begun.elapsed().as_secs_f64(), action.why);
    let pinned =
        cluster.status.iter().flat_map(|status| &status.isolated).find(|one| one.tenant == pair.dialog);
    bed.say(format!("pinned: {:?}", pinned.context("status.isolated does not name the pair")?));
    let during = load.stop(&bed).await?;
    load::say(&bed, "during", &during);
    ensure!(during.is_whole(), "{}", during.text());
    load::ensure_answered(&during)?;
    // Who waits for seconds has others wait behind them, until nobody finds room any more.
    ensure!(during.dropped == 0, "{} arrivals found the queue full: {}", during.dropped, during.text());

    // The parts of the shard that was cut have other numbers.
    let others = || during.shard_groups.iter().filter(|group| shards.contains(&group.shard));
    let waited = load::longest_wait(others());
    bed.say(format!(
        "sends to the {} other shard groups waited for {waited:.0} ms at most",
        others().count()
    ));
    ensure!(others().count() + 1 == shards.len(), "more than one shard was cut: {}", during.text());
    ensure!(
        waited <= LONGEST_WAIT,
        "sends to another shard group waited for {waited:.0} ms: {}",
        during.text()
    );

    let latency = |report: &Report| load::latency_of(report, &pair.node);
    let was = latency(&before)?;
    let p99 = |report: &Report| anyhow::Ok(latency(report)?.p99 / was.p99);
    let (suffering, most) = (latency(&during)?.p50 / was.p50, p99(&during)?);
    ensure!(suffering > SUFFERING, "nobody on {} has suffered: {suffering:.1} x", pair.node);

    // The flood goes on.
    let mut relieved = Vec::new();
    while relieved.last().is_none_or(|last| *last > RELIEVED) {
        ensure!(relieved.len() < TO_RELIEVE, "others on {} still suffer: p99 {relieved:.2?} x", pair.node);
        let after = PEOPLE.run(&bed, &some_time).await?;
        load::say(&bed, "after", &after);
        relieved.push(p99(&after)?);
        bed.say(format!("after: everybody's p99 {:.2} x", load::p99(&after, &before)));
    }
    flood.end(&bed).await?;
    let flooded = pair.flooded(&bed).await?;
    bed.say(format!(
        "the others' sends on {}: p50 {suffering:.1} x and p99 {most:.1} x of before, {was:?}, then p99 {relieved:.2?} x",
        pair.node
    ));
    replay(&bed, &pair.dialog)?;
    let measured = Measured {
        node: &pair.node,
        found,
        isolation,
        was: &was,
        suffering,
        most,
        relieved: &relieved,
        during: &during,
        waited: (waited, others().count()),
        flooded: &flooded,
    };
    measured.publish(&bed, &busy).await?;
    bed.done();
    Ok(())
}

/// Has the operator's pod write down what it has recorded, and makes sure that the simulation decides the same by it.
fn replay(bed: &Bed, dialog: &str) -> Result<()> {
    let observe = ["dialog-operator", "observe", CLUSTER, "--namespace", bed.names.namespace(), "--out", "-"];
    let exec = ["exec", "deployment/dialog-operator", "--namespace", "dialog-system", "--"];
    let record = bed.kubectl(&[&exec[..], &observe[..]].concat())?;
    let scenario = Scenario::read(&record).context("what was recorded is no scenario")?;
    let named = |tenant| scenario.names.iter().any(|(known, name)| *known == tenant && name == dialog);
    let outcome = simulate(&scenario);
    bed.say(format!(
        "of {} periods that were recorded:\n{outcome}",
        scenario.recorded.iter().flatten().count()
    ));
    let is_its = |action| matches!(action, Action::Isolate { tenant, .. } if named(tenant));
    ensure!(
        outcome.actions.iter().any(|acted| is_its(acted.action)),
        "by what was recorded the pair {dialog} is not isolated: {:?}",
        outcome.actions
    );
    Ok(())
}

/// The shards of the messages.
async fn shards(bed: &Bed) -> Result<BTreeSet<i64>> {
    let shards = "SELECT shardid FROM pg_dist_shard WHERE logicalrelid = 'messages'::regclass";
    Ok(bed.sql(Group::Coordinator, shards).await?.lines().map(str::parse).collect::<Result<_, _>>()?)
}

/// Two people, who are about to flood their dialog.
struct Pair {
    dialog: String,
    one: String,
    other: String,
    /// The worker of its shard, as dialog-bench calls it.
    node: String,
}

impl Pair {
    async fn find(bed: &Bed) -> Result<Self> {
        let pair =
            bed.sql(Group::Coordinator, "SELECT dialog_id, user_lo, user_hi FROM dialogs LIMIT 1").await?;
        let [dialog, one, other] = pair.split('|').collect::<Vec<_>>()[..] else {
            bail!("there is no dialog: {pair}");
        };
        let node = format!(
            "SELECT nodename || ':' || nodeport FROM pg_dist_placement JOIN pg_dist_node USING (groupid)
             WHERE noderole = 'primary' AND shardid = get_shard_id_for_distribution_column('messages', '{dialog}'::uuid)"
        );
        let node = bed.sql(Group::Coordinator, &node).await?;
        let [dialog, one, other] = [dialog, one, other].map(ToOwned::to_owned);
        Ok(Self { dialog, one, other, node })
    }
}

/// What a flood has written.
#[derive(Debug)]
struct Flooded {
    /// Rows that are there.
    written: u64,
    /// The sum of how far each session has counted: it counts on when a message is committed.
    acknowledged: u64,
    /// The longest time without a message, of whichever session.
    gap: Duration,
    /// Attempts that were refused.
    refused: u64,
    /// Messages that were refused more often than clients send anything again. They are there all the same.
    failed: u64,
}

impl Pair {
    /// Has them write into their dialog.
    async fn flood(&self, bed: &Bed) -> Result<Flood> {
        let Self { dialog, one, other, .. } = self;
        // Whoever is told to try again, because the shard is replaced just then, does so with the same number, and says in the
        // message how often that was.
        let write = |session: usize| {
            format!(
                "BEGIN
                    INSERT INTO messages (dialog_id, message_id, from_user_id, to_user_id, text, created_at)
                    VALUES ('{dialog}', gen_random_uuid(), '{one}', '{other}',
                            'flood {session} ' || number || ' ' || refused, clock_timestamp());
                    number := number + 1;
                    refused := 0;
                 EXCEPTION WHEN serialization_failure THEN refused := refused + 1;
                 END;
                 COMMIT;"
            )
        };
        Flood::begin(bed, write).await
    }

    /// What their flood has written, once it has ended: an error if any of it was lost or doubled, or refused for good, or kept for
    /// too long.
    async fn flooded(&self, bed: &Bed) -> Result<Flooded> {
        // Each session counts from 1 without leaving one out: what it wrote last is how many it wrote.
        let written = format!(
            "WITH flood AS (
                SELECT split_part(text, ' ', 2) AS session, split_part(text, ' ', 3)::bigint AS number,
                       split_part(text, ' ', 4)::bigint AS refused, created_at
                FROM messages WHERE dialog_id = '{}' AND text LIKE 'flood %'
             ), gaps AS (SELECT created_at - lag(created_at) OVER (ORDER BY created_at) AS gap FROM flood)
             SELECT (SELECT count(*) FROM flood), (SELECT sum(last) FROM (SELECT max(number) AS last FROM flood GROUP BY session) AS each),
                    (SELECT (1000 * extract(epoch FROM max(gap)))::bigint FROM gaps),
                    (SELECT sum(refused) FROM flood), (SELECT count(*) FROM flood WHERE refused > {RETRIES})",
            self.dialog
        );
        let flooded = bed.sql(Group::Coordinator, &written).await?;
        let numbers: Vec<u64> = flooded.split('|').map(str::parse).collect::<Result<_, _>>()?;
        let [written, acknowledged, gap, refused, failed] = numbers[..] else {
            bail!("{flooded} are no five numbers");
        };
        let flooded = Flooded { written, acknowledged, gap: Duration::from_millis(gap), refused, failed };
        bed.say(format!("the pair, of whom {} attempts were refused: {flooded:?}", flooded.refused));
        ensure!(
            flooded.written == flooded.acknowledged,
            "messages of the pair were lost or doubled: {flooded:?}"
        );
        ensure!(
            load::hardly_any(flooded.failed, flooded.written),
            "messages of the pair were refused for good: {flooded:?}"
        );
        ensure!(flooded.gap <= GAP, "the pair itself could not write: {flooded:?}");
        Ok(flooded)
    }
}
