//! Its answers to the situations that it is for, and to bad input.

use super::fixture::{MINUTE, actions, at, load, node, period, policy, run, tenant, three};
use super::*;

fn refused(number: i32, reason: Reason) -> Refused {
    Refused::tenant(tenant(number), reason)
}

#[test]
fn a_tenant_that_stays_hot_is_isolated_where_most_is_to_spare() {
    let decisions = run(&policy(), (0..5).map(|minute| period(minute, &three(), &[load(7, 0, 40)])));
    let isolate = Action::Isolate {
        tenant: tenant(7),
        from: Group::Worker(0),
        to: Group::Worker(1),
        rest: Some(Group::Worker(2)),
    };
    assert_eq!(actions(&decisions), [None, None, Some(isolate), None, None]);
    assert_eq!((decisions[1].hot[0].share, decisions[1].hot[0].periods), (57, 2));
}

#[test]
fn a_dedicated_worker_comes_before_a_shared_one() {
    let mut nodes = three();
    nodes[2].role = Role::Dedicated;
    let decisions = run(&policy(), (0..3).map(|minute| period(minute, &nodes, &[load(7, 0, 40)])));
    assert!(
        matches!(decisions[2].action, Some(Action::Isolate { to: Group::Worker(2), .. })),
        "{decisions:?}"
    );
}

#[test]
fn neither_an_idle_worker_nor_few_queries_make_a_tenant_hot() {
    let mut idle = three();
    idle[0] = node(Role::Shared, 25);
    let mut few = load(7, 0, 60);
    few.queries = 99;
    for decisions in [
        run(&policy(), (0..9).map(|minute| period(minute, &idle, &[load(7, 0, 25)]))),
        run(&policy(), (0..9).map(|minute| period(minute, &three(), &[few]))),
    ] {
        assert!(decisions.iter().all(|decision| *decision == Decision::default()), "{decisions:?}");
    }
}

#[test]
fn one_that_wavers_around_the_limit_is_hot_and_one_that_comes_and_goes_is_not() {
    let shares = |shares: [u64; 6]| {
        (0..)
            .zip(shares)
            .map(|(minute, percent)| period(minute, &three(), &[load(7, 0, percent)]))
            .collect::<Vec<_>>()
    };
    // 70 percent of the core are spent: a share of 20 percent are 14 percent of the core.
    let wavering = run(&policy(), shares([15, 12, 15, 12, 15, 0]));
    assert!(wavering[4].action.is_some(), "{wavering:?}");
    let coming = run(&policy(), shares([15, 15, 5, 15, 15, 5]));
    assert!(coming.iter().all(|decision| decision.action.is_none()), "{coming:?}");
}

#[test]
fn a_tenant_that_is_too_much_for_any_worker_is_not_moved_around() {
    let nodes = [node(Role::Shared, 95), node(Role::Shared, 10)];
    let decisions = run(&policy(), (0..9).map(|minute| period(minute, &nodes, &[load(7, 0, 90)])));
    let too_hot = refused(7, Reason::TooHot);
    assert!(decisions[2..].iter().all(|decision| decision.refused == [too_hot]), "{decisions:?}");
    assert!(actions(&decisions).iter().all(Option::is_none), "{decisions:?}");
    // Nor is one that would only make another worker what its own is now.
    let alone = [node(Role::Shared, 60), node(Role::Shared, 5)];
    let decisions = run(&policy(), (0..3).map(|minute| period(minute, &alone, &[load(7, 0, 60)])));
    assert_eq!(decisions[2].refused, [refused(7, Reason::NothingGained)]);
}

