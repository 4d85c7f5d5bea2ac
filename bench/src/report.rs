//! What a run found, as JSON and in a few lines for people.

use std::fmt::Write as _;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    audit::{Audit, GroupReport, NodeReport},
    stats::{Second, Summary},
};

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Its id; its messages carry it in their text.
    pub run: Uuid,
    /// When it started.
    pub started_at: Timestamp,
    /// How the load was made.
    pub load: Load,
    /// Sends, without the warm-up.
    pub sends: Summary,
    /// Lists, without the warm-up.
    pub lists: Summary,
    /// Arrivals that found the queue full and were not made, in the whole run.
    pub dropped: u64,
    /// Arrivals that still waited for a connection when the load was stopped, and were not made: no fault of the service.
    pub left: u64,
    /// Share of one processor that the generator itself used, 1 being all of it. A generator short of processors
    /// measures itself.
    pub generator_cpu: f64,
    /// What became of the sends of the whole run; absent if no database was given.
    pub audit: Option<Audit>,
    /// Acknowledgements by shard group.
    pub shard_groups: Vec<GroupReport>,
    /// Latencies of sends by node.
    pub nodes: Vec<NodeReport>,
    /// Second by second.
    pub seconds: Vec<Second>,
}

/// How the load was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Arrivals per second of an open loop; absent for a closed one.
    pub rate: Option<f64>,
    /// Length of the run, in seconds.
    pub duration_s: f64,
    /// The part at its begin that the totals leave out, in seconds.
    pub warmup_s: f64,
    /// Connections.
    pub connections: usize,
    /// Further attempts of a request that failed.
    pub retries: u8,
    /// Share of lists.
    pub lists: f64,
    /// How requests are spread over dialogs.
    pub skew: String,
    /// Users of the population.
    pub users: u64,
    /// Dialogs of the population.
    pub dialogs: u64,
}

impl Report {
    /// Whether the ledger has nothing against the service. A run without an audit has shown nothing.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.audit.as_ref().is_some_and(Audit::is_whole)
    }

    /// The shard group with the longest gap.
    #[must_use]
    pub fn worst_group(&self) -> Option<&GroupReport> {
        self.shard_groups
            .iter()
            .max_by(|one, other| one.gap.longest_gap_ms.total_cmp(&other.gap.longest_gap_ms))
    }

    /// The shard group whose sends have waited longest for an acknowledgement of any of them.
    #[must_use]
    pub fn longest_wait(&self) -> Option<&GroupReport> {
        self.shard_groups
            .iter()
            .max_by(|one, other| one.gap.longest_wait_ms.total_cmp(&other.gap.longest_wait_ms))
    }

    /// A few lines for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (name, summary) in [("sends", &self.sends), ("lists", &self.lists)] {
            if summary.requests > 0 {
                let Summary { succeeded, per_second, after_retry, failed, latency_ms, .. } = summary;
                line(
                    &mut text,
                    name,
                    &format!(
                        "{succeeded} ({per_second:.0}/s), p50 {:.2} ms, p99 {:.2} ms, p999 {:.2} ms, max {:.1} ms",
                        latency_ms.p50, latency_ms.p99, latency_ms.p999, latency_ms.max
                    ),
                );
                let failed: Vec<_> = failed.iter().map(|(code, count)| format!("{code}: {count}")).collect();
                if !failed.is_empty() || *after_retry > 0 {
                    let failed = if failed.is_empty() { "none".to_owned() } else { failed.join(", ") };
                    line(&mut text, "failed", &format!("{failed}; {after_retry} succeeded after a retry"));
                }
            }
        }
        let stopped = if self.left == 0 {
            String::new()
        } else {
            format!(", and {} that still waited when the load was stopped", self.left)
        };
        line(&mut text, "dropped", &format!("{} arrivals found the queue full{stopped}", self.dropped));
        line(&mut text, "generator", &format!("{:.2} processors", self.generator_cpu));
        match &self.audit {
            None => line(&mut text, "ledger", "not compared with the shards: no --database-host was given"),
            Some(audit) => line(&mut text, "ledger", &audit.text()),
        }
        if let Some(group) = self.worst_group() {
            let gap = &group.gap;
            let what = format!(
                "{:.0} ms without an acknowledgement at {:.1} s, shard {} on {}; a send waited through {:.0} ms",
                gap.longest_gap_ms, gap.gap_began_s, group.shard, group.node, gap.longest_wait_ms
            );
            line(&mut text, "longest gap", &what);
        }
        text
    }
}

impl Audit {
    /// Whether nothing is lost, doubled, strange or out of order.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.lost == 0 && self.doubled == 0 && self.strange == 0 && self.out_of_order == 0
    }

    /// One line for people, and one for each example.
    #[must_use]
    pub fn text(&self) -> String {
        let Self { rows, shards, sends, acknowledged, lost, doubled, .. } = self;
        let Self { stored_without_answer, strange, out_of_order, examples, .. } = self;
        let mut text = format!(
            "{sends} sent, {acknowledged} acknowledged, {rows} found in {shards} shards: {lost} lost, {doubled} doubled, \
             {out_of_order} out of order, {strange} strange; {stored_without_answer} stored without an answer"
        );
        for example in examples {
            text += "\n             ";
            text += example;
        }
        text
    }
}

fn line(text: &mut String, name: &str, what: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{name:<12} {what}");
}
