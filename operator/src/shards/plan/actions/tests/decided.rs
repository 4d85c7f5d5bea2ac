//! What somebody has decided about a tenant, and what comes of it in time.

use super::*;
use crate::api::PinSpec;
use crate::shards::observed::{Hashes, Name, Spread};

/// Somebody has decided about the tenant.
fn decided(worker: Option<i32>) -> Wanted {
    let pin = PinSpec { group: "dialog".to_owned(), tenant: "seven".to_owned(), worker };
    Wanted { pins: vec![pin], ..wanted(3) }
}

/// It is known who is meant.
fn named(observed: Observed) -> Observed {
    let name = Name { type_name: "uuid".to_owned(), tenant: "seven".to_owned() };
    Observed { hashes: Hashes::from([(name, Ok(TENANT.hash))]), ..observed }
}

#[test]
fn of_two_entries_of_one_shard_the_first_is_done_and_both_are_named() {
    let mut observed = named(observed());
    let name = Name { type_name: "uuid".to_owned(), tenant: "twin".to_owned() };
    observed.hashes.insert(name, Ok(TENANT.hash));
    cut_out(&mut observed, 1);
    observed.kept.pins = vec![KeptPin { author: Author::Spec, ..pin(Group::Worker(0)) }];
    for (worker, reason) in [(Some(0), ""), (Some(1), "PinNotPossible"), (None, "PinNotPossible")] {
        let mut wanted = decided(Some(0));
        wanted.pins.push(PinSpec { group: "dialog".to_owned(), tenant: "twin".to_owned(), worker });
        let plan = plan(&wanted, &topology(), &observed);
        assert_eq!(plan.steps, [], "{worker:?}");
        let finding = plan.findings.iter().find(|finding| finding.kind == HOT_TENANT).unwrap();
        assert_eq!(finding.reason == "PinNotPossible", reason == "PinNotPossible", "{}", finding.message);
        assert_eq!(
            finding.message.contains("dialog seven and dialog twin have one hash"),
            !reason.is_empty()
        );
    }
}

#[test]
fn what_somebody_has_decided_is_begun_and_comes_before_the_policy() {
    let (begun, _) = steps(&named(observed()), &decided(Some(0)));
    let [Step::BeginIsolation { tenant, from, to, rest, .. }] = &begun[..] else { panic!("{begun:?}") };
    let expected = (TENANT, Group::Worker(2), Group::Worker(0), Some(Group::Worker(1)));
    assert_eq!((*tenant, *from, *to, *rest), expected);
    // Before anybody knows who is meant nothing is done, nor undone.
    let mut pinned = observed();
    cut_out(&mut pinned, 1);
    pinned.kept.pins = vec![KeptPin { author: Author::Spec, ..pin(Group::Worker(0)) }];
    assert_eq!(steps(&pinned, &decided(Some(0))).0, []);
    let (gone, _) = steps(&pinned, &wanted(3));
    assert!(matches!(gone[..], [Step::RemovePin { tenant: TENANT, .. }]), "{gone:?}");

    // Nor is anything kept for tables that are gone, whoever asked for it; catalogs that nobody could read say nothing.
    let nowhere = Tenant { colocation_id: 9, ..TENANT };
    for author in [Author::Policy, Author::Spec] {
        let mut dropped = observed();
        dropped.kept.pins = vec![KeptPin { tenant: nowhere, author, ..pin(Group::Worker(0)) }];
        let (gone, _) = steps(&named(dropped.clone()), &decided(None));
        assert!(
            matches!(&gone[..], [Step::RemovePin { tenant, why, .. }] if *tenant == nowhere && why == "its tables are gone"),
            "{gone:?}"
        );
        dropped.catalog = None;
        let (unread, _) = steps(&named(dropped), &decided(None));
        assert!(!unread.iter().any(|step| matches!(step, Step::RemovePin { .. })), "{unread:?}");
    }

    // What the policy has begun is not done, nor what is not asked for any more.
    let policy = named(with(vec![isolation(TENANT.hash)]));
    let by_hand = Act { asked_by: Author::Spec.name().to_owned(), ..isolation(TENANT.hash) };
    let is_dropped = |steps: &[Step]| matches!(steps, [Step::EndAction { outcome: Outcome::Dropped, .. }]);
    for (observed, wanted) in [
        (policy.clone(), decided(Some(1))),
        (policy.clone(), decided(None)),
        (named(with(vec![by_hand.clone()])), wanted(3)),
    ] {
        let (steps, _) = steps(&observed, &wanted);
        assert!(is_dropped(&steps), "{steps:?}");
    }
    // What is asked for is done in every mode.
    let observing = Wanted { watch: None, ..decided(Some(0)) };
    let (split, _) = steps(&named(with(vec![by_hand.clone()])), &observing);
    assert!(split.iter().any(|step| matches!(step, Step::SplitShard(_))), "{split:?}");

    // It is not tried again at once.
    let ended = "2026-01-05T09:10:00Z".parse().unwrap();
    let failed = Act { ended: Some(ended), outcome: Some(Outcome::Failed), ..by_hand };
    let mut tried = named(with(vec![failed]));
    for (now, expected) in [("2026-01-05T09:19:00Z", 0), ("2026-01-05T09:21:00Z", 1)] {
        tried.kept.now = Some(now.parse().unwrap());
        let (steps, reason) = steps(&tried, &decided(Some(0)));
        assert_eq!(steps.len(), expected, "{steps:?}");
        assert_eq!(reason == "PinNotPossible", expected == 0);
    }
    // A large shard is not cut with a part left where it is.
    let mut large = named(observed());
    facts(&mut large, Group::Worker(2)).sizes.as_mut().unwrap().insert(1047, 1 << 30);
    let (moves, reason) = steps(&large, &decided(Some(2)));
    assert!(moves.iter().all(|step| step.kind() == "MoveShard"), "{moves:?}");
    assert_eq!(reason, "PinNotPossible");
}

