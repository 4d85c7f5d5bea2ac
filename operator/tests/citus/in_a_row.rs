//! Isolations one after the other while people write, and what these notice of them.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use dialog_bench::drive::micros;
use dialog_bench::gaps;
use dialog_bench::ledger::Entry;
use dialog_operator::heat::Action;
use dialog_operator::names::Group;
use dialog_operator::shards::heat::actions::Outcome;
use dialog_operator::shards::jobs::Jobs;
use dialog_operator::shards::rebalance::HashRange;
use dialog_operator::shards::step::Step;
use dialog_operator::shards::wanted::Wanted;
use tokio_util::sync::CancellationToken;

use crate::isolation::{covering, decide, isolation, outcome};
use crate::operator::Operator;
use crate::sends::{Ledger, Sends};
use crate::world::World;

/// An isolation that is not done after this time hangs.
pub const LIMIT: Duration = Duration::from_mins(1);
/// How often it is looked which long step is under way: in this process, which no server notices.
const GLANCE: Duration = Duration::from_millis(5);

/// A stretch of time, in microseconds as in the ledger.
#[derive(Clone, Debug)]
pub struct Stretch {
    pub began: u64,
    pub ended: u64,
    /// The hash of the dialog that is hot.
    hash: i32,
    /// The shard groups at its begin.
    groups: Vec<HashRange>,
}

impl Stretch {
    /// Begins now, while the dialog of this hash is the hot one.
    pub async fn begin(world: &World, sends: &Sends, hash: i32) -> Result<Self> {
        let groups = groups(world).await?;
        let began = sends.now();
        Ok(Self { began, ended: began, hash, groups })
    }

    /// Ends now.
    pub fn end(self, sends: &Sends) -> Self {
        Self { ended: sends.now(), ..self }
    }
}

/// How shards are cut or moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Cut while writers wait.
    Quick,
    /// Cut by logical replication.
    Online,
    /// Moved: once a dialog has its own shard, the others are spread again.
    Move,
}

impl Way {
    /// How `step` cuts or moves, if it does.
    fn of(step: &Step) -> Option<Self> {
        match step {
            Step::SplitShard(split) if split.blocking => Some(Self::Quick),
            Step::SplitShard(_) => Some(Self::Online),
            Step::MoveShard { .. } => Some(Self::Move),
            _ => None,
        }
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Quick => "a quick split",
            Self::Online => "an online split",
            Self::Move => "a move",
        })
    }
}

/// A step that cut or moved shards, and when that was under way, in microseconds as in the ledger.
#[derive(Clone, Debug)]
pub struct Long {
    pub way: Way,
    step: Step,
    began: u64,
    ended: u64,
}

/// The steps that cut or move shards, until `stop`.
async fn long_steps(jobs: &Jobs, sends: &Sends, stop: &CancellationToken) -> Vec<Long> {
    let mut all: Vec<Long> = Vec::new();
    let mut open: Vec<usize> = Vec::new();
    while stop.run_until_cancelled(tokio::time::sleep(GLANCE)).await.is_some() {
        let (under_way, now) = (jobs.under_way(), sends.now());
        open.retain(|place| {
            all[*place].ended = now;
            under_way.contains(&all[*place].step)
        });
        for step in under_way {
            let is_new = !open.iter().any(|place| all[*place].step == step);
            if let Some(way) = Way::of(&step).filter(|_| is_new) {
                open.push(all.len());
                all.push(Long { way, step, began: now, ended: now });
            }
        }
    }
    all
}

/// An isolation that was asked for.
#[derive(Clone, Debug)]
pub struct Isolation {
    /// From the decision until nothing is left to do, shards that were spread again included.
    pub stretch: Stretch,
    /// More than one if it was begun anew.
    pub attempts: i32,
    /// Why it counts as hung, if it does.
    pub hung: Option<String>,
    /// What was cut and moved for it, in order.
    pub long: Vec<Long>,
    /// The phases in which looks saw these, and when.
    phases: Vec<(u64, String)>,
}

impl Isolation {
    /// What was under way for most of a wait, and in which phases that was seen meanwhile, or last before.
    pub fn amid(&self, wait: Wait) -> String {
        let ended = wait.began + micros(wait.lasted);
        let shared = |long: &&Long| long.ended.min(ended).saturating_sub(long.began.max(wait.began));
        let Some(long) = self.long.iter().filter(|long| shared(long) > 0).max_by_key(shared) else {
            return "while nothing was cut or moved".to_owned();
        };
        let seen =
            |from: u64| self.phases.iter().filter(move |(at, _)| (from..=ended.min(long.ended)).contains(at));
        let mut phases: Vec<&str> =
            seen(wait.began.max(long.began)).map(|(_, phase)| phase.as_str()).collect();
        if phases.is_empty() {
            phases.extend(seen(long.began).next_back().map(|(_, phase)| phase.as_str()));
        }
        phases.dedup();
        let phases = if phases.is_empty() { "no phase was seen".to_owned() } else { phases.join(", ") };
        format!("in {} ({phases})", long.way)
    }
}

