//! Whether moves get on: time runs out on no progress, never on elapsed time; but where writers wait for a move, they are the
//! ones whose time runs out.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::observed::{Catalog, End, Progress, Room, RunningMove};
use crate::names::Group;

mod phases;
mod splits;
mod spreads;

use phases::Phases;
pub use phases::{Entered, TOLD_AFTER};
pub use splits::{Splits, StalledSplit};
pub use spreads::{Spreads, StalledSpread};

/// How long a move may keep writers of its shard group waiting: what it does then takes less than a second, and whatever it
/// waits for itself, they wait for, too.
pub const WRITERS_WAIT: Duration = Duration::from_secs(5);
/// Looks in a row in which a slot has to be missing: the end of a move takes its slots away, too.
const LOOKS: u32 = 2;
/// A move that was cancelled is given this long to end, and twice as long each time after, before it is terminated.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest of these times.
const LAST_PATIENCE: Duration = Duration::from_mins(10);

/// How far the moves were when they were last seen to get on. A new operator begins to watch anew.
///
/// Time counts from look to look: an operator that could not look knows nothing of what happened meanwhile.
#[derive(Debug, Default)]
pub struct Watch {
    seen: BTreeMap<i32, Seen>,
    got_on: bool,
}

/// How far a move is by its own counters: what is written on the source meanwhile moves the source's position and size,
/// and is no progress of the move.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mark {
    shard_id: i64,
    phase: String,
    target_bytes: i64,
    /// Where the source's log was when the phase was first seen: the target has to come as far.
    goal: Option<u64>,
    /// Where the target is on its way there; beyond it follows whatever others write.
    position: Option<u64>,
}

impl Mark {
    fn of(progress: &Progress, before: &[Self]) -> Self {
        let Progress { shard_id, target_bytes, phase, .. } = progress.clone();
        let same = before.iter().find(|mark| mark.shard_id == shard_id && mark.phase == phase);
        let goal = same.map_or_else(|| position(progress.source_lsn.as_deref()), |mark| mark.goal);
        let target = position(progress.target_lsn.as_deref());
        Self {
            shard_id,
            phase,
            target_bytes,
            goal,
            position: target.map(|at| goal.map_or(at, |goal| at.min(goal))),
        }
    }
}

/// A position in the log: two hexadecimal numbers of 32 bits.
fn position(lsn: Option<&str>) -> Option<u64> {
    let (high, low) = lsn?.split_once('/')?;
    let half = |digits| u32::from_str_radix(digits, 16).ok();
    Some(u64::from(half(high)?) << 32 | u64::from(half(low)?))
}

#[derive(Debug)]
struct Seen {
    running: RunningMove,
    marks: Vec<Mark>,
    since: Instant,
    looked: Instant,
    /// Since when writers were seen to wait for it.
    blocking: Option<Instant>,
    /// The ends that had room enough since it is watched.
    roomy: BTreeSet<Group>,
    /// One of these that has not any more.
    filling: Option<Room>,
    lost_slot: Option<Lost>,
    endings: Endings,
    phases: Phases,
}

/// How often a session was cancelled or terminated, and when last.
#[derive(Clone, Copy, Debug, Default)]
struct Endings(Option<(u32, Instant)>);

impl Endings {
    /// How it is to be ended at `now`; `None` while it is given time to.
    fn next(self, now: Instant) -> Option<End> {
        let Some((times, last)) = self.0 else { return Some(End::Cancel) };
        let patience = PATIENCE.saturating_mul(1 << times.saturating_sub(1).min(8)).min(LAST_PATIENCE);
        (now.saturating_duration_since(last) >= patience).then_some(End::Terminate)
    }

    fn count(&mut self, now: Instant) {
        self.0 = Some((self.0.map_or(0, |(times, _)| times).saturating_add(1), now));
    }
}

/// A slot that was not there in the last looks.
#[derive(Clone, Debug)]
struct Lost {
    slot: String,
    looks: u32,
}

/// A move that does not get on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stalled {
    /// The move.
    pub running: RunningMove,
    /// Its phase, as Citus calls it; empty before the first.
    pub phase: String,
    /// How long there has been no progress.
    pub idle: Duration,
    /// How long writers have waited for it, if that is longer than they are to.
    pub blocking: Option<Duration>,
    /// The end whose volume has become nearly full since, if one has.
    pub filling: Option<Room>,
    /// The replication slot that it cannot end without, if that is gone.
    pub lost_slot: Option<String>,
    /// How it is to be ended now; `None` while it is given time to.
    pub end: Option<End>,
}

