//! Updates beside shards that move.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use k8s_openapi::jiff::SignedDuration;

use super::*;
use crate::api::HeldMovesStatus;
use crate::shards::findings::tests::at_rest;
use crate::shards::observed::Observed;
use crate::shards::status::held_moves;
use crate::shards::step;

#[test]
fn who_gives_or_takes_a_shard_is_restarted_after_that() {
    let needed = BTreeSet::from([Group::Coordinator, Group::Worker(0), Group::Worker(2)]);
    let step = |groups: &[(Group, ObservedGroup)], busy| {
        let groups = groups.iter().map(|(name, group)| (*name, (group, group.replicas))).collect();
        next(&groups, busy, now())
    };
    let after = |step| match step {
        Step::AfterMoves { group, then } => (group, replaced(&then).to_owned()),
        other => panic!("{other:?} waits for no move"),
    };
    let first = || (Group::Worker(0), "chat-worker-0-0".to_owned());
    assert_eq!(after(step(&workers([OLD, OLD, OLD]), Some(&needed))), first());
    assert_eq!(
        replaced(&step(&workers([NEW, OLD, NEW]), Some(&needed))),
        "chat-worker-1-0",
        "it has no part in a move"
    );
    assert_eq!(after(step(&workers([NEW, NEW, OLD]), Some(&needed))).0, Group::Worker(2));
    assert_eq!(after(step(&workers([OLD, OLD, OLD]), None)), first(), "nobody knows yet");
    // One that does not serve is of no use to the move.
    let mut broken = workers([OLD, NEW, NEW]);
    broken[0].1.instances[0].is_ready = false;
    broken[0].1.instances[0].trouble = Some(Trouble::Crash("exit code 1".to_owned()));
    assert_eq!(replaced(&step(&broken, None)), "chat-worker-0-0");
    assert_eq!(step(&workers([NEW, NEW, NEW]), None), Step::Nothing);
}

#[test]
fn who_moves_shards_is_known_by_an_answer_to_the_same_question() {
    let minutes = |minutes: i64| Timestamp::from_second(1_000_000 + minutes * 60).unwrap();
    let held = |at, busy: &[&str]| {
        let busy = busy.iter().map(ToString::to_string).collect();
        Some(HeldMovesStatus { since: MicroTime(minutes(at)), busy })
    };
    let status = |asked: Option<i64>, held_moves| DialogClusterStatus {
        hold_moves: asked.map(|at| MicroTime(minutes(at))),
        held_moves,
        ..DialogClusterStatus::default()
    };
    let busy = |status: &DialogClusterStatus, at| busy(Some(status), minutes(at));
    let needed = || Some(BTreeSet::from([Group::Coordinator, Group::Worker(0)]));
    assert_eq!(busy(&status(None, None), 5), None, "nobody was asked");
    assert_eq!(busy(&status(Some(5), None), 6), None);
    assert_eq!(busy(&status(Some(5), held(4, &[])), 6), None, "moves have begun since");
    assert_eq!(busy(&status(Some(5), held(5, &["coordinator", "worker-0"])), 600), needed());
    assert_eq!(busy(&status(Some(5), held(5, &[])), 6), Some(BTreeSet::new()));
    assert_eq!(busy(&status(Some(5), held(4, &["worker-0"])), 16), Some(BTreeSet::new()), "nobody answers");
    assert_eq!(super::busy(None, minutes(6)), None);
    let silent: DialogClusterStatus = serde_json::from_value(serde_json::json!({"conditions": [
        {"type": "Balanced", "status": "Unknown", "reason": "", "message": "", "lastTransitionTime": minutes(20).to_string()}]}))
    .unwrap();
    let silent =
        DialogClusterStatus { conditions: silent.conditions, ..status(Some(5), held(5, &["worker-0"])) };
    assert_eq!(busy(&silent, 21), Some(BTreeSet::from([Group::Worker(0)])));
    assert_eq!(busy(&silent, 31), Some(BTreeSet::new()), "nobody knows whether it still runs");
}

/// A hold that began some time ago, and ends then.
fn held(until: Option<Timestamp>) -> Hold {
    Hold { since: MicroTime(Timestamp::UNIX_EPOCH), until: until.map(Time) }
}

fn ago(minutes: i64) -> Timestamp {
    now() - SignedDuration::from_mins(minutes)
}

/// What becomes of a hold, by the next step of groups.
fn after(before: Option<Hold>, groups: &[(Group, ObservedGroup)]) -> Option<Hold> {
    let groups = groups.iter().map(|(name, group)| (*name, (group, group.replicas))).collect();
    Hold::next(before, &next(&groups, None, now()), &groups, now())
}

