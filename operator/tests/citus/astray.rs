//! What goes wrong around a dialog that floods: nothing is done twice, and nothing is held up for it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dialog_operator::heat::{Mode, QUICK_BYTES};
use dialog_operator::names::Group;
use dialog_operator::shards::heat::actions::Outcome;
use dialog_operator::shards::heat::{Heat, look};
use dialog_operator::shards::rebalance::{HashRange, Role};
use dialog_operator::shards::wanted::Wanted;
use dialog_operator::shards::world::World as Sight;
use jiff::{SignedDuration, Timestamp};
use testbed::postgres::Shutdown;

use crate::heat::{Crowd, MANY, Operator, PERIOD, millicores_of_the_spammer, spammer, start, uuid, watched};
use crate::isolation::{assert_nothing_is_left, covering, hash, with_mode};
use crate::needs_citus;
use crate::world::World;

/// Waits until somebody is hot, and looks no further.
async fn hot(operator: &Operator<'_>, mut heat: Heat) -> Result<Heat> {
    let mut periods = 0;
    while heat.hot.is_empty() {
        heat = operator.look(Some(&heat)).await?;
        periods += 1;
        ensure!(periods <= 4, "nobody is hot: {heat:?}");
    }
    Ok(heat)
}

/// Waits until something is decided.
async fn decided(operator: &Operator<'_>, mut heat: Heat, most: usize) -> Result<Heat> {
    let mut periods = 0;
    while heat.last.is_none() {
        ensure!(periods < most, "not found within {most} periods: {heat:?}");
        heat = operator.look(Some(&heat)).await?;
        periods += 1;
    }
    Ok(heat)
}

/// Isolations that were written down, whatever became of them.
async fn isolations(world: &World) -> Result<i64> {
    let isolations = "SELECT count(*) FROM dialog_operator.actions WHERE action ->> 'kind' = 'Isolate'";
    world.number(Group::Coordinator, isolations).await
}

async fn rows(world: &World) -> Result<i64> {
    world.number(Group::Coordinator, "SELECT count(*) FROM public.messages").await
}

/// An operator whose clock is off by so much looks.
async fn look_at(operator: &Operator<'_>, off: SignedDuration) -> Result<Heat> {
    let Operator { world, wanted, observed } = operator;
    let topology = world.topology();
    let watch = wanted.watch.as_ref().context("nobody is to look")?;
    let sight = Sight { wanted, topology: &topology, observed };
    let now = Timestamp::now().checked_add(off)?;
    look(&world.sessions()?, &sight, watch, now).await?.context("there is nowhere to keep it")
}

