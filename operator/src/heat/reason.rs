//! Why something that should be done is not.

use serde::{Deserialize, Serialize};

/// Why something is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, thiserror::Error)]
pub enum Reason {
    /// [`super::Policy::max_isolated`].
    #[error(
        "as many tenants are isolated as may be: raise maxIsolated, wait until one has been quiet for releaseAfter, or name one \
         that need not be any more in spec.sharding.pins, without a worker"
    )]
    Budget,
    /// [`super::Policy::max_shard_groups`].
    #[error("there are as many shards as may be: every split costs connections and planning time")]
    TooManyShards,
    /// It would be too much for every node, even one that did nothing else, and none is kept free for it, or nobody may move it.
    #[error(
        "it is more than any worker can do: give the workers more CPU, or read from standbys; only to be alone on a dedicated \
         worker (hotTenants.dedicatedWorkers) would keep it from harming others"
    )]
    TooHot,
    /// The same of one that is pinned beside others: it stays there until somebody says otherwise.
    #[error(
        "it is more than any worker can do, and pinned beside others: have spec.sharding.pins name a dedicated worker \
         (hotTenants.dedicatedWorkers) for it that is kept for nobody, in the place of the one that it may name now, give the \
         workers more CPU, or read from standbys"
    )]
    TooHotHere,
    /// The same of one that is pinned where it harms nobody.
    #[error(
        "it is more than any worker can do: give the workers more CPU, or read from standbys; it harms nobody else here"
    )]
    TooHotAlone,
    /// No node can take it besides what it does.
    #[error("no other worker has so much CPU time and room to spare: add a worker")]
    NoHeadroom,
    /// Every node that could take it would be as busy as its own is now.
    #[error("any other worker would be as busy with it as its own is now: add a worker")]
    NothingGained,
    /// All rows of a large shard group have one hash.
    #[error(
        "one tenant fills the shard, which cannot be split: give the workers larger volumes, or delete old rows"
    )]
    Indivisible,
    /// No node can take half of a large shard group.
    #[error("no other worker has room for half of it and CPU time to spare: add a worker, or make room")]
    NoPlaceForHalf,
    /// A shard group is too large, and nobody is harmed before a window opens.
    #[error("it is split when one of spec.sharding.rebalance.windows is open")]
    SplitHeld,
    /// A node has too much to do, and shards are not spread by load.
    #[error(
        "its shards are not spread by load: set spec.sharding.rebalance.strategy to ByLoad, or give the workers more CPU"
    )]
    NotByLoad,
    /// A node has too much to do, and moves that only even out load may not be made now.
    #[error(
        "its shards may not be moved now: see the condition Balanced for what they wait for, or give the workers more CPU"
    )]
    MovesHeld,
    /// A node has too much to do, and no move would change that.
    #[error(
        "no move of its shards would be worth it: give the workers more CPU, or lower spec.sharding.rebalance.threshold"
    )]
    NoMoveHelps,
    /// A node has too much to do, and no other has little.
    #[error("no other worker has CPU time to spare: add a worker, or give the workers more CPU")]
    AllBusy,
    /// Tenants that are pinned to a node are together more than it can do.
    #[error(
        "pin one of them to another worker by spec.sharding.pins, raise hotTenants.dedicatedWorkers, or give the workers more CPU"
    )]
    Crowded,
    /// A pinned tenant may be quiet, and nobody knows.
    #[error(
        "whether it is quiet is not known: it is not among the tenants that its worker counts, which are busy, and the counters of its \
         own shard do not tell, as they began anew, are off (track_counts), or show as much as counts as busy; raise statistics.limit \
         to have it released once it is"
    )]
    Unlisted,
}

impl Reason {
    /// Its name, for programs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Budget => "Budget",
            Self::TooManyShards => "TooManyShards",
            Self::TooHot => "TooHot",
            Self::TooHotHere => "TooHotHere",
            Self::TooHotAlone => "TooHotAlone",
            Self::NoHeadroom => "NoHeadroom",
            Self::NothingGained => "NothingGained",
            Self::Indivisible => "Indivisible",
            Self::NoPlaceForHalf => "NoPlaceForHalf",
            Self::SplitHeld => "SplitHeld",
            Self::NotByLoad => "NotByLoad",
            Self::MovesHeld => "MovesHeld",
            Self::NoMoveHelps => "NoMoveHelps",
            Self::AllBusy => "AllBusy",
            Self::Crowded => "Crowded",
            Self::Unlisted => "Unlisted",
        }
    }
}
