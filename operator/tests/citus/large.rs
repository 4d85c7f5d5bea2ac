//! Shards that have grown above what the policy lets them have.

use anyhow::{Context, Result, bail, ensure};
use dialog_operator::condition::HOT_TENANT;
use dialog_operator::heat::{Action, Reason};
use dialog_operator::names::Group;
use dialog_operator::shards::heat::Heat;
use dialog_operator::shards::heat::actions::Outcome;
use dialog_operator::shards::rebalance::Role;
use dialog_operator::shards::status::status;
use dialog_operator::shards::wanted::{Gate, Wanted};
use jiff::{SignedDuration, Timestamp};

use crate::heat::Operator;
use crate::isolation::{assert_nothing_is_left, covering, hash, isolating, outcome};
use crate::needs_citus;
use crate::traffic::Traffic;
use crate::world::{World, condition};

/// More than this is too large here, in bytes.
const LIMIT: u64 = 5 << 20;
/// Rows of about 2 kB in a dialog that fills a shard, in one of two that do together, and in a small one.
const ROWS: [i32; 3] = [3300, 1300, 4];
/// Small dialogs beside the two.
const SMALL: usize = 60;
/// Periods after which every server was measured once: the first look may be right before a period's end.
const LOOKS: usize = 4;

/// Dialogs by their shards: in order of their hashes.
async fn dialogs_by_shard(world: &World) -> Result<Vec<Vec<String>>> {
    let rows = world
        .ask(
            Group::Coordinator,
            "SELECT array_agg(id::text ORDER BY worker_hash(id)) FROM (
                 SELECT id, get_shard_id_for_distribution_column('public.messages', id) AS shardid
                 FROM generate_series(1, 2000) AS number,
                      LATERAL (SELECT ('00000000-0000-4000-8000-' || lpad(number::text, 12, '0'))::uuid AS id) AS ids
             ) AS dialogs GROUP BY shardid ORDER BY shardid",
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

async fn fill(world: &World, dialogs: &[String], rows: i32) -> Result<()> {
    for dialog in dialogs {
        let statement = format!(
            "INSERT INTO messages (dialog_id, message_id, from_user_id, to_user_id, text, created_at)
             SELECT '{dialog}', gen_random_uuid(), gen_random_uuid(), gen_random_uuid(),
                    (SELECT string_agg(md5(row || ' ' || part), '') FROM generate_series(1, 60) AS part), now()
             FROM generate_series(1, {rows}) AS row"
        );
        world.api(Group::Coordinator).await?.run(&statement).await?;
    }
    Ok(())
}

/// What is seen once every server's figures have earlier ones to be compared with, which are not from just before.
async fn look(world: &World, wanted: &Wanted) -> Result<Heat> {
    let operator = Operator::new(world, wanted).await?;
    let mut heat = operator.look(None).await?;
    for _ in 0..LOOKS {
        heat = operator.look(Some(&heat)).await?;
        if heat.nodes.values().all(|node| node.role != Role::Unavailable) {
            return Ok(heat);
        }
    }
    bail!("a server was never measured: {heat:?}")
}

/// The shards that are refused to be split, by the dialog that is named.
fn indivisible(heat: &Heat) -> Vec<&str> {
    let refused = heat.refused.iter().filter(|refusal| refusal.reason == Reason::Indivisible);
    refused.map(|refusal| refusal.message.as_str()).collect()
}

#[tokio::test]
async fn a_shard_that_is_too_large_is_split_in_the_middle_and_who_fills_one_alone_is_named() -> Result<()> {
    needs_citus!();
    let world = World::start(3)?;
    let mut wanted = isolating(3);
    let watch = wanted.watch.as_mut().context("nobody is to look")?;
    watch.period = SignedDuration::from_secs(1);
    (watch.policy.max_shard_bytes, watch.policy.cooldown) = (Some(LIMIT), SignedDuration::ZERO);
    world.serve(&wanted).await?;
    // The halves are to be seen where they were put: moves wait for a word, and splits do not.
    wanted.rebalance.gate =
        Gate::Closed { reason: "PlanAvailable", message: "nobody has asked for them".to_owned() };
    let shards = dialogs_by_shard(&world).await?;
    let [fourth, others @ ..] = &shards[..] else { panic!("{shards:?}") };
    let whales: Vec<String> = others.iter().take(3).map(|shard| shard[0].clone()).collect();

    // Three dialogs that each fill a shard alone: they are named, and nothing is done.
    fill(&world, &whales, ROWS[0]).await?;
    let heat = look(&world, &wanted).await?;
    assert_eq!(heat.last, None);
    let said = indivisible(&heat);
    assert_eq!(said.len(), 3, "{heat:?}");
    for whale in &whales {
        let name = format!(
            " (dialog {whale} has 100 % of its rows) is too large and stays as it is: one tenant fills the shard"
        );
        assert_eq!(said.iter().filter(|message| message.contains(&name)).count(), 1, "{said:?}");
    }
    let round = Operator::new(&world, &wanted).await?.round(&heat).await;
    let (_, reason, message) = condition(&round, HOT_TENANT);
    assert!(reason == "NothingHelps" && whales.iter().any(|whale| message.contains(whale)), "{message}");
    let shown =
        status(&wanted, &world.topology(), &round, None, Timestamp::now()).heat.context("no status")?;
    let mut named: Vec<&str> = shown.large.iter().filter_map(|large| large.tenant.as_deref()).collect();
    named.sort_unstable();
    let mut expected: Vec<&str> = whales.iter().map(String::as_str).collect();
    expected.sort_unstable();
    assert_eq!(named, expected);
    for large in &shown.large {
        assert_eq!((large.tenant_percent, large.group.as_str()), (Some(100), "dialog"), "{large:?}");
        let tenant = large.tenant.as_deref().context("nobody is named")?;
        let own = covering(&world, hash(&world, tenant).await?).await?;
        assert_eq!((large.shard, large.node.as_str()), (own.shard_id, own.node.to_string().as_str()));
    }

    // Nobody fills what has no rows, however many bytes it still has.
    let erase = format!("DELETE FROM messages WHERE dialog_id = '{}'", whales[0]);
    world.api(Group::Coordinator).await?.run(&erase).await?;
    let heat = look(&world, &wanted).await?;
    let said = indivisible(&heat);
    assert!(said.len() == 2 && said.iter().all(|message| !message.contains(&whales[0])), "{said:?}");
    fill(&world, &whales[..1], ROWS[0]).await?;

    // A fourth shard, smaller than those, of two large dialogs among small ones: it is split between the two.
    ensure!(fourth.len() > SMALL + 2, "{} dialogs of the shard", fourth.len());
    let large = [&fourth[SMALL / 3], &fourth[SMALL * 2 / 3 + 1]].map(String::clone);
    fill(&world, &large, ROWS[1]).await?;
    let small: Vec<String> =
        fourth.iter().take(SMALL + 2).filter(|one| !large.contains(*one)).cloned().collect();
    fill(&world, &small, ROWS[2]).await?;
    let before = covering(&world, hash(&world, &large[0]).await?).await?;
    let heat = look(&world, &wanted).await?;
    let decided = heat.last.as_ref().with_context(|| format!("nothing was decided: {heat:?}"))?;
    assert_eq!(decided.kind, "Split", "{decided:?}");
    assert!(
        decided.message.starts_with(&format!("shard {} on {} has ", before.shard_id, before.node)),
        "{decided:?}"
    );
    assert!(large.iter().any(|one| decided.message.contains(&format!(" (dialog {one} has "))), "{decided:?}");
    let still_named = |whale: &String| heat.large.iter().any(|large| large.tenant.as_ref() == Some(whale));
    assert!(whales.iter().all(still_named), "{heat:?}");

    let traffic = Traffic::start(&world).await?;
    world.settle(&wanted).await?;
    traffic.verify(&world).await?;
    let round = world.round(&wanted).await?;
    let act = round.observed.kept.acts.last().context("nothing was written down")?;
    let act = outcome(&round, act.id).await?;
    assert_eq!((act.outcome, act.attempts), (Some(Outcome::Done), 1), "{:?}", act.note);
    let Action::Split { at, to, .. } = act.action else { panic!("{act:?}") };
    let [lower, upper] = [hash(&world, &large[0]).await?, hash(&world, &large[1]).await?];
    assert!((lower..upper).contains(&at), "{lower}, {at}, {upper}");
    let halves = [covering(&world, lower).await?, covering(&world, upper).await?];
    assert_eq!(halves.map(|half| half.shards), [before.shards; 2], "all tables of the group go together");
    assert_eq!(halves.map(|half| half.node), to);
    assert_eq!(
        (halves[0].range.min, halves[0].range.max, halves[1].range.max),
        (before.range.min, at, before.range.max)
    );
    // As many rows in one as in the other, but for what the traffic has added.
    let mut rows = Vec::new();
    for half in &halves {
        let count = format!(
            "SELECT count(*) FROM public.messages
             WHERE worker_hash(dialog_id) BETWEEN {} AND {} AND text NOT LIKE 'writer%'",
            half.range.min, half.range.max
        );
        rows.push(world.number(Group::Coordinator, &count).await?);
    }
    let all = 2 * i64::from(ROWS[1]) + i64::try_from(SMALL)? * i64::from(ROWS[2]);
    assert_eq!(rows.iter().sum::<i64>(), all, "{rows:?}");
    assert!(rows.iter().all(|half| half * 100 >= all * 45), "{rows:?}");
    // Neither half is too large.
    let heat = look(&world, &wanted).await?;
    let halves = halves.map(|half| half.shard_id);
    assert!(heat.large.iter().all(|large| !halves.contains(&large.shard)), "{heat:?}");
    assert_nothing_is_left(&world, 3).await
}
