//! What is said of many workers: a message is read by people, and names some of them.

use super::{at_rest, catalog, facts, ranges, topology, wanted};
use crate::api::MOST_WORKERS;
use crate::condition::{BALANCED, CITUS_AVAILABLE, METADATA_SYNCED, SCALE_IN_BLOCKED, WAL_LEVEL_LOGICAL};
use crate::names::Group;
use crate::shards::observed::{Citus, Facts, Member, Observed};
use crate::shards::plan::plan;

/// As many workers as there may be, each like the first, with the shards spread over them.
fn all_there() -> Observed {
    let mut observed = at_rest();
    let (worker, topology) = (observed.nodes[&Group::Worker(0)].clone(), topology());
    let first = catalog(&mut observed).members[1].clone();
    for (number, group_id) in (1..MOST_WORKERS).zip(2..) {
        let group = Group::Worker(number);
        observed.nodes.insert(group, worker.clone());
        observed.existing.insert(group);
        let endpoint = topology.endpoint(group).unwrap().clone();
        catalog(&mut observed).members.push(Member {
            endpoint,
            node_id: group_id + 1,
            group_id,
            ..first.clone()
        });
    }
    catalog(&mut observed).placements = (0..48)
        .flat_map(|number| [1, 2].into_iter().flat_map(move |id| ranges(id, number + 1, number..number + 1)))
        .collect();
    observed
}

/// [`all_there`], with something changed on each worker.
fn each(change: fn(&mut Facts)) -> Observed {
    let mut observed = all_there();
    (0..MOST_WORKERS).for_each(|number| change(facts(&mut observed, Group::Worker(number))));
    observed
}

/// [`all_there`], with something changed of each worker in the catalogs.
fn each_member(change: fn(&mut Member)) -> Observed {
    let mut observed = all_there();
    catalog(&mut observed).members[1..].iter_mut().for_each(change);
    observed
}

#[test]
fn a_message_names_three_workers_and_counts_the_others() {
    let differ = |facts: &mut Facts| _ = facts.settings.insert("wal_level".to_owned(), "replica".to_owned());
    let other = |facts: &mut Facts| facts.citus.installed = Some("13.1-1".to_owned());
    let few = |facts: &mut Facts| _ = facts.settings.insert("max_wal_senders".to_owned(), "3".to_owned());
    let mut not_joined = all_there();
    catalog(&mut not_joined).members.truncate(2);
    catalog(&mut not_joined).placements = at_rest().catalog.unwrap().placements;
    let mut not_measured = each(|facts| facts.sizes = None);
    facts(&mut not_measured, Group::Coordinator).sizes = None;
    let cases = vec![
        (BALANCED, MOST_WORKERS, at_rest(), "WorkersMissing"),
        (METADATA_SYNCED, MOST_WORKERS, not_joined, "NotRegistered"),
        (METADATA_SYNCED, MOST_WORKERS, each_member(|member| member.active = false), "NotActive"),
        (METADATA_SYNCED, MOST_WORKERS, each_member(|member| member.synced = false), "OutOfSync"),
        (CITUS_AVAILABLE, MOST_WORKERS, each(|facts| facts.citus = Citus::default()), "NotInImage"),
        (CITUS_AVAILABLE, MOST_WORKERS, each(other), "VersionsDiffer"),
        (CITUS_AVAILABLE, MOST_WORKERS, each(|facts| facts.citus.installed = None), "Preparing"),
        (CITUS_AVAILABLE, MOST_WORKERS, each(few), "SettingsDiffer"),
        (WAL_LEVEL_LOGICAL, MOST_WORKERS, each(differ), "NotLogical"),
        (BALANCED, MOST_WORKERS, not_measured, "NotMeasured"),
        (SCALE_IN_BLOCKED, 0, all_there(), "Draining"),
    ];
    for (kind, workers, observed, reason) in cases {
        let mut wanted = wanted();
        wanted.workers = workers;
        let plan = plan(&wanted, &topology(), &observed);
        let found = plan.findings.into_iter().find(|finding| finding.kind == kind).unwrap();
        assert_eq!(found.reason, reason, "{kind}: {}", found.message);
        let named =
            (0..MOST_WORKERS).rev().filter(|number| found.message.contains(&format!("worker-{number}")));
        let (named, more) = (named.count(), found.message.contains(" more"));
        assert!(named <= 3 && more, "{kind}, {reason}: {named} are named in: {}", found.message);
    }
}
