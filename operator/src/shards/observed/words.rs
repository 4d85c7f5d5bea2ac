//! What is said of what does not get on.

use std::fmt;

use super::{Stall, StallKind};

impl Stall {
    /// The reason, for programs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self.kind {
            StallKind::Blocked if self.operation().spreads() => "CopyBlocked",
            kind => kind.reason(),
        }
    }
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { application, pid, seconds, blocks_writers, kind, cause, .. } = self;
        write!(f, "{application} (pid {pid} on the coordinator) ")?;
        match kind {
            StallKind::SlotLost => f.write_str("cannot end any more")?,
            StallKind::DiskFilling => f.write_str("cannot go on")?,
            _ if *blocks_writers => write!(
                f,
                "has kept all who write to its shard group waiting for {seconds} s, since it waits itself"
            )?,
            _ => write!(f, "has made no progress for {seconds} s")?,
        }
        write!(f, ": {cause}; it is cancelled and planned again")
    }
}