#[test]
fn a_tenant_that_is_too_much_for_any_worker_is_moved_once_to_where_it_is_alone() {
    let home = Group::Worker(2);
    let nodes = |source, dedicated| {
        [node(Role::Shared, source), node(Role::Shared, 20), node(Role::Dedicated, dedicated)]
    };
    let among_others = |minute| period(minute, &nodes(95, 1), &[load(7, 0, 90)]);
    let decisions = run(&policy(), (0..3).map(among_others));
    let isolate =
        Action::Isolate { tenant: tenant(7), from: Group::Worker(0), to: home, rest: Some(Group::Worker(1)) };
    assert_eq!((decisions[2].action, &decisions[2].refused[..]), (Some(isolate), &[][..]));
    // Alone there it is not moved any more, be there another worker that is kept free or not: it is said.
    let mut alone = nodes(5, 91).to_vec();
    alone.push(node(Role::Dedicated, 1));
    let at_home = |minute| {
        let own = TenantLoad { alone: true, ..load(7, 2, 90) };
        Period { pins: vec![tenant(7).pin(home)], ..period(minute, &alone, &[own]) }
    };
    let decisions = run(&policy(), (0..100).map(at_home));
    assert!(actions(&decisions).iter().all(Option::is_none), "{decisions:?}");
    assert_eq!(decisions[99].refused, [refused(7, Reason::TooHot)]);
    // Nobody else is harmed for it: where somebody is pinned, however quiet, or where there is no room, it does not go.
    let taken = |minute| Period { pins: vec![tenant(8).pin(home)], ..among_others(minute) };
    let full = |minute| {
        let mut period = among_others(minute);
        period.nodes.get_mut(&home).unwrap().free_bytes = Some(0);
        period
    };
    for decisions in [run(&policy(), (0..3).map(taken)), run(&policy(), (0..3).map(full))] {
        let said = (decisions[2].action, &decisions[2].refused[..]);
        assert_eq!(said, (None, &[refused(7, Reason::TooHot)][..]));
    }
}

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
    assert_eq!(pinned(95, &[85, 10])[4].refused, [refused(1, Reason::TooHot)]);
    assert_eq!(pinned(75, &[40, 35])[4].refused, []);
}

#[test]
fn evidence_that_is_missing_neither_counts_nor_acquits() {
    let mut gone = period(1, &three(), &[]);
    gone.nodes.get_mut(&Group::Worker(0)).unwrap().role = Role::Unavailable;
    let there = |minute| period(minute, &three(), &[load(7, 0, 40)]);
    let decisions = run(&policy(), [there(0), gone, there(2), there(3)]);
    assert_eq!(decisions.iter().position(|decision| decision.action.is_some()), Some(3));
    // The same period twice is one, and after a gap it is counted anew.
    let twice = run(&policy(), [there(0), there(0), there(1), there(1), there(2)]);
    assert_eq!(twice.iter().position(|decision| decision.action.is_some()), Some(4));
    for jump in [60, -60] {
        let jumped = run(&policy(), [0, 1, jump, jump + 1, jump + 2].map(there));
        assert_eq!(jumped.iter().position(|decision| decision.action.is_some()), Some(4), "{jump}");
    }
}

#[test]
fn a_clock_set_back_keeps_the_cooldown_and_no_longer() {
    let there = |minute| period(minute, &three(), &[load(7, 0, 40)]);
    let minutes = (0..3).chain(-10_000..-9900);
    let decisions = run(&policy(), minutes.map(there));
    let acted: Vec<usize> =
        (0..decisions.len()).filter(|number| decisions[*number].action.is_some()).collect();
    assert_eq!(acted, [2, 63]);
}