#[tokio::test]
async fn a_worker_that_is_away_and_a_clock_that_jumps_neither_accuse_nor_have_anything_done_twice()
-> Result<()> {
    needs_citus!();
    let calm = watched(3, MANY);
    let mut world = start(3, &calm, 100).await?;
    let millicores = millicores_of_the_spammer(&world, &calm).await? * 2;
    let wanted = with_mode(watched(3, millicores), Mode::Isolate);
    let own = hash(&world, &uuid(0)).await?;
    let source = covering(&world, own).await?;

    // Hot for one period, and then its worker does not answer.
    let operator = Operator::new(&world, &wanted).await?;
    let flood = spammer(&world).await?;
    let heat = operator.look(None).await?;
    let heat = hot(&operator, heat).await?;
    assert_eq!((heat.last.as_ref(), heat.hot[0].periods), (None, 1), "{heat:?}");
    let mut written = flood.end().await?;
    let observed = operator.observed;
    world.server(source.node).stop(Shutdown::Fast)?;
    let operator = Operator { world: &world, wanted: &wanted, observed };
    let away = operator.look(Some(&heat)).await?;
    assert_eq!(away.nodes[&source.node].role, Role::Unavailable, "{away:?}");
    let others = away.nodes.values().filter(|node| node.role == Role::Shared).count();
    assert_eq!((others, away.hot.len(), away.last.as_ref()), (2, 0, None), "{away:?}");
    world.server(source.node).start()?;

    // It is back. What it counts from now on cannot be compared with what it had counted before.
    let operator = Operator::new(&world, &wanted).await?;
    let flood = spammer(&world).await?;
    let heat = operator.look(Some(&away)).await?;
    assert_eq!((heat.last.as_ref(), heat.hot.len()), (None, 0), "{heat:?}");

    // Hot again for a period; then the clock jumps, forth and back. Nothing is decided for that.
    let heat = hot(&operator, heat).await?;
    // One that is a little behind shows no period that was not looked at.
    let behind = look_at(&operator, SignedDuration::from_secs(-PERIOD)).await?;
    assert_eq!((behind.end, behind.hot.len()), (heat.end, heat.hot.len()), "{behind:?}");
    if heat.last.is_none() {
        for off in [SignedDuration::from_hours(1), SignedDuration::ZERO, SignedDuration::from_hours(-1)] {
            let jumped = look_at(&operator, off).await?;
            assert_ne!(jumped.end, heat.end, "{off}");
            assert_eq!(jumped.last, None, "{off}: {jumped:?}");
        }
    }
    let heat = decided(&operator, heat, 4).await?;
    assert_eq!(heat.last.as_ref().map(|last| last.kind.as_str()), Some("Isolate"));
    world.settle(&wanted).await?;
    let placed = covering(&world, own).await?;
    assert_eq!(placed.range, HashRange { min: own, max: own });
    assert_ne!(placed.node, source.node);

    // Set back, the clock of an operator shows a time before all that it has done.
    let operator = Operator::new(&world, &wanted).await?;
    for off in [-1, 0, 1, 0] {
        look_at(&operator, SignedDuration::from_hours(off)).await?;
        assert!(world.settle(&wanted).await?.is_empty(), "{off}");
    }
    let mut heat = operator.look(None).await?;
    for _ in 0..3 {
        heat = operator.look(Some(&heat)).await?;
    }
    assert_eq!(isolations(&world).await?, 1, "{heat:?}");
    let acts = operator.round(&heat).await.observed.kept.acts;
    let act = acts.iter().find(|act| act.action.kind() == "Isolate").context("it is not shown")?;
    assert_eq!((act.outcome, act.attempts), (Some(Outcome::Done), 1), "{act:?}");
    written += flood.end().await?;
    assert_eq!((rows(&world).await?, covering(&world, own).await?), (written, placed));
    assert_nothing_is_left(&world, 3).await
}

/// Two dialogs of one hash.
async fn twins(world: &World) -> Result<[String; 2]> {
    let equal = "SELECT (array_agg(dialog ORDER BY number))[1]::text, (array_agg(dialog ORDER BY number))[2]::text
                 FROM (SELECT number, md5(number::text)::uuid AS dialog FROM generate_series(1, 400000) AS number) AS dialogs
                 GROUP BY worker_hash(dialog) HAVING count(*) > 1 ORDER BY min(number) LIMIT 1";
    let found = world.ask(Group::Coordinator, equal).await?;
    let row = found.first().context("no two of so many dialogs have one hash")?;
    Ok([row.get(0), row.get(1)])
}

/// Pins that are written down.
async fn pins(world: &World, wanted: &Wanted) -> Result<usize> {
    Ok(world.round_of(wanted, 0).await?.observed.kept.pins.len())
}

