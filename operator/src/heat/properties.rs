//! Properties of the decision over random hours.

use std::collections::BTreeSet;

use jiff::Timestamp;
use proptest::prelude::{
    Just, ProptestConfig, Strategy as Values, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest,
};
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::fixture::{MINUTE, load, node, period, policy, run};
use super::*;

mod rows;

use rows::{in_a_row, most_of, without_a_break};

fn role() -> impl Values<Value = Role> {
    prop_oneof![
        8 => Just(Role::Shared), 2 => Just(Role::Dedicated), 1 => Just(Role::Draining), 1 => Just(Role::Unavailable)
    ]
}

/// The most queries of a tenant that a list may have left out.
fn left_out() -> impl Values<Value = u64> {
    prop_oneof![3 => Just(0_u64), 1 => 0..200_u64]
}

/// Some hours, with tenants that get hot, cool down and waver; an isolated tenant is where it was sent.
fn hours() -> impl Values<Value = (Policy, Vec<Period>)> {
    let minute = (
        prop::collection::vec((role(), 0..100_u64, left_out(), left_out()), 4),
        prop::collection::vec((0..12_i32, 0..4_u32, 0..60_u64), 0..6),
        prop_oneof![9 => Just(1_i64), 1 => -5..10_i64],
        (prop::bool::weighted(0.1), prop::bool::weighted(0.1)),
        prop::collection::vec((0..6_i64, 0..4_u32, 15..30_u64, prop::option::weighted(0.8, -3..3_i32)), 0..2),
        prop_oneof![
            5 => Just(Relief::Ready), 1 => Just(Relief::Held), 1 => Just(Relief::Useless), 1 => Just(Relief::Unmeasured)
        ],
    );
    let rules = (1..4_u32, 0..40_i64, 0..4_usize, 5..60_u32, any::<bool>(), any::<bool>());
    (prop::collection::vec(minute, 1..120), rules).prop_map(
        |(minutes, (periods, cooldown, most, share, observe, by_load))| {
            let policy = Policy {
                mode: if observe { Mode::Observe } else { Mode::Isolate },
                share_percent: share,
                consecutive_periods: periods,
                cooldown: MINUTE * i32::try_from(cooldown).unwrap(),
                max_isolated: most,
                release_after: MINUTE * 10,
                max_shard_groups: 52,
                strategy: if by_load { Strategy::ByLoad } else { Strategy::BySize },
                ..policy()
            };
            let mut clock = 0;
            let periods = minutes.into_iter().map(|(nodes, tenants, step, held_up, large, relief)| {
                clock += step;
                let (underway, splits_held) = held_up;
                let nodes: Vec<NodeLoad> = nodes
                    .into_iter()
                    .map(|(role, percent, unlisted, dropped)| NodeLoad {
                        unlisted,
                        unseen: unlisted.max(dropped),
                        ..node(role, percent)
                    })
                    .collect();
                let mut seen = BTreeSet::new();
                let tenants: Vec<TenantLoad> = tenants
                    .into_iter()
                    .filter(|(number, ..)| seen.insert(*number))
                    .map(|(number, worker, percent)| load(number, worker, percent))
                    .collect();
                let large = large.into_iter().map(|(shard_id, worker, gigabytes, median)| LargeShard {
                    colocation_id: 1,
                    shard_id,
                    node: Group::Worker(worker),
                    bytes: gigabytes << 30,
                    median,
                    heaviest: None,
                });
                let seen = period(clock, &nodes, &tenants);
                Period { underway, relief, splits_held, large: large.collect(), ..seen }
            });
            (policy, periods.collect())
        },
    )
}

/// What has become of the cluster by what was carried out.
#[derive(Default)]
struct World {
    pins: Vec<Pin>,
    /// Tenants with a shard of their own, pinned or not.
    alone: BTreeSet<Tenant>,
    split: BTreeSet<i64>,
}

impl World {
    /// What is seen of a period that nobody interfered with.
    fn see(&self, period: &Period) -> Period {
        let mut seen = period.clone();
        let mut left = Vec::new();
        for load in &mut seen.tenants {
            load.alone = self.alone.contains(&load.tenant);
            let Some(pin) = self.pins.iter().find(|pin| Tenant::from(*pin) == load.tenant) else { continue };
            left.push(*load);
            let to = seen.nodes.get_mut(&pin.node).unwrap();
            to.queries += load.queries;
            to.writes += load.writes;
            to.cpu += load.cpu;
            load.node = pin.node;
        }
        // A tenant's figures can be more than its node's here.
        for load in left {
            let from = seen.nodes.get_mut(&load.node).unwrap();
            from.queries = from.queries.saturating_sub(load.queries);
            from.writes = from.writes.saturating_sub(load.writes);
            from.cpu = from.cpu.saturating_sub(load.cpu);
        }
        seen.pins.clone_from(&self.pins);
        seen.large.retain(|large| !self.split.contains(&large.shard_id));
        seen.shard_groups += 2 * self.alone.len() + self.split.len();
        seen
    }

