//! One person writes to a hundred thousand: the messages are spread, and the person's inbox gets a worker that can bear it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use dialog_operator::api::DialogCluster;
use dialog_operator::names::Group;

use super::flood::{self, Flood, SESSIONS, isolation};
use crate::bed::{Bed, CLUSTER};
use crate::load::Population;

const PEOPLE: Population = Population { users: 5_000, dialogs: 5_000, messages: 5 };
/// Whom the person writes to, one after the other.
const PEERS: usize = 100_000;
/// From the flood until the person has a shard of its own: two periods of ten seconds that count, one that does not, and the split.
const TO_ACT: Duration = Duration::from_mins(3);
/// Until the figures after it are known: a whole period.
const TO_COMPARE: Duration = Duration::from_mins(1);
/// By how many standard deviations a shard may have more messages than the mean, if each message goes to any of them alike.
const UNEVEN: f64 = 6.0;

#[tokio::test(flavor = "multi_thread")]
async fn who_writes_to_everybody_is_spread_by_dialog_and_isolated_as_a_user() -> Result<()> {
    if !Bed::has_citus() {
        println!("SKIPPED citus: the PostgreSQL image was built without the extension");
        return Ok(());
    }
    let bed = Bed::new("hot-user").await?;
    flood::create(&bed).await?;
    bed.ready().await?;
    PEOPLE.write(&bed).await?;

    let person = bed.sql(Group::Coordinator, "SELECT user_id FROM users LIMIT 1").await?;
    let before = owner(&bed, &person).await?;
    let (begun, flood) = (Instant::now(), begin(&bed, &person).await?);
    let isolated = |cluster: &DialogCluster| isolation(cluster, &person);
    bed.until("the person isolated", TO_ACT, |cluster| isolated(cluster).is_some()).await?;
    bed.say(format!("isolated {:.1} s after the flood began", begun.elapsed().as_secs_f64()));
    let compared = |cluster: &DialogCluster| isolated(cluster).is_some_and(|action| action.after.is_some());
    let cluster = bed.until("the figures after it", TO_COMPARE, compared).await?;
    flood.end(&bed).await?;

    // Who asks for the resource reads all of it there.
    let story = bed.kubectl(&["get", "dlg", CLUSTER, "--output", "yaml"])?;
    bed.say(&story[story.find("\n  heat:").unwrap_or_default()..]);
    let action = isolated(&cluster).context("it was there a moment ago")?;
    let status = cluster.status.context("a status")?;
    let said = format!("user {person} takes ");
    ensure!(
        action.why.starts_with(&said) && action.why.contains(&format!(" of {} and ", before.0)),
        "{action:?}"
    );
    // kubectl breaks long lines.
    let told = story.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [&action.why, "askedBy: policy", "sourceCpuPercent:", "tenantQueriesPerSecond:"] {
        ensure!(told.contains(part), "{part:?} is not told");
    }
    let listed = "jsonpath={range .items[*]}{.reason}: {.message}{'\\n'}{end}";
    let events = bed.kubectl(&[
        "get",
        "events",
        "--field-selector=involvedObject.kind=DialogCluster",
        "--output",
        listed,
    ])?;
    for event in [format!("TenantHot: {said}"), format!("Decided: Isolate: {said}"), "EndAction: ".to_owned()]
    {
        ensure!(events.lines().any(|line| line.starts_with(&event)), "no Event says {event:?}: {events}");
    }
    let [pinned] = &status.isolated[..] else {
        bail!("not the person alone is pinned: {:?}", status.isolated)
    };
    ensure!((pinned.tenant == person) && pinned.group == "user", "{pinned:?}");
    let now = owner(&bed, &person).await?;
    ensure!(now.0 == pinned.worker && now.0 != before.0, "was on {before:?}, is on {now:?}: {pinned:?}");
    ensure!(now.1 == 1, "its shard is for {} hashes", now.1);
    ensure!(status.hot.iter().all(|hot| hot.group != "dialog"), "a dialog is hot: {:?}", status.hot);

    written(&bed, &person).await?;
    bed.done();
    Ok(())
}

