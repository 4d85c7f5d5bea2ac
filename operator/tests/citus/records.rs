//! Whatever is done about a tenant is written down with who asked, why, and the figures around it, also what no decision has
//! asked for.

use anyhow::{Context, Result, ensure};
use dialog_operator::api::{ActionFigures, PinSpec};
use dialog_operator::heat::{Action, Mode, Tenant};
use dialog_operator::names::Group;
use dialog_operator::shards::heat::Heat;
use dialog_operator::shards::heat::actions::{Act, Outcome};
use dialog_operator::shards::wanted::Wanted;
use jiff::SignedDuration;

use crate::heat::{MANY, Operator, start, uuid, watched};
use crate::isolation::{colocation, covering, decide, hash, with_mode};
use crate::needs_citus;
use crate::world::World;

/// Looks at so many periods more.
async fn look(world: &World, wanted: &Wanted, last: Option<Heat>, times: usize) -> Result<Heat> {
    let operator = Operator::new(world, wanted).await?;
    let mut heat = operator.look(last.as_ref()).await?;
    for _ in 1..times {
        heat = operator.look(Some(&heat)).await?;
    }
    Ok(heat)
}

/// Has the periods so far be seen by an operator whose clock is off by so much.
async fn shift(world: &World, by: &str) -> Result<()> {
    let shift = format!(
        "UPDATE dialog_operator.periods
         SET ended = ended + interval '{by}', period = period || jsonb_build_object('end', ended + interval '{by}')"
    );
    Ok(world.ask_client(Group::Coordinator).await?.batch_execute(&shift).await?)
}

/// The last action of a kind.
async fn last(world: &World, wanted: &Wanted, kind: &str) -> Result<Act> {
    let acts = world.round_of(wanted, 0).await?.observed.kept.acts;
    let found = acts.iter().rev().find(|act| act.action.kind() == kind);
    found.cloned().with_context(|| format!("no {kind} was written down: {acts:?}"))
}

#[tokio::test]
async fn what_is_done_by_hand_or_as_a_worker_leaves_is_written_down_with_the_figures_around_it() -> Result<()>
{
    needs_citus!();
    let wanted = watched(3, MANY);
    let world = start(3, &wanted, 100).await?;
    // One that is on another worker than the last.
    let (mut dialog, mut hash_of) = (String::new(), 0);
    for number in 1..50 {
        dialog = uuid(number);
        hash_of = hash(&world, &dialog).await?;
        if covering(&world, hash_of).await?.node != Group::Worker(2) {
            break;
        }
    }
    let by_hand = |dialog: &str, worker| Wanted {
        pins: vec![PinSpec { group: "dialog".to_owned(), tenant: dialog.to_owned(), worker }],
        ..wanted.clone()
    };

    // By hand, before anybody has looked: nobody knows what was so before it.
    let pinned = by_hand(&dialog, Some(2));
    world.settle(&pinned).await?;
    let act = last(&world, &pinned, "Isolate").await?;
    assert_eq!((act.asked_by.as_str(), act.outcome, act.before), ("spec", Some(Outcome::Done), None));
    let ended = act.ended.context("it has no end")?;
    let mut heat = look(&world, &pinned, None, 1).await?;
    for _ in 0..5 {
        heat = look(&world, &pinned, Some(heat), 1).await?;
        if last(&world, &pinned, "Isolate").await?.after.is_some() {
            break;
        }
    }
    let after = last(&world, &pinned, "Isolate").await?.status().after.context("nothing followed")?;
    ensure!(heat.end.is_some_and(|end| end > ended), "the figures are of a time before it: {heat:?}");
    assert!(after.source_cpu_percent.is_some() && after.target_cpu_percent.is_some(), "{after:?}");

    // Somebody lets it go: what it did before that is known, also by an operator whose clock is an hour behind.
    let heat = look(&world, &pinned, Some(heat), 1).await?;
    shift(&world, "-1 hour").await?;
    world.settle(&wanted).await?;
    let act = last(&world, &wanted, "Release").await?;
    assert_eq!((act.asked_by.as_str(), act.tenant.as_deref()), ("spec", Some(dialog.as_str())));
    let before = act.status().before.context("the release has no figures before it")?;
    assert_eq!(
        before.tenant_queries_per_second,
        Some(0),
        "everybody who does anything is listed: {before:?}"
    );

    // The policy has pinned it there, and the worker leaves: the pin follows, and that is written down once.
    let isolating = with_mode(wanted.clone(), Mode::Isolate);
    let from = covering(&world, hash_of).await?.node;
    let tenant = Tenant { colocation_id: colocation(&world).await?, hash: hash_of };
    if from == Group::Worker(2) {
        let pin = Action::Isolate { tenant, from: Group::Worker(0), to: from, rest: None };
        decide(&world, pin).await?;
    } else {
        decide(&world, Action::Isolate { tenant, from, to: Group::Worker(2), rest: None }).await?;
    }
    world.settle(&isolating).await?;
    assert_eq!(covering(&world, hash_of).await?.node, Group::Worker(2));
    let heat = look(&world, &isolating, Some(heat), 1).await?;
    // So it is with one whose clock is a day ahead.
    shift(&world, "1 day").await?;
    let fewer = Wanted { workers: 2, ..isolating.clone() };
    world.settle(&fewer).await?;
    let placed = covering(&world, hash_of).await?.node;
    let acts = world.round_of(&fewer, 0).await?.observed.kept.acts;
    let moved: Vec<&Act> = acts.iter().filter(|act| act.action.kind() == "Retarget").collect();
    let [act] = &moved[..] else { panic!("{acts:?}") };
    assert_eq!(act.action, Action::Retarget { tenant, from: Group::Worker(2), to: placed });
    assert_eq!((act.asked_by.as_str(), act.outcome), ("policy", Some(Outcome::Done)));
    assert_eq!(act.tenant.as_deref(), Some(dialog.as_str()));
    assert_eq!(act.why, format!("worker-2 leaves: dialog {dialog} is pinned to {placed}"));
    // Nobody looks here while the worker is emptied: what was seen too long before is none of its figures.
    let seen = heat.end.context("no period was seen")?;
    let recent = act.decided.duration_since(seen) <= SignedDuration::from_secs(45);
    let before = act.status().before;
    assert_eq!(before.is_some(), recent, "{before:?} of {seen}, and it was done at {}", act.decided);
    let known =
        |before: ActionFigures| before.source_cpu_percent.is_some() && before.target_cpu_percent.is_some();
    assert!(before.is_none_or(known), "{before:?}");
    Ok(())
}
