//! Properties of the planner, over random layouts.

use std::collections::BTreeMap;

use proptest::prelude::{
    Just, ProptestConfig, Strategy as Values, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest,
};
use proptest::sample::Index;
use proptest::test_runner::TestCaseError;

use super::*;

mod left;
mod ready;
mod shown;
mod wavering;

const STRATEGIES: [Strategy; 3] = [Strategy::BySize, Strategy::ByCount, Strategy::ByLoad];

fn policy(strategy: Strategy) -> Policy {
    Policy { strategy, threshold: 100, max_parallel_moves: 3, moves_per_node: 1, goal: Goal::Balance }
}

/// `count` shard groups of one colocation group, the ranges of hashes in order, on nodes and of sizes as given.
fn groups(
    colocation_id: i32,
    count: usize,
    place: impl Fn(usize) -> Group,
    bytes: impl Fn(usize) -> u64,
) -> Vec<ShardGroup> {
    let group = |number: usize| {
        let min = i32::try_from(number).unwrap() * 10;
        ShardGroup {
            colocation_id,
            shard_id: i64::from(colocation_id) * 10_000 + i64::try_from(number).unwrap(),
            range: HashRange { min, max: min + 9 },
            node: place(number),
            bytes: bytes(number),
            load: bytes(number) % 1000,
        }
    };
    (0..count).map(group).collect()
}

fn nodes(roles: &[Role]) -> BTreeMap<Group, Node> {
    let node = |(number, role): (usize, &Role)| {
        (Group::Worker(u32::try_from(number).unwrap()), Node { role: *role, free_bytes: None })
    };
    roles.iter().enumerate().map(node).collect()
}

/// The layout after these moves; what left a node gives no room back.
fn after(layout: &Layout, moves: &[Move]) -> Layout {
    let mut layout = layout.clone();
    for step in moves {
        let key = (step.colocation_id, step.range);
        let group = layout.groups.iter_mut().find(|group| (group.colocation_id, group.range) == key).unwrap();
        assert_eq!(group.node, step.from, "{step}");
        group.node = step.to;
        let target = layout.nodes.get_mut(&step.to).unwrap();
        if let Some(free) = target.free_bytes.as_mut() {
            *free = free.checked_sub(group.bytes).expect("moved to a node without room for it");
        }
    }
    layout
}

/// What is to get smaller: first what is where it must not be, then the unevenness within the pools, then that of the
/// nodes.
fn unevenness(layout: &Layout, strategy: Strategy) -> (usize, u128, u128) {
    let state = State::new(layout, strategy);
    let misplaced =
        state.items.iter().filter(|item| matches!(item.fate, Fate::Leave | Fate::Home(_))).count();
    let shared = state.shared();
    let squares = |carried: &[u64]| shared.iter().map(|node| u128::from(carried[*node]).pow(2)).sum::<u128>();
    (misplaced, state.spread.iter().map(|spread| squares(spread)).sum(), squares(&state.totals))
}

/// Shard groups of each colocation group on each node.
fn counts(layout: &Layout) -> BTreeMap<i32, BTreeMap<Group, usize>> {
    let mut counts: BTreeMap<i32, BTreeMap<Group, usize>> = BTreeMap::new();
    for group in &layout.groups {
        let empty = || layout.nodes.keys().map(|node| (*node, 0)).collect();
        *counts.entry(group.colocation_id).or_insert_with(empty).entry(group.node).or_default() += 1;
    }
    counts
}

fn sorted(counts: &BTreeMap<Group, usize>) -> Vec<usize> {
    let mut counts: Vec<usize> = counts.values().copied().collect();
    counts.sort_unstable_by(|a, b| b.cmp(a));
    counts
}

#[derive(Debug, Clone)]
struct World {
    layout: Layout,
    policy: Policy,
}

fn role() -> impl Values<Value = Role> {
    prop_oneof![
        6 => Just(Role::Shared), 1 => Just(Role::Draining), 1 => Just(Role::Dedicated), 1 => Just(Role::Unavailable)
    ]
}

fn bytes() -> impl Values<Value = u64> {
    prop_oneof![Just(0_u64), 0..200_u64 << 20, 1_u64 << 20..20 << 30]
}