/// Has the person write to one peer after the other, as dialog-api does it: a message, and then both inboxes.
async fn begin(bed: &Bed, person: &str) -> Result<Flood> {
    let each = PEERS / SESSIONS;
    let inbox = |user: &str, peer: &str| {
        again(&format!(
            "INSERT INTO user_dialogs (user_id, dialog_id, peer_id, last_message_id)
             VALUES ({user}, md5('{person}' || friend)::uuid, {peer}, message)
             ON CONFLICT (user_id, dialog_id) DO UPDATE SET last_message_id = excluded.last_message_id"
        ))
    };
    let (own, peer) = (format!("'{person}'"), "md5(friend)::uuid");
    let write = |session: usize| {
        let send = again(&format!(
            "INSERT INTO messages (dialog_id, message_id, from_user_id, to_user_id, text, created_at)
             VALUES (md5('{person}' || friend)::uuid, message, '{person}', md5(friend)::uuid,
                     'flood {session} ' || number, clock_timestamp());
             number := number + 1"
        ));
        format!(
            "DECLARE friend text := {session} || ' ' || number % {each}; message uuid := gen_random_uuid();
             BEGIN {send} {} {} END;",
            inbox(&own, peer),
            inbox(peer, &own)
        )
    };
    Flood::begin(bed, write).await
}

/// A statement that is tried again until it is not refused because its shard is replaced just then.
fn again(statement: &str) -> String {
    format!(
        "LOOP
            BEGIN {statement}; refused := 0;
            EXCEPTION WHEN serialization_failure THEN refused := refused + 1;
            END;
            COMMIT;
            EXIT WHEN refused = 0;
         END LOOP;"
    )
}

/// The worker that has the person's inbox, and for how many hashes the shard is that it is in.
async fn owner(bed: &Bed, person: &str) -> Result<(String, i64)> {
    let owner = format!(
        "SELECT nodename, shardmaxvalue::bigint - shardminvalue::bigint + 1
         FROM pg_dist_shard JOIN pg_dist_placement USING (shardid) JOIN pg_dist_node USING (groupid)
         WHERE noderole = 'primary' AND shardid = get_shard_id_for_distribution_column('user_dialogs', '{person}'::uuid)"
    );
    let found = bed.sql(Group::Coordinator, &owner).await?;
    let (host, hashes) = found.split_once('|').context("no owner")?;
    let worker = host.split('.').next().and_then(|service| service.strip_prefix(&format!("{CLUSTER}-")));
    Ok((worker.context("no worker")?.to_owned(), hashes.parse()?))
}

/// Nothing that was written is lost or doubled, and each shard has as many of the messages as any other.
async fn written(bed: &Bed, person: &str) -> Result<()> {
    // Each session counts from 1 without leaving one out: what it wrote last is how many it wrote. Each may have been ended
    // before it told the inboxes of its last message.
    let written = format!(
        "WITH flood AS (
            SELECT dialog_id, split_part(text, ' ', 2) AS session, split_part(text, ' ', 3)::bigint AS number
            FROM messages WHERE text LIKE 'flood %'
         )
         SELECT (SELECT count(*) FROM flood), (SELECT sum(last) FROM (SELECT max(number) AS last FROM flood GROUP BY session) AS each),
                (SELECT count(DISTINCT dialog_id) FROM flood),
                (SELECT count(*) FROM user_dialogs WHERE user_id = '{person}' AND dialog_id IN (SELECT dialog_id FROM flood))"
    );
    let numbers = bed.sql(Group::Coordinator, &written).await?;
    let numbers: Vec<usize> = numbers.split('|').map(str::parse).collect::<Result<_, _>>()?;
    let [written, acknowledged, dialogs, told] = numbers[..] else {
        bail!("{numbers:?} are no four numbers")
    };
    ensure!(written == acknowledged, "{written} messages are there of {acknowledged}");
    ensure!(told <= dialogs && told + SESSIONS >= dialogs, "the inbox has {told} of {dialogs} dialogs");
    let each = "SELECT result FROM run_command_on_shards('messages', $$SELECT count(*) FROM %s WHERE starts_with(text, 'flood ')$$)";
    let each = bed.sql(Group::Coordinator, each).await?;
    let each: Vec<f64> = each.lines().map(str::parse).collect::<Result<_, _>>()?;
    let shards = f64::from(u32::try_from(each.len())?);
    let (mean, most) = (each.iter().sum::<f64>() / shards, each.iter().copied().fold(0.0, f64::max));
    bed.say(format!(
        "{written} messages in {dialogs} dialogs: {mean:.1} in each of {} shards, {most} at most",
        each.len()
    ));
    ensure!(
        most <= mean + UNEVEN * mean.sqrt(),
        "a shard has {most} messages, where the mean is {mean:.1}: {each:?}"
    );
    Ok(())
}
