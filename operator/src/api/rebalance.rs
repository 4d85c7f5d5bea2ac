//! When and how shards are moved, and what is planned.

use std::borrow::Cow;
use std::time::Duration;

use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::defaults;

/// When and how shards are moved between the workers.
#[derive(KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RebalanceSpec {
    /// Who starts a rebalance. Workers that are to leave are emptied in every mode.
    #[serde(default)]
    pub mode: RebalanceMode,
    /// What is to be even.
    #[serde(default)]
    pub strategy: RebalanceStrategy,
    /// How far a worker may be from the average before shards are moved, as a part of the average. With `ByCount` workers
    /// differ by one shard of a colocation group at most, whatever the threshold. Colocation groups with fewer shards than
    /// there are workers count together.
    #[serde(default = "defaults::threshold")]
    pub threshold: Threshold,
    /// Moves at the same time; a worker takes part in one of them at a time.
    #[serde(default = "defaults::max_parallel_moves")]
    #[schemars(range(min = 1, max = 32))]
    pub max_parallel_moves: i32,
    /// When shards may be moved to even out the workers, and split for their size; always if there are none. What has begun is
    /// completed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub windows: Vec<RebalanceWindow>,
    /// How long a move, a split or a copy of a reference table may make no progress before it is cancelled and planned again, for
    /// example `10m`.
    #[serde(default = "defaults::stall_timeout")]
    #[schemars(length(min = 2, max = 16), regex(pattern = "^([0-9]+h)?([0-9]+m)?([0-9]+s)?$"))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('30s') && duration(self) <= duration('24h')")
        .message("sharding.rebalance.stallTimeout: must be between 30s and 24h"))]
    pub stall_timeout: String,
    /// What becomes of a default strategy of Citus' own rebalancer (`citus_rebalance_start()`) that somebody has chosen,
    /// where the operator needs it to go by its own, `dialog_operator`, which leaves pinned shards where they are. What was
    /// replaced is the default again when the operator's goes.
    #[serde(default)]
    pub foreign_strategy: ForeignStrategy,
}

impl RebalanceSpec {
    /// How long a move may make no progress.
    #[must_use]
    pub fn stall_timeout(&self) -> Duration {
        // The schema lets nothing else in.
        duration(&self.stall_timeout).unwrap_or(Duration::from_mins(10))
    }
}

/// Who starts a rebalance.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum RebalanceMode {
    /// The operator, as soon as there is a plan and a window is open.
    #[default]
    Automatic,
    /// Whoever sets the annotation `dialogcluster.io/approve-plan` to the hash of `status.plan`.
    Approve,
    /// Whoever sets the annotation `dialogcluster.io/rebalance`: each new value starts one rebalance.
    Manual,
}

/// What becomes of a default strategy of Citus' rebalancer that somebody has chosen.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum ForeignStrategy {
    /// It stays the default: who rebalances by hand may move pinned shards, which then come back.
    #[default]
    Keep,
    /// It stays there and is not the default any more.
    Replace,
}

/// What is to be even between the workers.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum RebalanceStrategy {
    /// Bytes; a shard counts as 10 MiB more than it has, so that empty ones are spread too.
    #[default]
    BySize,
    /// The number of shards.
    ByCount,
    /// What shards have to do: the CPU time that their worker spends on them, averaged over ten periods of
    /// `hotTenants.statistics`. Needs `hotTenants.mode` to be `Observe` or `Isolate`.
    ByLoad,
}

/// A part of the whole, between 0 and 1, with three digits at most.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(transparent)]
pub struct Threshold(String);

impl Threshold {
    /// A threshold, written as in the resource.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// So many thousandths, as short as it can be written.
    #[must_use]
    pub fn of_thousandths(thousandths: u32) -> Self {
        let text = format!("{}.{:03}", thousandths / 1000, thousandths % 1000);
        Self::new(text.trim_end_matches('0').trim_end_matches('.'))
    }