fn world() -> impl Values<Value = World> {
    let node = (role(), prop_oneof![2 => Just(None), 1 => (0..400_u64 << 30).prop_map(Some)]);
    let group = (1..4_i32, any::<Index>(), bytes(), 0..5000_u64);
    let pin = (any::<Index>(), any::<Index>());
    (
        prop::collection::vec(node, 1..8),
        prop::collection::vec(group, 0..60),
        prop::collection::vec(pin, 0..3),
        (prop::sample::select(&STRATEGIES[..]), 0..400_u32, 1..6_u32, 1..3_u32, any::<bool>()),
    )
        .prop_map(
            |(nodes, groups, pins, (strategy, threshold, max_parallel_moves, moves_per_node, settle))| {
                let nodes: BTreeMap<Group, Node> = nodes
                    .into_iter()
                    .zip(0..)
                    .map(|((role, free_bytes), number)| (Group::Worker(number), Node { role, free_bytes }))
                    .collect();
                let names: Vec<Group> = nodes.keys().copied().collect();
                let groups: Vec<ShardGroup> = groups
                    .into_iter()
                    .zip(0..)
                    .map(|((colocation_id, place, bytes, load), number)| ShardGroup {
                        colocation_id,
                        shard_id: i64::from(number),
                        range: HashRange { min: number * 10, max: number * 10 + 9 },
                        node: *place.get(&names),
                        bytes,
                        load,
                    })
                    .collect();
                let pins = pins
                    .into_iter()
                    .filter(|_| !groups.is_empty())
                    .map(|(group, node)| {
                        let group = group.get(&groups);
                        Pin {
                            colocation_id: group.colocation_id,
                            hash: group.range.min + 3,
                            node: *node.get(&names),
                        }
                    })
                    .collect();
                let goal = if settle { Goal::Settle } else { Goal::Balance };
                let policy = Policy { strategy, threshold, max_parallel_moves, moves_per_node, goal };
                World { layout: Layout { nodes, groups, pins }, policy }
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn a_plan_that_was_carried_out_leaves_nothing_to_do(World { layout, policy } in world()) {
        let first = plan(&layout, &policy);
        let again = plan(&after(&layout, &first.moves), &policy);
        prop_assert_eq!(&again.moves, &[]);
    }

    #[test]
    fn the_order_in_which_things_were_read_is_nothing(World { layout, policy } in world(), seed in any::<i64>()) {
        let mut shuffled = layout.clone();
        shuffled.groups.sort_by_key(|group| group.shard_id.wrapping_mul(seed | 1));
        shuffled.pins.reverse();
        prop_assert_eq!(plan(&layout, &policy), plan(&shuffled, &policy));
    }

    #[test]
    fn every_move_leaves_things_no_worse(World { layout, policy } in world()) {
        let planned = plan(&layout, &policy);
        let mut before = unevenness(&layout, policy.strategy);
        for number in 1..=planned.moves.len() {
            let then = unevenness(&after(&layout, &planned.moves[..number]), policy.strategy);
            prop_assert!(then <= before, "move {}: {:?} after {:?}\n{}", number, then, before, planned);
            before = then;
        }
    }

    #[test]
    fn nothing_moves_to_where_it_may_not_be_and_nothing_twice(World { layout, policy } in world()) {
        let planned = plan(&layout, &policy);
        let pinned = |step: &Move| layout.pins.iter().filter(|pin| pin.colocation_id == step.colocation_id)
            .any(|pin| pin.node == step.to && step.range.contains(pin.hash));
        let mut moved = std::collections::BTreeSet::new();
        for step in &planned.moves {
            match layout.nodes[&step.to].role {
                Role::Shared => {}
                Role::Dedicated => prop_assert!(pinned(step), "{step}"),
                role @ (Role::Draining | Role::Unavailable) => prop_assert!(false, "{step}: {role:?}"),
            }
            prop_assert!(layout.nodes[&step.from].role != Role::Unavailable, "{step}");
            prop_assert!(policy.goal == Goal::Balance || step.cause != Cause::Balance, "{step}");
            prop_assert!(moved.insert((step.colocation_id, step.range)), "{step} again");
        }
        prop_assert_eq!(planned.bytes, planned.moves.iter().map(|step| step.bytes).sum::<u64>());
    }

    #[test]
    fn waves_keep_their_limits(World { layout, policy } in world()) {
        let mut last = 1;
        let mut waves: BTreeMap<u32, Vec<Group>> = BTreeMap::new();
        for step in plan(&layout, &policy).moves {
            prop_assert!(step.wave == last || step.wave == last + 1);
            last = step.wave;
            waves.entry(step.wave).or_default().extend([step.from, step.to]);
        }
        for (wave, nodes) in waves {
            prop_assert!(nodes.len() / 2 <= policy.max_parallel_moves as usize, "wave {}: {:?}", wave, nodes);
            for node in &nodes {
                let times = nodes.iter().filter(|other| *other == node).count();
                prop_assert!(times <= policy.moves_per_node as usize, "{} in wave {}", node, wave);
            }
        }
    }

    #[test]
    fn a_plan_can_be_continued_after_any_of_its_moves(World { layout, policy } in world()) {
        let whole = plan(&layout, &policy);
        let list = |moves: &[Move]| -> std::collections::BTreeSet<_> {
            moves.iter().map(|step| (step.number, step.colocation_id, step.shard_id, step.from, step.to)).collect()
        };
        for number in 0..=whole.moves.len() {
            let rest = whole.rest(&after(&layout, &whole.moves[..number]), &policy).map_err(|why| {
                TestCaseError::fail(format!("after {number} moves: {why}\n{whole}"))
            })?;
            prop_assert_eq!(list(&rest.moves), list(&whole.moves[number..]));
            prop_assert_eq!(&rest.hash, &whole.hash);
        }
    }

    #[test]
    fn draining_nodes_end_empty_or_it_is_said_why(World { layout, policy } in world()) {
        let planned = plan(&layout, &policy);
        let then = after(&layout, &planned.moves);
        for group in then.groups.iter().filter(|group| then.nodes[&group.node].role == Role::Draining) {
            let stuck = planned.stuck.iter().find(|stuck| stuck.shard_id == group.shard_id);
            prop_assert!(stuck.is_some(), "shard {} stays on {} for no reason", group.shard_id, group.node);
            let shared = || then.nodes.values().filter(|node| node.role == Role::Shared);
            match stuck.unwrap().obstacle {
                Obstacle::NoTarget => prop_assert_eq!(shared().count(), 0),
                Obstacle::NoRoom { largest } => prop_assert!(largest < group.bytes),
                Obstacle::PinnedTo { node } => {
                    prop_assert!(matches!(then.nodes[&node].role, Role::Draining | Role::Unavailable));
                }
            }
        }
        if layout.pins.is_empty() {
            let leaving: u64 = layout.groups.iter().filter(|group| !matches!(layout.nodes[&group.node].role,
                Role::Shared | Role::Unavailable)).map(|group| group.bytes).sum();
            let room = |node: &Node| node.role == Role::Shared && node.free_bytes.is_none_or(|free| free >= leaving);
            if layout.nodes.values().any(room) {
                prop_assert_eq!(&planned.stuck, &[]);
            }
        }
    }

    #[test]
    fn by_count_every_pool_is_even_by_as_few_moves_as_can_be(
        nodes_count in 1..9_usize, sizes in prop::collection::vec(1..60_usize, 1..4), places in any::<Vec<Index>>(),
    ) {
        let names: Vec<Group> = (0..u32::try_from(nodes_count).unwrap()).map(Group::Worker).collect();
        let place = |number: usize| places.get(number % places.len().max(1)).map_or(names[0], |index| *index.get(&names));
        let all = sizes.iter().zip(1..).flat_map(|(count, id)| groups(id, *count, place, |number| number as u64 * 7));
        let layout = Layout { nodes: nodes(&vec![Role::Shared; nodes_count]), groups: all.collect(), pins: Vec::new() };
        let planned = plan(&layout, &policy(Strategy::ByCount));
        // Colocation groups that not every node can have some of are even together.
        let pools = |layout: &Layout| {
            let mut layout = layout.clone();
            let size = |group: &ShardGroup| sizes[usize::try_from(group.colocation_id).unwrap() - 1];
            layout.groups.iter_mut().filter(|group| size(group) < nodes_count).for_each(|group| group.colocation_id = 0);
            counts(&layout)
        };
        let (then, mut made) = (pools(&after(&layout, &planned.moves)), planned.moves.len());
        for (pool, before) in pools(&layout) {
            let (mut before, then) = (sorted(&before), sorted(&then[&pool]));
            prop_assert!(then[0] - then[nodes_count - 1] <= 1, "{:?}", then);
            // What is above the higher of the two counts that are left has to go.
            let total: usize = before.iter().sum();
            let (low, extra) = (total / nodes_count, total % nodes_count);
            before.iter_mut().take(extra).for_each(|count| *count = count.saturating_sub(1));
            let least: usize = before.iter().map(|count| count.saturating_sub(low)).sum();
            prop_assert!(made >= least, "{} moves, {} are needed for {:?}", made, least, before);
            made -= least;
        }
        prop_assert_eq!(made, 0, "more moves than are needed");
    }
}

#[test]
fn growing_from_two_to_five_ends_as_even_as_can_be() {
    let place = |number: usize| Group::Worker(u32::try_from(number % 2).unwrap());
    let both = groups(1, 48, place, |number| 20 << 20 | number as u64)
        .into_iter()
        .chain(groups(2, 48, place, |_| 1 << 20))
        .collect();
    let layout = Layout { nodes: nodes(&[Role::Shared; 5]), groups: both, pins: Vec::new() };
    for strategy in STRATEGIES {
        let planned = plan(&layout, &policy(strategy));
        let then = after(&layout, &planned.moves);
        for counts in counts(&then).values() {
            assert_eq!(sorted(counts), [10, 10, 10, 9, 9], "{strategy:?}");
        }
        assert_eq!(planned.moves.len(), 2 * (48 - 2 * 10), "{strategy:?}");
        // Where the spare ones go is free, so they do not all go to the same nodes.
        let mut totals: Vec<usize> = then
            .nodes
            .keys()
            .map(|node| then.groups.iter().filter(|group| group.node == *node).count())
            .collect();
        totals.sort_unstable();
        assert!(totals[4] - totals[0] <= 2, "{strategy:?}: {totals:?}");
    }
}

#[test]
fn many_colocation_groups_of_one_shard_do_not_pile_up() {
    let layout = Layout {
        nodes: nodes(&[Role::Shared; 4]),
        groups: (1..=40).flat_map(|id| groups(id, 1, |_| Group::Worker(0), |_| 1 << 30)).collect(),
        pins: Vec::new(),
    };
    let then = after(&layout, &plan(&layout, &policy(Strategy::BySize)).moves);
    for node in then.nodes.keys() {
        let here = then.groups.iter().filter(|group| group.node == *node).count();
        assert!((9..=11).contains(&here), "{node}: {here}");
    }
}

#[test]
fn a_large_shard_is_not_copied_for_a_small_gain() {
    let sizes = [80_u64 << 30, 70 << 30, 76 << 30];
    let place = |number: usize| Group::Worker(u32::from(number == 2));
    let layout = Layout {
        nodes: nodes(&[Role::Shared; 2]),
        groups: groups(1, 3, place, |number| sizes[number]),
        pins: Vec::new(),
    };
    // 150 and 76 would become 80 and 146.
    assert_eq!(plan(&layout, &policy(Strategy::BySize)).moves, []);
}

#[test]
fn pins_go_home_and_nothing_else_goes_to_a_dedicated_node() {
    let layout = Layout {
        nodes: nodes(&[Role::Shared, Role::Shared, Role::Dedicated]),
        groups: groups(1, 20, |number| Group::Worker(if number == 3 { 2 } else { 0 }), |_| 1 << 30),
        pins: vec![Pin { colocation_id: 1, hash: 55, node: Group::Worker(2) }],
    };
    let planned = plan(&layout, &policy(Strategy::ByCount));
    let then = after(&layout, &planned.moves);
    let here = |node: u32| then.groups.iter().filter(|group| group.node == Group::Worker(node)).count();
    assert_eq!((here(2), here(0).abs_diff(here(1))), (1, 1), "{planned}");
    assert!(then.groups[5].node == Group::Worker(2), "{planned}");
    assert_eq!(planned.moves.iter().filter(|step| step.cause == Cause::Pin).count(), 1);
    assert_eq!(planned.moves.iter().filter(|step| step.cause == Cause::Drain).count(), 1);
}

#[test]
fn a_plan_is_named_by_its_moves_and_prints_as_a_table() {
    let place = |_| Group::Worker(0);
    let layout = |bytes: u64| Layout {
        nodes: nodes(&[Role::Shared; 2]),
        groups: groups(7, 4, place, |number| bytes + number as u64),
        pins: Vec::new(),
    };
    let small = plan(&layout(5 << 20), &policy(Strategy::ByCount));
    let large = plan(&layout(9 << 20), &policy(Strategy::ByCount));
    assert_eq!(small.hash, large.hash);
    assert_ne!(small.bytes, large.bytes);
    assert_ne!(
        small.hash,
        plan(&layout(0), &Policy { goal: Goal::Settle, ..policy(Strategy::ByCount) }).hash
    );
    insta::assert_snapshot!(small.to_string());
    let text = serde_json::to_string(&small).unwrap();
    assert_eq!(serde_json::from_str::<MovePlan>(&text).unwrap(), small);
}
