//! What is shown of a plan, and what others can make of it.

use super::*;

#[test]
fn anybody_can_make_the_hash_of_the_moves_that_are_shown() {
    let layout = Layout {
        nodes: nodes(&[Role::Shared; 2]),
        groups: groups(7, 4, |_| Group::Worker(0), |_| 1 << 20),
        pins: Vec::new(),
    };
    let policy = policy(Strategy::ByCount);
    let whole = plan(&layout, &policy);
    let shown = |step: &Move| (step.number, format!("{} {} {}", step.shard_id, step.from, step.to));
    let expected = [(1, "70000 worker-0 worker-1".to_owned()), (2, "70001 worker-0 worker-1".to_owned())];
    assert_eq!(whole.moves.iter().map(shown).collect::<Vec<_>>(), expected);
    // printf '70000 worker-0 worker-1\n70001 worker-0 worker-1\n' | sha256sum | cut -c 1-16
    assert_eq!(whole.hash, "45277f1bd47685fa");
    // The second is made first, as when the first has failed: it is the second all the same, and what is left the first.
    let second = whole.moves[1];
    assert_eq!(whole.number_of(second.shard_id, second.from, second.to), Some(2));
    assert_eq!(whole.number_of(second.shard_id, second.to, second.from), None);
    let rest = whole.rest(&after(&layout, &[second]), &policy).unwrap();
    assert_eq!(rest.moves.iter().map(shown).collect::<Vec<_>>(), expected[..1]);
    // An operator that reads it in the status knows it by the same numbers.
    let resumed = MovePlan::resumed(&rest.status().unwrap(), &layout, &policy).unwrap();
    assert_eq!(resumed.moves, rest.moves);
}

#[test]
fn a_plan_of_thousands_of_moves_is_shown_whole_and_fits_into_an_object() {
    let shown_of = |count: usize| {
        let layout = Layout {
            nodes: nodes(&[Role::Shared, Role::Draining]),
            groups: groups(1, count, |_| Group::Worker(1), |_| 1 << 40),
            pins: Vec::new(),
        };
        let whole = plan(&layout, &policy(Strategy::ByCount));
        assert_eq!(whole.moves.len(), count);
        let shown = whole.status().unwrap();
        let resumed = MovePlan::resumed(&shown, &layout, &policy(Strategy::ByCount));
        (serde_json::to_string(&shown).unwrap().len(), resumed == Some(whole))
    };
    let (bytes, whole) = shown_of(2000);
    assert!(whole && bytes < 300_000, "{bytes} bytes");
    // One that is larger is cut, and nobody takes what is shown of it for all of it.
    let (bytes, whole) = shown_of(2001);
    assert!(!whole && bytes < 300_000, "{bytes} bytes");
}
