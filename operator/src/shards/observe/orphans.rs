//! Finds what moves and splits have left on servers and nobody will take away.
//!
//! Citus notes in `pg_dist_cleanup` what it makes for a move or a split before it makes it, and takes the note away after
//! the object. What has such a name and no note is an orphan: the operator deletes only what is noted, and says what else
//! there is.

use std::collections::BTreeSet;

use crate::names::Group;
use crate::pg::{self, Session};
use crate::shards::observed::{Node, Observed, Orphan, OrphanKind};
use crate::shards::sessions::{Door, Sessions};

/// What there is on a server with a name that Citus gives to what moves and splits need, as a list of
/// text; of many the first ones.
pub(super) const NAMED: &str = "ARRAY (
    SELECT named FROM (
        SELECT 'slot ' || slot_name AS named FROM pg_replication_slots
        WHERE starts_with(slot_name, 'citus_shard_') AND database = current_database()
        UNION ALL SELECT 'subscription ' || subname FROM pg_subscription
        WHERE starts_with(subname, 'citus_shard_')
          AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
        UNION ALL SELECT 'publication ' || pubname FROM pg_publication WHERE starts_with(pubname, 'citus_shard_')
        UNION ALL SELECT 'role ' || rolname FROM pg_roles WHERE starts_with(rolname, 'citus_shard_')) AS all_of_them
    ORDER BY named LIMIT 20)";

/// Tables on this server with the name of a shard of a distributed table that is not placed here. Ids of shards have six
/// digits at least. Of many these are the first ones, too.
const STRAYS: &str = "
    SELECT format('%I.%I', nspname, pg_class.relname)
    FROM pg_dist_partition AS part JOIN pg_class AS whole ON whole.oid = part.logicalrelid
    JOIN pg_namespace ON pg_namespace.oid = whole.relnamespace
    JOIN pg_class ON pg_class.relnamespace = whole.relnamespace AND pg_class.relkind = 'r'
        AND starts_with(pg_class.relname, whole.relname || '_')
    CROSS JOIN LATERAL substr(pg_class.relname, length(whole.relname) + 2) AS number
    CROSS JOIN LATERAL (SELECT CASE WHEN number ~ '^[0-9]{6,18}$' THEN number::int8 END AS id) AS shard
    WHERE part.partmethod = 'h' AND shard.id IS NOT NULL AND NOT EXISTS (
        SELECT FROM pg_dist_placement JOIN pg_dist_shard USING (shardid)
        WHERE pg_dist_shard.logicalrelid = part.logicalrelid AND shardid = shard.id
          AND groupid = (SELECT groupid FROM pg_dist_local_group))
    ORDER BY 1 LIMIT 20";

/// Understands the value of [`NAMED`].
pub(super) fn parse(named: &[String]) -> Vec<Orphan> {
    let orphan = |text: &String| {
        let (kind, name) = text.split_once(' ')?;
        let kind = match kind {
            "slot" => OrphanKind::Slot,
            "subscription" => OrphanKind::Subscription,
            "publication" => OrphanKind::Publication,
            _ => OrphanKind::Role,
        };
        Some(Orphan { kind, name: name.to_owned() })
    };
    named.iter().filter_map(orphan).collect()
}

/// Tables that may be strays.
pub(super) async fn strays(session: &Session) -> Result<Vec<Orphan>, pg::Error> {
    let rows = session.query(STRAYS, &[]).await?;
    Ok(rows.iter().map(|row| Orphan { kind: OrphanKind::Shard, name: row.get(0) }).collect())
}

/// Leaves of what was found only what is an orphan. Nothing more is asked unless something was found.
///
/// What was there before the notes are read, has none, and is still there afterwards, never had one that counts: names are
/// not used again.
pub(super) async fn confirm(sessions: &Sessions, observed: &mut Observed) {
    let found: Vec<Group> = observed
        .nodes
        .iter()
        .filter(|(_, node)| matches!(node, Node::Up(facts) if facts.left_behind().next().is_some()))
        .map(|(group, _)| *group)
        .collect();
    if found.is_empty() {
        return;
    }
    let noted = noted(sessions).await;
    for group in found {
        let Some(Node::Up(facts)) = observed.nodes.get_mut(&group) else { continue };
        // Where nobody can be asked nothing is said.
        let still = match &noted {
            Ok(_) => there(sessions, group, facts.strays.is_some()).await.unwrap_or_default(),
            Err(_) => BTreeSet::new(),
        };
        let is_orphan = |orphan: &Orphan| {
            still.contains(orphan) && noted.as_ref().is_ok_and(|noted| !noted.contains(&orphan.name))
        };
        facts.orphans.retain(is_orphan);
        if let Some(strays) = &mut facts.strays {
            strays.retain(is_orphan);
        }
    }
}

/// What Citus has noted.
async fn noted(sessions: &Sessions) -> Result<BTreeSet<String>, pg::Error> {
    let session = sessions.session(Group::Coordinator, Door::Dialog).await?;
    let rows = session.query("SELECT DISTINCT object_name FROM pg_dist_cleanup", &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// What is on a server now.
async fn there(sessions: &Sessions, group: Group, tables: bool) -> Result<BTreeSet<Orphan>, pg::Error> {
    let session = sessions.session(group, Door::Dialog).await?;
    let named: Vec<String> = session.query_one(&format!("SELECT {NAMED}"), &[]).await?.get(0);
    let mut there: BTreeSet<Orphan> = parse(&named).into_iter().collect();
    if tables {
        there.extend(strays(&session).await?);
    }
    Ok(there)
}