    /// In thousandths; what is no number is none.
    #[must_use]
    pub fn thousandths(&self) -> u32 {
        let (whole, part) = self.0.split_once('.').unwrap_or((&self.0, ""));
        let digits: String = part.chars().chain("000".chars()).take(3).collect();
        let whole: u32 = whole.parse().unwrap_or(0);
        whole.saturating_mul(1000).saturating_add(digits.parse().unwrap_or(0))
    }
}

impl JsonSchema for Threshold {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Threshold".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 5,
            "pattern": "^(0([.][0-9]{1,3})?|1([.]0{1,3})?)$",
        })
    }
}

/// A time that comes again and again.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RebalanceWindow {
    /// When it opens: minute, hour, day of the month, month and day of the week, as in cron.
    #[schemars(length(min = 9, max = 128), regex(pattern = "^[0-9A-Za-z*,/#-]+( [0-9A-Za-z*,/#-]+){4}$"))]
    pub schedule: String,
    /// How long it stays open, for example `2h`.
    #[schemars(length(min = 2, max = 16), regex(pattern = "^([0-9]+h)?([0-9]+m)?([0-9]+s)?$"))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1m') && duration(self) <= duration('168h')")
        .message("sharding.rebalance.windows: duration must be between 1m and 168h"))]
    pub duration: String,
    /// The zone that the schedule is in, by its name in the IANA time zone database.
    #[serde(default = "defaults::time_zone")]
    #[schemars(length(min = 1, max = 64), regex(pattern = "^[A-Za-z][A-Za-z0-9_+/-]*$"))]
    pub time_zone: String,
}

impl RebalanceWindow {
    /// How long it stays open; `None` if that is no duration.
    #[must_use]
    pub fn length(&self) -> Option<Duration> {
        duration(&self.duration)
    }
}

/// Hours, minutes and seconds, for example `1h30m`.
pub(super) fn duration(text: &str) -> Option<Duration> {
    text.parse::<jiff::SignedDuration>().ok()?.try_into().ok()
}

/// What would make the shards even.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlanStatus {
    /// Names the list of moves as it was made: approve it by this. It is the first 16 hexadecimal digits of the SHA-256 of a
    /// line `SHARD FROM TO` for each move, in order.
    pub hash: String,
    /// How many moves are left to be made, those under way among them.
    pub moves: i64,
    /// Bytes to copy.
    pub bytes: i64,
    /// The groups that the shards are then spread over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100))]
    pub over: Vec<String>,
    /// What is then even: `sharding.rebalance.strategy` as the plan was made. A plan for another one is not carried on with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<RebalanceStrategy>,
    /// How far a worker may then be from the average: `sharding.rebalance.threshold` as the plan was made, the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threshold: Option<Threshold>,
    /// The moves in order, the first 2,000 of them. An operator that is started anew carries on a plan that is shown whole.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2000))]
    pub steps: Vec<PlannedMove>,
}

/// One shard from one node to another, its colocated ones with it.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedMove {
    /// Its place in the plan, counted from 1. It keeps it when others of the plan were made.
    #[serde(default)]
    pub number: i32,
    /// Its id in `pg_dist_shard`: the lowest of those that move together.
    pub shard: i64,
    /// `coordinator`, `worker-0`, …
    pub from: String,
    /// `coordinator`, `worker-0`, …
    pub to: String,
    /// Bytes of all that move together.
    pub bytes: i64,
    /// Moves of one wave can run at the same time.
    pub wave: i32,
    /// `drain`, `pin` or `balance`.
    pub cause: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_read_in_thousandths() {
        for (text, thousandths) in
            [("0", 0), ("0.1", 100), ("0.125", 125), ("0.05", 50), ("1", 1000), ("1.0", 1000)]
        {
            assert_eq!(Threshold::new(text).thousandths(), thousandths, "{text}");
            let shortest = if text == "1.0" { "1" } else { text };
            assert_eq!(Threshold::of_thousandths(thousandths).as_str(), shortest);
        }
    }

    #[test]
    fn durations_are_hours_minutes_and_seconds() {
        for (text, seconds) in [("2h", 7200), ("90m", 5400), ("1h30m", 5400), ("45s", 45), ("168h", 604_800)]
        {
            assert_eq!(duration(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(duration("soon"), None);
    }
}