#[test]
fn an_entry_of_no_group_keeps_nobody_pinned_but_whom_it_may_mean() {
    let typo = PinSpec { group: "dialgo".to_owned(), tenant: "seven".to_owned(), worker: Some(0) };
    let wrong = Wanted { pins: vec![typo.clone()], ..wanted(3) };
    let off = Wanted { watch: None, ..wrong.clone() };
    let pinned = |author| {
        let mut observed = observed();
        cut_out(&mut observed, 1);
        observed.kept.pins = vec![KeptPin { author, ..pin(Group::Worker(0)) }];
        observed
    };
    let removes = |observed: &Observed, wanted: &Wanted| {
        let is_removed = |step: &Step| matches!(step, Step::RemovePin { tenant: TENANT, .. });
        steps(observed, wanted).0.iter().any(is_removed)
    };
    let [by_hand, by_policy] = [Author::Spec, Author::Policy].map(pinned);
    assert!(removes(&by_hand, &wrong) && removes(&by_hand, &off) && removes(&by_policy, &off));
    assert!(!removes(&by_policy, &wrong), "nobody has said anything of it");
    let asked = Act { asked_by: Author::Spec.name().to_owned(), ..isolation(TENANT.hash) };
    let dropped = |observed: &Observed, wanted: &Wanted| {
        let is_dropped = |step: &Step| matches!(step, Step::EndAction { outcome: Outcome::Dropped, .. });
        steps(observed, wanted).0.iter().any(is_dropped)
    };
    assert!(dropped(&with(vec![asked.clone()]), &wrong));

    // The tables of its own group may not have been read, nor those of any.
    for read in [vec![2], Vec::new()] {
        let without = |mut observed: Observed| {
            observed.tables.retain(|_, table| {
                matches!(table.spread, Spread::Hash { colocation_id, .. } if read.contains(&colocation_id))
            });
            observed
        };
        let entry =
            Wanted { pins: vec![PinSpec { group: "dialog".to_owned(), ..typo.clone() }], ..wanted(3) };
        assert!(!removes(&without(by_hand.clone()), &entry), "{read:?}");
        assert!(!removes(&without(by_policy.clone()), &Wanted { watch: None, ..entry.clone() }), "{read:?}");
        assert!(!dropped(&without(with(vec![asked.clone()])), &entry), "{read:?}");
        assert!(removes(&without(by_hand.clone()), &wanted(3)), "there is no entry");
    }
    // Of one whose hash nobody knows yet the group is known: it is nobody else's.
    let other = PinSpec { group: "user".to_owned(), ..typo };
    let unhashed = |group: &str| Wanted {
        pins: vec![PinSpec { group: group.to_owned(), ..other.clone() }],
        ..wanted(3)
    };
    assert!(removes(&by_hand, &unhashed("user")) && !removes(&by_hand, &unhashed("dialog")));
}

