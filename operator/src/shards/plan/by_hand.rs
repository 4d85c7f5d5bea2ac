//! What follows from what somebody has decided about tenants.

use jiff::SignedDuration;

use super::Draft;
use super::actions::is_urgent;
use crate::heat::{Action, QUICK_BYTES, Tenant};
use crate::names::Group;
use crate::shards::heat::actions::{Act, Author, KeptPin, Outcome};
use crate::shards::observed::Placement;
use crate::shards::rebalance::{Layout, Pin, Role, ShardGroup};
use crate::shards::step::Step;
use crate::shards::world::{Decided, Decisions, World};

/// After so long what could not be done is tried again.
const RETRY: SignedDuration = SignedDuration::from_mins(10);

/// Plans that pins go which nobody wants any more, and that what is to be pinned is begun: one thing at a time.
pub(super) fn plan(world: &World<'_>, layout: &Layout, written: &[Pin], draft: &mut Draft) {
    let mut decisions = world.decisions();
    draft.problems.append(&mut decisions.problems);
    for pin in &world.observed.kept.pins {
        if let Some(why) = gone(world, &decisions, pin) {
            let called = world.called(pin.tenant);
            draft.step(Step::RemovePin { tenant: pin.tenant, called, why });
        }
    }
    let open = world.observed.kept.open();
    for decided in &decisions.known {
        match begin(world, layout, written, decided) {
            Ok(None) => {}
            Ok(Some(step)) if open.is_none() && is_urgent(world) => {
                draft.wait(format!("a hot tenant comes first; then: {step}"));
            }
            Ok(Some(step)) if open.is_none() => {
                draft.step(step);
                return;
            }
            // It is what is being done.
            Ok(Some(_)) if open.and_then(|act| act.action.tenant()) == Some(decided.tenant) => {}
            Ok(Some(step)) => draft.wait(format!("something else is done first; then: {step}")),
            Err(problem) => draft.problems.push(problem),
        }
    }
}

/// Why a pin is to go, if it is.
fn gone(world: &World<'_>, decisions: &Decisions<'_>, pin: &KeptPin) -> Option<String> {
    let its = |at: &Placement| at.colocation_id == pin.tenant.colocation_id;
    if world.observed.catalog.as_ref().is_some_and(|catalog| !catalog.placements.iter().any(its)) {
        return Some("its tables are gone".to_owned());
    }
    match (decisions.about(pin.tenant), pin.author) {
        (Some(Decided { to: None, .. }), _) => {
            Some("spec.sharding.pins has it as one like the others".to_owned())
        }
        (None, Author::Spec) if !decisions.may_mean(pin.tenant) => {
            Some("spec.sharding.pins does not have it any more".to_owned())
        }
        (None, Author::Policy) if world.wanted.watch.is_none() && !decisions.may_mean(pin.tenant) => {
            Some("spec.sharding.hotTenants.mode is Off".to_owned())
        }
        _ => None,
    }
}

/// What is to be begun so that a tenant gets where it belongs, if anything is; or why that cannot be.
fn begin(
    world: &World<'_>,
    layout: &Layout,
    written: &[Pin],
    decided: &Decided<'_>,
) -> Result<Option<Step>, String> {
    let Decided { entry, tenant, to: Some(to) } = *decided else { return Ok(None) };
    let covers = |shard: &&ShardGroup| {
        shard.colocation_id == tenant.colocation_id && shard.range.contains(tenant.hash)
    };
    let Some(shard) = layout.groups.iter().find(covers) else { return Ok(None) };
    let alone = shard.range.min == shard.range.max;
    if alone && written.contains(&tenant.pin(to)) {
        return Ok(None);
    }
    let who = format!("{} {}", entry.group, entry.tenant);
    let able = layout.nodes.get(&to).is_some_and(|node| matches!(node.role, Role::Shared | Role::Dedicated));
    if !able {
        return Err(format!("{who} belongs on {to}, which cannot take part now"));
    }
    if let Some(act) = failed(world, tenant, to) {
        let note = act.note.as_deref().unwrap_or("nobody knows why");
        return Err(format!(
            "{who} belongs on {to}, and could not get there: {note}; it is tried again later"
        ));
    }
    let rest = if alone { None } else { rest(layout, shard, to) };
    let stays = shard.node == to || rest.is_none();
    if !alone && stays && shard.bytes > QUICK_BYTES {
        return Err(format!(
            "{who} belongs on {to}: its shard {} on {} is too large to be cut with a part of it left there; name another \
             worker for it first, or add one",
            shard.shard_id, shard.node
        ));
    }
    let why = format!("spec.sharding.pins has {who} on {to}");
    let name = entry.tenant.clone();
    Ok(Some(Step::BeginIsolation { tenant, name, from: shard.node, to, rest, why }))
}

/// The last attempt at the same, if it was in vain and not long ago.
fn failed<'a>(world: &World<'a>, tenant: Tenant, to: Group) -> Option<&'a Act> {
    let kept = &world.observed.kept;
    let same = |act: &&Act| matches!(act.action, Action::Isolate { tenant: whose, to: there, .. } if whose == tenant && there == to);
    let last = kept.acts.iter().rev().filter(|act| act.is_by_hand()).find(same)?;
    let vain = matches!(last.outcome, Some(Outcome::Failed | Outcome::Dropped));
    let over = last.ended.and_then(|ended| ended.checked_add(RETRY).ok());
    (vain && kept.now.zip(over).is_none_or(|(now, over)| now < over)).then_some(last)
}

/// Where the rest of a shard goes: to the node that holds least, and another one than the tenant if there is any.
fn rest(layout: &Layout, shard: &ShardGroup, to: Group) -> Option<Group> {
    let held = |group: Group| -> u64 {
        let here = layout.groups.iter().filter(|other| other.node == group);
        here.map(|other| other.bytes).fold(0, u64::saturating_add)
    };
    let able = layout.nodes.iter().filter(|(group, node)| {
        **group != shard.node
            && node.role == Role::Shared
            && node.free_bytes.is_none_or(|free| free >= shard.bytes)
    });
    able.map(|(group, _)| *group).min_by_key(|group| (*group == to, held(*group), *group))
}