#[test]
fn shards_move_while_an_update_waits_for_something_else() {
    let goes_on = |groups: &[(Group, ObservedGroup)]| after(Some(held(None)), groups).is_some();
    assert!(!goes_on(&workers([NEW, NEW, NEW])), "it is over");
    assert_eq!(after(None, &workers([NEW, NEW, OLD])), Some(Hold { since: MicroTime(now()), until: None }));
    assert_eq!(after(Some(held(Some(ago(-1)))), &workers([NEW, NEW, OLD])), Some(held(None)), "it goes on");
    // The server of the one is replaced, then away, and then back.
    for others in [NEW, OLD] {
        let mut groups = workers([NEW, others, others]);
        let ending = &mut groups[0].1.instances[0];
        (ending.is_terminating, ending.revision) = (true, Some(OLD.to_owned()));
        assert_eq!(after(Some(held(Some(ago(-1)))), &groups), Some(held(None)), "it ends");
        groups[0].1 = group(Group::Worker(0), &[NEW]);
        groups[0].1.instances[0].is_ready = false;
        groups[0].1.instances[0].created = Some(ago(1));
        assert_eq!(after(Some(held(Some(ago(-1)))), &groups), Some(held(Some(ago(-2)))), "it comes");
        groups[0].1.instances[0].is_ready = true;
        assert_eq!(goes_on(&groups), others == OLD, "it is back");
    }
    // One that does not come back may keep the update for days; and nobody holds moves for one that has gone by itself.
    for ordinal in [0, 1] {
        let mut groups = workers([NEW, OLD, OLD]);
        groups[0].1 = group(Group::Worker(0), &[NEW, NEW]);
        let away = &mut groups[0].1.instances[ordinal];
        (away.is_ready, away.created, away.stopped) = (false, Some(ago(60)), Some(ago(1)));
        assert_eq!(after(Some(held(Some(ago(-1)))), &groups), Some(held(Some(ago(-2)))));
        assert_eq!(after(None, &groups), None);
        groups[0].1.instances[ordinal].stopped = Some(ago(4));
        assert_eq!(after(Some(held(Some(ago(1)))), &groups), None);
    }
    // Where all is done, one whose node is dead has no part in it.
    let mut groups = workers([NEW, NEW, NEW]);
    let dead = &mut groups[0].1.instances[0];
    (dead.is_terminating, dead.is_ready, dead.stopped) = (true, false, Some(ago(5)));
    assert!(!goes_on(&groups));
}

#[test]
fn a_pod_that_cannot_be_created_holds_moves_for_minutes_only() {
    let mut groups = workers([NEW, OLD, OLD]);
    groups[0].1.instances.clear();
    let first = after(Some(held(None)), &groups);
    assert_eq!(first, Some(held(Some(ago(-3)))));
    let at = |now: Timestamp, before: Option<Hold>| {
        let groups = groups.iter().map(|(name, group)| (*name, (group, group.replicas))).collect();
        Hold::next(before, &next(&groups, None, now), &groups, now)
    };
    assert_eq!(at(ago(-2), first.clone()), first);
    assert_eq!(at(ago(-3), first), None);
    assert_eq!(at(ago(-4), None), None, "and not anew");
    groups[0].1.instances = group(Group::Worker(0), &[NEW]).instances;
    assert_eq!(after(None, &groups), Some(Hold { since: MicroTime(now()), until: None }), "it goes on");
}

#[test]
fn a_look_that_fails_or_lacks_something_ends_no_hold() {
    let groups = workers([NEW, OLD, OLD]);
    let there: BTreeMap<_, _> = groups.iter().map(|(name, group)| (*name, (group, group.replicas))).collect();
    let failed = Step::Wait("what failed to be tried again".to_owned());
    let first = Hold::next(Some(held(None)), &failed, &there, now());
    assert_eq!(first, Some(held(Some(ago(-3)))));
    assert_eq!(Hold::next(first.clone(), &failed, &there, ago(-1)), first);
    assert_eq!(after(first.clone(), &groups), Some(held(None)), "it is known again");
    assert_eq!(Hold::next(first, &failed, &there, ago(-3)), None);
    assert_eq!(Hold::next(None, &failed, &there, now()), None);
    // Nobody knows which pods are up to date.
    let mut unknown = groups;
    for (_, group) in &mut unknown {
        group.revision = None;
    }
    assert_eq!(after(Some(held(None)), &unknown), Some(held(Some(ago(-3)))));
    assert_eq!(after(Some(held(Some(ago(0)))), &unknown), None);
}

