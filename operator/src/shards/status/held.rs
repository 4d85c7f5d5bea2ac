//! What still moves while servers are about to be restarted.

use std::collections::BTreeSet;

use super::parts;
use crate::api::{DialogClusterStatus, HeldMovesStatus};
use crate::names::Group;
use crate::shards::observed::{Observed, Operation};
use crate::shards::step::Step;

/// The answer to who is about to restart servers, as the status was `before` the round that has `observed` this: what moves and
/// splits need, with those that this process carries out (`own`), as one that has just begun is not seen yet. `None` where nobody asks,
/// or knows. Where the coordinator does not say for a moment what is under way, that is what it was.
#[must_use]
pub fn held_moves(
    before: Option<&DialogClusterStatus>,
    observed: Option<&Observed>,
    own: &[Step],
) -> Option<HeldMovesStatus> {
    let before = before?;
    let since = before.hold_moves.clone()?;
    let mut busy: BTreeSet<Group> = if let Some(seen) = observed.and_then(seen) {
        seen
    } else {
        let earlier = before.held_moves.as_ref().filter(|held| held.since == since)?;
        earlier.busy.iter().filter_map(|group| Group::parse(group)).collect()
    };
    for step in own {
        match step {
            Step::MoveShard { from, to, .. } => busy.extend([*from, *to]),
            Step::SplitShard(split) => busy.extend(split.nodes.iter().chain([&split.from])),
            _ => {}
        }
    }
    // Its sessions carry them out.
    let coordinator = (!busy.is_empty()).then_some(Group::Coordinator);
    busy.extend(coordinator);
    Some(HeldMovesStatus { since, busy: busy.iter().map(Group::to_string).collect() })
}

/// What is under way needs these, by the catalogs; `None` if the coordinator did not answer. Without the extension it is nothing.
fn seen(observed: &Observed) -> Option<BTreeSet<Group>> {
    observed.facts(Group::Coordinator)?;
    let mut busy = BTreeSet::new();
    if let Some(catalog) = &observed.catalog {
        busy.extend(catalog.moves().flat_map(|running| [running.from, running.to]));
        for (_, from) in catalog.operations.iter().filter_map(Operation::split) {
            busy.insert(from);
            busy.extend(parts(observed, from));
        }
    }
    Some(busy)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
    use k8s_openapi::jiff::Timestamp;

    use super::*;
    use crate::shards::findings::tests::{at_rest, catalog};
    use crate::shards::step::Split;

    #[test]
    fn what_has_just_begun_is_known_before_anybody_sees_it() {
        let since = MicroTime("2026-01-05T09:00:00.000001Z".parse::<Timestamp>().unwrap());
        let asked = DialogClusterStatus { hold_moves: Some(since.clone()), ..DialogClusterStatus::default() };
        let busy = |observed: &Observed, own: &[Step]| {
            let held = held_moves(Some(&asked), Some(observed), own).unwrap();
            assert_eq!(held.since, since);
            held.busy
        };
        let mut observed = at_rest();
        assert_eq!(busy(&observed, &[]), Vec::<String>::new());
        assert_eq!(busy(&observed, &[Step::CleanUp]), Vec::<String>::new());
        let begins = Step::MoveShard { shard_id: 1, from: Group::Worker(2), to: Group::Worker(4) };
        assert_eq!(busy(&observed, std::slice::from_ref(&begins)), ["coordinator", "worker-2", "worker-4"]);
        let split = Step::SplitShard(Split {
            action: 1,
            shard_id: 1,
            from: Group::Worker(0),
            points: vec![0],
            nodes: vec![Group::Worker(1), Group::Worker(3)],
            blocking: false,
        });
        assert_eq!(busy(&observed, &[split]), ["coordinator", "worker-0", "worker-1", "worker-3"]);

        let running = |application: String| Operation { pid: 7, application };
        catalog(&mut observed).operations = vec![
            running(Operation::name_of(9, Group::Worker(0), Group::Worker(1))),
            running(format!("dialog-operator: {}1047 worker-3", Split::PURPOSE)),
        ];
        assert_eq!(busy(&observed, &[]), ["coordinator", "worker-0", "worker-1", "worker-3"]);
        // It is as it was while nobody knows whether it still runs; and what runs here is known.
        let silent = Observed::default();
        assert_eq!(
            held_moves(Some(&asked), Some(&silent), std::slice::from_ref(&begins)),
            None,
            "nobody has ever said"
        );
        assert_eq!(held_moves(Some(&asked), None, &[]), None);
        let held_moves_then = held_moves(Some(&asked), Some(&observed), &[]);
        let answered = DialogClusterStatus { held_moves: held_moves_then, ..asked.clone() };
        let still = held_moves(Some(&answered), Some(&silent), &[begins]).unwrap();
        assert_eq!(still.busy, ["coordinator", "worker-0", "worker-1", "worker-2", "worker-3", "worker-4"]);
        // Without the extension nothing moves.
        observed.catalog = None;
        assert_eq!(busy(&observed, &[]), Vec::<String>::new());
        assert_eq!(
            held_moves(Some(&DialogClusterStatus::default()), Some(&at_rest()), &[]),
            None,
            "nobody asks"
        );
        assert_eq!(held_moves(None, None, &[]), None);
    }
}
