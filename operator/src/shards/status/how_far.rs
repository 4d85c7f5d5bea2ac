//! How far a rebalance is, as it is told with each of its moves.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::moved_bytes;
use crate::api::{MoveStatus, RebalanceStatus};
use crate::shards::observed::RunningMove;
use crate::shards::rebalance::Bytes;
use crate::shards::step::Step;
use crate::shards::supervise::Entered;

/// How far a rebalance is. What a move under way has copied counts once it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HowFar {
    moves_made: i64,
    moves: i64,
    bytes_made: i64,
    bytes_left: i64,
    end: Option<Time>,
}

impl HowFar {
    /// As `status` says.
    #[must_use]
    pub fn of(status: &RebalanceStatus) -> Self {
        let arrived = status.current.iter().map(|one| one.bytes_done).fold(0, i64::saturating_add);
        Self {
            moves_made: status.moves_done,
            moves: status.moves_total,
            bytes_made: status.bytes_done,
            bytes_left: status.bytes_left.saturating_add(arrived),
            end: status.eta.clone(),
        }
    }

    /// Once a move of so many bytes more was made.
    fn then(&self, bytes: i64) -> Self {
        let moves_made = self.moves_made.saturating_add(1);
        Self {
            moves_made,
            moves: self.moves.max(moves_made),
            bytes_made: self.bytes_made.saturating_add(bytes),
            bytes_left: self.bytes_left.saturating_sub(bytes).max(0),
            end: self.end.clone(),
        }
    }

    /// How far it was when `begun` began, since the status was `before`: which of the `done` came first is told by their order and
    /// that of `all` that have begun meanwhile. `None` where nothing was said of a rebalance.
    #[must_use]
    pub fn at_begin(
        before: Option<&RebalanceStatus>,
        begun: &Step,
        all: &[Step],
        done: &[Step],
        sizes: &BTreeMap<i64, i64>,
    ) -> Option<Self> {
        let later = all.iter().position(|step| step == begun).map_or(&[][..], |at| &all[at..]);
        let first = done.iter().filter(|step| !later.contains(step));
        let bytes = first.filter_map(|step| moved_bytes(step, sizes));
        moved_bytes(begun, sizes)?;
        Some(bytes.fold(Self::of(before?), |far, bytes| far.then(bytes)))
    }

    /// How far it was at the end of each move among `done`, in order, as the status was `before` them and is `now`, where it says
    /// nothing once nothing is left to move.
    #[must_use]
    pub fn at_ends(
        before: Option<&RebalanceStatus>,
        now: Option<&RebalanceStatus>,
        done: &[Step],
        sizes: &BTreeMap<i64, i64>,
    ) -> BTreeMap<Step, Self> {
        let moves = || done.iter().filter_map(|step| Some((step, moved_bytes(step, sizes)?)));
        let made: i64 = moves().map(|(_, bytes)| bytes).fold(0, i64::saturating_add);
        let number = i64::try_from(moves().count()).unwrap_or(i64::MAX);
        let (moves_before, bytes_before) =
            before.map_or((0, 0), |status| (status.moves_done, status.bytes_done));
        let now = now.map(Self::of);
        let mut far = Self {
            moves_made: moves_before,
            moves: now.as_ref().map_or(moves_before.saturating_add(number), |now| now.moves),
            bytes_made: bytes_before,
            bytes_left: now.as_ref().map_or(0, |now| now.bytes_left).saturating_add(made),
            end: now.and_then(|now| now.end),
        };
        let each = moves().map(|(step, bytes)| {
            far = far.then(bytes);
            (step.clone(), far.clone())
        });
        each.collect()
    }
}

/// What is told of a move in a phase that it was seen in at `now`, and how far `rebalance` is with it: what of the move has
/// arrived, and when it got on last.
#[must_use]
pub fn in_phase(entered: &Entered, rebalance: &RebalanceStatus, now: Timestamp) -> String {
    let RunningMove { shard_id, from, to, .. } = entered.running;
    let (from, to) = (from.to_string(), to.to_string());
    let is_it = |one: &&MoveStatus| (one.shard_id, &one.from, &one.to) == (shard_id, &from, &to);
    let arrived = rebalance
        .current
        .iter()
        .find(is_it)
        .map(|one| format!("{} of {} there, ", of_bytes(one.bytes_done), of_bytes(one.bytes_total)));
    let last = now.checked_sub(entered.idle).unwrap_or(now);
    format!("{}got on last at {last:.0}; {}", arrived.unwrap_or_default(), HowFar::of(rebalance))
}

fn of_bytes(bytes: i64) -> Bytes {
    Bytes(bytes.max(0).unsigned_abs())
}