#[test]
fn what_waits_for_an_hour_is_given_up_in_every_mode() {
    let by_hand = Act { asked_by: Author::Spec.name().to_owned(), ..isolation(TENANT.hash) };
    let mut waiting = named(with(vec![by_hand]));
    facts(&mut waiting, Group::Worker(2)).sizes.as_mut().unwrap().insert(1047, 1 << 20);
    facts(&mut waiting, Group::Worker(0)).resources.as_mut().unwrap().free_bytes = 0;
    let off = Wanted { watch: None, ..decided(Some(0)) };
    let given_up = |observed: &Observed, wanted: &Wanted| {
        let steps = steps(observed, wanted).0;
        let fails = |step: &Step| matches!(step, Step::EndAction { id: 5, outcome: Outcome::Failed, note: Some(note) } if note.contains("no room"));
        steps.iter().any(fails)
    };
    for (now, expected) in [("2026-01-05T09:59:00Z", false), ("2026-01-05T10:01:00Z", true)] {
        waiting.kept.now = Some(now.parse().unwrap());
        assert_eq!(given_up(&waiting, &decided(Some(0))), expected, "{now}");
        assert_eq!(given_up(&waiting, &off), expected, "{now}, mode Off");
    }
    // So is what has to wait for its writers again and again, as a part of its shard stays and there is no other way.
    let stays = Action::Isolate { tenant: TENANT, from: Group::Worker(2), to: Group::Worker(0), rest: None };
    let why = "canceling statement due to lock timeout";
    let mut kept = with(vec![Act { note: Some(why.to_owned()), ..act(stays) }]);
    for (now, expected) in [("2026-01-05T09:59:00Z", "SplitShard"), ("2026-01-05T10:01:00Z", "EndAction")] {
        kept.kept.now = Some(now.parse().unwrap());
        let planned = steps(&kept, &wanted(3)).0;
        assert_eq!(planned.iter().map(Step::kind).collect::<Vec<_>>(), [expected], "{now}");
        if let Step::EndAction { outcome, note, .. } = &planned[0] {
            assert_eq!(
                (*outcome, note.as_deref()),
                (Outcome::Failed, Some(&*format!("not within an hour: {why}")))
            );
        }
    }
    // While shards move it may be these that it waits for.
    catalog(&mut waiting).foreign = vec![Foreign::Job { id: 4, description: "Rebalance all".to_owned() }];
    assert!(!given_up(&waiting, &off));
}

#[test]
fn what_somebody_asks_for_makes_way_for_who_harms_others_until_it_has_begun() {
    let by_hand = Act { asked_by: Author::Spec.name().to_owned(), ..isolation(TENANT.hash) };
    let waiting = |act: Option<&Act>, urgent| {
        let mut observed = named(with(act.cloned().into_iter().collect()));
        facts(&mut observed, Group::Worker(0)).resources.as_mut().unwrap().free_bytes = 0;
        facts(&mut observed, Group::Worker(2)).sizes.as_mut().unwrap().insert(1047, 1 << 20);
        observed.heat = Some(Heat { urgent, ..Heat::default() });
        observed
    };
    let planned = |observed: &Observed, wanted: &Wanted| steps(observed, wanted).0;
    let dropped = [Step::EndAction { id: 5, outcome: Outcome::Dropped, note: Some(URGENT.to_owned()) }];
    assert_eq!(planned(&waiting(Some(&by_hand), true), &decided(Some(0))), dropped);
    assert_eq!(planned(&waiting(Some(&by_hand), false), &decided(Some(0))), []);
    let observing = Wanted { watch: None, ..decided(Some(0)) };
    let ends = |step: &Step| matches!(step, Step::EndAction { .. });
    assert!(
        !planned(&waiting(Some(&by_hand), true), &observing).iter().any(ends),
        "nobody would be isolated"
    );
    let begun =
        Act { begun: Some(by_hand.decided), note: Some("lock timeout".to_owned()), ..by_hand.clone() };
    assert_eq!(planned(&waiting(Some(&begun), true), &decided(Some(0))), []);

    // It is not asked for again before that is done, nor is anything else.
    let ended = "2026-01-05T09:10:00Z".parse().unwrap();
    let over = Act { ended: Some(ended), begun: Some(ended), outcome: Some(Outcome::Dropped), ..by_hand };
    for (now, urgent, begins) in [
        ("2026-01-05T09:19:00Z", false, false),
        ("2026-01-05T09:21:00Z", true, false),
        ("2026-01-05T09:21:00Z", false, true),
    ] {
        let mut observed = waiting(Some(&over), urgent);
        observed.kept.now = Some(now.parse().unwrap());
        let steps = planned(&observed, &decided(Some(0)));
        let is_begun = steps.iter().any(|step| matches!(step, Step::BeginIsolation { .. }));
        assert_eq!((is_begun, steps.len()), (begins, usize::from(begins)), "{now}, {urgent}: {steps:?}");
    }
}