/// Isolates so many dialogs, each while it is the hot one; every other by the way that large shards go. Ends with one that is not
/// done in time, as there is one at a time.
pub async fn isolate(world: &World, wanted: &Wanted, sends: &Sends, count: u64) -> Result<Vec<Isolation>> {
    let mut isolations = Vec::new();
    let mut operator = Operator::default();
    for number in 0..count {
        let hash = sends.heat(number)?;
        let action = isolation(world, hash).await?;
        let Action::Isolate { to, .. } = action else { bail!("{action:?} is no isolation") };
        let stretch = Stretch::begin(world, sends, hash).await?;
        let id = decide(world, action).await?;
        if number % 2 == 1 {
            let tried =
                format!("UPDATE dialog_operator.actions SET note = 'the quick way failed' WHERE id = {id}");
            world.ask(Group::Coordinator, &tried).await?;
        }
        let (jobs, stop) = (operator.jobs.clone(), CancellationToken::new());
        let settle = async {
            let settled = operator.settle(world, wanted, LIMIT).await;
            stop.cancel();
            settled
        };
        let (settled, long) = futures::join!(settle, long_steps(&jobs, sends, &stop));
        let stretch = stretch.end(sends);
        let seen = std::mem::take(&mut operator.phases);
        let at = |(at, phase): (Instant, String)| (sends.now().saturating_sub(micros(at.elapsed())), phase);
        let phases = seen.into_iter().map(at).collect();
        let act = outcome(&world.round_of(wanted, 0).await?, id).await?;
        let (is_done, is_open) = (act.outcome == Some(Outcome::Done), act.outcome.is_none());
        let hung = match settled {
            Err(error) => Some(format!("isolation {number} was not done within {LIMIT:?}: {error:#}")),
            Ok(()) => (!is_done).then(|| format!("isolation {number}: {act:?}")),
        };
        if is_done {
            let placed = covering(world, hash).await?;
            ensure!(placed.node == to && placed.range == HashRange { min: hash, max: hash }, "{placed:?}");
        }
        isolations.push(Isolation { stretch, attempts: act.attempts, hung, long, phases });
        if is_open {
            break;
        }
    }
    Ok(isolations)
}

/// The shard groups of the dialogs, in the order of their hashes.
async fn groups(world: &World) -> Result<Vec<HashRange>> {
    let ranges = "SELECT shardminvalue::int, shardmaxvalue::int FROM pg_dist_shard
                  WHERE logicalrelid = 'public.messages'::regclass ORDER BY 1";
    let rows = world.ask(Group::Coordinator, ranges).await?;
    Ok(rows.iter().map(|row| HashRange { min: row.get(0), max: row.get(1) }).collect())
}

/// A wait of sends for an acknowledgement of their shard group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wait {
    pub lasted: Duration,
    /// In microseconds as in the ledger.
    began: u64,
}

/// The longest waits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Waits {
    /// Of the dialog that is isolated.
    pub own: Wait,
    /// Of the others of its shard.
    pub beside: Wait,
    /// Of any other shard group.
    pub others: Wait,
}

impl Waits {
    /// In this stretch of time.
    pub fn during(stretch: &Stretch, ledger: &Ledger) -> Self {
        Self::overlapping(stretch, ledger, &(stretch.began..stretch.ended))
    }

    /// Of those in this stretch of time, the longest that were so in a part of which `long` was under way.
    pub fn amid(stretch: &Stretch, long: &Long, ledger: &Ledger) -> Self {
        Self::overlapping(stretch, ledger, &(long.began..long.ended))
    }

    fn overlapping(stretch: &Stretch, ledger: &Ledger, part: &Range<u64>) -> Self {
        let Stretch { hash, groups, .. } = stretch;
        let position = |hash: i32| groups.partition_point(|group| group.max < hash);
        // What belongs to a shard group: but for the dialog itself, which is `None`.
        let mut entries: BTreeMap<Option<usize>, Vec<&Entry>> = BTreeMap::new();
        for entry in ledger.between(stretch.began, stretch.ended) {
            let of = ledger.hash(entry);
            entries.entry((of != *hash).then(|| position(of))).or_default().push(entry);
        }
        let own = position(*hash);
        let mut all = Self::default();
        for (place, entries) in entries {
            let longest = match place {
                None => &mut all.own,
                Some(place) if place == own => &mut all.beside,
                Some(_) => &mut all.others,
            };
            let mut waits = gaps::waits(entries.iter().copied());
            waits.retain(|wait| wait.start < part.end && wait.end > part.start);
            let waits = waits
                .iter()
                .map(|wait| Wait { lasted: Duration::from_micros(wait.end - wait.start), began: wait.start });
            *longest = waits.max().unwrap_or_default().max(*longest);
        }
        all
    }

    /// The longer one of each.
    pub fn max(self, other: Self) -> Self {
        Self {
            own: self.own.max(other.own),
            beside: self.beside.max(other.beside),
            others: self.others.max(other.others),
        }
    }
}
