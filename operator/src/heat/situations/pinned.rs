//! Tenants with a shard of their own: how long, and where.

use super::*;

#[test]
fn a_tenant_that_was_quiet_for_long_is_released() {
    let pinned = |minute: i64| {
        let tenants = if minute % 2000 == 5 { vec![load(7, 1, 10)] } else { Vec::new() };
        Period { pins: vec![tenant(7).pin(Group::Worker(1))], ..period(minute, &three(), &tenants) }
    };
    let decisions = run(&policy(), (0..1500).map(pinned));
    let released = decisions.iter().position(|decision| decision.action.is_some());
    assert_eq!(released, Some(6 + 24 * 60));
    assert_eq!(decisions[6 + 24 * 60].action, Some(Action::Release { tenant: tenant(7) }));
}

#[test]
fn a_gap_is_no_quiet_time_and_ends_none() {
    const DAY: i64 = 24 * 60;
    let policy = Policy { release_after: MINUTE * 7 * 24 * 60, ..policy() };
    let pinned =
        |minute| Period { pins: vec![tenant(7).pin(Group::Worker(1))], ..period(minute, &three(), &[]) };
    let released = |minutes: &[i64]| {
        let decisions = run(&policy, minutes.iter().map(|minute| pinned(*minute)));
        decisions.iter().position(|decision| decision.action.is_some()).map(|number| minutes[number])
    };
    let without = |first, count| (0..first).chain(first + count..8 * DAY).collect::<Vec<_>>();
    assert_eq!(released(&without(6 * DAY, 0)), Some(7 * DAY));
    for (first, count) in [(6 * DAY, 5), (6 * DAY, 1), (1, 60)] {
        assert_eq!(released(&without(first, count)), Some(7 * DAY + count), "{count} minutes from {first}");
    }
    // Nobody knows what time has passed for a clock that goes back.
    let back: Vec<i64> = (0..6 * DAY).chain(5 * DAY..13 * DAY).collect();
    assert_eq!(released(&back), Some(12 * DAY));
}

#[test]
fn one_that_was_deleted_does_not_hold_its_place_for_long() {
    let pinned = |minute: i64, queries, empty: bool| {
        let pins = (1..9).map(|number| tenant(number).pin(Group::Worker(1))).collect();
        let empty = if empty { vec![tenant(7)] } else { Vec::new() };
        let own = TenantLoad { queries, ..load(7, 1, 1) };
        let hot = load(20, 0, 40);
        Period { pins, empty, ..period(minute, &three(), &[own, hot]) }
    };
    let policy = Policy { cooldown: MINUTE * 10, ..policy() };
    let release = Some(Action::Release { tenant: tenant(7) });
    // As long as it takes to be hot it is quiet and without rows; until then all places are taken.
    let decisions = run(&policy, (0..10).map(|minute| pinned(minute, 0, minute > 4)));
    assert_eq!(decisions.iter().position(|decision| decision.action == release), Some(5));
    assert_eq!(decisions[4].refused, [refused(20, Reason::Budget)]);
    let at_once = run(&policy, (0..10).map(|minute| pinned(minute, 0, true)));
    assert_eq!(at_once.iter().position(|decision| decision.action == release), Some(3));
    // Who writes and deletes without end is not quiet, nor gone with rows.
    for (queries, empty) in [(500, true), (0, false)] {
        let decisions = run(&policy, (0..100).map(|minute| pinned(minute, queries, empty)));
        assert!(decisions.iter().all(|decision| decision.action.is_none()), "{queries} {empty}");
    }
}

#[test]
fn whoever_is_missing_from_a_full_list_is_not_known_to_be_quiet() {
    let policy = Policy { release_after: MINUTE * 10, ..policy() };
    // The servers may not have counted so many queries of whoever is not on their lists.
    let pinned = |minute: i64, unlisted: u64| {
        let mut nodes = three();
        nodes[1].unlisted = unlisted;
        Period { pins: vec![tenant(7).pin(Group::Worker(1))], ..period(minute, &nodes, &[]) }
    };
    let unknown = [refused(7, Reason::Unlisted)];
    let decisions = run(&policy, (0..100).map(|minute| pinned(minute, 100)));
    assert!(decisions.iter().all(|decision| decision.action.is_none() && decision.refused == unknown));

    // A list that goes down to quiet ones tells of all.
    let decisions = run(&policy, (0..11).map(|minute| pinned(minute, 99)));
    assert!(decisions.iter().all(|decision| decision.refused.is_empty()), "{decisions:?}");
    let release = Some(Action::Release { tenant: tenant(7) });
    assert_eq!(decisions[10].action, release);

    // It has been quiet for as long as that was known.
    let partly = |minute| pinned(minute, if (5..25).contains(&minute) { 5_000 } else { 0 });
    let decisions = run(&policy, (0..40).map(partly));
    assert_eq!(decisions.iter().position(|decision| decision.action == release), Some(30));
    // One that is due while nothing can be done waits until it is known to be quiet.
    let held_up =
        |minute| Period { underway: minute < 20, ..pinned(minute, if minute < 19 { 0 } else { 100 }) };
    let decisions = run(&policy, (0..40).map(held_up));
    assert!(decisions.iter().all(|decision| decision.action.is_none()), "{decisions:?}");

    // One that is listed, with few queries, may have had others before it came back.
    let listed = |minute, queries, unlisted| {
        let few = TenantLoad { queries, writes: 0, cpu: 0, ..load(7, 1, 1) };
        Period { tenants: vec![few], ..pinned(minute, unlisted) }
    };
    assert_eq!(run(&policy, (0..11).map(|minute| listed(minute, 60, 39)))[10].action, release);
    let decisions = run(&policy, (0..100).map(|minute| listed(minute, 60, 40)));
    assert!(decisions.iter().all(|decision| decision.action.is_none() && decision.refused == unknown));

    // What its own shards were used for is told by their server, whomever that lists.
    let used = |minute, uses| Period { uses: vec![(tenant(7), uses)], ..pinned(minute, 5_000) };
    assert_eq!(run(&policy, (0..11).map(|minute| used(minute, 99)))[10].action, release);
    let decisions = run(&policy, (0..100).map(|minute| used(minute, 100)));
    assert!(decisions.iter().all(|decision| decision.action.is_none() && decision.refused == unknown));

    // Nor does a node tell that does not answer; that is said elsewhere.
    let silent = |minute| {
        let mut period = pinned(minute, 0);
        period.nodes.get_mut(&Group::Worker(1)).unwrap().role = Role::Unavailable;
        period
    };
    let away = |minute| if (5..25).contains(&minute) { silent(minute) } else { pinned(minute, 0) };
    let decisions = run(&policy, (0..40).map(away));
    assert_eq!(decisions.iter().position(|decision| decision.action == release), Some(30));
    assert!(decisions.iter().all(|decision| decision.refused.is_empty()), "{decisions:?}");
}

