//! A tenant that asks for more than any worker can do.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dialog_operator::api::HotTenant;
use dialog_operator::condition::HOT_TENANT;
use dialog_operator::heat::{Mode, Reason};
use dialog_operator::names::Group;
use dialog_operator::shards::heat::{Heat, Refusal};
use dialog_operator::shards::status::status;
use jiff::Timestamp;

use crate::heat::{
    Crowd, MANY, Operator, PERIOD, millicores_of_the_spammer, recorded, spammer, start, uuid, watched,
};
use crate::isolation::{assert_nothing_is_left, with_mode};
use crate::needs_citus;
use crate::world::{World, condition};

/// Periods in which it is hot for long enough, and nothing is done.
const HOT: usize = 4;

/// Every shard, its range and where it is.
async fn places(world: &World) -> Result<String> {
    let all = "SELECT string_agg(concat_ws(' ', shardid, shardminvalue, shardmaxvalue, groupid), ',' ORDER BY shardid)
               FROM pg_dist_shard JOIN pg_dist_placement USING (shardid)";
    Ok(world.ask(Group::Coordinator, all).await?[0].get(0))
}

/// What is said of somebody who is too hot.
fn too_hot(heat: &Heat) -> Option<&Refusal> {
    heat.refused.iter().find(|refusal| refusal.reason == Reason::TooHot)
}

#[tokio::test]
async fn a_dialog_that_no_worker_can_bear_is_named_with_what_would_help_and_stays_where_it_is() -> Result<()>
{
    needs_citus!();
    let calm = watched(3, MANY);
    let world = start(3, &calm, 100).await?;
    millicores_of_the_spammer(&world, &calm).await?;
    // What it spends itself, without what its worker does for others: how fast a machine is, nobody knows before.
    let periods = recorded(&world).await?;
    let own = periods.iter().flat_map(|period| &period.tenants).map(|load| load.cpu).max();
    let own = own.context("nobody did anything")? / 1000 / u64::try_from(PERIOD)?;
    let wanted = with_mode(watched(3, (own / 3).max(1)), Mode::Isolate);
    let operator = Operator::new(&world, &wanted).await?;
    let before = places(&world).await?;

    let crowd = Crowd::start(&world, 1, (1..100).map(uuid).collect(), Duration::from_millis(50)).await?;
    let spammer = spammer(&world).await?;
    let mut heat = operator.look(None).await?;
    let (mut looks, mut said) = (0, 0);
    while said < HOT {
        heat = operator.look(Some(&heat)).await?;
        looks += 1;
        ensure!(heat.last.is_none(), "something was decided: {:?}", heat.last);
        let round = operator.round(&heat).await;
        ensure!(round.performed.is_empty() && round.plan.steps.is_empty(), "{:?}", round.plan.steps);
        let Some(refusal) = too_hot(&heat) else {
            ensure!(said == 0 && looks <= 4, "it is not said: {heat:?}");
            continue;
        };
        said += 1;
        let who = format!("dialog {} stays where it is: it is more than any worker can do: ", uuid(0));
        assert!(refusal.message.starts_with(&who), "{}", refusal.message);
        for option in ["give the workers more CPU", "read from standbys"] {
            assert!(refusal.message.contains(option), "{}", refusal.message);
        }
        let (holds, reason, message) = condition(&round, HOT_TENANT);
        assert_eq!((holds, reason), ("True", "NothingHelps"), "{message}");
        assert!(message.contains(&refusal.message), "{message}");
        let shown = status(&wanted, &world.topology(), &round, None, Timestamp::now());
        let [HotTenant { tenant, group, pinned: false, .. }] = &shown.hot[..] else {
            panic!("{:?}", shown.hot)
        };
        assert_eq!((tenant, group.as_str()), (&uuid(0), "dialog"));
        let refused = shown.heat.context("nothing is shown")?.refused;
        assert!(refused.contains(&refusal.message), "{refused:?}");
    }
    let written = spammer.end().await?;
    let decided = "SELECT count(*) FROM dialog_operator.actions";
    assert_eq!(world.number(Group::Coordinator, decided).await?, 0);
    assert_eq!(places(&world).await?, before, "shards were moved or split");

    // It is taken back once the load has gone.
    let (mut looks, mut cooled) = (0, Vec::new());
    while too_hot(&heat).is_some() || !heat.hot.is_empty() {
        ensure!(looks < 4, "it is still said: {heat:?}");
        heat = operator.look(Some(&heat)).await?;
        cooled.extend(heat.turned.iter().filter(|turn| !turn.hot).map(|turn| turn.message.clone()));
        looks += 1;
    }
    let name = format!("dialog {} does not take a large part of ", uuid(0));
    assert!(cooled.iter().any(|message| message.starts_with(&name)), "{cooled:?}");
    let round = operator.round(&heat).await;
    let (_, reason, message) = condition(&round, HOT_TENANT);
    assert_ne!(reason, "NothingHelps", "{message}");
    assert!(!message.contains(&uuid(0)), "{message}");
    let shown = status(&wanted, &world.topology(), &round, None, Timestamp::now());
    assert_eq!(shown.hot, []);
    let written = written + crowd.end().await?;
    assert_eq!(world.number(Group::Coordinator, "SELECT count(*) FROM public.messages").await?, written);
    assert_nothing_is_left(&world, 3).await
}
