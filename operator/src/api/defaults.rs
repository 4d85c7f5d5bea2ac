//! The values of what a `DialogCluster` leaves out. The API server writes them into the object, so that what runs can
//! be read there.

use super::{
    Amount, ApiSpec, CoordinatorSpec, PlacementSpec, RebalanceMode, RebalanceSpec, RebalanceStrategy,
    Reclaim, ResourcesSpec, ShardingSpec, StorageSpec, Threshold, WorkersSpec,
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
        Self { shard_count: shard_count(), tables: Vec::new(), rebalance: RebalanceSpec::default() }
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
        }
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