#[test]
fn routine_keeps_nobody_waiting_who_harms_others() {
    // Shards that grow evenly are all too large at once; then somebody begins to flood.
    let grown = |minute: i64| {
        let large = (1..6).map(|shard| large(shard, 30, Some(1))).collect();
        let tenants = if minute < 10 { Vec::new() } else { vec![load(7, 0, 40), load(8, 0, 20)] };
        Period { large, ..period(minute, &three(), &tenants) }
    };
    let decisions = run(&policy(), (0..140).map(grown));
    let done: Vec<(usize, &str)> = (0..)
        .zip(&decisions)
        .filter_map(|(minute, decision)| Some((minute, decision.action?.kind())))
        .collect();
    // One isolation does not follow another at once, nor routine upon it.
    assert_eq!(done, [(0, "Split"), (12, "Isolate"), (72, "Isolate"), (132, "Isolate")]);
    assert_eq!(decisions[40].cooling_until, Some(at(72)));
    assert_eq!(decisions[5].cooling_until, Some(at(60)));

    // Whoever was just released waits, and whoever was not does not.
    let policy = Policy { release_after: MINUTE * 10, ..policy() };
    let back = |who: i32| {
        move |minute: i64| {
            let tenants = if minute < 11 {
                Vec::new()
            } else {
                vec![TenantLoad { alone: who == 7, ..load(who, 0, 40) }]
            };
            let pins = if minute < 11 { vec![tenant(7).pin(Group::Worker(1))] } else { Vec::new() };
            Period { pins, ..period(minute, &three(), &tenants) }
        }
    };
    for (who, isolated) in [(7, 70), (8, 13)] {
        let decisions = run(&policy, (0..80).map(back(who)));
        assert_eq!(decisions[10].action, Some(Action::Release { tenant: tenant(7) }));
        let first =
            decisions.iter().position(|decision| matches!(decision.action, Some(Action::Isolate { .. })));
        assert_eq!(first, Some(isolated), "{who}");
    }
}

#[test]
fn the_budget_and_the_number_of_shards_are_kept() {
    let mut full = period(0, &three(), &[load(7, 0, 40)]);
    full.pins = (100..108).map(|number| tenant(number).pin(Group::Worker(2))).collect();
    let mut many = period(0, &three(), &[load(7, 0, 40)]);
    many.shard_groups = 999;
    for (start, reason) in [(full, Reason::Budget), (many, Reason::TooManyShards)] {
        let periods = (0..4).map(|minute| Period { end: at(minute), ..start.clone() });
        let decisions = run(&policy(), periods);
        assert_eq!(decisions[3].refused, [refused(7, reason)]);
        assert!(actions(&decisions).iter().all(Option::is_none), "{decisions:?}");
    }
}

#[test]
fn nothing_begins_while_something_is_under_way() {
    let busy = |minute| Period { underway: minute < 5, ..period(minute, &three(), &[load(7, 0, 40)]) };
    let decisions = run(&policy(), (0..6).map(busy));
    assert_eq!(decisions.iter().position(|decision| decision.action.is_some()), Some(5));
    // What is awaited is known, so that nothing else is begun before it.
    let urgent: Vec<bool> = decisions.iter().map(|decision| decision.urgent).collect();
    assert_eq!(urgent, [false, false, true, true, true, false]);
    let none = Policy { max_isolated: 0, ..policy() };
    assert!(run(&none, (0..6).map(busy)).iter().all(|decision| !decision.urgent));
}

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

fn large(shard_id: i64, gigabytes: u64, median: Option<i32>) -> LargeShard {
    let (colocation_id, node, bytes) = (1, Group::Worker(1), gigabytes << 30);
    LargeShard { colocation_id, shard_id, node, bytes, median, heaviest: None }
}