#[test]
fn what_has_waited_for_others_alone_begins_however_long_that_took() {
    let late = |act: Act, now: &str| {
        let mut observed = with(vec![act]);
        observed.kept.now = Some(now.parse().unwrap());
        observed
    };
    let kinds = |observed: &Observed, wanted: &Wanted| {
        steps(observed, wanted).0.iter().map(Step::kind).collect::<Vec<_>>()
    };
    let mut held_up = late(isolation(TENANT.hash), "2026-01-05T10:10:00Z");
    catalog(&mut held_up).foreign = vec![Foreign::Job { id: 4, description: "Rebalance all".to_owned() }];
    assert!(kinds(&held_up, &wanted(3)).is_empty());
    catalog(&mut held_up).foreign.clear();
    assert_eq!(kinds(&held_up, &wanted(3)), ["SplitShard"]);
    let updated = Wanted { rebalance: Rebalance { hold: true, ..wanted(3).rebalance }, ..wanted(3) };
    assert!(kinds(&held_up, &updated).is_empty(), "servers are updated");

    // The hour of what fails and counts as no attempt begins with its first failure.
    let begun = Some("2026-01-05T10:10:00Z".parse().unwrap());
    let failed = Act { begun, note: Some("lock timeout".to_owned()), ..isolation(TENANT.hash) };
    for (now, expected) in [("2026-01-05T11:09:00Z", "SplitShard"), ("2026-01-05T11:11:00Z", "EndAction")] {
        assert_eq!(kinds(&late(failed.clone(), now), &wanted(3)), [expected], "{now}");
    }

    // So does a move, unless something else is in its way.
    let mut moved = late(isolation(TENANT.hash), "2026-01-05T10:10:00Z");
    cut_out(&mut moved, 3);
    moved.kept.pins = vec![pin(Group::Worker(0))];
    let back = Step::MoveShard { shard_id: 3001, from: Group::Worker(2), to: Group::Worker(0) };
    assert_eq!(steps(&moved, &wanted(3)).0, std::slice::from_ref(&back));
    let is_given_up = |observed: &Observed| {
        let failed = |step: &Step| matches!(step, Step::EndAction { outcome: Outcome::Failed, .. });
        steps(observed, &wanted(3)).0.iter().any(failed)
    };
    moved.deferred = vec![back];
    assert!(is_given_up(&moved), "it failed");
    moved.deferred.clear();
    facts(&mut moved, Group::Worker(0)).resources.as_mut().unwrap().free_slots = 0;
    facts(&mut moved, Group::Worker(2)).resources.as_mut().unwrap().free_slots = 0;
    assert!(is_given_up(&moved), "it has no slot");
}

