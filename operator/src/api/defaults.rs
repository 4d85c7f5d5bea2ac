//! The values of what a `DialogCluster` leaves out. The API server writes them into the object, so that what runs can
//! be read there.

use super::WorkersSpec;
use super::{
    Amount, ApiSpec, CoordinatorSpec, PlacementSpec, Reclaim, ResourcesSpec, ShardingSpec, StorageSpec,
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
        Self { shard_count: shard_count(), tables: Vec::new() }
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
