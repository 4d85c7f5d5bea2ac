//! Whether a tenant takes a large part of its worker.

use crate::api::HotTenant;
use crate::condition::{Finding, HOT_TENANT, Holds, first_of};
use crate::heat::{Action, Mode, Reason};

use crate::shards::act;
use crate::shards::heat::actions::{Act, Outcome};
use crate::shards::heat::{Heat, Refusal};
use crate::shards::observed::{Catalog, Foreign, Stall};
use crate::shards::plan::Draft;
use crate::shards::rebalance::Role;
use crate::shards::step::Step;
use crate::shards::wanted::Watch;
use crate::shards::world::{Support, World};

/// The reason while somebody is hot and nothing follows yet.
const NOTICED: &str = "Noticed";

/// The condition `HotTenant`: true is what is to be looked at. What somebody has decided about tenants and is not possible may
/// last: it hides nothing that harms others, and is told beside it.
pub(super) fn hot_tenant(world: &World<'_>, draft: &Draft) -> Finding {
    if let Some((act, (reason, message))) = acting(world, draft) {
        return Finding::new(HOT_TENANT, true, reason, format!("{message}{}", also_hot(world, act)));
    }
    let load = of_load(world);
    let Some(problem) = draft.problems.first() else { return load };
    if load.holds == Holds::True && load.reason != NOTICED {
        return Finding { message: format!("{}; and of a pin: {problem}", load.message), ..load };
    }
    let also = if load.reason == NOTICED { format!("; {}", load.message) } else { String::new() };
    Finding::new(HOT_TENANT, true, "PinNotPossible", format!("{problem}{also}"))
}