/// A slot that somebody else's move has used is free a moment after its end.
#[test]
fn what_lacks_something_when_others_let_go_of_it_late_has_some_time_left() {
    let others = Foreign::Job { id: 4, description: "Rebalance all".to_owned() };
    let mut waiting = with(vec![isolation(TENANT.hash)]);
    facts(&mut waiting, Group::Worker(2)).sizes.as_mut().unwrap().insert(1047, 1 << 30);
    facts(&mut waiting, Group::Worker(2)).resources.as_mut().unwrap().free_slots = 0;
    let mut last: Option<Observed> = None;
    let look = |last: &mut Option<Observed>, now: &str, foreign: &[Foreign], hold: bool| {
        let wanted = Wanted { rebalance: Rebalance { hold, ..wanted(3).rebalance }, ..wanted(3) };
        let mut seen = waiting.clone();
        seen.kept.now = Some(now.parse().unwrap());
        catalog(&mut seen).foreign = foreign.to_vec();
        let held = held_by_others(&World { wanted: &wanted, topology: &topology(), observed: &seen });
        seen.keep_held_up(last.as_ref(), held);
        let fails = |step: &Step| matches!(step, Step::EndAction { outcome: Outcome::Failed, .. });
        let given_up = steps(&seen, &wanted).0.iter().any(fails);
        *last = Some(seen);
        given_up
    };
    assert!(!look(&mut last, "2026-01-05T09:30:00Z", std::slice::from_ref(&others), false));
    assert!(!look(&mut last, "2026-01-05T10:05:00Z", std::slice::from_ref(&others), false));
    assert!(!look(&mut last, "2026-01-05T10:05:10Z", &[], false), "they have just let go of it");
    assert!(!look(&mut last, "2026-01-05T10:14:00Z", &[], false));
    assert!(look(&mut last, "2026-01-05T10:16:00Z", &[], false), "ten minutes are over");
    // So does an update of servers.
    assert!(!look(&mut last, "2026-01-05T10:17:00Z", &[], true));
    // The coordinator is restarted in it: nobody knows anything for a moment.
    let mut silent = Observed::default();
    silent.keep_held_up(last.as_ref(), false);
    last = Some(silent);
    assert!(!look(&mut last, "2026-01-05T10:18:00Z", &[], false));
    assert!(look(&mut last, "2026-01-05T10:28:00Z", &[], false));
}

/// Who tries in vain gains no time by that.
#[test]
fn what_is_done_for_the_sake_of_an_action_is_nobody_elses() {
    let held = |act: Option<Act>, applications: &[String]| {
        let mut observed = with(act.into_iter().collect());
        cut_out(&mut observed, 3);
        let operation = |application: &String| Operation { pid: 7, application: application.clone() };
        catalog(&mut observed).operations = applications.iter().map(operation).collect();
        held_by_others(&World { wanted: &wanted(3), topology: &topology(), observed: &observed })
    };
    let spread = act(Action::Spread { from: Group::Worker(0), to: Group::Worker(1) });
    let moved = |shard_id| Operation::name_of(shard_id, Group::Worker(2), Group::Worker(0));
    for (act, application, expected) in [
        (Some(isolation(TENANT.hash)), running_split().application, false),
        (Some(isolation(TENANT.hash)), moved(3001), false),
        (Some(isolation(TENANT.hash)), moved(3002), true),
        (Some(spread), moved(3002), false),
        (None, moved(3002), false),
    ] {
        assert_eq!(held(act.clone(), std::slice::from_ref(&application)), expected, "{act:?}: {application}");
    }
}

#[test]
fn what_could_not_begin_in_time_is_dropped_if_its_tenant_is_not_hot_any_more() {
    let cool = |role| Heat {
        heated: Some(Vec::new()),
        nodes: [(Group::Worker(2), NodeLoad::unknown(role))].into(),
        ..Heat::default()
    };
    let kinds = |act: Act, heat: Heat, now: &str| {
        let mut observed = Observed { heat: Some(heat), ..with(vec![act]) };
        observed.kept.now = Some(now.parse().unwrap());
        let planned = steps(&observed, &wanted(3)).0;
        let dropped = |step: &Step| match step {
            Step::EndAction { outcome: Outcome::Dropped, note: Some(note), .. } => {
                assert!(note.contains("not hot any more"), "{note}");
                "dropped"
            }
            other => other.kind(),
        };
        planned.iter().map(dropped).collect::<Vec<_>>()
    };
    let (early, late) = ("2026-01-05T09:59:00Z", "2026-01-05T10:01:00Z");
    let act = || isolation(TENANT.hash);
    assert_eq!(kinds(act(), cool(Role::Shared), late), ["dropped"]);
    // The cooldown is an hour.
    assert_eq!(kinds(act(), cool(Role::Shared), early), ["SplitShard"]);
    // It is hot; nobody knows; or it was begun.
    let hot = Heat { heated: Some(vec![TENANT]), ..cool(Role::Shared) };
    let unknown = Heat { heated: None, ..cool(Role::Shared) };
    let failed = Heat { failure: Some("no answer".to_owned()), ..cool(Role::Shared) };
    for heat in [hot, unknown, failed, cool(Role::Unavailable), Heat::default()] {
        assert_eq!(kinds(act(), heat, late), ["SplitShard"]);
    }
    let begun = Act { attempts: 1, begun: Some(early.parse().unwrap()), ..act() };
    assert_eq!(kinds(begun, cool(Role::Shared), late), ["SplitShard"]);
}
