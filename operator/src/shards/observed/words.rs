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

    /// What it does not do, and why, as the rest of a sentence about it.
    #[must_use]
    pub fn what(&self) -> String {
        let Self { seconds, cause, .. } = self;
        match self.kind {
            StallKind::SlotLost => format!("cannot end any more: {cause}"),
            StallKind::DiskFilling => format!("cannot go on: {cause}"),
            _ if self.blocks_writers => format!(
                "has kept all who write to its shard group waiting for {seconds} s, since it waits itself: {cause}"
            ),
            _ => format!("has made no progress for {seconds} s: {cause}"),
        }
    }
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { application, pid, .. } = self;
        let what = self.what();
        write!(f, "{application} (pid {pid} on the coordinator) {what}; it is cancelled and planned again")
    }
}
