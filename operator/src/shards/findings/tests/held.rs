//! What becomes of a plan that was made earlier when something else is so.

use super::moves::two_workers;
use super::{catalog, facts, ranges, topology, wanted};
use crate::condition::BALANCED;
use crate::names::Group;
use crate::shards::observed::Observed;
use crate::shards::plan::plan;
use crate::shards::rebalance::Strategy;
use crate::shards::step::Step;
use crate::shards::wanted::{Gate, Wanted};

#[test]
fn a_shrink_that_was_refused_begins_once_there_is_room() {
    let mut observed = two_workers();
    let free = |observed: &mut Observed, bytes: i64| {
        let resources = facts(observed, Group::Worker(0)).resources.as_mut().unwrap();
        (resources.free_bytes, resources.total_bytes) = (bytes, 1000 << 30);
    };
    free(&mut observed, 150 << 30);
    let refused = plan(&wanted(), &topology(), &observed).moves.unwrap();
    assert!(refused.refused.is_some());
    assert!(!refused.plan.moves.is_empty() && !refused.plan.stuck.is_empty(), "a part would fit");
    // The next look knows what this one knew.
    (observed.held, observed.overtaken) = (refused.held(), refused.overtaken);
    free(&mut observed, 900 << 30);
    let roomy = plan(&wanted(), &topology(), &observed);
    let flag = Step::SetShouldHaveShards { group: Group::Worker(1), value: false };
    assert_eq!(roomy.steps, std::slice::from_ref(&flag));
    let moves = roomy.moves.unwrap();
    assert_eq!((moves.refused, moves.overtaken), (None, None), "nobody was shown a plan");
    // Nobody is told to go by guesses.
    facts(&mut observed, Group::Worker(1)).sizes = None;
    assert!(!plan(&wanted(), &topology(), &observed).steps.contains(&flag));
}

#[test]
fn a_plan_gives_way_when_another_spread_is_asked_for() {
    let asked = |threshold: u32, gate: Gate| {
        let mut two = wanted();
        two.workers = 2;
        (two.rebalance.policy.strategy, two.rebalance.policy.threshold) = (Strategy::BySize, threshold);
        two.rebalance.gate = gate;
        two
    };
    let mut observed = two_workers();
    catalog(&mut observed).placements =
        [1, 2].into_iter().flat_map(|id| ranges(id, 1, 0..30).chain(ranges(id, 2, 30..48))).collect();
    let whole = plan(&asked(100, Gate::Open), &topology(), &observed).moves.unwrap().plan;
    // By an operator that has made it, and by one that is started anew.
    for observed in [
        Observed { held: Some(whole.clone()), ..observed.clone() },
        Observed { shown: whole.status(), ..observed.clone() },
    ] {
        let said = |wanted: &Wanted| {
            let plan = plan(wanted, &topology(), &observed);
            let found = plan.findings.into_iter().find(|finding| finding.kind == BALANCED).unwrap();
            (plan.moves.unwrap().held(), found.reason, found.message)
        };
        let approved = || Gate::Approved(whole.hash.clone());
        assert_eq!(said(&asked(100, approved())).0.as_ref(), Some(&whole));
        let (held, reason, message) = said(&asked(1000, Gate::Open));
        assert_eq!((held, reason), (None, "Balanced"), "{message}");
        let (held, reason, message) = said(&asked(0, approved()));
        assert_eq!(reason, "ApprovalOutdated", "{message}");
        assert!(message.contains("the resource asks for BySize with a threshold of 0 now"), "{message}");
        assert!(message.contains(&held.unwrap().hash), "{message}");
    }
}
