//! The values of what a `DialogCluster` leaves out. The API server writes them into the object, so that what runs can
//! be read there.

use super::{
    Amount, ApiSpec, CoordinatorSpec, ForeignStrategy, HotTenantsMode, HotTenantsSpec, PlacementSpec,
    RebalanceMode, RebalanceSpec, RebalanceStrategy, Reclaim, ResourcesSpec, ShardingSpec, StatisticsSpec,
    StorageSpec, Threshold, WorkersSpec,
};

impl Default for StorageSpec {
    fn default() -> Self {
        Self { size: storage_size(), class_name: None, reclaim: Reclaim::default() }
    }
}

impl Default for CoordinatorSpec {
    fn default() -> Self {
        Self {
            instances: 1,
            storage: StorageSpec::default(),
            resources: ResourcesSpec::default(),
            placement: PlacementSpec::default(),
        }
    }
}

impl Default for WorkersSpec {
    fn default() -> Self {
        Self {
            count: 2,
            instances: 1,
            storage: StorageSpec::default(),
            resources: ResourcesSpec::default(),
            placement: PlacementSpec::default(),
        }
    }
}

impl Default for ShardingSpec {
    fn default() -> Self {
        Self {
            shard_count: shard_count(),
            tables: Vec::new(),
            rebalance: RebalanceSpec::default(),
            hot_tenants: HotTenantsSpec::default(),
            pins: Vec::new(),
            max_shard_size: max_shard_size(),
        }
    }
}

impl Default for RebalanceSpec {
    fn default() -> Self {
        Self {
            mode: RebalanceMode::default(),
            strategy: RebalanceStrategy::default(),
            threshold: threshold(),
            max_parallel_moves: max_parallel_moves(),
            windows: Vec::new(),
            stall_timeout: stall_timeout(),
            foreign_strategy: ForeignStrategy::default(),
        }
    }
}

impl Default for HotTenantsSpec {
    fn default() -> Self {
        Self {
            mode: HotTenantsMode::default(),
            share_percent: share_percent(),
            min_cpu_percent: min_cpu_percent(),
            min_queries: min_queries(),
            consecutive_periods: consecutive_periods(),
            cooldown: cooldown(),
            max_isolated: max_isolated(),
            dedicated_workers: 0,
            release_after: release_after(),
            max_shard_groups: max_shard_groups(),
            statistics: StatisticsSpec::default(),
        }
    }
}

impl Default for StatisticsSpec {
    fn default() -> Self {
        Self { period: statistics_period(), limit: statistics_limit(), sample_rate: sample_rate() }
    }
}

impl Default for ApiSpec {
    fn default() -> Self {
        Self { image: None, replicas: 2, ingress: None, resources: ResourcesSpec::default() }
    }
}

/// Bytes of a volume.
pub(super) fn storage_size() -> Amount {
    Amount::new("10Gi")
}

/// Divisible by 2, 3, 4, 6, 8, 12 and 16 workers.
pub(super) fn shard_count() -> i32 {
    48
}

/// A tenth: what a busy cluster's sizes differ by anyway.
pub(super) fn threshold() -> Threshold {
    Threshold::new("0.1")
}

/// Slow and gentle: people are chatting meanwhile.
pub(super) fn max_parallel_moves() -> i32 {
    1
}

/// Longer than any healthy pause of a move.
pub(super) fn stall_timeout() -> String {
    "10m".to_owned()
}

/// The zone of a window that names none.
pub(super) fn time_zone() -> String {
    "UTC".to_owned()
}

/// A fifth of a worker: one that does as much as all others of its shard together, and more.
pub(super) fn share_percent() -> i32 {
    20
}

/// Whoever waits on a worker with less to do waits for something else.
pub(super) fn min_cpu_percent() -> i32 {
    30
}

/// Fewer in a period do no harm, whatever their share is.
pub(super) fn min_queries() -> i64 {
    100
}

/// Longer than a burst.
pub(super) fn consecutive_periods() -> i32 {
    3
}

/// Long enough for what was done to show.
pub(super) fn cooldown() -> String {
    "1h".to_owned()
}

/// Few enough to be looked at one by one.
pub(super) fn max_isolated() -> i32 {
    8
}

/// A week: who is busy on Mondays stays where it is.
pub(super) fn release_after() -> String {
    "168h".to_owned()
}

/// What Citus plans for without effort.
pub(super) fn max_shard_groups() -> i32 {
    10_000
}

/// As Citus has it.
pub(super) fn statistics_period() -> String {
    "1m".to_owned()
}

/// As Citus has it.
pub(super) fn statistics_limit() -> i32 {
    100
}

/// As Citus has it.
pub(super) fn sample_rate() -> Threshold {
    Threshold::new("1")
}

/// What can be copied in minutes.
pub(super) fn max_shard_size() -> Amount {
    Amount::new("20Gi")
}