impl Watch {
    /// Takes in what `catalog` says at `now`.
    pub fn look(&mut self, catalog: Option<&Catalog>, now: Instant) {
        self.got_on = false;
        let Some(catalog) = catalog else { return };
        let mut seen = BTreeMap::new();
        for running in catalog.moves() {
            let before = self.seen.remove(&running.pid).filter(|before| before.running == running);
            let own = catalog.progress.iter().filter(|progress| progress.pid == running.pid);
            let known = before.as_ref().map_or(&[][..], |before| &before.marks);
            let mut marks: Vec<Mark> = own.map(|progress| Mark::of(progress, known)).collect();
            if marks.is_empty() {
                // While a node is silent nobody says how far a move is: that is no progress.
                marks = known.to_vec();
            }
            let lost_slot = catalog.lost_slots.iter().find(|lost| lost.pid == running.pid).map(|lost| {
                let earlier = before.as_ref().and_then(|before| before.lost_slot.as_ref());
                let earlier = earlier.filter(|earlier| earlier.slot == lost.slot);
                Lost {
                    slot: lost.slot.clone(),
                    looks: earlier.map_or(0, |earlier| earlier.looks).saturating_add(1),
                }
            });
            let endings = before.as_ref().map(|before| before.endings).unwrap_or_default();
            // Of that Citus shows nothing, however long it takes.
            let builds = catalog.building.contains(&running.pid);
            let gets_on = |before: &Seen| builds || before.marks != marks;
            self.got_on |= before.as_ref().is_some_and(gets_on);
            let known = before.as_ref().and_then(|before| before.blocking);
            let blocking = catalog.blocking.contains(&running.pid).then(|| known.unwrap_or(now));
            // One that was nearly full before may be the very reason to move something.
            let mut roomy = before.as_ref().map(|before| before.roomy.clone()).unwrap_or_default();
            let rooms_of = || catalog.rooms.iter().filter(|room| room.pid == running.pid);
            roomy.extend(rooms_of().filter(|room| !room.is_short()).map(|room| room.group));
            let filling = rooms_of().find(|room| room.is_short() && roomy.contains(&room.group)).copied();
            let since = before.as_ref().filter(|before| !gets_on(before)).map_or(now, |before| before.since);
            let phases = before.map_or_else(|| Phases::new(now), |before| before.phases);
            let looked = now;
            seen.insert(
                running.pid,
                Seen { running, marks, since, looked, blocking, roomy, filling, lost_slot, endings, phases },
            );
        }
        self.seen = seen;
    }

    /// The moves that had made no progress for `limit` when they were last looked at, those that had kept writers waiting for
    /// [`WRITERS_WAIT`], those that fill a volume, and those that cannot end any more.
    #[must_use]
    pub fn stalled(&self, limit: Duration) -> Vec<Stalled> {
        let stalled = |seen: &Seen| {
            let idle = seen.idle();
            let lost_slot =
                seen.lost_slot.as_ref().filter(|lost| lost.looks >= LOOKS).map(|lost| lost.slot.clone());
            let phase = seen.phase().to_owned();
            let end = seen.endings.next(seen.looked);
            let blocking = seen.blocking.map(|since| seen.looked.saturating_duration_since(since));
            let blocking = blocking.filter(|waited| *waited >= WRITERS_WAIT);
            (lost_slot.is_some() || seen.filling.is_some() || blocking.is_some() || idle >= limit).then_some(
                Stalled {
                    running: seen.running,
                    phase,
                    idle,
                    blocking,
                    filling: seen.filling,
                    lost_slot,
                    end,
                },
            )
        };
        self.seen.values().filter_map(stalled).collect()
    }

    /// Remembers that the move of the process `pid` was cancelled or terminated at `now`.
    pub fn ended(&mut self, pid: i32, now: Instant) {
        if let Some(seen) = self.seen.get_mut(&pid) {
            seen.endings.count(now);
        }
    }

    /// Whether a move had got on when they were last looked at, since the look before.
    #[must_use]
    pub fn got_on(&self) -> bool {
        self.got_on
    }

    /// The longest time that one of the moves under way was seen to make no progress.
    #[must_use]
    pub fn longest_idle(&self) -> Option<Duration> {
        self.seen.values().map(Seen::idle).max()
    }
}

