//! What is left of a plan that was made earlier.

use super::*;

#[test]
fn what_is_left_of_a_plan_is_refused_when_the_world_has_moved() {
    let layout = Layout {
        nodes: nodes(&[Role::Shared; 3]),
        groups: groups(1, 12, |_| Group::Worker(0), |_| 1 << 30),
        pins: Vec::new(),
    };
    let policy = policy(Strategy::ByCount);
    let whole = plan(&layout, &policy);
    let (first, last) = (whole.moves[0], *whole.moves.last().unwrap());
    let refusal = |change: &dyn Fn(&mut Layout)| {
        let mut layout = after(&layout, &whole.moves[..1]);
        change(&mut layout);
        whole.rest(&layout, &policy).unwrap_err()
    };
    let by_hand = |layout: &mut Layout| {
        layout.groups.iter_mut().for_each(|group| {
            if group.shard_id == last.shard_id {
                group.node = if last.to == Group::Worker(1) { Group::Worker(2) } else { Group::Worker(1) };
            }
        });
    };
    assert!(matches!(refusal(&by_hand), Overtaken::Elsewhere { shard_id, .. } if shard_id == last.shard_id));
    let gone = |layout: &mut Layout| layout.groups.retain(|group| group.shard_id != last.shard_id);
    assert_eq!(refusal(&gone), Overtaken::Gone { shard_id: last.shard_id });
    let grown = |layout: &mut Layout| {
        layout.nodes.insert(Group::Worker(3), Node { role: Role::Shared, free_bytes: None });
    };
    assert!(matches!(refusal(&grown), Overtaken::Nodes { .. }));
    let full = |layout: &mut Layout| {
        layout.nodes.insert(last.to, Node { role: Role::Shared, free_bytes: Some(1 << 20) });
    };
    assert_eq!(refusal(&full), Overtaken::NoRoom { node: last.to });
    let pinned = |layout: &mut Layout| {
        layout.pins.push(Pin { colocation_id: 1, hash: last.range.min, node: Group::Worker(0) });
    };
    assert_eq!(refusal(&pinned), Overtaken::Harmful { shard_id: last.shard_id });
    assert_eq!(first.wave, 1);
}

#[test]
fn what_is_left_of_a_plan_is_refused_when_another_spread_is_asked_for() {
    let layout = Layout {
        nodes: nodes(&[Role::Shared; 3]),
        groups: groups(1, 12, |_| Group::Worker(0), |_| 1 << 30),
        pins: Vec::new(),
    };
    let of = |strategy, threshold| Policy { threshold, ..policy(strategy) };
    let is_left = |made: &Policy, now: &Policy| {
        let whole = plan(&layout, made);
        // An operator that is started anew knows it from the status.
        let shown = serde_json::to_string(&whole.status().unwrap()).unwrap();
        let shown = MovePlan::resumed(&serde_json::from_str(&shown).unwrap(), &layout, now).unwrap();
        assert_eq!(shown.rest(&layout, now), whole.rest(&layout, now));
        whole.rest(&layout, now).map(|rest| rest.moves.len())
    };
    assert_eq!(is_left(&of(Strategy::BySize, 100), &of(Strategy::BySize, 100)), Ok(8));
    let why = is_left(&of(Strategy::BySize, 100), &of(Strategy::BySize, 1000)).unwrap_err();
    assert_eq!(
        why.to_string(),
        "the plan is for BySize with a threshold of 0.1, and the resource asks for BySize with a threshold of 1 now"
    );
    let why = is_left(&of(Strategy::ByCount, 0), &of(Strategy::BySize, 0)).unwrap_err();
    assert!(matches!(why, Overtaken::Policy { .. }), "{why}");
    assert_eq!(is_left(&of(Strategy::ByCount, 0), &of(Strategy::ByCount, 125)), Ok(8), "it has none");
}

#[test]
fn what_found_no_place_is_planned_for_when_the_rest_was_moved() {
    let mut layout = Layout {
        nodes: nodes(&[Role::Shared, Role::Shared, Role::Draining]),
        groups: groups(1, 6, |_| Group::Worker(2), |number| if number < 2 { 8 << 30 } else { 1 << 30 }),
        pins: Vec::new(),
    };
    let room = |layout: &mut Layout, node: u32, free: u64| {
        layout.nodes.get_mut(&Group::Worker(node)).unwrap().free_bytes = Some(free << 30);
    };
    room(&mut layout, 0, 3);
    room(&mut layout, 1, 3);
    let policy = policy(Strategy::BySize);
    let whole = plan(&layout, &policy);
    assert_eq!((whole.moves.len(), whole.stuck.len()), (4, 2));
    assert_eq!(whole.rest(&layout, &policy).as_ref(), Ok(&whole));
    // What was approved is what runs.
    room(&mut layout, 1, 13);
    assert_eq!(whole.rest(&layout, &policy).as_ref(), Ok(&whole));
    let made = after(&layout, &whole.moves);
    assert_eq!(whole.rest(&made, &policy).map(|rest| rest.moves), Ok(Vec::new()));
    let anew = plan(&made, &policy);
    let large = anew.moves.iter().filter(|step| step.bytes == 8 << 30);
    assert_eq!((large.count(), anew.stuck.len()), (1, 1));
}
