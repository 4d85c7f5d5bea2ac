//! Properties of the decision over random periods, and its answers to the situations that it is for.

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::{
    Just, ProptestConfig, Strategy as Values, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest,
};

use super::*;

const MINUTE: SignedDuration = SignedDuration::from_mins(1);

fn policy() -> Policy {
    Policy {
        mode: Mode::Isolate,
        share_percent: 20,
        min_queries: 100,
        consecutive_periods: 3,
        cooldown: SignedDuration::from_hours(1),
        max_isolated: 8,
        release_after: SignedDuration::from_hours(24),
        max_shard_bytes: Some(20 << 30),
        max_shard_groups: 1000,
    }
}

fn at(minute: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + minute * 60).unwrap()
}

fn tenant(number: i32) -> Tenant {
    Tenant { colocation_id: 1, hash: number }
}

/// A node of one core that spends so many percent of it.
fn node(role: Role, percent: u64) -> NodeLoad {
    let cpu_limit = 60_000_000;
    let cpu = cpu_limit / 100 * percent;
    NodeLoad { role, queries: cpu / 1000, writes: cpu / 2000, cpu, cpu_limit, free_bytes: None }
}

/// A tenant that does so many percent of what its node could do.
fn load(number: i32, worker: u32, percent: u64) -> TenantLoad {
    let NodeLoad { queries, writes, cpu, .. } = node(Role::Shared, percent);
    TenantLoad {
        tenant: tenant(number),
        node: Group::Worker(worker),
        queries,
        writes,
        cpu,
        shard_bytes: 1 << 20,
    }
}

fn period(minute: i64, nodes: &[NodeLoad], tenants: &[TenantLoad]) -> Period {
    Period {
        end: at(minute),
        length: MINUTE,
        nodes: (0..).map(Group::Worker).zip(nodes.iter().copied()).collect(),
        tenants: tenants.to_vec(),
        isolated: Vec::new(),
        large: Vec::new(),
        shard_groups: 48,
        underway: false,
    }
}

/// The decisions about periods one after the other.
fn run(policy: &Policy, periods: impl IntoIterator<Item = Period>) -> Vec<Decision> {
    let mut history = History::default();
    let decide = |period: Period| {
        let (decision, next) = decide(policy, &history, &period);
        history = next;
        decision
    };
    periods.into_iter().map(decide).collect()
}

fn actions(decisions: &[Decision]) -> Vec<Option<Action>> {
    decisions.iter().map(|decision| decision.action).collect()
}

fn three() -> [NodeLoad; 3] {
    [node(Role::Shared, 70), node(Role::Shared, 20), node(Role::Shared, 30)]
}

#[test]
fn a_tenant_that_stays_hot_is_isolated_where_most_is_to_spare() {
    let decisions = run(&policy(), (0..5).map(|minute| period(minute, &three(), &[load(7, 0, 40)])));
    let isolate = Action::Isolate { tenant: tenant(7), from: Group::Worker(0), to: Group::Worker(1) };
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
    let refused = Refused { tenant: Some(tenant(7)), reason: Reason::TooHot };
    assert!(decisions[2..].iter().all(|decision| decision.refused == [refused]), "{decisions:?}");
    assert!(actions(&decisions).iter().all(Option::is_none), "{decisions:?}");
    // Nor is one that would only make another worker what its own is now.
    let alone = [node(Role::Shared, 60), node(Role::Shared, 5)];
    let decisions = run(&policy(), (0..3).map(|minute| period(minute, &alone, &[load(7, 0, 60)])));
    assert_eq!(decisions[2].refused[0].reason, Reason::NoHeadroom);
}

