//! A plan as it is shown: in the status, and as a table for people.

use std::collections::BTreeMap;
use std::fmt;

use super::{Cause, Layout, Move, MovePlan, Obstacle, Policy, ShardGroup, Spread, Stuck, plan};
use crate::api::{PlanStatus, PlannedMove, Threshold};
use crate::names::Group;

/// Moves that are shown in a status: some 250 kB, of the 1.5 MB that an object may have.
const SHOWN: usize = 2000;

impl MovePlan {
    /// As it is shown in the status; `None` if there is nothing to move.
    #[must_use]
    pub fn status(&self) -> Option<PlanStatus> {
        (!self.moves.is_empty()).then(|| self.shown(SHOWN))
    }

    /// The plan that a status shows, for an operator that did not make it: what is left of it in `layout` is
    /// [`MovePlan::rest`]. `None` if the status does not show all of it, or `layout` has lost one of its shards.
    #[must_use]
    pub fn resumed(shown: &PlanStatus, layout: &Layout, policy: &Policy) -> Option<Self> {
        let groups: BTreeMap<i64, &ShardGroup> =
            layout.groups.iter().map(|group| (group.shard_id, group)).collect();
        let step = |planned: &PlannedMove| {
            let ShardGroup { colocation_id, shard_id, range, bytes, .. } = **groups.get(&planned.shard)?;
            Some(Move {
                number: u32::try_from(planned.number).ok()?,
                colocation_id,
                shard_id,
                range,
                from: Group::parse(&planned.from)?,
                to: Group::parse(&planned.to)?,
                bytes,
                cause: [Cause::Drain, Cause::Pin, Cause::Balance]
                    .into_iter()
                    .find(|cause| cause.to_string() == planned.cause)?,
                wave: u32::try_from(planned.wave).ok()?,
            })
        };
        let whole = i64::try_from(shown.steps.len()).is_ok_and(|steps| steps == shown.moves);
        let moves = shown.steps.iter().map(step).collect::<Option<Vec<Move>>>().filter(|_| whole)?;
        Some(Self {
            bytes: moves.iter().map(|step| step.bytes).fold(0, u64::saturating_add),
            moves,
            hash: shown.hash.clone(),
            stuck: plan(layout, policy).stuck,
            over: shown.over.iter().map(|group| Group::parse(group)).collect::<Option<_>>()?,
            spread: Spread {
                strategy: shown.strategy.map_or(policy.strategy, Into::into),
                threshold: shown.threshold.as_ref().map_or(policy.threshold, Threshold::thousandths),
            },
        })
    }

    fn shown(&self, most: usize) -> PlanStatus {
        PlanStatus {
            hash: self.hash.clone(),
            moves: i64::try_from(self.moves.len()).unwrap_or(i64::MAX),
            bytes: i64::try_from(self.bytes).unwrap_or(i64::MAX),
            over: self.over.iter().map(ToString::to_string).collect(),
            strategy: Some(self.spread.strategy.into()),
            threshold: Some(Threshold::of_thousandths(self.spread.threshold)),
            steps: self.moves.iter().take(most).map(PlannedMove::from).collect(),
        }
    }
}

impl From<&Move> for PlannedMove {
    fn from(step: &Move) -> Self {
        Self {
            number: i32::try_from(step.number).unwrap_or(i32::MAX),
            shard: step.shard_id,
            from: step.from.to_string(),
            to: step.to.to_string(),
            bytes: i64::try_from(step.bytes).unwrap_or(i64::MAX),
            wave: i32::try_from(step.wave).unwrap_or(i32::MAX),
            cause: step.cause.to_string(),
        }
    }
}

impl fmt::Display for PlanStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = ["WAVE", "SHARD", "FROM", "TO", "BYTES", "CAUSE"].map(str::to_owned);
        let rows: Vec<[String; 6]> = std::iter::once(header).chain(self.steps.iter().map(row)).collect();
        let widths: [usize; 6] =
            std::array::from_fn(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or_default());
        for row in &rows {
            let cells: Vec<String> =
                row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            writeln!(f, "{}", cells.join("  ").trim_end())?;
        }
        let shown = i64::try_from(self.steps.len()).unwrap_or(i64::MAX);
        if self.moves > shown {
            writeln!(f, "and {} more", self.moves - shown)?;
        }
        let moves = if self.moves == 1 { "move" } else { "moves" };
        writeln!(f, "{} {moves}, {}, plan {}", self.moves, Bytes(self.bytes.unsigned_abs()), self.hash)
    }
}

fn row(step: &PlannedMove) -> [String; 6] {
    [
        step.wave.to_string(),
        step.shard.to_string(),
        step.from.clone(),
        step.to.clone(),
        Bytes(step.bytes.unsigned_abs()).to_string(),
        step.cause.clone(),
    ]
}

impl fmt::Display for MovePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.moves.is_empty() {
            write!(f, "{}", self.shown(usize::MAX))?;
        }
        self.stuck.iter().try_for_each(|stuck| writeln!(f, "{stuck}"))
    }
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "move shard {} from {} to {} ({})", self.shard_id, self.from, self.to, Bytes(self.bytes))
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Drain => "drain",
            Self::Pin => "pin",
            Self::Balance => "balance",
        })
    }
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shard_id, node, bytes, obstacle, .. } = self;
        write!(f, "shard {shard_id} ({}) cannot leave {node}: ", Bytes(*bytes))?;
        match obstacle {
            Obstacle::NoTarget => {
                f.write_str("no other node may hold it; add a worker, or let one hold shards")
            }
            Obstacle::NoRoom { largest } => write!(
                f,
                "the roomiest node that may hold it can take {}; make room there, or add a worker",
                Bytes(*largest)
            ),
            Obstacle::PinnedTo { node } => {
                write!(f, "it is pinned to {node}, which cannot take it; pin it elsewhere")
            }
        }
    }
}

/// An amount of bytes for people: three digits are enough to compare.
pub(in crate::shards) struct Bytes(pub(in crate::shards) u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut unit = "B";
        let (mut whole, mut tenth) = (self.0, 0);
        for larger in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
            if whole < 1024 {
                break;
            }
            (whole, tenth, unit) = (whole / 1024, whole % 1024 * 10 / 1024, larger);
        }
        if tenth == 0 { write!(f, "{whole} {unit}") } else { write!(f, "{whole}.{tenth} {unit}") }
    }
}
