//! Isolations one after the other while people write, and what these notice of them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use dialog_bench::gaps;
use dialog_bench::ledger::Entry;
use dialog_operator::heat::Action;
use dialog_operator::names::Group;
use dialog_operator::shards::heat::actions::Outcome;
use dialog_operator::shards::rebalance::HashRange;
use dialog_operator::shards::wanted::Wanted;

use crate::isolation::{covering, decide, isolation, outcome};
use crate::operator::Operator;
use crate::sends::{Ledger, Sends};
use crate::world::World;

/// An isolation that is not done after this time hangs.
pub const LIMIT: Duration = Duration::from_mins(1);

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

/// An isolation that was asked for.
#[derive(Clone, Debug)]
pub struct Isolation {
    /// From the decision until nothing is left to do, shards that were spread again included.
    pub stretch: Stretch,
    /// More than one if it was begun anew.
    pub attempts: i32,
    /// Why it counts as hung, if it does.
    pub hung: Option<String>,
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
        let settled = operator.settle(world, wanted, LIMIT).await;
        let stretch = stretch.end(sends);
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
        isolations.push(Isolation { stretch, attempts: act.attempts, hung });
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

/// The longest times that sends waited for an acknowledgement of their shard group.
#[derive(Clone, Copy, Debug, Default)]
pub struct Waits {
    /// Of the dialog that is isolated.
    pub own: Duration,
    /// Of the others of its shard.
    pub beside: Duration,
    /// Of any other shard group.
    pub others: Duration,
}

impl Waits {
    /// In this stretch of time.
    pub fn during(stretch: &Stretch, ledger: &Ledger) -> Self {
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
            let gap = gaps::longest(entries.iter().copied());
            let longest = match place {
                None => &mut all.own,
                Some(place) if place == own => &mut all.beside,
                Some(_) => &mut all.others,
            };
            *longest = Duration::from_secs_f64(gap.longest_wait_ms / 1e3).max(*longest);
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
