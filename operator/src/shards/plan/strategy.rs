//! What Citus' own rebalancer is told.

use super::Draft;
use crate::heat::Mode;
use crate::names::Group;
use crate::shards::step::Step;
use crate::shards::strategy::Strategy;
use crate::shards::world::World;

/// Plans that Citus' rebalancer knows of pins where there are any, or may be, and that nothing is left of that elsewhere.
pub(super) fn plan(world: &World<'_>, draft: &mut Draft) {
    let Some(catalog) = &world.observed.catalog else { return };
    let seen = &catalog.strategies;
    let kept = world.observed.facts(Group::Coordinator).is_some_and(|facts| facts.own_tables);
    if !is_needed(world) {
        if seen.own.is_some() {
            draft.step(Step::DropStrategy);
        }
        return;
    }
    // Its functions read them.
    if !kept {
        return;
    }
    let dedicated = world.dedicated().filter_map(|group| world.topology.endpoint(group).cloned());
    let strategy = Strategy::new(&world.wanted.rebalance.policy, dedicated.collect());
    let default = seen.chosen().is_none() || world.wanted.rebalance.replaces;
    if seen.own.as_ref() != Some(&strategy.description()) || (default && !seen.is_own_default()) {
        draft.step(Step::SetStrategy { strategy, default });
    }
}

/// Whether there is something that a rebalance by hand could undo, or will be.
fn is_needed(world: &World<'_>) -> bool {
    let isolates = world.wanted.watch.is_some_and(|watch| watch.policy.mode == Mode::Isolate);
    isolates || world.wanted.dedicated > 0 || !world.observed.kept.pins.is_empty()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::shards::findings::tests::{at_rest, catalog, facts, topology};
    use crate::shards::observed::Observed;
    use crate::shards::plan::plan;
    use crate::shards::strategy::{NAME, Seen};
    use crate::shards::wanted::Wanted;

    fn wanted(mode: &str, foreign: &str) -> Wanted {
        let spec = json!({"workers": {"count": 1}, "sharding": {
            "hotTenants": {"mode": mode}, "rebalance": {"foreignStrategy": foreign},
        }});
        Wanted::from(&serde_json::from_value(spec).unwrap())
    }

    fn steps(observed: &Observed, wanted: &Wanted) -> Vec<Step> {
        let steps = plan(wanted, &topology(), observed).steps;
        steps.into_iter().filter(|step| step.kind().ends_with("Strategy")).collect()
    }

    #[test]
    fn it_is_there_where_it_is_of_use_and_is_nobody_elses_place() {
        let isolating = wanted("Isolate", "Keep");
        let strategy = Strategy::new(&isolating.rebalance.policy, Vec::new());
        let mut observed = at_rest();
        facts(&mut observed, Group::Coordinator).own_tables = true;
        let mut with = |default: &str, own: Option<String>| {
            catalog(&mut observed).strategies = Seen { default: Some(default.to_owned()), own };
            observed.clone()
        };
        let set = |default| vec![Step::SetStrategy { strategy: strategy.clone(), default }];
        let right = Some(strategy.description());
        let changed = Some("SELECT true".to_owned());

        assert_eq!(steps(&with("by_disk_size", None), &isolating), set(true));
        assert_eq!(steps(&with(NAME, right.clone()), &isolating), []);
        // Somebody has changed it, or given the default back to Citus' own.
        assert_eq!(steps(&with(NAME, changed.clone()), &isolating), set(true));
        assert_eq!(steps(&with("by_disk_size", right.clone()), &isolating), set(true));
        // Somebody has one of his own: it stays, unless the resource says otherwise.
        assert_eq!(steps(&with("mine", None), &isolating), set(false));
        assert_eq!(steps(&with("mine", right.clone()), &isolating), []);
        assert_eq!(steps(&with("mine", right.clone()), &wanted("Isolate", "Replace")), set(true));
        // It goes where nothing is isolated.
        for mode in ["Off", "Observe"] {
            assert_eq!(
                steps(&with(NAME, changed.clone()), &wanted(mode, "Keep")),
                [Step::DropStrategy],
                "{mode}"
            );
            assert_eq!(steps(&with("mine", None), &wanted(mode, "Replace")), [], "{mode}");
        }
    }
}