#[test]
fn the_largest_of_the_large_shards_is_split_at_its_median() {
    let large =
        vec![large(1, 21, Some(1)), large(2, 30, Some(-5)), large(3, 19, Some(3)), large(4, 40, None)];
    let grown = Period { large, ..period(0, &three(), &[]) };
    let decision = &run(&policy(), [grown.clone()])[0];
    // The calmer of the other two takes the first half.
    let to = [Group::Worker(2), Group::Worker(0)];
    let split = Action::Split { colocation_id: 1, shard_id: 2, from: Group::Worker(1), at: -5, to };
    assert_eq!(decision.action, Some(split));
    assert_eq!(decision.refused, [Refused::shard(4, Reason::Indivisible)]);

    let full = Period { shard_groups: 1000, ..grown.clone() };
    let decision = &run(&policy(), [full])[0];
    assert_eq!((decision.action, decision.refused[1].reason), (None, Reason::TooManyShards));

    // A node with room for a half only takes one.
    let mut tight = grown;
    tight.nodes.get_mut(&Group::Worker(0)).unwrap().free_bytes = Some(15 << 30);
    assert_eq!(run(&policy(), [tight.clone()])[0].action, Some(split));
    tight.nodes.get_mut(&Group::Worker(0)).unwrap().free_bytes = Some(14 << 30);
    let to = [Group::Worker(2); 2];
    let both = Action::Split { colocation_id: 1, shard_id: 2, from: Group::Worker(1), at: -5, to };
    assert_eq!(run(&policy(), [tight.clone()])[0].action, Some(both));

    // One that has too much to do takes none, and where all have, nothing is split.
    let mut busy = tight;
    *busy.nodes.get_mut(&Group::Worker(0)).unwrap() = node(Role::Shared, 81);
    assert_eq!(run(&policy(), [busy.clone()])[0].action, Some(both));
    *busy.nodes.get_mut(&Group::Worker(2)).unwrap() = node(Role::Shared, 95);
    let decision = &run(&policy(), [busy])[0];
    assert_eq!((decision.action, decision.refused[1]), (None, Refused::shard(2, Reason::NoHeadroom)));
}

#[test]
fn a_split_for_size_waits_for_a_window_and_an_isolation_does_not() {
    let evening = |minute: i64| {
        let large = vec![large(1, 30, Some(1)), large(2, 21, None)];
        Period { large, splits_held: minute < 70, ..period(minute, &three(), &[]) }
    };
    let decisions = run(&policy(), (0..71).map(evening));
    let said = [Refused::shard(1, Reason::SplitHeld), Refused::shard(2, Reason::Indivisible)];
    assert!(decisions[..70].iter().all(|decision| decision.refused == said), "{decisions:?}");
    let first = decisions.iter().position(|decision| decision.action.is_some());
    assert_eq!((first, decisions[70].action.map(Action::kind)), (Some(70), Some("Split")));

    let flooded = |minute| Period { tenants: vec![load(7, 0, 40)], ..evening(minute) };
    assert!(matches!(run(&policy(), (0..3).map(flooded))[2].action, Some(Action::Isolate { .. })));
}

#[test]
fn what_shares_a_shard_with_the_tenant_does_not_stay_on_its_node() {
    let rest = |nodes: &[NodeLoad], alone: bool| {
        let load = TenantLoad { alone, ..load(7, 0, 40) };
        let decisions = run(&policy(), (0..3).map(|minute| period(minute, nodes, &[load])));
        match decisions[2].action {
            Some(Action::Isolate { to, rest, .. }) => (to, rest),
            other => panic!("{other:?}"),
        }
    };
    let [one, two] = [Group::Worker(1), Group::Worker(2)];
    assert_eq!(rest(&three(), false), (one, Some(two)));
    assert_eq!(rest(&three()[..2], false), (one, Some(one)));
    let dedicated = [three()[0], node(Role::Dedicated, 5)];
    assert_eq!(rest(&dedicated, false), (one, None));
    // Nor does it go to one that has too much to do: a small one stays, and a large one keeps its tenant.
    let busy = [three()[0], node(Role::Dedicated, 5), node(Role::Shared, 95)];
    assert_eq!(rest(&busy, false), (one, None));
    let large = TenantLoad { shard_bytes: QUICK_BYTES + 1, ..load(7, 0, 40) };
    let decisions = run(&policy(), (0..3).map(|minute| period(minute, &busy, &[large])));
    assert_eq!((decisions[2].action, decisions[2].refused[0]), (None, refused(7, Reason::NoHeadroom)));
    assert_eq!(rest(&three(), true), (one, None));
}

#[test]
fn tenants_of_equal_hash_are_one() {
    let twins = [load(7, 0, 8), load(7, 0, 9), load(8, 0, 13)];
    let decisions = run(&policy(), (0..3).map(|minute| period(minute, &three(), &twins)));
    assert_eq!(decisions[2].hot.len(), 1, "{decisions:?}");
    assert_eq!((decisions[2].hot[0].tenant, decisions[2].hot[0].share), (tenant(7), 24));
    assert!(matches!(decisions[2].action, Some(Action::Isolate { .. })));
}