impl fmt::Display for HowFar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { moves_made, moves, .. } = self;
        let (made, left) = (of_bytes(self.bytes_made), of_bytes(self.bytes_left));
        write!(f, "{moves_made} of {moves} moves and {made} made, {left} left")?;
        match &self.end {
            Some(end) => write!(f, ", end expected at {:.0}", end.0),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::MoveStatus;
    use crate::names::Group;

    const MIB: i64 = 1 << 20;

    fn step(shard_id: i64) -> Step {
        Step::MoveShard { shard_id, from: Group::Worker(0), to: Group::Worker(1) }
    }

    /// Shards of as many MiB as their number says.
    fn sizes() -> BTreeMap<i64, i64> {
        (1..=9).map(|shard_id| (shard_id, shard_id * MIB)).collect()
    }

    fn status(moves_done: i64, bytes_done: i64, bytes_left: i64, end: &str) -> RebalanceStatus {
        RebalanceStatus {
            moves_done,
            moves_total: 5,
            bytes_done: bytes_done * MIB,
            bytes_left: bytes_left * MIB,
            eta: Some(Time(end.parse().unwrap())),
            ..RebalanceStatus::default()
        }
    }

    /// The first of five was made, and half of the second has arrived.
    fn half_of_the_second() -> RebalanceStatus {
        let second = MoveStatus {
            shard_id: 2,
            from: "worker-0".to_owned(),
            to: "worker-1".to_owned(),
            phase: "Copying Data".to_owned(),
            bytes_done: MIB,
            bytes_total: 2 * MIB,
        };
        RebalanceStatus { current: vec![second], ..status(1, 1, 13, "2026-01-05T09:01:00Z") }
    }

    #[test]
    fn a_move_begins_when_those_before_it_were_made_even_if_nobody_was_told_yet() {
        let before = half_of_the_second();
        // The second has ended since then, the third has begun and ended, and the fourth has begun.
        let (all, done) = ([step(3), step(4)], [step(2), step(3)]);
        let told = |begun: &Step| {
            let far = HowFar::at_begin(Some(&before), begun, &all, &done, &sizes());
            far.map(|far| far.to_string())
        };
        let end = "end expected at 2026-01-05T09:01:00Z";
        assert_eq!(told(&step(3)), Some(format!("2 of 5 moves and 3 MiB made, 12 MiB left, {end}")));
        assert_eq!(told(&step(4)), Some(format!("3 of 5 moves and 6 MiB made, 9 MiB left, {end}")));
        assert_eq!(told(&Step::CleanUp), None, "it is no move");
        assert_eq!(HowFar::at_begin(None, &step(3), &all, &done, &sizes()), None, "nothing was said yet");
    }

    #[test]
    fn a_phase_is_told_with_what_has_arrived_when_it_got_on_last_and_how_far_all_is() {
        let now: Timestamp = "2026-01-05T09:00:00.7Z".parse().unwrap();
        let running = RunningMove { pid: 7, shard_id: 2, from: Group::Worker(0), to: Group::Worker(1) };
        let entered = |running| Entered {
            running,
            phase: "Copying Data".to_owned(),
            idle: std::time::Duration::from_secs(20),
        };
        let rest = "got on last at 2026-01-05T08:59:40Z; 1 of 5 moves and 1 MiB made, 14 MiB left, \
                    end expected at 2026-01-05T09:01:00Z";
        assert_eq!(
            in_phase(&entered(running), &half_of_the_second(), now),
            format!("1 MiB of 2 MiB there, {rest}")
        );
        // The status shows no more than some of those under way.
        let other = RunningMove { shard_id: 3, ..running };
        assert_eq!(in_phase(&entered(other), &half_of_the_second(), now), rest);
    }

    #[test]
    fn each_end_counts_the_moves_up_to_it_and_has_the_end_that_is_expected_now() {
        let before = status(1, 1, 14, "2026-01-05T09:01:00Z");
        let now = status(3, 6, 9, "2026-01-05T09:02:00.5Z");
        let told = |now: Option<&RebalanceStatus>, done: &[Step]| -> Vec<String> {
            let ends = HowFar::at_ends(Some(&before), now, done, &sizes());
            ends.values().map(ToString::to_string).collect()
        };
        let end = "end expected at 2026-01-05T09:02:00Z";
        assert_eq!(
            told(Some(&now), &[step(2), Step::CleanUp, step(3)]),
            [
                format!("2 of 5 moves and 3 MiB made, 12 MiB left, {end}"),
                format!("3 of 5 moves and 6 MiB made, 9 MiB left, {end}"),
            ]
        );
        assert_eq!(
            told(None, &[step(2), step(3), step(4), step(5)]).last().map(String::as_str),
            Some("5 of 5 moves and 15 MiB made, 0 B left"),
            "nothing is left to move"
        );
        // Of an end that nobody can know nothing is said.
        let unknown = RebalanceStatus { eta: None, ..now };
        assert_eq!(told(Some(&unknown), &[step(2)]), ["2 of 5 moves and 3 MiB made, 9 MiB left"]);
    }
}
