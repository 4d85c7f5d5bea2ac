//! Several moves at a time: no place stays empty while there is a move for it, whoever ends first.

use std::collections::BTreeMap;

use proptest::sample::Index;

use super::*;

/// The shard groups of each colocation group on each node, as they are once the moves under way have ended.
fn counts(truth: &Truth) -> BTreeMap<(i32, Group), i64> {
    let mut truth = truth.clone();
    while !truth.running.is_empty() {
        truth.end(true);
    }
    let group_of = |group_id| {
        let member = truth.members.iter().find(|member| member.group_id == group_id).unwrap();
        truth.topology.group(&member.endpoint).unwrap()
    };
    let mut counts = BTreeMap::new();
    for at in truth.placements() {
        *counts.entry((at.colocation_id, group_of(at.group_id))).or_default() += 1;
    }
    counts
}

/// Whether a shard group more evens out these counts: those of its colocation group, or where that is the same all together.
fn evens_out(counts: &BTreeMap<(i32, Group), i64>, colocation_id: i32, from: Group, to: Group) -> bool {
    let own = |node| counts.get(&(colocation_id, node)).copied().unwrap_or(0);
    let all = |node| counts.iter().filter(|((_, at), _)| *at == node).map(|(_, count)| count).sum::<i64>();
    own(from) - own(to) > 1 || (own(from) - own(to) == 1 && all(from) > all(to))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_place_stays_empty_while_a_move_could_begin(
        (wanted, mut truth) in world(), parallel in 1_u32..4, luck in prop::collection::vec(any::<Index>(), 20),
    ) {
        without_obstacles(&wanted, &mut truth);
        let few = Wanted { workers: 2, ..wanted.clone() };
        follow(&mut truth, &few);
        let mut many = Wanted { workers: 4, ..wanted };
        many.rebalance.policy.max_parallel_moves = parallel;
        let mut luck = luck.iter().cycle();
        let (mut held, mut made) = (None, 0);
        loop {
            let observed = Observed { held: held.clone(), ..truth.look(&many) };
            let next = plan(&many, &truth.topology, &observed);
            let Some(first) = next.steps.first().cloned() else {
                if truth.running.is_empty() {
                    break;
                }
                let which = luck.next().unwrap().index(truth.running.len());
                truth.running.rotate_left(which);
                truth.end(true);
                made += 1;
                continue;
            };
            if !matches!(first, Step::MoveShard { .. }) {
                prop_assert!(truth.running.is_empty(), "{}", first);
                truth.apply(&first);
                continue;
            }
            truth.running.extend(next.steps.iter().cloned());
            let open = next.moves.unwrap().open;
            let mut nodes: Vec<Group> = Vec::new();
            for step in &truth.running {
                let Step::MoveShard { from, to, .. } = step else { panic!("{step}") };
                nodes.extend([*from, *to]);
            }
            let taken: BTreeSet<Group> = nodes.iter().copied().collect();
            prop_assert_eq!(taken.len(), nodes.len(), "a node takes part in one at a time");
            prop_assert!(truth.running.len() <= parallel as usize);
            if truth.running.len() < parallel as usize {
                let counts = counts(&truth);
                for left in &open.moves {
                    let free = !taken.contains(&left.from) && !taken.contains(&left.to);
                    prop_assert!(
                        !(free && evens_out(&counts, left.colocation_id, left.from, left.to)),
                        "beside {:?} there is a place for {}", truth.running, left
                    );
                }
            }
            held = held.or(Some(open));
            // One ends before the next look.
            let which = luck.next().unwrap().index(truth.running.len());
            truth.running.rotate_left(which);
            truth.end(true);
            made += 1;
        }
        prop_assert!(made > 0 || truth.colocation.is_empty(), "nothing was moved");
    }
}