#[test]
fn a_list_that_is_too_short_does_not_acquit_whom_it_leaves_out() {
    let there = |minute| period(minute, &three(), &[load(7, 0, 40)]);
    let first = |missing: Vec<Period>| {
        let count = i64::try_from(missing.len()).unwrap();
        let periods = [there(0), there(1)].into_iter().chain(missing).chain([there(2 + count)]);
        run(&policy(), periods).last().unwrap().action.is_some()
    };
    let left_out = |unseen| {
        move |minute: i64| {
            let mut period = period(minute, &three(), &[]);
            period.nodes.get_mut(&Group::Worker(0)).unwrap().unseen = unseen;
            period
        }
    };
    assert!(first((2..4).map(left_out(5_000)).collect()));
    // Whoever is left out of a list that goes down to few queries has no more than these.
    assert!(!first((2..4).map(left_out(99)).collect()));
    // Nor is anybody blamed for ever.
    assert!(!first((2..6).map(left_out(5_000)).collect()));
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

#[test]
fn a_policy_that_is_edited_meanwhile_counts_from_then_on() {
    let there = |minute, underway| Period { underway, ..period(minute, &three(), &[load(7, 0, 40)]) };
    let mut history = History::default();
    let mut step = |policy: &Policy, period: &Period| {
        let (decision, next) = decide(policy, &history, period);
        history = next;
        decision
    };
    let isolate = policy();
    let observe = Policy { mode: Mode::Observe, ..isolate };
    for minute in 0..3 {
        step(&observe, &there(minute, false));
    }
    // What was only imagined costs neither time nor budget once it is meant; the action under way is not disturbed.
    for minute in 3..8 {
        assert_eq!(step(&isolate, &there(minute, true)).action, None);
    }
    let strict = Policy { share_percent: 90, ..isolate };
    assert_eq!(step(&strict, &there(8, false)), Decision::default());
    let none = Policy { max_isolated: 0, ..isolate };
    for minute in 9..11 {
        assert!(step(&none, &there(minute, false)).refused.is_empty());
    }
    assert_eq!(step(&none, &there(11, false)).refused, [refused(7, Reason::Budget)]);
    assert!(step(&isolate, &there(12, false)).action.is_some());
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
    assert_eq!((pinned(90).action, &pinned(90).refused[..]), (None, &[refused(7, Reason::TooHot)][..]));
}

#[test]
fn no_more_is_refused_than_the_status_takes_whether_or_not_shards_move() {
    let gone: Vec<Pin> = (0..30).map(|number| tenant(number).pin(Group::Worker(7))).collect();
    let full = three().map(|node| NodeLoad { role: Role::Draining, ..node });
    for underway in [true, false] {
        let period = Period { pins: gone.clone(), underway, ..period(0, &full, &[]) };
        let refused = run(&policy(), [period])[0].refused.clone();
        assert_eq!(refused.len(), 20, "{refused:?}");
        assert!(refused.iter().all(|refused| refused.reason == Reason::NoHeadroom));
    }
}

#[test]
fn where_workers_share_many_cores_a_small_part_of_them_may_be_much() {
    // An eighth of the machine would be this worker's if all others were busy, too.
    let nodes = [node(Role::Shared, 10), node(Role::Shared, 2), node(Role::Shared, 2)];
    let minutes = || (0..3).map(|minute| period(minute, &nodes, &[load(7, 0, 6)]));
    let found = |min_cpu_percent| run(&Policy { min_cpu_percent, ..policy() }, minutes())[2].clone();
    assert_eq!((found(30).hot, found(30).action), (Vec::new(), None));
    assert!(matches!(found(5).action, Some(Action::Isolate { .. })), "{:?}", found(5));
    assert_eq!(found(10).hot, [], "no more than this");
}