    fn carry_out(&mut self, decision: &Decision) {
        for new in &decision.retargeted {
            let pin = self.pins.iter_mut().find(|pin| Tenant::from(&**pin) == new.into()).unwrap();
            pin.node = new.node;
        }
        match decision.action {
            Some(Action::Isolate { tenant, to, .. }) => {
                self.pins.push(tenant.pin(to));
                self.alone.insert(tenant);
            }
            Some(Action::Split { shard_id, .. }) => {
                self.split.insert(shard_id);
            }
            Some(Action::Release { tenant }) => self.pins.retain(|pin| Tenant::from(pin) != tenant),
            Some(Action::Spread { .. } | Action::Retarget { .. }) | None => {}
        }
    }
}

/// What is seen, or would be, and what follows from it.
struct Answer {
    period: Period,
    decision: Decision,
    /// What is remembered after it.
    history: History,
    /// The tenants with a pin that there are, or would be, once it is carried out.
    isolated: usize,
    /// The shard groups, likewise.
    groups: usize,
}

/// The answers to the hours.
fn live(policy: &Policy, periods: &[Period]) -> Vec<Answer> {
    let mut world = World::default();
    let mut history = History::default();
    let step = |period: &Period| {
        let seen = world.see(period);
        let (decision, next) = decide(policy, &history, &seen);
        let seen = match policy.mode {
            Mode::Observe => history.imagined.apply(&seen).into_owned(),
            Mode::Isolate => {
                world.carry_out(&decision);
                seen
            }
        };
        history = next;
        let groups = world.see(period).shard_groups + history.imagined.groups;
        let isolated = world.pins.len() + history.imagined.pins.len();
        Answer { period: seen, decision, history: history.clone(), isolated, groups }
    };
    periods.iter().map(step).collect()
}

/// Has a tenant do so many percent more of what a node can do, if it does anything.
fn raise(period: &mut Period, tenant: Tenant, percent: u64) {
    let Some(its) = period.tenants.iter_mut().find(|load| load.tenant == tenant) else { return };
    let added = load(0, 0, percent);
    let node = period.nodes.get_mut(&its.node).unwrap();
    for (part, whole, more) in [
        (&mut its.queries, &mut node.queries, added.queries),
        (&mut its.writes, &mut node.writes, added.writes),
        (&mut its.cpu, &mut node.cpu, added.cpu),
    ] {
        *part += more;
        *whole += more;
    }
}

