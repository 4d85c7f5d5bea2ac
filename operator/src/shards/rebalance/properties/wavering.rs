//! Sizes and loads waver from look to look, and nothing is moved back and forth for that.

use std::collections::BTreeSet;

use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::*;

/// Layouts that are planned for.
const LAYOUTS: usize = 30;
/// Looks at each after its plan was carried out.
const LOOKS: usize = 5;
/// The most shard groups of one layout.
const MOST: usize = 2 * 96;

/// Shard groups none of which is much of what a node holds: where one is, the small ones follow what it does.
fn layouts() -> impl Values<Value = Layout> {
    let group = (any::<Index>(), 30_u64 << 20..120 << 20, 500..2000_u64);
    let colocation = prop::collection::vec(group, 24..97);
    (2..7_usize, 1..3_usize, prop::collection::vec(colocation, 1..3)).prop_map(
        |(used, fresh, colocations)| {
            let names: Vec<Group> = (0..u32::try_from(used).unwrap()).map(Group::Worker).collect();
            let each = colocations.into_iter().zip(1..).flat_map(|(colocation, id)| {
                let mut each =
                    groups(id, colocation.len(), |number| *colocation[number].0.get(&names), |_| 0);
                for (group, (_, bytes, load)) in each.iter_mut().zip(&colocation) {
                    (group.bytes, group.load) = (*bytes, *load);
                }
                each
            });
            Layout {
                nodes: nodes(&vec![Role::Shared; used + fresh]),
                groups: each.collect(),
                pins: Vec::new(),
            }
        },
    )
}

/// `layout` with the sizes and loads of `before`, each up to a twentieth off.
fn wavered(layout: &Layout, before: &Layout, runner: &mut TestRunner) -> Layout {
    let thousandths = prop::collection::vec(950..=1050_u64, MOST).new_tree(runner).unwrap().current();
    let mut layout = layout.clone();
    for ((group, before), by) in layout.groups.iter_mut().zip(&before.groups).zip(thousandths) {
        (group.bytes, group.load) = (before.bytes * by / 1000, before.load * by / 1000);
    }
    layout
}

/// The same layouts each time: were sizes far enough off, it would be right to move one back.
#[test]
fn nothing_goes_back_when_sizes_waver() {
    let mut runner = TestRunner::deterministic();
    let (mut carried_out, mut more) = (0, 0);
    for _ in 0..LAYOUTS {
        let layout = layouts().new_tree(&mut runner).unwrap().current();
        for strategy in STRATEGIES {
            let mut left = BTreeSet::new();
            let mut now = layout.clone();
            for look in 0..=LOOKS {
                let planned = plan(&now, &policy(strategy));
                for step in &planned.moves {
                    let back = left.contains(&(step.shard_id, step.to));
                    assert!(!back, "look {look}, {strategy:?}: {step} again\n{planned}");
                    left.insert((step.shard_id, step.from));
                }
                *if look == 0 { &mut carried_out } else { &mut more } += planned.moves.len();
                now = wavered(&after(&now, &planned.moves), &layout, &mut runner);
            }
        }
    }
    assert!(more * 20 < carried_out, "{carried_out} moves, and {more} more in {LOOKS} looks");
}
