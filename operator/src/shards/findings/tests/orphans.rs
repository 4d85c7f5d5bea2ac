//! What is said of what nobody takes away.

use super::{facts, say};
use crate::condition::BALANCED;
use crate::names::Group;
use crate::shards::observed::{Observed, Orphan, OrphanKind};

#[test]
fn what_nobody_takes_away_is_named_with_what_does() {
    let orphan = |kind, name: &str| Orphan { kind, name: name.to_owned() };
    let found = |observed: &mut Observed| {
        let facts = facts(observed, Group::Worker(0));
        facts.orphans = vec![
            orphan(OrphanKind::Slot, "citus_shard_split_slot_2_10_7"),
            orphan(OrphanKind::Subscription, "citus_shard_split_subscription_10_7"),
        ];
        facts.strays = Some(vec![orphan(OrphanKind::Shard, "public.messages_102999")]);
        facts.orphans.push(orphan(OrphanKind::Role, "citus_shard_split_subscription_role_10_7"));
    };
    let (status, reason, message) = say(BALANCED, found);
    assert_eq!((status, reason), ("True", "LeftBehind"), "{message}");
    for part in [
        "on worker-0 the replication slot citus_shard_split_slot_2_10_7 (SELECT pg_drop_replication_slot('citus_shard_split_slot_2_10_7'))",
        "SET (slot_name = NONE); DROP SUBSCRIPTION \"citus_shard_split_subscription_10_7\")",
        "; and 1 more",
    ] {
        assert!(message.contains(part), "{part} is not in: {message}");
    }
}