#[test]
fn a_busy_worker_without_a_hot_tenant_has_its_shards_spread() {
    let nodes = [node(Role::Shared, 90), node(Role::Shared, 20)];
    let crowd: Vec<TenantLoad> = (0..30).map(|number| load(number, 0, 3)).collect();
    let decisions = run(&policy(), (0..70).map(|minute| period(minute, &nodes, &crowd)));
    let spread = Some(Action::Spread { node: Group::Worker(0) });
    let when: Vec<usize> = (0..70).filter(|minute| decisions[*minute].action.is_some()).collect();
    assert_eq!((decisions[2].action, when), (spread, vec![2, 62]));
    // Where all are busy there is nothing to spread.
    let all = [node(Role::Shared, 90), node(Role::Shared, 85)];
    let decisions = run(&policy(), (0..9).map(|minute| period(minute, &all, &crowd)));
    assert!(actions(&decisions).iter().all(Option::is_none), "{decisions:?}");
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
fn the_budget_and_the_number_of_shards_are_kept() {
    let mut full = period(0, &three(), &[load(7, 0, 40)]);
    full.isolated = (100..108).map(tenant).collect();
    let mut many = period(0, &three(), &[load(7, 0, 40)]);
    many.shard_groups = 999;
    for (start, reason) in [(full, Reason::Budget), (many, Reason::TooManyShards)] {
        let periods = (0..4).map(|minute| Period { end: at(minute), ..start.clone() });
        let decisions = run(&policy(), periods);
        assert_eq!(decisions[3].refused, [Refused { tenant: Some(tenant(7)), reason }]);
        assert!(actions(&decisions).iter().all(Option::is_none), "{decisions:?}");
    }
}

#[test]
fn nothing_begins_while_something_is_under_way() {
    let busy = |minute| Period { underway: minute < 5, ..period(minute, &three(), &[load(7, 0, 40)]) };
    let decisions = run(&policy(), (0..6).map(busy));
    assert_eq!(decisions.iter().position(|decision| decision.action.is_some()), Some(5));
}

#[test]
fn a_tenant_that_was_quiet_for_long_is_released() {
    let pinned = |minute: i64| {
        let tenants = if minute % 2000 == 5 { vec![load(7, 1, 10)] } else { Vec::new() };
        Period { isolated: vec![tenant(7)], ..period(minute, &three(), &tenants) }
    };
    let decisions = run(&policy(), (0..1500).map(pinned));
    let released = decisions.iter().position(|decision| decision.action.is_some());
    assert_eq!(released, Some(6 + 24 * 60));
    assert_eq!(decisions[6 + 24 * 60].action, Some(Action::Release { tenant: tenant(7) }));
}

#[test]
fn the_largest_of_the_large_shards_is_split() {
    let large =
        |shard_id, gigabytes: u64| LargeShard { shard_id, node: Group::Worker(1), bytes: gigabytes << 30 };
    let grown = Period { large: vec![large(1, 21), large(2, 30), large(3, 19)], ..period(0, &three(), &[]) };
    let split = Some(Action::Split { shard_id: 2, node: Group::Worker(1) });
    assert_eq!(run(&policy(), [grown.clone()])[0].action, split);
    let full = Period { shard_groups: 1000, ..grown };
    let refused = [Refused { tenant: None, reason: Reason::TooManyShards }];
    assert_eq!(
        (run(&policy(), [full.clone()])[0].action, &run(&policy(), [full])[0].refused[..]),
        (None, &refused[..])
    );
}

fn role() -> impl Values<Value = Role> {
    prop_oneof![
        8 => Just(Role::Shared), 2 => Just(Role::Dedicated), 1 => Just(Role::Draining), 1 => Just(Role::Unavailable)
    ]
}

/// Some hours, with tenants that get hot, cool down and waver; an isolated tenant is where it was sent.
fn hours() -> impl Values<Value = (Policy, Vec<Period>)> {
    let minute = (
        prop::collection::vec((role(), 0..100_u64), 4),
        prop::collection::vec((0..12_i32, 0..4_u32, 0..60_u64), 0..6),
        prop_oneof![9 => Just(1_i64), 1 => -5..10_i64],
        prop::bool::weighted(0.1),
    );
    let rules = (1..4_u32, 0..40_i64, 0..4_usize, 5..60_u32, any::<bool>());
    (prop::collection::vec(minute, 1..120), rules).prop_map(
        |(minutes, (periods, cooldown, most, share, observe))| {
            let policy = Policy {
                mode: if observe { Mode::Observe } else { Mode::Isolate },
                share_percent: share,
                consecutive_periods: periods,
                cooldown: MINUTE * i32::try_from(cooldown).unwrap(),
                max_isolated: most,
                release_after: MINUTE * 10,
                ..policy()
            };
            let mut clock = 0;
            let periods = minutes.into_iter().map(|(nodes, tenants, step, underway)| {
                clock += step;
                let nodes: Vec<NodeLoad> =
                    nodes.into_iter().map(|(role, percent)| node(role, percent)).collect();
                let mut seen = std::collections::BTreeSet::new();
                let tenants: Vec<TenantLoad> = tenants
                    .into_iter()
                    .filter(|(number, ..)| seen.insert(*number))
                    .map(|(number, worker, percent)| load(number, worker, percent))
                    .collect();
                Period { underway, ..period(clock, &nodes, &tenants) }
            });
            (policy, periods.collect())
        },
    )
}

/// Runs the hours as the world would go: what was isolated is so from then on. The decisions, with the tenants that were
/// isolated when each was made.
fn live(policy: &Policy, periods: &[Period]) -> Vec<(Decision, History, usize)> {
    let mut isolated: Vec<Tenant> = Vec::new();
    let mut history = History::default();
    let step = |period: &Period| {
        let period = Period { isolated: isolated.clone(), ..period.clone() };
        let (decision, next) = decide(policy, &history, &period);
        if policy.mode == Mode::Isolate {
            match decision.action {
                Some(Action::Isolate { tenant, .. }) => isolated.push(tenant),
                Some(Action::Release { tenant }) => isolated.retain(|other| *other != tenant),
                _ => {}
            }
        }
        history = next;
        (decision, history.clone(), isolated.len())
    };
    periods.iter().map(step).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_budget_is_never_exceeded((policy, periods) in hours()) {
        for (decision, history, isolated) in live(&policy, &periods) {
            prop_assert!(isolated + history.imagined.len() <= policy.max_isolated, "{:?}", decision);
        }
    }

    #[test]
    fn a_cooldown_is_kept_between_actions((policy, periods) in hours()) {
        let mut last: Option<Timestamp> = None;
        for (period, (decision, ..)) in periods.iter().zip(live(&policy, &periods)) {
            // A clock that was set back brings the last action with it.
            last = last.map(|last| last.min(period.end));
            if decision.action.is_some() {
                prop_assert!(last.is_none_or(|last| period.end.duration_since(last) >= policy.cooldown));
                last = Some(period.end);
            }
        }
    }

    #[test]
    fn nothing_happens_without_a_lasting_cause((policy, periods) in hours()) {
        let answers = live(&policy, &periods);
        for (number, (decision, ..)) in answers.iter().enumerate() {
            let Some(Action::Isolate { tenant, from, to }) = decision.action else { continue };
            prop_assert!(from != to);
            prop_assert!(matches!(periods[number].nodes[&to].role, Role::Shared | Role::Dedicated));
            let hot = |answer: &Decision| answer.hot.iter().any(|hot| hot.tenant == tenant);
            let before = answers[..=number].iter().filter(|(answer, ..)| hot(answer)).count();
            prop_assert!(before >= policy.consecutive_periods as usize, "{} times", before);
        }
    }

    #[test]
    fn the_same_input_gets_the_same_answer((policy, periods) in hours()) {
        let mut shuffled = periods.clone();
        shuffled.iter_mut().for_each(|period| period.tenants.reverse());
        prop_assert_eq!(live(&policy, &periods), live(&policy, &shuffled));
    }

    #[test]
    fn observing_says_what_isolating_would_begin_with((policy, periods) in hours()) {
        let first = |mode| {
            let answers = live(&Policy { mode, ..policy }, &periods);
            answers.into_iter().find_map(|(decision, ..)| decision.action)
        };
        prop_assert_eq!(first(Mode::Observe), first(Mode::Isolate));
    }

    #[test]
    fn more_load_makes_no_tenant_cooler((policy, periods) in hours(), more in 1..50_u64) {
        let hot = |periods: &[Period]| live(&policy, periods).into_iter().map(|(decision, ..)| decision.hot).collect::<Vec<_>>();
        let mut higher = periods.clone();
        for period in &mut higher {
            let Some(first) = period.tenants.first_mut() else { continue };
            let added = load(0, 0, more);
            let node = period.nodes.get_mut(&first.node).unwrap();
            for (part, whole, more) in [
                (&mut first.queries, &mut node.queries, added.queries),
                (&mut first.writes, &mut node.writes, added.writes),
                (&mut first.cpu, &mut node.cpu, added.cpu),
            ] {
                *part += more;
                *whole += more;
            }
        }
        for (number, (before, after)) in hot(&periods).into_iter().zip(hot(&higher)).enumerate() {
            let Some(first) = periods[number].tenants.first() else { continue };
            let is_hot = |list: &[Hot]| list.iter().any(|hot| hot.tenant == first.tenant);
            prop_assert!(!is_hot(&before) || is_hot(&after), "minute {}", number);
        }
    }

    #[test]
    fn what_is_remembered_is_bounded((policy, periods) in hours()) {
        // Tenants that are warm at least share their node, by each of three measures.
        let hot = 4 * 3 * (400 / (3 * policy.share_percent as usize) + 1);
        for (_, history, _) in live(&policy, &periods) {
            prop_assert!(history.hot.len() <= hot, "{}", history.hot.len());
            prop_assert!(history.quiet.len() <= policy.max_isolated && history.busy.len() <= 4);
        }
    }
}
