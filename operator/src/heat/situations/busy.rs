//! Workers that have too much to do.

use super::*;

#[test]
fn a_busy_worker_without_a_hot_tenant_has_its_shards_spread() {
    let nodes = [node(Role::Shared, 90), node(Role::Shared, 20)];
    let crowd: Vec<TenantLoad> = (0..30).map(|number| load(number, 0, 3)).collect();
    let decisions = run(&policy(), (0..70).map(|minute| period(minute, &nodes, &crowd)));
    let spread = Some(Action::Spread { from: Group::Worker(0), to: Group::Worker(1) });
    let when: Vec<usize> = (0..70).filter(|minute| decisions[*minute].action.is_some()).collect();
    assert_eq!((decisions[2].action, when), (spread, vec![2, 62]));
    // Where all are busy there is nothing to spread.
    let all = [node(Role::Shared, 90), node(Role::Shared, 85)];
    let decisions = run(&policy(), (0..9).map(|minute| period(minute, &all, &crowd)));
    assert!(actions(&decisions).iter().all(Option::is_none), "{decisions:?}");
    let said = decisions
        .iter()
        .map(|decision| decision.refused.iter().any(|refused| refused.reason == Reason::AllBusy));
    assert_eq!(said.collect::<Vec<_>>(), (0..9).map(|minute| minute >= 2).collect::<Vec<_>>());
}

#[test]
fn a_busy_worker_whose_shards_do_not_go_by_load_is_named_and_keeps_nobody_waiting() {
    let policy = Policy { strategy: Strategy::BySize, ..policy() };
    let nodes = [node(Role::Shared, 90), node(Role::Shared, 70), node(Role::Shared, 20)];
    let crowd: Vec<TenantLoad> = (0..30).map(|number| load(number, 0, 3)).collect();
    let spammer = load(50, 1, 40);
    let evening = |minute: i64| {
        let mut tenants = crowd.clone();
        tenants.extend((minute >= 20).then_some(spammer));
        period(minute, &nodes, &tenants)
    };
    let decisions = run(&policy, (0..23).map(evening));
    let busy = Refused::node(Group::Worker(0), Reason::NotByLoad);
    for (minute, decision) in decisions.iter().enumerate() {
        assert_eq!(decision.refused.contains(&busy), minute >= 2, "minute {minute}: {decision:?}");
        assert_eq!(
            (decision.action.is_some(), decision.cooling_until),
            (minute == 22, None),
            "minute {minute}"
        );
    }
    assert!(matches!(decisions[22].action, Some(Action::Isolate { to: Group::Worker(2), .. })));
}

#[test]
fn a_busy_worker_whose_shards_may_not_be_moved_is_named_and_keeps_nobody_waiting() {
    let nodes = [node(Role::Shared, 90), node(Role::Shared, 20)];
    let crowd: Vec<TenantLoad> = (0..30).map(|number| load(number, 0, 3)).collect();
    let hours =
        |relief| (0..9).map(|minute| Period { relief, ..period(minute, &nodes, &crowd) }).collect::<Vec<_>>();
    let reason = |reason| Some(Refused::node(Group::Worker(0), reason));
    for (relief, said) in [
        (Relief::Held, reason(Reason::MovesHeld)),
        (Relief::Useless, reason(Reason::NoMoveHelps)),
        (Relief::Unmeasured, None),
    ] {
        let decisions = run(&policy(), hours(relief));
        for (minute, decision) in decisions.iter().enumerate() {
            assert_eq!(
                decision.refused,
                said.filter(|_| minute >= 2).into_iter().collect::<Vec<_>>(),
                "{minute}"
            );
            assert_eq!((decision.action, decision.cooling_until), (None, None), "{relief:?}");
        }
        // Once they may be moved they are, at once.
        let after = hours(relief).into_iter().take(8).chain(hours(Relief::Ready).into_iter().skip(8));
        assert!(matches!(run(&policy(), after)[8].action, Some(Action::Spread { .. })), "{relief:?}");
    }
}

#[test]
fn pinned_tenants_that_are_too_much_for_one_worker_together_are_named_and_not_shuffled_around() {
    let home = Group::Worker(1);
    // A dedicated worker with both, and another one that has nothing to do.
    let nodes = |busy| [node(Role::Shared, 20), node(Role::Dedicated, busy), node(Role::Dedicated, 1)];
    let pinned = |busy, shares: &[u64]| {
        let tenants: Vec<TenantLoad> =
            (1..).zip(shares).map(|(number, share)| load(number, 1, *share)).collect();
        let pins: Vec<Pin> = tenants.iter().map(|load| load.tenant.pin(home)).collect();
        run(
            &policy(),
            (0..5).map(|minute| Period { pins: pins.clone(), ..period(minute, &nodes(busy), &tenants) }),
        )
    };
    let crowded = [Refused::node(home, Reason::Crowded)];
    let decisions = pinned(95, &[50, 45]);
    let said: Vec<bool> = decisions.iter().map(|decision| decision.refused == crowded).collect();
    assert_eq!(said, [false, false, true, true, true], "{decisions:?}");
    assert!(actions(&decisions).iter().all(Option::is_none), "{decisions:?}");
    // So are many of whom none is hot.
    assert_eq!(pinned(96, &[12; 8])[2].refused, crowded);
    // One alone, or one that no worker could bear, is another matter; and who can be borne is none.
    assert_eq!(pinned(95, &[79])[4].refused, []);
    assert_eq!(pinned(95, &[85, 10])[4].refused, [refused(1, Reason::TooHotHere)]);
    assert_eq!(pinned(75, &[40, 35])[4].refused, []);
}

#[test]
fn a_worker_full_of_somebody_who_belongs_there_is_relieved_of_the_others() {
    let nodes = [node(Role::Shared, 95), node(Role::Shared, 20)];
    let pinned = |share| {
        let pins = vec![tenant(7).pin(Group::Worker(0))];
        let periods = (0..3)
            .map(|minute| Period { pins: pins.clone(), ..period(minute, &nodes, &[load(7, 0, share)]) });
        run(&policy(), periods).pop().unwrap()
    };
    let spread = Action::Spread { from: Group::Worker(0), to: Group::Worker(1) };
    assert_eq!(pinned(70).action, Some(spread));
    // Where nearly everything is its own doing there is nothing to move.
    assert_eq!((pinned(90).action, &pinned(90).refused[..]), (None, &[refused(7, Reason::TooHotHere)][..]));
}
