//! Where the groups of a cluster listen.

use std::collections::BTreeMap;

use crate::api::MOST_WORKERS;
use crate::names::{Group, Names, POSTGRES_PORT};
use crate::pg::Endpoint;

/// The address of every group that there may be: what `pg_dist_node` holds, and where the operator connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    endpoints: BTreeMap<Group, Endpoint>,
}

impl Topology {
    /// The groups' Services, which lead to their primaries.
    #[must_use]
    pub fn of_services(names: &Names) -> Self {
        (0..MOST_WORKERS)
            .map(Group::Worker)
            .chain([Group::Coordinator])
            .map(|group| (group, Endpoint::new(names.host(group), POSTGRES_PORT)))
            .collect()
    }

    /// The address of `group`; `None` beyond the most workers there may be.
    #[must_use]
    pub fn endpoint(&self, group: Group) -> Option<&Endpoint> {
        self.endpoints.get(&group)
    }

    /// The group that listens at `endpoint`, if it is one of the cluster's.
    #[must_use]
    pub fn group(&self, endpoint: &Endpoint) -> Option<Group> {
        self.endpoints.iter().find(|(_, candidate)| *candidate == endpoint).map(|(group, _)| *group)
    }
}

impl FromIterator<(Group, Endpoint)> for Topology {
    fn from_iter<T: IntoIterator<Item = (Group, Endpoint)>>(endpoints: T) -> Self {
        Self { endpoints: endpoints.into_iter().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_found_again_by_its_address() {
        let topology = Topology::of_services(&Names::new("chat", "ns"));
        for group in [Group::Coordinator, Group::Worker(0), Group::Worker(98)] {
            let endpoint = topology.endpoint(group).unwrap();
            assert_eq!(topology.group(endpoint), Some(group));
        }
        assert_eq!(topology.endpoint(Group::Worker(0)).unwrap().to_string(), "chat-worker-0.ns.svc:5432");
        assert_eq!(topology.group(&Endpoint::new("localhost", 5432)), None);
    }
}