/// The same, of load and sizes alone.
fn of_load(world: &World<'_>) -> Finding {
    let finding = |holds: Holds, reason, message: String| Finding::new(HOT_TENANT, holds, reason, message);
    let Some(watch) = &world.wanted.watch else {
        let message = "nobody looks: spec.sharding.hotTenants.mode is Off".to_owned();
        return finding(Holds::Unknown, "NotWatched", message);
    };
    match world.support() {
        Support::NotInImage | Support::NotPreloaded => {
            return finding(Holds::Unknown, "CitusUnavailable", super::NO_CITUS.to_owned());
        }
        Support::Unknown | Support::Citus => {}
    }
    let Some(heat) = &world.observed.heat else {
        let message = "no period has passed yet since the servers count".to_owned();
        return finding(Holds::Unknown, "NotObserved", message);
    };
    if let Some(failure) = &heat.failure {
        return finding(Holds::Unknown, "NotObserved", failure.clone());
    }
    // Nothing is left to do about those that are pinned; where they are too much for their worker, that is refused.
    let (pinned, others): (Vec<&HotTenant>, Vec<&HotTenant>) = heat.hot.iter().partition(|hot| hot.pinned);
    let (left_alone, others): (Vec<&HotTenant>, Vec<&HotTenant>) =
        others.into_iter().partition(|hot| hot.left_alone);
    let names: Vec<String> = others.iter().copied().map(name).collect();
    let decided = heat.last.as_ref().filter(|_| heat.is_decided_now());
    let lasting = i32::try_from(watch.policy.consecutive_periods).unwrap_or(i32::MAX);
    let who = format!("hot: {}", names.join(", "));
    let after_who = |message: &str| {
        if names.is_empty() { message.to_owned() } else { format!("{who}; {message}") }
    };
    let of_a_worker = |refusal: &&Refusal| {
        matches!(
            refusal.reason,
            Reason::NotByLoad | Reason::MovesHeld | Reason::NoMoveHelps | Reason::AllBusy | Reason::Crowded
        )
    };
    // That somebody stays pinned harms nobody, nor that a shard is split some hours later. What keeps one large does not hide
    // what follows for who is hot.
    let harmful = |refusal: &&Refusal| match refusal.reason {
        Reason::Unlisted | Reason::SplitHeld => false,
        Reason::Indivisible | Reason::NoPlaceForHalf => names.is_empty(),
        _ => !of_a_worker(refusal),
    };
    if let Some(refusal) = heat.refused.iter().find(harmful) {
        return finding(Holds::True, "NothingHelps", after_who(&refusal.message));
    }
    let acts = watch.policy.mode == Mode::Isolate;
    if let Some(decided) = decided.filter(|_| !acts) {
        return finding(Holds::True, "WouldAct", decided.message.clone());
    }
    // Who is hot waits for nothing of what failed but an isolation.
    let counts = |act: &&Act| names.is_empty() || matches!(act.action, Action::Isolate { .. });
    if let Some(act) = just_failed(world, watch).filter(counts).filter(|_| acts) {
        let note = act.note.as_deref().unwrap_or("nobody knows why");
        let message = after_who(&format!("{}; it could not be done: {note}", act.why));
        return finding(Holds::True, "ActionFailed", message);
    }
    if let Some(refusal) = heat.refused.iter().find(of_a_worker) {
        return finding(Holds::True, "WorkerBusy", after_who(&refusal.message));
    }
    if let Some(large) = heat.large.first().filter(|_| names.is_empty() && !acts) {
        let others = heat.large.len() - 1;
        let more = if others == 0 { String::new() } else { format!(" and {others} more") };
        let message = format!(
            "too large: shard {} of {} on {} ({} bytes){more}; with the mode Isolate what is above \
             spec.sharding.maxShardSize is split, one at a time",
            large.shard, large.group, large.node, large.bytes
        );
        return finding(Holds::True, "WouldHaveActed", message);
    }
    if names.is_empty() && !left_alone.is_empty() {
        return finding(Holds::True, "LeftAlone", nothing_follows(left_alone));
    }
    if names.is_empty() && !pinned.is_empty() {
        let pinned: Vec<String> = pinned.into_iter().map(name).collect();
        let message = format!("pinned, with a shard of its own each: {}", pinned.join(", "));
        return finding(Holds::False, "Isolated", message);
    }
    if names.is_empty() {
        return nobody(world, heat);
    }
    let lasts = others.iter().any(|hot| hot.periods >= lasting);
    if let Some(moving) = world.catalog().filter(|_| lasts && acts).and_then(under_way) {
        let message = format!("{who}; nothing is begun while shards are moved or split: {moving}");
        return finding(Holds::True, "ShardsMoving", message);
    }
    if !lasts {
        let message = format!("{who}; something follows after {lasting} periods in a row");
        return finding(Holds::True, NOTICED, message);
    }
    match (heat.cooling_until, &heat.last) {
        (Some(until), _) => {
            finding(Holds::True, "CoolingDown", format!("{who}; nothing more is done before {until}"))
        }
        (None, _) if acts => finding(Holds::True, NOTICED, who),
        (None, Some(last)) => {
            let message = format!("{who}; decided {}: {}", last.at.0, last.message);
            finding(Holds::True, "WouldHaveActed", message)
        }
        (None, None) => finding(Holds::True, NOTICED, who),
    }
}

/// What is said of hot tenants that somebody wants to be like the others.
fn nothing_follows(left_alone: Vec<&HotTenant>) -> String {
    let names: Vec<String> = left_alone.into_iter().map(name).collect();
    format!(
        "hot: {}; nothing follows, as spec.sharding.pins has it be one like the others, without a worker: take the entry away, or name \
         a worker there",
        names.join(", ")
    )
}

/// A hot tenant with its figures.
fn name(hot: &HotTenant) -> String {
    let HotTenant { group, tenant, share_percent, share_of, node, .. } = hot;
    format!("{group} {tenant} ({share_percent} % of the {share_of} of {node})")
}

