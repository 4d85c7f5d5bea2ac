//! Why servers stay that nobody has registered any more.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use tokio::time::timeout;

use super::Brief;
use crate::names::Group;
use crate::shards::observe::AT_ONCE;
use crate::shards::observed::Observed;
use crate::shards::retire::{Stay, stays};
use crate::shards::sessions::Sessions;
use crate::shards::world::World;

/// How long they are waited for while something is under way: who does not answer takes seconds.
const BRIEFLY: Duration = Duration::from_secs(1);

/// Asks the servers that are not asked for and not registered why they have to stay, as is done before they are deleted: nobody
/// else looks at them. What `observed` has of one that does not answer in time counts on, and of all while Kubernetes does not answer.
pub(super) async fn staying(
    brief: &Brief<'_>,
    sessions: &Sessions,
    observed: &Observed,
) -> BTreeMap<Group, Stay> {
    let world = World { wanted: brief.wanted, topology: sessions.topology(), observed };
    let Some(catalog) = world.catalog() else { return observed.staying.clone() };
    let leftover = world.leftover_servers();
    if leftover.is_empty() {
        return BTreeMap::new();
    }
    let patience = if catalog.operations.is_empty() { Duration::MAX } else { BRIEFLY };
    let blank = timeout(patience, (brief.blank)()).await.ok().flatten();
    let Some(blank) = blank else { return observed.staying.clone() };
    stream::iter(leftover)
        .map(async |group| {
            let stay = timeout(patience, stays(sessions, group, !blank.contains(&group))).await;
            Some((group, stay.unwrap_or_else(|_elapsed| observed.staying.get(&group).cloned())?))
        })
        .buffer_unordered(AT_ONCE)
        .filter_map(async |stay| stay)
        .collect()
        .await
}
