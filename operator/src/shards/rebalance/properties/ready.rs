//! What of a plan may begin beside what is under way.

use super::*;

/// A shard group each from one node to another, in this order.
fn listed(layout: &Layout, moves: &[(i64, u32)]) -> MovePlan {
    let step = |((shard_id, to), number): (&(i64, u32), u32)| {
        let group = layout.groups.iter().find(|group| group.shard_id == *shard_id).unwrap();
        Move {
            number,
            colocation_id: group.colocation_id,
            shard_id: *shard_id,
            range: group.range,
            from: group.node,
            to: Group::Worker(*to),
            bytes: group.bytes,
            cause: Cause::Balance,
            wave: 1,
        }
    };
    let moves: Vec<Move> = moves.iter().zip(1..).map(step).collect();
    let spread = policy(Strategy::ByCount).spread();
    MovePlan { bytes: 0, hash: hash(&moves), stuck: Vec::new(), over: shared(layout), spread, moves }
}

/// Four nodes with so many shard groups each, which are numbered node by node.
fn four(counts: [usize; 4]) -> Layout {
    let nodes_of: Vec<Group> =
        (0..).zip(counts).flat_map(|(node, count)| std::iter::repeat_n(Group::Worker(node), count)).collect();
    Layout {
        nodes: nodes(&[Role::Shared; 4]),
        groups: groups(0, nodes_of.len(), |number| nodes_of[number], |_| 1 << 20),
        pins: Vec::new(),
    }
}

fn routes(moves: &[Move]) -> Vec<(Group, Group)> {
    moves.iter().map(|step| (step.from, step.to)).collect()
}

#[test]
fn a_place_does_not_wait_for_a_move_whose_node_is_taken() {
    let by_count = Policy { max_parallel_moves: 2, ..policy(Strategy::ByCount) };
    let worker = Group::Worker;
    // One from worker 1 to worker 3 is under way, and counts as made.
    let layout = four([5, 4, 1, 2]);
    let left = listed(&layout, &[(5, 2), (0, 3), (1, 2)]);
    let left = left.rest(&layout, &by_count).unwrap();
    assert_eq!(left.moves.iter().map(|step| step.wave).collect::<Vec<_>>(), [1, 1, 2]);
    let ready = left.ready(&layout, &by_count, &[(worker(1), worker(3))], false, |_| true);
    assert_eq!(routes(&ready), [(worker(0), worker(2))]);
    // There are no more places than the policy says.
    let alone = Policy { max_parallel_moves: 1, ..by_count };
    assert_eq!(left.ready(&layout, &alone, &[(worker(1), worker(3))], false, |_| true), []);
    // One that is put off takes none.
    let layout = four([5, 5, 1, 1]);
    let left = listed(&layout, &[(5, 2), (0, 3), (1, 2), (6, 3)]);
    let ready = left.ready(&layout, &by_count, &[], false, |next| next.shard_id != 5);
    assert_eq!(routes(&ready), [(worker(0), worker(3))], "all others share a node with it");
    let ready = left.ready(&layout, &by_count, &[], false, |next| ![5, 0].contains(&next.shard_id));
    assert_eq!(routes(&ready), [(worker(0), worker(2)), (worker(1), worker(3))]);
}

#[test]
fn what_helps_only_after_another_waits_for_it() {
    let by_count = Policy { max_parallel_moves: 2, ..policy(Strategy::ByCount) };
    // Worker 1 has no more than worker 2 before it gets one.
    let layout = four([6, 3, 3, 2]);
    let whole = listed(&layout, &[(0, 1), (6, 2)]);
    assert_eq!(whole.rest(&layout, &by_count).map(|rest| rest.moves.len()), Ok(2));
    assert_eq!(routes(&whole.ready(&layout, &by_count, &[], false, |_| true)), routes(&whole.moves[..1]));
    assert_eq!(whole.ready(&layout, &by_count, &[], false, |next| next.shard_id != 0), []);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever fails, is put off, or ends before the others.
    #[test]
    fn places_are_full_and_every_move_leaves_things_no_worse(
        World { layout, policy } in world(), binding in any::<bool>(),
        luck in prop::collection::vec((any::<u64>(), any::<Index>(), any::<bool>()), 40),
    ) {
        let policy = Policy { moves_per_node: 1, ..policy };
        let whole = plan(&layout, &policy);
        let (mut now, mut running, mut failed) = (layout, Vec::<Move>::new(), false);
        for (put_off, which, fails) in luck {
            let then = after(&now, &running);
            let Ok(rest) = whole.rest(&then, &policy) else {
                prop_assert!(!binding || failed, "{:?} was begun, and then the plan is another one", running);
                break
            };
            // A third of them.
            let may = |next: &Move| !(put_off >> (next.shard_id % 32)).is_multiple_of(3);
            let ready = rest.ready(&then, &policy, &routes(&running), binding, may);
            // Then one may begin after which the plan has to be made anew.
            let last_resort = !binding && running.is_empty() && ready.len() == 1;
            running.extend(&ready);
            let nodes: Vec<Group> = running.iter().flat_map(|step| [step.from, step.to]).collect();
            let taken: std::collections::BTreeSet<Group> = nodes.iter().copied().collect();
            prop_assert_eq!(taken.len(), nodes.len());
            prop_assert!(running.len() <= policy.max_parallel_moves as usize);
            if running.len() < policy.max_parallel_moves as usize && !last_resort {
                let then = after(&now, &running);
                let before = unevenness(&then, policy.strategy);
                let others = rest.moves.iter().filter(|next| !ready.contains(next) && may(next));
                for next in others.filter(|next| !taken.contains(&next.from) && !taken.contains(&next.to)) {
                    let one_more = after(&then, &[*next]);
                    let helps = unevenness(&one_more, policy.strategy) <= before;
                    prop_assert!(!helps || rest.rest(&one_more, &policy).is_err(), "{} beside {:?}", next, running);
                }
            }
            if running.is_empty() {
                continue;
            }
            let ended = running.remove(which.index(running.len()));
            failed |= fails;
            if !fails {
                let made = after(&now, &[ended]);
                let (before, then) = (unevenness(&now, policy.strategy), unevenness(&made, policy.strategy));
                prop_assert!(then <= before, "{}: {:?} after {:?}", ended, then, before);
                now = made;
            }
        }
    }
}