impl Seen {
    /// What Citus calls the phase; empty before the first.
    fn phase(&self) -> &str {
        self.marks.first().map_or("", |mark| &mark.phase)
    }

    fn idle(&self) -> Duration {
        self.looked.saturating_duration_since(self.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shards::observed::{LostSlot, Operation};

    /// Somebody writes on the source all the time.
    pub(super) fn catalog(source: i64, target_bytes: i64, lsn: &str) -> Catalog {
        let application = "dialog-operator: move 102008 worker-0>worker-1".to_owned();
        let progress = Progress {
            pid: 7,
            shard_id: 102_008,
            source_bytes: source,
            target_bytes,
            source_lsn: Some(format!("0/{source:X}")),
            target_lsn: Some(lsn.to_owned()),
            phase: "Copying Data".to_owned(),
        };
        let operations = vec![Operation { pid: 7, application }];
        Catalog { operations, progress: vec![progress], ..Catalog::default() }
    }

    #[test]
    fn time_runs_out_on_no_progress_only() {
        let (start, limit) = (Instant::now(), Duration::from_mins(1));
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut watch = Watch::default();
        // However long it takes, bytes or a position in the log get on.
        for (second, bytes, lsn) in [(0, 1, "0/1"), (50, 2, "0/1"), (100, 2, "0/2"), (150, 3, "0/2")] {
            watch.look(Some(&catalog(1000 + second, bytes, lsn)), at(second.unsigned_abs()));
            assert_eq!(watch.stalled(limit), []);
        }
        watch.look(Some(&catalog(1209, 3, "0/2")), at(209));
        assert_eq!(watch.stalled(limit), []);
        watch.look(Some(&catalog(1210, 3, "0/2")), at(210));
        // Catalogs that could not be read say nothing about the move.
        watch.look(None, at(211));
        let [stalled] = &watch.stalled(limit)[..] else { panic!("no stall") };
        assert_eq!((stalled.running.pid, stalled.idle), (7, limit));
        assert_eq!(stalled.phase, "Copying Data");
        watch.look(Some(&Catalog::default()), at(212));
        assert_eq!(watch.stalled(Duration::ZERO), [], "it has ended");
    }

    #[test]
    fn an_index_that_is_built_is_progress() {
        let (start, limit) = (Instant::now(), Duration::from_mins(1));
        let mut watch = Watch::default();
        for (second, building, got_on, idle) in [
            (0, true, false, 0),
            (100, true, true, 0),
            (200, true, true, 0),
            // It is built, or what builds it waits for somebody.
            (210, false, false, 10),
            (260, false, false, 60),
        ] {
            let building = building.then_some(7).into_iter().collect();
            let catalog = Catalog { building, ..catalog(0, 1, "0/1") };
            watch.look(Some(&catalog), start + Duration::from_secs(second));
            assert_eq!((watch.got_on(), watch.longest_idle()), (got_on, Some(Duration::from_secs(idle))));
            assert_eq!(watch.stalled(limit).len(), usize::from(idle == 60));
        }
    }

    #[test]
    fn writers_wait_for_a_move_only_as_long_as_its_end_takes() {
        let start = Instant::now();
        let mut watch = Watch::default();
        // It gets on all the time, as far as its counters say.
        let mut look = |second: i64, blocking: &[i32]| {
            let blocking = blocking.iter().copied().collect();
            let catalog = Catalog { blocking, ..catalog(0, second, "0/1") };
            watch.look(Some(&catalog), start + Duration::from_secs(second.unsigned_abs()));
            let stalled = watch.stalled(Duration::from_mins(10)).into_iter().next();
            stalled.map(|stalled| (stalled.blocking, stalled.end))
        };
        assert_eq!([look(0, &[7]), look(4, &[7]), look(5, &[8])], [None, None, None], "not for long enough");
        assert_eq!([look(6, &[7]), look(10, &[7])], [None, None], "counted from when it began again");
        assert_eq!(look(11, &[7]), Some((Some(WRITERS_WAIT), Some(End::Cancel))));
        assert_eq!(look(12, &[]), None);
    }

    #[test]
    fn a_volume_that_fills_up_is_no_matter_of_time() {
        let (start, group) = (Instant::now(), Group::Worker(1));
        let filling = |free: [i64; 2]| {
            let mut watch = Watch::default();
            for (second, free_bytes) in free.into_iter().enumerate() {
                let room = Room { pid: 7, group, free_bytes, total_bytes: 10 << 30 };
                let target = i64::try_from(second).unwrap();
                let catalog = Catalog { rooms: vec![room], ..catalog(0, target, "0/1") };
                watch.look(Some(&catalog), start + Duration::from_secs(second.try_into().unwrap()));
            }
            let stalled = watch.stalled(Duration::from_mins(10)).into_iter().next();
            stalled.and_then(|stalled| stalled.filling).map(|room| room.free_bytes)
        };
        assert_eq!(filling([600 << 20, 511 << 20]), Some(511 << 20));
        assert_eq!(filling([600 << 20, 513 << 20]), None, "a twentieth is left");
        assert_eq!(filling([400 << 20, 300 << 20]), None, "so it was before");
    }

    #[test]
    fn a_slot_that_is_gone_is_no_matter_of_time() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut watch = Watch::default();
        let mut look = |second: u64, slots: &[&str]| {
            let lost = |slot: &&str| LostSlot { pid: 7, slot: (*slot).to_owned() };
            // It gets on all the time: the target still applies what it was sent before.
            let target = i64::try_from(second).unwrap();
            let catalog =
                Catalog { lost_slots: slots.iter().map(lost).collect(), ..catalog(0, target, "0/1") };
            watch.look(Some(&catalog), at(second));
            watch.stalled(Duration::from_mins(10)).into_iter().next().and_then(|stalled| stalled.lost_slot)
        };
        assert_eq!([look(0, &[]), look(1, &["a"]), look(2, &[]), look(3, &["a"])], [const { None }; 4]);
        assert_eq!(look(4, &["b"]), None, "another one");
        assert_eq!(look(5, &["b"]).as_deref(), Some("b"));
    }

    #[test]
    fn a_move_that_does_not_end_when_it_is_cancelled_is_terminated() {
        let start = Instant::now();
        let mut watch = Watch::default();
        let mut end = |second: u64| {
            let now = start + Duration::from_secs(second);
            watch.look(Some(&catalog(0, 1, "0/1")), now);
            let end = watch.stalled(Duration::ZERO)[0].end;
            if end.is_some() {
                watch.ended(7, now);
            }
            end
        };
        assert_eq!([end(0), end(5), end(29), end(30)], [Some(End::Cancel), None, None, Some(End::Terminate)]);
        assert_eq!([end(31), end(89), end(90)], [None, None, Some(End::Terminate)], "not all the time");
    }

    #[test]
    fn to_follow_what_others_write_is_no_progress() {
        let (start, limit) = (Instant::now(), Duration::from_mins(1));
        let mut watch = Watch::default();
        let mut look = |second: u32, lsn: &str| {
            // The source was at 0/64 when the phase began.
            let source = i64::from(second + 100);
            watch.look(Some(&catalog(source, 3, lsn)), start + Duration::from_secs(second.into()));
            watch.stalled(limit).len()
        };
        assert_eq!([look(0, "0/10"), look(50, "0/40"), look(100, "0/64")], [0, 0, 0], "it catches up");
        assert_eq!(
            [look(130, "0/82"), look(159, "0/9F"), look(160, "0/A0")],
            [0, 0, 1],
            "it waits for something"
        );
        assert_eq!(position(Some("1/A0")), Some((1 << 32) + 160));
        assert_eq!(position(Some("somewhere")), None);
    }

    #[test]
    fn who_could_not_look_does_not_know_that_nothing_happened() {
        let (start, limit) = (Instant::now(), Duration::from_mins(1));
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut watch = Watch::default();
        watch.look(Some(&catalog(0, 1, "0/1")), at(0));
        watch.look(Some(&catalog(5, 1, "0/1")), at(5));
        // For ten minutes nothing can be read, and the move gets on.
        watch.look(None, at(600));
        assert_eq!(watch.stalled(limit), []);
        assert_eq!(watch.longest_idle(), Some(Duration::from_secs(5)));
        watch.look(Some(&catalog(605, 9, "0/1")), at(605));
        assert_eq!(watch.stalled(limit), []);
        // How far it is cannot be said now and then, as while a node is silent.
        let unsaid = Catalog { progress: Vec::new(), ..catalog(605, 9, "0/1") };
        watch.look(Some(&unsaid), at(640));
        watch.look(Some(&catalog(605, 9, "0/1")), at(650));
        watch.look(Some(&unsaid), at(665));
        assert_eq!(watch.stalled(limit).len(), 1);
    }
}
