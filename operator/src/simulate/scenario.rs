//! What a scenario file says.
//!
//! YAML or JSON. Durations are written as people write them (`90s`, `24h`, `150us`), sizes as Kubernetes quantities
//! (`20Gi`). An unknown field is an error.

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;

use crate::api::Amount;
use crate::heat::{Period, Policy, Tenant};

mod check;

pub use check::Invalid;

/// A cluster, its load, and what is to be decided by. Either `synthetic` or `recorded` is given.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Scenario {
    /// What it shows, in a sentence.
    pub description: String,
    /// The policy; what it leaves out has the default of the resource.
    #[serde(default)]
    pub policy: Policy,
    /// Load that is made up.
    pub synthetic: Option<Synthetic>,
    /// Load that was recorded: the periods of a real cluster, in order. An isolated tenant takes its load along; where
    /// shards are spread or split the record cannot tell what would have followed, and goes on as it is.
    pub recorded: Option<Vec<Period>>,
    /// What people call tenants of the recording.
    #[serde(default)]
    pub names: Vec<(Tenant, String)>,
}

/// A made-up cluster and its load.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Synthetic {
    /// Another one is another cluster of the same kind.
    #[serde(default)]
    pub seed: u64,
    /// When it begins.
    #[serde(default = "start")]
    pub start: Timestamp,
    /// How long it goes on.
    pub duration: SignedDuration,
    /// How often the statistics are read.
    #[serde(default = "minute")]
    pub period: SignedDuration,
    /// The workers.
    pub workers: Workers,
    /// The colocation groups; their shard groups begin evenly on the workers that are not dedicated.
    pub tables: Vec<Tables>,
    /// Busy hours and quiet ones.
    pub wave: Option<Wave>,
    /// Load that comes on top.
    #[serde(default)]
    pub surges: Vec<Surge>,
    /// What goes wrong, and what is changed.
    #[serde(default)]
    pub incidents: Vec<Incident>,
}

/// The workers, all alike.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Workers {
    /// How many.
    pub count: u32,
    /// How many of them, the first ones, are dedicated to pinned shards.
    #[serde(default)]
    pub dedicated: u32,
    /// CPUs of each, as a quantity: `8` or `500m`.
    pub cpu: Amount,
    /// Volume of each.
    pub storage: Amount,
    /// Bytes per second at which shards are copied.
    #[serde(default = "copy_rate")]
    pub copy_rate: Amount,
    /// How many tenants the statistics of each list: `citus.stat_tenants_limit`.
    #[serde(default = "tracked")]
    pub tracked: u32,
    /// By how much the load of each wavers from period to period, in percent.
    #[serde(default)]
    pub noise_percent: u32,
}

/// A colocation group and the load that it always has.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Tables {
    /// How the scenario calls it.
    pub name: String,
    /// How many tables have the same shards.
    #[serde(default = "one")]
    pub count: u32,
    /// Shard groups at the beginning.
    pub shard_groups: u32,
    /// Tenants: dialogs, or users.
    pub tenants: u32,
    /// How unequal they are: the tenant of rank r asks for a part in r to the power of this.
    #[serde(default)]
    pub skew: f64,
    /// Queries of all of them together.
    pub queries_per_second: f64,
    /// How many of these write, in percent.
    pub writes_percent: f64,
    /// CPU time of a query.
    pub cpu_per_query: SignedDuration,
    /// What all of it takes at the beginning, indexes included.
    pub size: Amount,
    /// What a write adds.
    #[serde(default = "nothing")]
    pub bytes_per_write: Amount,
}

/// A day's up and down, by a cosine.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Wave {
    /// How far the load goes above and below its average, in percent.
    pub percent: u32,
    /// How long after midnight (UTC) it is highest.
    pub peak: SignedDuration,
}

/// Load on some tenants on top of what they always have.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Surge {
    /// What it is, for the reader.
    pub name: String,
    /// The [`Tables::name`].
    pub tables: String,
    /// How many tenants share it, evenly.
    #[serde(default = "one")]
    pub tenants: u32,
    /// The rank of the first; the others follow. 0 is the busiest.
    #[serde(default)]
    pub first: u32,
    /// Only tenants that begin on this worker.
    pub worker: Option<u32>,
    /// Queries of all of them together.
    pub queries_per_second: f64,
    /// How many of these write, in percent; those of the tables if absent.
    pub writes_percent: Option<f64>,
    /// CPU time of a query; that of the tables if absent.
    pub cpu_per_query: Option<SignedDuration>,
    /// When it begins.
    #[serde(default)]
    pub from: SignedDuration,
    /// For how long; to the end if absent.
    pub lasting: Option<SignedDuration>,
    /// How long it takes to grow from nothing to its height, evenly.
    #[serde(default)]
    pub ramp: SignedDuration,
    /// How often it comes again, from beginning to beginning; once if absent.
    pub every: Option<SignedDuration>,
}

/// Something that happens once.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Incident {
    /// When.
    pub at: SignedDuration,
    /// What.
    pub kind: IncidentKind,
    /// To which worker.
    pub worker: Option<u32>,
    /// For how long it does not answer.
    pub lasting: Option<SignedDuration>,
    /// By how much the clock jumps.
    pub by: Option<SignedDuration>,
    /// What counts from now on.
    pub policy: Option<Policy>,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum IncidentKind {
    /// The statistics of `worker` begin anew.
    StatisticsReset,
    /// `worker` does not answer, `lasting` so long.
    Unreachable,
    /// `worker` is to be emptied; once it is, it leaves.
    Drain,
    /// The clock of the operator jumps `by` so much.
    ClockJump,
    /// Somebody edits the `policy`.
    PolicyEdited,
}

fn start() -> Timestamp {
    Timestamp::constant(1_767_225_600, 0)
}

fn minute() -> SignedDuration {
    SignedDuration::from_mins(1)
}

fn copy_rate() -> Amount {
    Amount::new("100Mi")
}

fn nothing() -> Amount {
    Amount::new("0")
}

fn tracked() -> u32 {
    100
}

fn one() -> u32 {
    1
}
