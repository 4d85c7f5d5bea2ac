//! A plan as a table for people.

use std::fmt;

use super::{Cause, Move, MovePlan, Obstacle, Stuck};

impl fmt::Display for MovePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.moves.is_empty() && self.stuck.is_empty() {
            return writeln!(f, "balanced: nothing to move");
        }
        if !self.moves.is_empty() {
            let header =
                ["WAVE", "SHARD", "COLOCATION", "HASHES", "FROM", "TO", "BYTES", "CAUSE"].map(str::to_owned);
            let rows: Vec<[String; 8]> = std::iter::once(header).chain(self.moves.iter().map(row)).collect();
            let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
            let widths: [usize; 8] = std::array::from_fn(width);
            for row in &rows {
                let cells: Vec<String> =
                    row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
                writeln!(f, "{}", cells.join("  ").trim_end())?;
            }
            writeln!(f, "{} moves, {}, plan {}", self.moves.len(), Bytes(self.bytes), self.hash)?;
        }
        for stuck in &self.stuck {
            writeln!(f, "{stuck}")?;
        }
        Ok(())
    }
}

fn row(step: &Move) -> [String; 8] {
    [
        step.wave.to_string(),
        step.shard_id.to_string(),
        step.colocation_id.to_string(),
        format!("{}..{}", step.range.min, step.range.max),
        step.from.to_string(),
        step.to.to_string(),
        Bytes(step.bytes).to_string(),
        step.cause.to_string(),
    ]
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
pub(super) struct Bytes(pub(super) u64);

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