/// Who is hot besides whom something is done about, to be said after that; empty if nobody is.
fn also_hot(world: &World<'_>, act: &Act) -> String {
    let own = act.action.tenant().map(|tenant| world.called(tenant));
    let is_own = |hot: &HotTenant| {
        own.as_ref().is_some_and(|own| own.group == hot.group && own.tenant() == hot.tenant)
    };
    let heat =
        world.observed.heat.as_ref().filter(|heat| world.wanted.watch.is_some() && heat.failure.is_none());
    let others = heat.iter().flat_map(|heat| &heat.hot).filter(|hot| !hot.pinned && !is_own(hot));
    let names: Vec<String> = others.map(name).collect();
    if names.is_empty() { String::new() } else { format!("; hot: {}", names.join(", ")) }
}

/// Nobody is known to be hot: who of the nodes with shards told nothing of the last period is named.
fn nobody(world: &World<'_>, heat: &Heat) -> Finding {
    let nodes = heat.nodes.iter().filter(|(_, node)| node.role == Role::Unavailable);
    let silent = nodes.map(|(group, _)| *group).filter(|group| world.shards_on(*group) > 0);
    let silent: Vec<String> = silent.map(|group| group.to_string()).collect();
    if silent.is_empty() {
        let message = "no tenant takes a large part of its worker";
        return Finding::new(HOT_TENANT, Holds::False, "NoneHot", message);
    }
    let message = format!(
        "nobody knows what the tenants of {} did in the last period: a server does not answer, or has just begun to count; of the \
         others none takes a large part of its worker",
        silent.join(", ")
    );
    Finding::new(HOT_TENANT, Holds::Unknown, "NotObserved", message)
}

/// The last action, if it has failed: that is told for a cooldown. What was asked for by hand is told of with the pins.
fn just_failed<'a>(world: &'a World<'_>, watch: &Watch) -> Option<&'a Act> {
    let last = world.observed.kept.acts.iter().rev().find(|act| act.ended.is_some())?;
    let over = last.decided.checked_add(watch.policy.cooldown).ok();
    let recent = world.observed.kept.now.zip(over).is_some_and(|(now, over)| now < over);
    (recent && !last.is_by_hand() && last.outcome == Some(Outcome::Failed)).then_some(last)
}

/// Who moves or splits shards, or makes new ones.
fn under_way(catalog: &Catalog) -> Option<String> {
    let own = catalog.operations.first();
    let own = own.map(|running| format!("{} (pid {} on the coordinator)", running.application, running.pid));
    own.or_else(|| catalog.foreign.first().map(Foreign::to_string))
}

/// What is being done, and what it waits for: the reason and the message.
fn acting<'a>(world: &World<'a>, draft: &Draft) -> Option<(&'a Act, (&'static str, String))> {
    let open = world.observed.kept.open()?;
    Some((open, progress(world, draft, open)))
}

/// How far something is, or what it waits for: the reason and the message.
fn progress(world: &World<'_>, draft: &Draft, open: &Act) -> (&'static str, String) {
    let splits = || world.catalog().into_iter().flat_map(|catalog| &catalog.splits);
    // By the time that it is said, it may have ended.
    let of_a_split = |stall: &&Stall| stall.operation().split().is_some();
    let stall = world.observed.stalls.iter().find(of_a_split);
    if let Some(stall) = stall {
        let message = format!(
            "{}; its split (pid {} on the coordinator) {}; it is ended, and tried again",
            open.why,
            stall.pid,
            stall.what()
        );
        return ("SplitStalled", message);
    }
    let ends = draft.steps.iter().any(|step| matches!(step, Step::EndAction { .. }));
    if let Some(unended) = world.observed.unended.as_ref().filter(|_| ends) {
        return (act::CLEANUP_BLOCKED, unended.clone());
    }
    let kept = draft.action_waits.clone();
    // What nothing at all was planned for waits for the same as everything else.
    let all = || (draft.steps.is_empty() && !draft.waits.is_empty()).then(|| first_of(&draft.waits));
    match kept.or_else(all).filter(|_| splits().next().is_none()) {
        Some(reason) => ("ActionWaits", format!("{}; it waits: {reason}", open.why)),
        None => ("Acting", open.why.clone()),
    }
}