/// What never happens in them fails no property.
#[test]
fn there_is_everything_in_random_hours() {
    let mut runner = TestRunner::deterministic();
    let mut found = BTreeSet::new();
    for _ in 0..1000 {
        let (policy, periods) = hours().new_tree(&mut runner).unwrap().current();
        for Answer { decision, .. } in live(&policy, &periods) {
            found.extend(decision.action.map(Action::kind));
            found.extend(decision.refused.iter().map(|refused| refused.reason.name()));
            found.extend(decision.cooling_until.map(|_| "a cooldown"));
            found.extend((!decision.retargeted.is_empty()).then_some("a new target"));
        }
    }
    for kind in [
        "Isolate",
        "Split",
        "Spread",
        "Release",
        "Budget",
        "TooManyShards",
        "Unlisted",
        "SplitHeld",
        "NotByLoad",
        "MovesHeld",
        "NoMoveHelps",
        "AllBusy",
        "Crowded",
        "a cooldown",
        "a new target",
    ] {
        assert!(found.contains(kind), "no {kind}: {found:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_budget_is_never_exceeded((policy, periods) in hours()) {
        for Answer { decision, isolated, groups, .. } in live(&policy, &periods) {
            prop_assert!(isolated <= policy.max_isolated, "{:?}", decision);
            prop_assert!(groups <= policy.max_shard_groups, "{:?}", decision);
        }
    }

    #[test]
    fn cooldowns_are_kept((policy, periods) in hours()) {
        let mut done: Vec<(Timestamp, Action)> = Vec::new();
        for Answer { period, decision, .. } in live(&policy, &periods) {
            // A clock that was set back brings the last actions with it.
            for (at, _) in &mut done {
                *at = (*at).min(period.end);
            }
            let after = |since: Option<&(Timestamp, Action)>| {
                since.map(|(at, _)| *at + policy.cooldown).filter(|end| *end > period.end)
            };
            let last = after(done.last());
            let isolated = after(done.iter().rev().find(|(_, action)| matches!(action, Action::Isolate { .. })));
            let released = done.iter().rev().find(|(_, action)| matches!(action, Action::Release { .. }));
            // What is refused keeps nobody waiting: only what was done does.
            if let Some(until) = decision.cooling_until {
                prop_assert!([last, isolated, after(released)].contains(&Some(until)), "{:?} of {:?}", until, done);
            }
            let Some(action) = decision.action else { continue };
            if let Action::Isolate { tenant, .. } = action {
                prop_assert_eq!(isolated, None);
                let own = released.filter(|(_, action)| *action == Action::Release { tenant });
                prop_assert_eq!(after(own), None, "it comes and goes");
            } else {
                prop_assert_eq!(last, None, "{:?} waits for anything", action);
            }
            done.push((period.end, action));
        }
    }

    #[test]
    fn what_is_urgent_is_done_once_nothing_else_is_under_way((policy, periods) in hours()) {
        let mut history = History::default();
        for period in periods {
            let (decision, next) = decide(&policy, &history, &period);
            let (free, _) = decide(&policy, &history, &Period { underway: false, ..period.clone() });
            let isolates = matches!(free.action, Some(Action::Isolate { .. }));
            prop_assert_eq!(decision.urgent, period.underway && isolates, "{:?}", free);
            history = next;
        }
    }

    #[test]
    fn nothing_happens_without_a_lasting_cause((policy, periods) in hours()) {
        let answers = live(&policy, &periods);
        let lasting = policy.consecutive_periods as usize;
        for (number, Answer { period, decision, .. }) in answers.iter().enumerate() {
            let Some(action) = decision.action else { continue };
            let row = in_a_row(&answers[..=number], MINUTE * 2);
            match action {
                Action::Isolate { tenant, from, to, rest } => {
                    prop_assert!(from != to && rest != Some(from));
                    prop_assert!(matches!(period.nodes[&to].role, Role::Shared | Role::Dedicated));
                    let hot = |answer: &&&Answer| answer.decision.hot.iter().any(|hot| hot.tenant == tenant);
                    prop_assert!(hot(&&row[0]), "it is not hot any more");
                    let times = without_a_break(&policy, &row, tenant);
                    prop_assert!(times >= lasting, "{} times", times);
                }
                Action::Spread { from, to } => {
                    let comes = policy.strategy == Strategy::ByLoad && period.relief == Relief::Ready;
                    prop_assert!(comes, "nothing would come of it");
                    prop_assert!(from != to && period.nodes[&to].role == Role::Shared);
                    let busy = |answer: &&&Answer| {
                        let node = answer.period.nodes[&from];
                        node.role == Role::Shared && node.cpu * 100 > node.cpu_limit * 80
                    };
                    prop_assert_eq!(row.iter().take(lasting).filter(busy).count(), lasting);
                }
                Action::Split { shard_id, from, to, .. } => {
                    let its = |large: &LargeShard| large.shard_id == shard_id && large.node == from;
                    let cause = |large: &LargeShard| Some(large.bytes) > policy.max_shard_bytes && large.median.is_some();
                    prop_assert!(period.large.iter().any(|large| its(large) && cause(large)));
                    prop_assert!(!to.contains(&from) && !period.splits_held);
                    let able = |group: &Group| {
                        let node = period.nodes[group];
                        node.role == Role::Shared && node.cpu * 100 <= node.cpu_limit * 80
                    };
                    prop_assert!(to.iter().all(able), "{:?}", to);
                }
                Action::Retarget { .. } => prop_assert!(false, "it is none to decide about"),
                Action::Release { tenant } => {
                    // It need not have been looked at without a gap, but only the periods that were count.
                    let row = in_a_row(&answers[..=number], SignedDuration::MAX);
                    let known: Vec<Option<u64>> =
                        row.iter().map(|earlier| most_of(&earlier.period, tenant)).collect();
                    prop_assert!(known[0].is_some(), "nobody knows");
                    let busy = |most: &Option<u64>| most.is_some_and(|most| most >= policy.min_queries);
                    let quiet = &known[..known.iter().position(busy).unwrap_or(known.len())];
                    let first = quiet.iter().rposition(Option::is_some).unwrap();
                    let passed = quiet[..first].iter().flatten().count();
                    let quiet_for = period.length * i32::try_from(passed).unwrap();
                    prop_assert!(quiet_for >= policy.release_after, "{}, {:?}", quiet_for, quiet);
                }
            }
        }
    }

    #[test]
    fn the_same_input_gets_the_same_answer((policy, periods) in hours()) {
        let mut shuffled = periods.clone();
        for period in &mut shuffled {
            period.tenants.reverse();
        }
        let said = |periods| {
            let answers = live(&policy, periods).into_iter();
            answers.map(|answer| (answer.decision, answer.history)).collect::<Vec<_>>()
        };
        prop_assert_eq!(said(&periods), said(&shuffled));
    }

    #[test]
    fn observing_says_what_isolating_does((policy, periods) in hours()) {
        let actions = |mode| {
            let answers = live(&Policy { mode, ..policy }, &periods);
            answers.into_iter().map(|Answer { decision, .. }| (decision.action, decision.hot, decision.refused)).collect::<Vec<_>>()
        };
        prop_assert_eq!(actions(Mode::Observe), actions(Mode::Isolate));
    }

    #[test]
    fn more_load_makes_no_tenant_cooler((policy, periods) in hours(), more in 1..50_u64) {
        // Where it goes once it is isolated is another matter: here nobody is.
        let hot = |periods: &[Period]| run(&Policy { max_isolated: 0, ..policy }, periods.to_vec()).into_iter().map(|decision| decision.hot).collect::<Vec<_>>();
        let mut higher = periods.clone();
        for period in &mut higher {
            let Some(first) = period.tenants.first().copied() else { continue };
            raise(period, first.tenant, more);
        }
        for (number, (before, after)) in hot(&periods).into_iter().zip(hot(&higher)).enumerate() {
            let Some(first) = periods[number].tenants.first() else { continue };
            let is_hot = |list: &[Hot]| list.iter().any(|hot| hot.tenant == first.tenant);
            prop_assert!(!is_hot(&before) || is_hot(&after), "minute {}", number);
        }
    }

    #[test]
    fn who_is_isolated_with_less_load_is_not_passed_over_with_more((policy, periods) in hours(), more in 1..50_u64) {
        let isolated = |decision: &Decision| match decision.action {
            Some(Action::Isolate { tenant, .. }) => Some(tenant),
            _ => None,
        };
        let decisions = run(&policy, periods.clone());
        let mut found = decisions.iter().enumerate();
        let first = found.find_map(|(minute, decision)| Some((minute, isolated(decision)?)));
        let Some((minute, tenant)) = first else { return Ok(()) };
        let mut higher = periods[..=minute].to_vec();
        for period in &mut higher {
            raise(period, tenant, more);
        }
        // With more load somebody else may be first, or no node be able to take it.
        let decisions = run(&policy, higher);
        let last = &decisions[minute];
        let said = last.refused.iter().any(|refused| refused.tenant == Some(tenant));
        let done = last.action.is_some() || last.cooling_until.is_some();
        let before = decisions.iter().any(|decision| isolated(decision) == Some(tenant));
        prop_assert!(said || done || before, "{:?}: {:?}", tenant, last);
    }

    #[test]
    fn what_is_remembered_is_bounded((policy, periods) in hours()) {
        // Tenants that are warm at least share their node, by each of three measures.
        let hot = 4 * 3 * (400 / (3 * policy.share_percent as usize) + 1);
        for Answer { history, .. } in live(&policy, &periods) {
            // Each isolation that is no move adds two shard groups, each split one, to the 48 that there are.
            let Imagined { pins, released, split, groups, .. } = &history.imagined;
            prop_assert!(48 + groups <= policy.max_shard_groups, "{}", groups);
            let own: BTreeSet<&Tenant> = pins.keys().chain(released).collect();
            prop_assert_eq!(split.len() + 2 * own.len(), *groups);
            prop_assert!(history.hot.len() <= hot, "{}", history.hot.len());
            prop_assert!(history.quiet.len() <= policy.max_isolated && history.busy.len() <= 4);
            prop_assert!(history.crowded.keys().all(|group| !history.busy.contains_key(group)) && history.crowded.len() <= 4);
        }
    }
}
