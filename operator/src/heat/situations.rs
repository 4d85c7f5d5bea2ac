//! Its answers to the situations that it is for, and to bad input.

use super::fixture::{MINUTE, actions, at, load, node, period, policy, run, tenant, three};
use super::*;

mod busy;
mod pinned;

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
fn of_what_a_tenant_takes_most_is_said() {
    let busy = node(Role::Shared, 50);
    let part = |whole: u64, percent: u64| whole * percent / 100;
    let does = |queries: u64, writes: u64, cpu: u64| TenantLoad {
        queries: part(busy.queries, queries),
        writes: part(busy.writes, writes),
        cpu: part(busy.cpu, cpu),
        ..load(7, 0, 0)
    };
    for (shares, expected) in [
        ([40, 30, 20], (40, ShareOf::Queries)),
        ([30, 40, 20], (40, ShareOf::Writes)),
        ([20, 30, 40], (40, ShareOf::Cpu)),
        ([40, 40, 40], (40, ShareOf::Queries)),
    ] {
        let [queries, writes, cpu] = shares;
        let decisions = run(&policy(), [period(0, &[busy; 3], &[does(queries, writes, cpu)])]);
        let hot = &decisions[0].hot[0];
        assert_eq!((hot.share, hot.of), expected, "{shares:?}");
    }
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
    assert_eq!(decisions[99].refused, [refused(7, Reason::TooHotAlone)]);
    // Beside somebody else who is pinned there, or whoever else is on a shared worker, it harms others and stays all the same.
    let beside = |minute| Period { pins: vec![tenant(7).pin(home), tenant(8).pin(home)], ..at_home(minute) };
    let on_shared = |minute| {
        let own = TenantLoad { alone: true, ..load(7, 0, 90) };
        Period { pins: vec![tenant(7).pin(Group::Worker(0))], tenants: vec![own], ..among_others(minute) }
    };
    for decisions in [run(&policy(), (0..3).map(beside)), run(&policy(), (0..3).map(on_shared))] {
        let said = (decisions[2].action, &decisions[2].refused[..]);
        assert_eq!(said, (None, &[refused(7, Reason::TooHotHere)][..]));
    }
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
    // While one of them waits for that, it is said why a shard stays as it is.
    let filled = |minute: i64| Period { large: vec![large(9, 30, None)], ..grown(minute) };
    let said = [Refused::shard(9, Reason::Indivisible)];
    assert!(run(&policy(), (0..140).map(filled)).iter().all(|decision| decision.refused == said));
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
    // Nobody is harmed by a large shard.
    let grown = |minute| Period { large: vec![large(1, 21, Some(1))], ..busy(minute) };
    assert!(run(&none, (0..6).map(grown)).iter().all(|decision| !decision.urgent));
    // Nor is anything kept from beginning for an isolation that cools down.
    let next = |minute| match minute {
        0..3 => period(minute, &three(), &[load(7, 0, 40)]),
        _ => Period { underway: true, ..period(minute, &three(), &[load(8, 0, 40)]) },
    };
    let decisions = run(&policy(), (0..12).map(next));
    assert!(matches!(decisions[2].action, Some(Action::Isolate { .. })), "{decisions:?}");
    assert!(decisions[11].hot.iter().any(|hot| hot.tenant == tenant(8)), "{decisions:?}");
    assert!(decisions.iter().all(|decision| !decision.urgent), "{decisions:?}");
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
    assert_eq!((decision.action, decision.refused[1]), (None, Refused::shard(2, Reason::NoPlaceForHalf)));
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

    // By day the others may be busy: only where there is no room is it known now that nobody can take it.
    let day = |room| {
        let mut period = evening(0);
        for node in period.nodes.values_mut() {
            *node = NodeLoad { free_bytes: Some(room), ..self::node(Role::Shared, 95) };
        }
        run(&policy(), [period])[0].refused.clone()
    };
    assert_eq!(day(15 << 30), said);
    assert_eq!(day(14 << 30)[0], Refused::shard(1, Reason::NoPlaceForHalf));

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
    // Nor who is on it with nothing.
    let silent = |minute| Period { tenants: vec![load(7, 0, 0)], ..left_out(5_000)(minute) };
    assert!(!first((2..4).map(silent).collect()));
    // Nor is anybody blamed for ever.
    assert!(!first((2..6).map(left_out(5_000)).collect()));
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
