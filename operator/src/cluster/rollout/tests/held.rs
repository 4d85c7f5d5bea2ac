//! Updates beside shards that move.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
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

#[test]
fn shards_move_while_an_update_waits_for_something_else() {
    let holds = |groups: &[(Group, ObservedGroup)], held| {
        let groups = groups.iter().map(|(name, group)| (*name, (group, group.replicas))).collect();
        holds(&next(&groups, None, now()), &groups, held, now())
    };
    let ago = |minutes: i64| now() - SignedDuration::from_mins(minutes);
    assert!(!holds(&workers([NEW, NEW, NEW]), true) && holds(&workers([NEW, NEW, OLD]), false));
    // The server of the one is replaced, then away, and then back.
    for others in [NEW, OLD] {
        let mut groups = workers([NEW, others, others]);
        let ending = &mut groups[0].1.instances[0];
        (ending.is_terminating, ending.revision) = (true, Some(OLD.to_owned()));
        assert!(holds(&groups, true), "it ends");
        let ending = &mut groups[0].1.instances[0];
        (ending.is_ready, ending.stopped) = (false, Some(ago(5)));
        assert!(!holds(&groups, true), "its node is dead");
        groups[0].1.instances.clear();
        assert_eq!(holds(&groups, true), others == OLD, "others follow once it is back");
        groups[0].1 = group(Group::Worker(0), &[NEW]);
        groups[0].1.instances[0].is_ready = false;
        groups[0].1.instances[0].created = Some(now());
        assert!(holds(&groups, true), "it comes");
        groups[0].1.instances[0].is_ready = true;
        assert_eq!(holds(&groups, true), others == OLD, "it is back");
    }
    // One that does not come back may keep the update for days; and nobody holds moves for one that has gone by itself.
    for ordinal in [0, 1] {
        let mut groups = workers([NEW, OLD, OLD]);
        groups[0].1 = group(Group::Worker(0), &[NEW, NEW]);
        let away = &mut groups[0].1.instances[ordinal];
        (away.is_ready, away.created, away.stopped) = (false, Some(ago(60)), Some(ago(1)));
        assert!(holds(&groups, true) && !holds(&groups, false));
        groups[0].1.instances[ordinal].stopped = Some(ago(4));
        assert!(!holds(&groups, true));
    }
}

#[test]
fn between_two_standbys_of_an_update_no_move_begins() {
    let mut worker = group(Group::Worker(0), &[OLD, NEW]);
    worker.instances[1].created = Some(now());
    let groups = BTreeMap::from([(Group::Worker(0), (&worker, 2))]);
    // The standby is back, and Patroni does not let it take over before it has caught up.
    let refused = Step::Wait("chat-worker-0-1 to be able to take over".to_owned());
    assert!(holds(&refused, &groups, true, now()));
    let later = now() + SignedDuration::from_mins(4);
    assert!(!holds(&refused, &groups, true, later), "it lags for long");
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
            let there = groups.iter().map(|(name, group)| (*name, (group, group.replicas))).collect();
            let step = next(&there, busy(Some(&status), now).as_ref(), now);
            let since = || read.hold_moves.clone().unwrap_or(MicroTime(now));
            status.hold_moves = holds(&step, &there, read.hold_moves.is_some(), now).then(since);
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
    assert!(begun > 100, "{begun}: they go on afterwards");
}