#[test]
fn between_two_standbys_of_an_update_no_move_begins() {
    let mut worker = group(Group::Worker(0), &[OLD, NEW]);
    worker.instances[1].created = Some(ago(1));
    let groups = BTreeMap::from([(Group::Worker(0), (&worker, 2))]);
    // The standby is back, and Patroni does not let it take over before it has caught up.
    let (to, refusal) = ("chat-worker-0-1".to_owned(), "candidate is too far behind".to_owned());
    let refused = Step::CatchUp { to, refusal };
    assert_eq!(Hold::next(Some(held(None)), &refused, &groups, now()), Some(held(Some(ago(-2)))));
    assert_eq!(Hold::next(Some(held(None)), &refused, &groups, ago(-2)), None, "it lags for long");
}

/// Plays an update while shards move without a pause: they are small, and each time one is there the next begins, unless the
/// status said some time ago that none may.
#[test]
fn an_update_in_the_middle_of_many_moves_meets_none_and_comes_to_its_end() {
    for begins in 50..62 {
        play(begins);
    }
}

/// Plays it with an update that begins at this second.
fn play(begins: u32) {
    let mut groups: BTreeMap<Group, ObservedGroup> = workers([NEW, NEW, NEW]).into_iter().collect();
    groups.insert(Group::Coordinator, group(Group::Coordinator, &[NEW]));
    let mut status = DialogClusterStatus::default();
    let (observed, silent) = (at_rest(), Observed::default());
    // What moves, and until when; and which pod comes back when.
    let mut moves: Vec<(step::Step, u32)> = Vec::new();
    let mut back: Option<(Group, u32)> = None;
    let (mut begun, mut restarts) = (0, Vec::new());
    // Since when moves were to be held.
    let mut asked = BTreeSet::new();
    for second in 0..400_u32 {
        let now = Timestamp::from_second(second.into()).unwrap();
        let read = status.clone();
        moves.retain(|(_, until)| *until > second);
        if second == begins {
            for group in groups.values_mut() {
                group.instances[0].revision = Some(OLD.to_owned());
            }
        }
        if let Some((name, _)) = back.take_if(|(_, at)| *at == second) {
            groups.insert(name, group(name, &[NEW]));
        }
        if second % 2 == 0 {
            // Every sixth look lacks what the StatefulSets' controller says, and what another one finds cannot be done.
            let mut seen = groups.clone();
            if second % 12 == 4 {
                for group in seen.values_mut() {
                    group.revision = None;
                }
            }
            let there = seen.iter().map(|(name, group)| (*name, (group, group.replicas))).collect();
            let mut step = next(&there, busy(Some(&status), now).as_ref(), now);
            if second % 12 == 8 && step != Step::Nothing {
                step = Step::Wait("what failed to be tried again".to_owned());
            }
            let hold = Hold::next(Hold::of(Some(&read)), &step, &there, now);
            asked.extend(hold.as_ref().map(|hold| hold.since.0));
            (status.hold_moves, status.hold_moves_until) =
                hold.map_or((None, None), |Hold { since, until }| (Some(since), until));
            if let Step::Replace { pod, .. } = &step {
                let name = *groups.iter().find(|(_, group)| group.instances[0].pod == *pod).unwrap().0;
                let needs = |one: &step::Step| {
                    let step::Step::MoveShard { from, to, .. } = one else { return false };
                    [*from, *to, Group::Coordinator].contains(&name)
                };
                assert!(!moves.iter().any(|(one, _)| needs(one)), "{pod} at {second} in {moves:?}");
                let ending = &mut groups.get_mut(&name).unwrap().instances[0];
                (ending.is_terminating, ending.is_ready, ending.stopped) = (true, false, Some(now));
                back = Some((name, second + 7));
                restarts.push(name);
            }
        }
        // Who begins has read what was so before.
        let serves = |group: Group| back.is_none_or(|(away, _)| away != group && away != Group::Coordinator);
        let (from, to) = (Group::Worker(second % 3), Group::Worker((second + 1) % 3));
        if read.hold_moves.is_none() && moves.len() < 2 && serves(from) && serves(to) {
            moves.push((step::Step::MoveShard { shard_id: second.into(), from, to }, second + 4));
            begun += 1;
        }
        if second % 3 == 0 {
            let own: Vec<step::Step> = moves.iter().map(|(step, _)| step.clone()).collect();
            // Every other look at the databases fails.
            let looked = if second % 2 == 0 { &observed } else { &silent };
            status.held_moves = held_moves(Some(&read), Some(looked), &own);
        }
    }
    let order = [0, 1, 2].map(Group::Worker).into_iter().chain([Group::Coordinator]);
    assert_eq!(restarts, order.collect::<Vec<_>>());
    assert_eq!((status.hold_moves, status.held_moves), (None, None));
    assert_eq!(asked.len(), 1, "{asked:?}: they are held until the end");
    assert!(begun > 100, "{begun}: they go on afterwards");
}
