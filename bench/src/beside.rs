//! What a load meets with beside something else, such as moves of shards, held against the same load before.

use anyhow::{Context as _, Result};

use crate::report::Report;
use crate::table::{Limit, Row};

/// Of all requests: those that failed, also if they succeeded when they were sent again.
const FAILED: Limit = Limit::AtMost(0.0001);
/// Longest time in which sends of a shard group waited and none was acknowledged, in milliseconds.
const WAIT: Limit = Limit::AtMost(500.0);
/// The p99 as a multiple of that before.
pub const P99: Limit = Limit::AtMost(3.0);

/// What became of the messages, of the requests and of each shard group's sends `during` it.
///
/// # Errors
/// When the report has no audit, or no shard group.
#[allow(clippy::cast_precision_loss, reason = "counts of some minutes")]
pub fn met(during: &Report) -> Result<[Row; 3]> {
    let audit = during.audit.as_ref().context("the ledger was not compared with the shards")?;
    let kept = Row::ratio(
        "messages not as acknowledged",
        format!("{} acknowledged, {} lost, {} doubled", audit.acknowledged, audit.lost, audit.doubled),
        (audit.lost + audit.doubled + audit.strange) as f64,
        Limit::AtMost(0.0),
    );
    let requests = during.sends.requests + during.lists.requests;
    let retried = during.sends.after_retry + during.lists.after_retry;
    let failed = requests - during.sends.succeeded - during.lists.succeeded + during.dropped;
    let answered = Row::ratio(
        "share of requests that failed, also those that succeeded when they were sent again",
        format!(
            "{retried} again and {failed} in the end, of {requests}; {} of these found no room in the queue",
            during.dropped
        ),
        (retried + failed) as f64 / requests as f64,
        FAILED,
    );
    let longest = during.longest_wait().context("no shard group")?;
    let waited = Row::ratio(
        "longest wait of a shard group's sends for an acknowledgement, in ms",
        format!(
            "shard {} on {}, {:.1} s after the begin",
            longest.shard, longest.node, longest.gap.gap_began_s
        ),
        longest.gap.longest_wait_ms,
        WAIT,
    );
    Ok([kept, answered, waited])
}

/// How busy the processors were `then`, held against `before`, each a share of the time from 0 to 1: how much there was to share.
/// It ends the figures of a row.
#[must_use]
pub fn busy(before: f64, then: f64) -> String {
    format!("; processors busy {:.0} % of the time against {:.0} %", then * 100.0, before * 100.0)
}

/// The p99 of sends and of lists `then`, held against those `before`; `else_said` ends each row's figures.
#[must_use]
pub fn latency(before: &Report, then: &Report, limit: Limit, else_said: &str) -> [Row; 2] {
    [("sends", &before.sends, &then.sends), ("lists", &before.lists, &then.lists)].map(
        |(what, before, then)| {
            let (old, new) = (before.latency_ms.p99, then.latency_ms.p99);
            Row::ratio(
                format!("p99 of {what} against before"),
                format!("{new:.1} ms against {old:.1} ms, at {:.0} a second{else_said}", then.per_second),
                new / old,
                limit,
            )
        },
    )
}