#[test]
fn whom_somebody_has_decided_about_is_left_alone() {
    // One that is to be like the others, however hot it is.
    let held = |minute| Period { held: vec![tenant(7)], ..period(minute, &three(), &[load(7, 0, 40)]) };
    let decisions = run(&policy(), (0..5).map(held));
    assert_eq!(actions(&decisions), [None; 5]);
    assert!(decisions[4].refused.is_empty() && decisions[4].hot[0].tenant == tenant(7), "{decisions:?}");

    // One that was quiet for long, and is pinned by hand; it takes nobody's place.
    let pinned = |minute| {
        let (pins, held) = (vec![tenant(7).pin(Group::Worker(1))], vec![tenant(7)]);
        Period { pins, held, ..period(minute, &three(), &[]) }
    };
    assert!(run(&policy(), (0..2000).map(pinned)).iter().all(|decision| decision.action.is_none()));
    let one = Policy { max_isolated: 1, ..policy() };
    let other = |minute| Period { tenants: vec![load(8, 0, 40)], ..pinned(minute) };
    assert!(run(&one, (0..3).map(other)).pop().unwrap().action.is_some());
    let own = |minute| Period { held: Vec::new(), ..other(minute) };
    assert_eq!(run(&one, (0..3).map(own)).pop().unwrap().refused, [refused(8, Reason::Budget)]);
}

#[test]
fn what_no_worker_can_bear_is_said_of_a_pin_by_hand_as_of_any_other() {
    let nodes = |role| [node(Role::Shared, 20), node(role, 95), node(Role::Dedicated, 1)];
    let by_hand = |role, percent, pinned: &[i32]| {
        let pins: Vec<Pin> = pinned.iter().map(|number| tenant(*number).pin(Group::Worker(1))).collect();
        let own = TenantLoad { alone: pinned.contains(&7), ..load(7, 1, percent) };
        let hours = (0..5).map(|minute| Period {
            pins: pins.clone(),
            held: vec![tenant(7)],
            ..period(minute, &nodes(role), &[own])
        });
        let decisions = run(&policy(), hours);
        assert!(actions(&decisions).iter().all(Option::is_none), "{decisions:?}");
        decisions.into_iter().map(|decision| decision.refused).collect::<Vec<_>>()
    };
    let here = vec![refused(7, Reason::TooHotHere)];
    let alone = vec![refused(7, Reason::TooHotAlone)];
    let lasts = |said: Vec<Refused>| [vec![], vec![], said.clone(), said.clone(), said];
    assert_eq!(by_hand(Role::Shared, 90, &[7]), lasts(here.clone()));
    assert_eq!(by_hand(Role::Dedicated, 90, &[8, 7]), lasts(here));
    assert_eq!(by_hand(Role::Dedicated, 90, &[7]), lasts(alone));
    // Who is not to be pinned stays where it is, whoever is harmed, though there is a worker that is kept free.
    assert_eq!(by_hand(Role::Shared, 90, &[]), lasts(vec![refused(7, Reason::TooHot)]));
    // What a worker can bear is nobody's business.
    assert_eq!(by_hand(Role::Dedicated, 79, &[7]), lasts(Vec::new()));
    assert_eq!(by_hand(Role::Shared, 79, &[]), lasts(Vec::new()));
}

#[test]
fn a_pin_follows_when_its_node_leaves() {
    let mut leaving = period(0, &[three()[0], three()[1], three()[2], node(Role::Draining, 0)], &[]);
    let pin = |number, worker| tenant(number).pin(Group::Worker(worker));
    leaving.pins = vec![pin(1, 3), pin(2, 9), pin(3, 1), pin(4, 0)];
    leaving.underway = true;
    // Worker 2 has none yet; then each has one, and worker 1 has most to spare.
    let expected = vec![pin(1, 2), pin(2, 1)];
    for mode in [Mode::Isolate, Mode::Observe] {
        let policy = Policy { mode, ..policy() };
        assert_eq!(run(&policy, [leaving.clone()])[0].retargeted, expected);
    }
    // A node that does not answer comes back.
    leaving.nodes.get_mut(&Group::Worker(3)).unwrap().role = Role::Unavailable;
    assert_eq!(run(&policy(), [leaving.clone()])[0].retargeted, [pin(2, 2)]);
    leaving.nodes.values_mut().for_each(|node| node.role = Role::Draining);
    let decision = &run(&policy(), [leaving])[0];
    assert_eq!((decision.retargeted.len(), decision.refused.len()), (0, 4));
}