#[tokio::test]
async fn two_of_one_hash_are_one_for_two_operators_and_leave_their_place_once_they_are_deleted() -> Result<()>
{
    needs_citus!();
    let calm = watched(3, MANY);
    let world = start(3, &calm, 100).await?;
    let millicores = millicores_of_the_spammer(&world, &calm).await? * 2;
    let mut wanted = with_mode(watched(3, millicores), Mode::Isolate);
    wanted.watch.as_mut().context("nobody is to look")?.policy.cooldown = SignedDuration::ZERO;
    let twins = twins(&world).await?;
    let own = hash(&world, &twins[0]).await?;
    assert_eq!(own, hash(&world, &twins[1]).await?);

    // Both flood, and two operators look at the same time.
    let (one, other) = (Operator::new(&world, &wanted).await?, Operator::new(&world, &wanted).await?);
    let flood = Crowd::start(&world, 4, twins.to_vec(), Duration::from_millis(4)).await?;
    let mut heat = one.look(None).await?;
    let (mut periods, mut together) = (0, 0);
    while heat.last.is_none() {
        let (seen, by_other) = tokio::join!(one.look(Some(&heat)), other.look(Some(&heat)));
        let by_other = by_other?;
        heat = seen?;
        if by_other.end == heat.end {
            assert_eq!(by_other, heat);
            together += 1;
        }
        periods += 1;
        ensure!(periods <= 6, "not found: {heat:?}");
    }
    assert!(together > 0, "they never looked at the same period");
    let [hot] = &heat.hot[..] else { panic!("{heat:?}") };
    assert!(twins.contains(&hot.tenant), "{hot:?}");
    // Each of them alone writes half of that.
    assert!(hot.share_percent >= 80, "{hot:?}");
    assert_eq!(isolations(&world).await?, 1, "each of them has written it down");
    let recorded = "SELECT count(*) - count(DISTINCT ended) FROM dialog_operator.periods";
    assert_eq!(world.number(Group::Coordinator, recorded).await?, 0);
    world.settle(&wanted).await?;
    let placed = covering(&world, own).await?;
    assert_eq!(placed.range, HashRange { min: own, max: own });
    let mut operator = Operator::new(&world, &wanted).await?;
    for _ in 0..2 {
        heat = operator.look(Some(&heat)).await?;
        assert!(world.settle(&wanted).await?.is_empty());
    }
    let written = flood.end().await?;
    assert_eq!(rows(&world).await?, written);
    let shard =
        format!("SELECT count(*) FROM public.messages WHERE dialog_id IN ('{}', '{}')", twins[0], twins[1]);
    assert_eq!(world.number(Group::Coordinator, &shard).await?, written);
    assert_eq!((isolations(&world).await?, pins(&world, &wanted).await?), (1, 1));

    // Quiet they keep their place, and so does the one that is left of them.
    let delete = |dialog: &str| format!("DELETE FROM public.messages WHERE dialog_id = '{dialog}'");
    for _ in 0..4 {
        heat = operator.look(Some(&heat)).await?;
    }
    world.ask(Group::Coordinator, &delete(&twins[0])).await?;
    for _ in 0..3 {
        heat = operator.look(Some(&heat)).await?;
    }
    assert_eq!(pins(&world, &wanted).await?, 1, "somebody is still there");
    // With the last row goes the pin, and not in a week, also of one that has written for many minutes: vacuuming does not
    // give back what its indexes take.
    let many = format!(
        "INSERT INTO public.messages (dialog_id, message_id, from_user_id, to_user_id, text, created_at)
         SELECT '{}', gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 'hot', now()
         FROM generate_series(1, 400000)",
        twins[1]
    );
    world.ask(Group::Coordinator, &many).await?;
    world.ask(Group::Coordinator, &delete(&twins[1])).await?;
    operator.observed = world.round_of(&wanted, 0).await?.observed;
    let bytes = "SELECT max(shard_size) FROM citus_shards WHERE table_name = 'public.messages'::regclass";
    let bytes = world.number(Group::Coordinator, bytes).await?;
    assert!(bytes.cast_unsigned() > QUICK_BYTES, "{bytes} bytes are few");
    let mut periods = 0;
    while pins(&world, &wanted).await? == 1 {
        // In one of them everything is deleted.
        ensure!(periods <= 4, "it keeps its place: {heat:?}");
        heat = operator.look(Some(&heat)).await?;
        periods += 1;
    }
    let last = heat.last.context("nothing is said")?;
    assert_eq!(last.kind, "Release");
    assert!(
        last.message.ends_with(" has no rows any more and is one like the others again"),
        "{}",
        last.message
    );
    world.settle(&wanted).await?;
    assert_eq!(covering(&world, own).await?.range, placed.range);
    assert_nothing_is_left(&world, 3).await
}
